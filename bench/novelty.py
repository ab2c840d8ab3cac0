"""Slides that the novelty check flags: held-out slides, shifted stain and focus, other specimens.

The model is of bone-marrow cells with an untrained encoder. It is applied to its training slides (each left out), its test
slides, the same with shifted stain or focus, and slides of other specimens: drawn cells, and crops of whole slides.
"""

from __future__ import annotations

import argparse
import io
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bench.data import BONE_MARROW, SLIDES, require_cells
from bench.tables import Measured, Table

if TYPE_CHECKING:
    from PIL.Image import Image

    from cytomil.mil.bags import TrainingBag
    from cytomil.mil.novelty import Novelty

_NORMAL, _ABNORMAL = ("LYT", "NGS", "EOS", "MON"), ("BLA", "PMO")
_STAINS = (0.7, 0.8, 0.9, 1.1, 1.2, 1.3)
_HUES = (1.1, 1.2, 1.4)
_BLURS = (0.005, 0.01, 0.02)
_CELLS = 200


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--bag-size", type=int, default=80, help="cells per bag")
    parser.add_argument("--seed", type=int, default=0)


def measure(options: argparse.Namespace) -> Measured:
    require_cells(BONE_MARROW)
    require_cells(SLIDES)
    from cytomil.bags.bag_file import open_bag
    from cytomil.bags.config import MakeBagsConfig
    from cytomil.bags.make import make_bags
    from cytomil.encoders.bundle import load_bundle
    from cytomil.mil.config import FitMilConfig
    from cytomil.mil.cross_validate import assign_folds
    from cytomil.mil.novelty import fit_novelty
    from cytomil.progress import Silent
    from cytomil.training.config import PretrainConfig
    from cytomil.training.loop import pretrain

    def bags_of(source: str, folder: Path, **classes: tuple[str, ...]) -> list[tuple[int, str, list[bytes]]]:
        chosen = MakeBagsConfig(
            source=source, out=folder, bag_size=options.bag_size, witness_rate=0.1, seed=options.seed, **classes
        )
        made = make_bags(chosen, Silent())
        return [(row.label, row.split, open_bag(folder / row.path).images()) for row in made.rows]

    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        own = bags_of(str(BONE_MARROW), root / "bags", normal=_NORMAL, abnormal=_ABNORMAL)
        untrained = {"method": "none", "arch": "resnet18", "weights": "none", "image_size": 32}
        pretrain(PretrainConfig(bags=root / "bags", out=root / "encoder", seed=options.seed, **untrained), Silent())
        embed = _embedder(load_bundle(root / "encoder"))
        train = [_bag(f"{i}", embed(images), label) for i, (label, split, images) in enumerate(own) if split == "train"]
        test = [images for _, split, images in own if split == "test"]
        settings = FitMilConfig(seed=options.seed)
        novelty = fit_novelty(train, assign_folds(train, settings))
        rows = [
            _row("training slides, each left out", [_left_out(train, i, settings) for i in range(len(train))]),
            _row("test slides", [novelty.measure([embed(images)]) for images in test]),
        ]
        for name, shift in _shifts():
            rows.append(_row(name, [novelty.measure([embed(_shifted(images, shift))]) for images in test]))
        for name, slides in _foreign(root).items():
            rows.append(_row(name, [novelty.measure([embed(images)]) for images in slides]))
    text = (
        f"A model of {len(train)} bone-marrow slides of {options.bag_size} cells with an untrained encoder: the number of "
        "slides flagged as unlike the training slides, and the median of their p-values."
    )
    return Measured({row["slides"]: row for row in rows}, (text, Table.of(*rows)))


def _embedder(bundle: Any) -> Callable[[Sequence[bytes]], np.ndarray]:
    from cytomil.encoders.engines import open_engine
    from cytomil.encoders.stages import layer_of
    from cytomil.features.cells import EncodedCells, feed
    from cytomil.features.embed import Embedder, embed_in_orientations

    layer = layer_of("morphology", bundle.encoder)
    engine = open_engine(bundle, layer.embedded, "eager", "cpu", lambda _: None)
    preparation = Embedder(bundle, engine, layer, "float32", 8).preparation

    def embed(images: Sequence[bytes]) -> np.ndarray:
        names = [str(i) for i in range(len(images))]
        cells = EncodedCells(names, np.full((len(images), 2), -1), list(images))
        blocks = feed([lambda: cells], preparation, len(images))
        parts = [np.hstack([embed_in_orientations(engine.embed, b.pixels, 8), b.morphology]) for b in blocks]
        return np.concatenate(parts).astype(np.float32)

    return embed


def _bag(name: str, values: np.ndarray, label: int) -> TrainingBag:
    import torch

    from cytomil.mil.bags import TrainingBag
    from cytomil.morphology.measure import N_DESCRIPTORS

    groups = (values.shape[1] - N_DESCRIPTORS, N_DESCRIPTORS)
    return TrainingBag(name, torch.from_numpy(values), label, name, groups)


def _left_out(train: Sequence[TrainingBag], i: int, settings: Any) -> Any:
    from cytomil.mil.cross_validate import assign_folds
    from cytomil.mil.novelty import fit_novelty

    rest = [bag for j, bag in enumerate(train) if j != i]
    novelty: Novelty = fit_novelty(rest, assign_folds(rest, settings))
    return novelty.measure([train[i].values.numpy()])


def _row(name: str, judged: Sequence[Any]) -> dict[str, str]:
    p = float(np.median([one.p_value for one in judged]))
    return {
        "slides": name,
        "flagged": f"{sum(one.is_unlike for one in judged)} of {len(judged)}",
        "p, median": "< 0.001" if p < 1e-3 else f"{p:.3f}",
    }


def _shifts() -> list[tuple[str, Callable[[Image], Image]]]:
    stains = [(f"stain × {f:g} in optical density", _stain((f, f, f))) for f in _STAINS]
    hues = [(f"green × {f:g}, blue × {1 / f:.2g} in optical density", _stain((1.0, f, 1 / f))) for f in _HUES]
    return [*stains, *hues, *((f"blurred, σ {100 * s:g} % of a cell image's side", _blur(s)) for s in _BLURS)]


def _stain(factors: tuple[float, float, float]) -> Callable[[Image], Image]:
    from PIL import Image

    def stained(image: Image.Image) -> Image.Image:
        pixels = 255 * (np.maximum(np.asarray(image, float), 1) / 255) ** np.array(factors)
        return Image.fromarray(pixels.round().astype(np.uint8))

    return stained


def _blur(fraction: float) -> Callable[[Image], Image]:
    from PIL import ImageFilter

    return lambda image: image.filter(ImageFilter.GaussianBlur(fraction * image.width))


def _shifted(images: Sequence[bytes], shift: Callable[[Image], Image]) -> list[bytes]:
    from cytomil.bags.images import open_image

    made = []
    for i, encoded in enumerate(images):
        buffer = io.BytesIO()
        shift(open_image(encoded, str(i))).save(buffer, "PNG")
        made.append(buffer.getvalue())
    return made


def _foreign(root: Path) -> dict[str, list[list[bytes]]]:
    from cytomil.bags.bag_file import open_bag
    from cytomil.bags.config import MakeBagsConfig
    from cytomil.bags.make import make_bags
    from cytomil.bags.whole_slides import cut_cells
    from cytomil.progress import Silent
    from cytomil.slides import Cutting, find_cells, open_slide

    made = make_bags(MakeBagsConfig(out=root / "drawn", train_bags=0), Silent())
    found = {"synthetic slides": [open_bag(root / "drawn" / row.path).images() for row in made.rows]}
    cutting = Cutting(12.0, 80)
    for name, files in (("thin blood smears", "smear-*.tif"), ("H&E tissue", "*.svs")):
        found[name] = []
        for file in sorted(SLIDES.glob(files)):
            with open_slide(file, 0.1 if name != "H&E tissue" else None) as slide:
                cells = find_cells(file, cutting.finding, slide.mpp, crop_um=cutting.crop_um).whole
                some = np.linspace(0, len(cells) - 1, min(_CELLS, len(cells))).astype(int)
                found[name].append([one.image for one in cut_cells(slide, cells[some], cutting)])
    return found
