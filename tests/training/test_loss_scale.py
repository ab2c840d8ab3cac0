"""float16 and its scaled losses, on a processor: nothing here is a GPU's own."""

from functools import partial

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from cytomil.bags.config import MakeBagsConfig
from cytomil.bags.make import make_bags
from cytomil.encoders.bundle import WEIGHTS_NAME, read_card
from cytomil.errors import DivergedError
from cytomil.progress import Silent
from cytomil.training.config import PretrainConfig
from cytomil.training.loop import pretrain
from cytomil.training.methods.contrastive import SimCLR
from cytomil.training.processes import OneProcess
from cytomil.training.step import LossScale, Step
from cytomil.training.surgery import adaptive_weights

CPU = torch.device("cpu")
FIRST_SCALE = 2.0**16
TOO_LARGE = 1e35  # times the scale it is no single-precision number


class TwoTasks(nn.Module):
    """Two conflicting losses of one linear layer and of a weight of its own; a batch is (rows, factor)."""

    contrast = ""
    weighting = staticmethod(adaptive_weights)

    def __init__(self):
        super().__init__()
        self.own = nn.Parameter(torch.tensor([0.5, -1.0]))

    def losses(self, encoder, batch):
        rows, factor = batch
        y = encoder(rows)
        return {"a": factor * y.square().mean(), "b": (y @ self.own).mean()}


def a_step(precision, momentum=0.9):
    torch.manual_seed(0)
    encoder = nn.Linear(3, 2)
    return Step(encoder, TwoTasks(), PretrainConfig(momentum=momentum), OneProcess(CPU), precision)


def batches(*factors):
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(4, 3, generator=generator), factor) for factor in factors]


def weights_of(step):
    return torch.cat([step.shared.values.detach(), step.own.values.detach()]).clone()


@pytest.mark.parametrize("momentum", [0.9, 0.0])
def test_steps_by_scaled_losses_are_those_by_plain_ones_to_the_bit(momentum):
    plain, scaled = (a_step(precision, momentum) for precision in (torch.float32, torch.float16))
    for batch in batches(1.0, 0.3, 4.0, 1e-3):
        expected, got = plain(batch, 0.1), scaled(batch, 0.1)
        assert got.pop("skipped_steps") == 0
        assert got == expected
    assert torch.equal(weights_of(scaled), weights_of(plain))
    assert scaled.loss_scale.value() == FIRST_SCALE


@pytest.mark.parametrize("momentum", [0.9, 0.0])
@pytest.mark.parametrize("taken_before", [0, 2])
def test_a_step_with_an_infinite_gradient_changes_nothing_but_halves_the_scale(momentum, taken_before):
    plain, scaled = (a_step(precision, momentum) for precision in (torch.float32, torch.float16))
    *before, bad, after = batches(*[1.0] * taken_before, TOO_LARGE, 1.0)
    for batch in before:
        plain(batch, 0.1)
        scaled(batch, 0.1)
    measured = scaled(bad, 0.1)
    assert measured["skipped_steps"] == 1
    assert measured["gradient_cosine"] == measured["gradient_norm_negative"] == 0
    assert scaled.loss_scale.value() == FIRST_SCALE / 2
    assert torch.equal(weights_of(scaled), weights_of(plain))
    plain(after, 0.1)
    assert scaled(after, 0.1)["skipped_steps"] == 0
    assert torch.equal(weights_of(scaled), weights_of(plain))
    assert torch.isfinite(weights_of(scaled)).all()


def test_the_scale_grows_after_two_thousand_good_steps_and_goes_on_from_its_state():
    weight = nn.Parameter(torch.ones(1))
    optimizer = torch.optim.SGD([weight], lr=0.0, fused=True)

    def take(scale, steps):
        for _ in range(steps):
            weight.grad = torch.autograd.grad(scale.scaled(weight.sum()), weight)[0]
            assert scale.step(optimizer) == 0

    first = LossScale(CPU, torch.float16)
    take(first, 1500)
    second = LossScale(CPU, torch.float16)
    second.load_state_dict(first.state_dict())
    take(second, 499)
    assert second.value() == FIRST_SCALE
    take(second, 1)
    assert second.value() == 2 * FIRST_SCALE


def test_without_float16_nothing_is_scaled_and_nothing_kept():
    scale = LossScale(CPU, torch.bfloat16)
    loss = torch.ones((), requires_grad=True)
    assert scale.scaled(loss) is loss
    assert scale.state_dict() == {}
    assert not scale.is_exhausted()


@pytest.fixture(scope="module")
def bags(tmp_path_factory):
    out = tmp_path_factory.mktemp("float16") / "bags"
    made = {"bag_size": 4, "train_bags": 4, "test_bags": 0, "cell_size": 24, "witness_rate": 0.25}
    make_bags(MakeBagsConfig(out=out, **made), Silent())
    return out


def settings(bags, out, **changed):
    small = {
        "method": "slam-ags",
        "epochs": 3,
        "batch_size": 8,
        "image_size": 16,
        "weights": "none",
        "projection_dim": 16,
        "learning_rate": 0.01,
    }
    return PretrainConfig(**({"precision": "float16", "bags": bags, "out": out} | small | changed))


def trained_weights(out):
    state = load_file(out / WEIGHTS_NAME)
    return torch.cat([state[name].double().flatten() for name in sorted(state) if name.endswith(".weight")])


@pytest.mark.long
def test_float16_ends_near_float32_and_nearer_than_bfloat16(bags, tmp_path, monkeypatch):
    # A scale at which no step is skipped, so that all take the same steps; short ones, since larger ones amplify rounding.
    monkeypatch.setattr(torch.amp, "GradScaler", partial(torch.amp.GradScaler, init_scale=2.0**8))
    ends = {}
    for name in ("start", "float32", "float16", "bf16"):
        standing = {"learning_rate": 1e-13, "precision": "float32"}
        changed = standing if name == "start" else {"learning_rate": 1e-6, "precision": name}
        pretrain(settings(bags, tmp_path / name, epochs=2, **changed), Silent())
        ends[name] = trained_weights(tmp_path / name)
    card = read_card(tmp_path / "float16")
    assert card.precision == "float16"
    assert [record["skipped_steps"] for record in card.history] == [0, 0]
    assert "skipped_steps" not in read_card(tmp_path / "bf16").history[0]
    moved = (ends["float32"] - ends["start"]).norm()
    apart = {name: float((ends[name] - ends["float32"]).norm() / moved) for name in ("float16", "bf16")}
    assert apart["float16"] < min(0.3, apart["bf16"])


def stop_after(epoch):
    def stop(record):
        if record["epoch"] == epoch:
            raise KeyboardInterrupt

    return stop


@pytest.mark.nightly
def test_an_interrupted_run_in_float16_goes_on_with_its_scale(bags, tmp_path):
    # At the first scale gradients overflow, so that each epoch ends with another scale than it began with.
    checkpoints = []
    for name, stops in (("unbroken", (2,)), ("broken", (1, 2))):
        for epoch in stops:
            with pytest.raises(KeyboardInterrupt):
                pretrain(settings(bags, tmp_path / name), Silent(), stop_after(epoch))
        (path,) = (tmp_path / "checkpoints").glob(f"{name}-*.pt")
        checkpoints.append(torch.load(path, weights_only=True))
    unbroken, broken = checkpoints
    assert unbroken["history"][0]["skipped_steps"] > 0
    assert unbroken["loss_scale"]["scale"] < FIRST_SCALE
    for key in ("loss_scale", "history"):
        assert broken[key] == unbroken[key]
    for key in ("model", "optimizer"):
        torch.testing.assert_close(broken[key], unbroken[key], rtol=0, atol=0)


def test_gradients_that_overflow_at_any_scale_end_the_run(bags, tmp_path, monkeypatch):
    honest = SimCLR.losses

    def losses(self, encoder, batch):
        return {name: loss + (0 * loss).sqrt() for name, loss in honest(self, encoder, batch).items()}

    monkeypatch.setattr(SimCLR, "losses", losses)
    monkeypatch.setattr("cytomil.training.step._MIN_SCALE", FIRST_SCALE / 2**4)
    with pytest.raises(DivergedError, match="a gradient became NaN or infinite"):
        pretrain(settings(bags, tmp_path / "e", method="simclr"), Silent())
    assert not (tmp_path / "e").exists()
