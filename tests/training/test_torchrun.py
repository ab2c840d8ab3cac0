"""Two real processes, gloo between them; and what they owe each other, between two threads of this one."""

import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import nn

from cytomil.bags.config import MakeBagsConfig
from cytomil.bags.make import make_bags
from cytomil.encoders.architecture import resolve_architecture
from cytomil.encoders.bundle import WEIGHTS_NAME, read_card
from cytomil.progress import Silent
from cytomil.training import processes as torchrun
from cytomil.training.processes import OneProcess, SynchronisedBatchNorm, replace_batch_norms
from cytomil.training.training_encoder import TrainingEncoder

METHODS = ("slam-ags", "simclr", "weakly-supervised")
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}
TORCHRUN = [
    sys.executable,
    "-m",
    "torch.distributed.run",
    "--nproc-per-node",
    "2",
    "--master-port",
    "0",
    "--standalone",
]

# In double precision, because single precision is too coarse to tell: at first this network's projections nearly
# coincide, which amplifies rounding so much that one process with one thread or with two ends further apart than 1e-4.
TEN_STEPS = """
import sys
from pathlib import Path
import torch
torch.set_default_dtype(torch.float64)
from cytomil.training.loop import pretrain
from cytomil.training.processes import training_processes
from cytomil.progress import Silent
from cytomil.training.config import PretrainConfig

bags, out, *methods = sys.argv[1:]
with training_processes("cpu") as processes:
    for method in methods:
        settings = PretrainConfig(bags=bags, out=Path(out) / method, method=method, epochs=2, batch_size=21,
            image_size=16, arch="test_resnet", weights="none", projection_dim=8,
            learning_rate=0.01, warmup_epochs=0, precision="float32")
        pretrain(settings, Silent(), processes=processes)
"""


@pytest.fixture(scope="module")
def bags(tmp_path_factory):
    out = tmp_path_factory.mktemp("torchrun") / "bags"
    made = {"bag_size": 16, "train_bags": 6, "test_bags": 0, "cell_size": 24, "witness_rate": 0.25}
    make_bags(MakeBagsConfig(out=out, **made), Silent())
    return out


@pytest.fixture(scope="module")
def trained(bags, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    script = folder / "ten_steps.py"
    script.write_text(TEN_STEPS)
    for name, start in (("one", [sys.executable]), ("two", TORCHRUN)):
        line = [*start, str(script), str(bags), str(folder / name), *METHODS]
        done = subprocess.run(line, capture_output=True, text=True, env=ENVIRONMENT, check=False)
        assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.long
@pytest.mark.parametrize("method", METHODS)
def test_two_processes_end_with_the_weights_of_one_after_ten_steps(trained, method):
    one, two = (load_file(trained / name / method / WEIGHTS_NAME) for name in ("one", "two"))
    assert one.keys() == two.keys()
    assert int(one["backbone.bn1.num_batches_tracked"]) >= 10
    for name, weights in one.items():
        assert float((weights.double() - two[name].double()).abs().max()) < 1e-8, name
    cards = [read_card(trained / name / method) for name in ("one", "two")]
    assert [card.processes for card in cards] == [1, 2]
    assert cards[0].history[-1] == pytest.approx(cards[1].history[-1], rel=1e-6, abs=1e-6)


@pytest.mark.long
def test_an_error_of_both_processes_is_said_once(tmp_path):
    line = [*TORCHRUN, "-m", "cytomil", "pretrain", "--bags", str(tmp_path / "none"), "--out", str(tmp_path / "e")]
    done = subprocess.run(line, capture_output=True, text=True, env=ENVIRONMENT, check=False, cwd=tmp_path)
    assert done.returncode != 0
    assert done.stderr.count("error: ") == 1
    assert "none" in done.stderr.split("error: ")[1].splitlines()[0]


@pytest.mark.long
@pytest.mark.parametrize(
    ("arch", "weights", "image_size"), [("test_resnet", "none", "16"), ("auto", "efficientnet-lite0", "32")]
)
def test_the_command_line_trains_on_two_processes_and_prints_once(bags, tmp_path, arch, weights, image_size):
    options = [
        "--method",
        "slam-ags",
        "--epochs",
        "1",
        "--batch-size",
        "32",
        "--image-size",
        image_size,
        "--arch",
        arch,
        "--weights",
        weights,
        "--engine",
        "none",
        "--projection-dim",
        "8",
    ]
    line = [*TORCHRUN, "-m", "cytomil", "pretrain", "--bags", str(bags), "--out", str(tmp_path / "e"), *options]
    done = subprocess.run(line, capture_output=True, text=True, env=ENVIRONMENT, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("epoch 1/1") == 1
    assert read_card(tmp_path / "e").processes == 2


class TwoThreads:
    """What is used of torch.distributed, between two threads of this process."""

    ReduceOp = dist.ReduceOp

    def __init__(self):
        self._both, self._here, self._parts = threading.Barrier(2, timeout=60), threading.local(), [None, None]

    def be(self, rank):
        """Take the calling thread for this one of the two."""
        self._here.rank = rank

    def get_rank(self):
        return self._here.rank

    def get_world_size(self):
        return 2

    def all_reduce(self, tensor):
        tensor.copy_(sum(self._exchange(tensor)))

    def broadcast(self, tensor, source):
        tensor.copy_(self._exchange(tensor)[source])

    def barrier(self):
        self._both.wait()

    def _exchange(self, tensor):
        self._parts[self.get_rank()] = tensor.detach().clone()
        self._both.wait()
        found = list(self._parts)
        self._both.wait()  # else one might write its next part before the other has read this one
        return found


@pytest.fixture
def two_threads(monkeypatch):
    """``two_threads(work)``: what ``work(processes)`` gives in each of two threads that are processes to it."""
    between = TwoThreads()
    monkeypatch.setattr(torchrun, "dist", between)

    def run(work):
        def be(rank):
            between.be(rank)
            return work(torchrun.TorchrunProcesses(torch.device("cpu")))

        with ThreadPoolExecutor(2) as threads:
            return list(threads.map(be, range(2)))

    return run


@pytest.mark.parametrize("n", [8, 9])
def test_two_halves_of_a_batch_give_the_gradients_and_statistics_of_the_whole(two_threads, n):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.rand(n, 3, 32, 32, generator=generator, dtype=torch.double)
    architecture = resolve_architecture("test_resnet", "auto", 8, 32)
    weights = TrainingEncoder(architecture, torch.float32, OneProcess(torch.device("cpu"))).double().state_dict()

    def step(processes):
        encoder = TrainingEncoder(architecture, torch.float32, processes).double()
        encoder.load_state_dict(weights)
        _, z = encoder.train()(pixels)
        loss = (z @ z.T).softmax(dim=1).square().sum()  # each cell's depends on all others, as contrast does
        found = torch.autograd.grad(loss, list(encoder.parameters()))
        gradients = torch.cat([one.flatten() for one in found])
        processes.all_reduce(gradients)
        return z.detach(), gradients, torch.cat([one.double().flatten() for one in encoder.buffers()])

    whole = step(OneProcess(torch.device("cpu")))
    for half in two_threads(step):
        for expected, got in zip(whole, half, strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-7, atol=1e-9)


def test_what_they_must_agree_on_is_the_first_ones(two_threads):
    def broadcast(processes):
        mine = torch.full((3,), float(processes.index))
        processes.broadcast(mine)
        processes.barrier()
        return mine.tolist(), processes.is_first

    assert two_threads(broadcast) == [([0.0] * 3, True), ([0.0] * 3, False)]


def test_of_processes_that_fail_one_speaks():
    store = dist.HashStore()
    assert [torchrun._is_first_to_fail(store, rank) for rank in (1, 0, 2)] == [True, False, False]


def test_without_torchrun_nothing_distributed_is_started():
    code = (
        "import sys, torch\nfrom cytomil.training.processes import training_processes\nimport cytomil.training.loop\n"
        "with training_processes('cpu') as p: assert p.count == 1\n"
        "assert not torch.distributed.is_initialized()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, env=ENVIRONMENT | {"WORLD_SIZE": "1"})


@pytest.mark.parametrize("shape", [(7, 5, 3, 3), (9, 5)])
def test_shared_batch_norm_of_one_part_is_batch_norm(shape):
    torch.manual_seed(0)
    plain = (nn.BatchNorm2d if len(shape) == 4 else nn.BatchNorm1d)(5).double()
    nn.init.normal_(plain.weight)
    network = nn.Sequential(plain)
    replace_batch_norms(
        network, lambda old: SynchronisedBatchNorm(lambda sums: None, 5, old.eps, old.momentum, old.affine)
    )
    shared, expected = network[0], nn.Sequential(plain)[0]
    assert isinstance(shared, SynchronisedBatchNorm)
    assert shared.weight is expected.weight
    shared.running_mean, shared.running_var = plain.running_mean.clone(), plain.running_var.clone()
    x = torch.randn(shape, dtype=torch.double) * 3 + 2
    results = []
    for norm in (plain, shared):
        leaf = x.clone().requires_grad_()
        plain.weight.grad = plain.bias.grad = None
        (norm(leaf) * torch.linspace(0, 1, x.numel(), dtype=torch.double).view(shape)).sum().backward()
        results.append((norm(x), leaf.grad, plain.weight.grad, plain.bias.grad, norm.running_mean, norm.running_var))
    for expected_one, got in zip(*results, strict=True):
        torch.testing.assert_close(got, expected_one)
    torch.testing.assert_close(shared.eval()(x), plain.eval()(x))
