"""What only a GPU can show, on one: `python -m pytest -m gpu`. Tried on one H100 with PyTorch 2.11."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from cytomil.bags.config import MakeBagsConfig
from cytomil.bags.make import make_bags
from cytomil.encoders.bundle import WEIGHTS_NAME, load_bundle, read_card
from cytomil.encoders.engines import open_engine
from cytomil.encoders.engines.engine import CompiledForm, EagerEngine, start_engine
from cytomil.encoders.engines.registry import load_backend
from cytomil.features.config import EmbedConfig
from cytomil.features.embed import embed
from cytomil.layer import Layer
from cytomil.mil.config import FitMilConfig
from cytomil.mil.fit import fit_mil
from cytomil.progress import Silent
from cytomil.training.config import PretrainConfig
from cytomil.training.loop import pretrain
from cytomil.triage.config import RankConfig
from cytomil.triage.rank import rank

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")]
GPU = "cuda"
TINY = {
    "method": "slam-ags",
    "arch": "resnet18",
    "weights": "none",
    "image_size": 32,
    "epochs": 2,
    "batch_size": 16,
    "device": GPU,
}


@pytest.fixture(scope="module")
def bags(tmp_path_factory):
    out = tmp_path_factory.mktemp("gpu") / "bags"
    made = {"bag_size": 24, "train_bags": 8, "test_bags": 2, "cell_size": 32, "witness_rate": 0.25}
    make_bags(MakeBagsConfig(out=out, **made), Silent())
    return out


@pytest.fixture(scope="module")
def trained(bags, tmp_path_factory):
    """``trained(precision="float32", **changes)``: the folder of an encoder trained on the GPU, made once for each."""
    made = {}

    def train(**changes):
        key = tuple(sorted(changes.items()))
        if key not in made:
            made[key] = tmp_path_factory.mktemp("trained") / "encoder"
            pretrain(PretrainConfig(bags=bags, out=made[key], **(TINY | {"precision": "float32"} | changes)), Silent())
        return made[key]

    return train


def first_losses(folder):
    """What the first epoch's losses were: later ones differ by chance, as rounding grows from step to step."""
    first = read_card(folder).history[0]
    return {name: value for name, value in first.items() if name.startswith("loss_")}


def near(losses):
    """Means over an epoch, in which rounding has grown already; the similarity loss begins near nought."""
    return pytest.approx(losses, rel=0.1, abs=0.03)


def min_cosine(a, b):
    return float(torch.cosine_similarity(torch.as_tensor(a).float(), torch.as_tensor(b).float()).min())


def noise(n, size=32):
    return np.random.default_rng(0).integers(0, 256, (n, size, size, 3), np.uint8)


@pytest.mark.parametrize("layer", ["h", "z", "stages:1,2,3"])
def test_eager_gives_what_it_gives_on_a_processor(trained, layer):
    bundle = load_bundle(trained())
    ours, theirs = (
        open_engine(bundle, Layer.parse(layer), "eager", device, print).embed(noise(70)) for device in (GPU, "cpu")
    )
    assert min_cosine(ours, theirs) > 0.9999


def test_what_torch_compile_makes_agrees_with_eager(trained, tmp_path):
    encoder, layer = load_bundle(trained()).encoder, Layer("h")
    form = CompiledForm("torch-compile", encoder, (layer,), 32, "float32", torch.device(GPU), tmp_path)
    compiled = start_engine(load_backend("torch-compile"), form, layer, "key")
    eager = EagerEngine(encoder, Layer("h"), torch.device(GPU))
    assert min_cosine(compiled.embed(noise(300)), eager.embed(noise(300))) > 0.9999


@pytest.mark.parametrize(("precision", "named"), [("float32", "float32"), ("bf16", "bfloat16"), ("float16", "float16")])
def test_pretraining_in_each_number_format_begins_as_on_a_processor(trained, precision, named):
    folder = trained(precision=precision)
    card = read_card(folder)
    assert card.precision == named
    assert ("skipped_steps" in card.history[0]) == (precision == "float16")
    assert first_losses(folder) == near(first_losses(trained(device="cpu")))


def test_the_same_seed_ends_with_the_same_weights(trained):
    first, second = (load_file(folder / WEIGHTS_NAME) for folder in (trained(), trained(seed=0)))
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_compiled_training_begins_as_training_without_it(trained):
    assert first_losses(trained(compile=True)) == near(first_losses(trained()))


def test_one_process_over_nccl_begins_as_a_process_alone(trained, bags, tmp_path):
    line = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "1", "--standalone", "-m", "cytomil"]
    line += ["pretrain", "--bags", str(bags), "--out", str(tmp_path / "encoder"), "--precision", "float32"]
    for name, value in TINY.items():
        line += [f"--{name.replace('_', '-')}", str(value)]
    here = {"PYTHONPATH": os.pathsep.join([str(Path.cwd()), os.environ.get("PYTHONPATH", "")])}
    done = subprocess.run(line, capture_output=True, text=True, check=False, cwd=tmp_path, env=os.environ | here)
    assert done.returncode == 0, done.stderr[-2000:]
    assert first_losses(tmp_path / "encoder") == near(first_losses(trained()))


def test_the_whole_road_ranks_as_a_processor_does(trained, bags, tmp_path):
    encoder, scores = trained(), {}
    features = {"bags": bags, "encoder": encoder, "layer": "h", "engine": "eager", "out": tmp_path / "features"}
    embed(EmbedConfig(device=GPU, **features), Silent())
    fit_mil(FitMilConfig(features=tmp_path / "features", encoder=encoder, out=tmp_path / "model"), Silent())
    for device in (GPU, "cpu"):
        chosen = {"engine": "eager", "out": tmp_path / f"triage-{device}", "device": device}
        worklist = rank(bags, RankConfig(model=tmp_path / "model", **chosen), Silent())
        assert not any(slide.reason for slide in worklist.slides)
        scores[device] = {slide.slide: slide.probability for slide in worklist.slides}
    assert scores[GPU] == pytest.approx(scores["cpu"], abs=0.01)
