"""Features of all cells of a data folder, embedded once with the commands. Benches draw their bags from them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench import child
from cytomil.bags.bag_file import UNKNOWN, BagInfo, Instance, write_bag
from cytomil.bags.manifest import BagRow, write_manifest
from cytomil.features.index import read_index

IMAGES = (".jpg", ".png")


@dataclass(frozen=True)
class Cells:
    """The features of N cells.

    Args:
        values: float32 (N, D).
        folder: (N,), the folder of each cell's image, relative to the data folder.
        groups: the widths of the parts of the features, as in a feature cache.
    """

    values: np.ndarray
    folder: np.ndarray
    groups: tuple[int, ...]


@dataclass(frozen=True)
class Recipe:
    """An encoder and its use.

    Args:
        pretrain: options of `cytomil pretrain`.
        layer: the layer that `cytomil embed` computes.
        orientations: number of orientations in `cytomil embed`.
        trained: whether it is trained on the training bags of each split. Otherwise it sees none of the cells, except the
            mean and spread of their colours if it has random weights.
        precision: precision of the OpenVINO engine; None: eager.
        second_look: fraction of the cells of a test bag that are embedded in all orientations, as in `cytomil rank`.
    """

    pretrain: tuple[str, ...] = ("--method", "none")
    layer: str = "auto"
    orientations: int = 2
    trained: bool = False
    precision: str | None = "float32"
    second_look: float = 1.0


def folder_bags(data: Path, out: Path, leave_out: tuple[str, ...] = ()) -> Path:
    """Write one bag to ``out`` for each folder of images in ``data``, and return ``out``.

    Their labels alternate and have no meaning, but the commands need both.

    Args:
        data: folder with folders of images, at any depth.
        out: folder of the bags, made if it does not exist.
        leave_out: folders directly in ``data`` to leave out.
    """
    out.mkdir(parents=True, exist_ok=True)
    rows: list[BagRow] = []
    for folder in sorted({file.parent for file in data.rglob("*") if file.suffix in IMAGES}):
        name = folder.relative_to(data).as_posix()
        if name.split("/")[0] in leave_out:
            continue
        bag_id, label = name.replace("/", "--"), len(rows) % 2
        files = sorted(file for file in folder.iterdir() if file.suffix in IMAGES)
        cells = [cell(file, UNKNOWN) for file in files]
        info = BagInfo(bag_id, label, patient_id="", source=data.name)
        sha256, n = write_bag(out / f"{bag_id}.h5", info, cells)
        rows.append(BagRow(bag_id, f"{bag_id}.h5", "", "train", label, n, 0.0, sha256))
    write_manifest(out, rows)
    return out


def cell(file: Path, label: int) -> Instance:
    """An image as an instance, named by the hash of its content."""
    image = file.read_bytes()
    name = hashlib.sha256(image).hexdigest()[:16]
    return Instance(name, image, label=label, source=f"{file.parent.name}/{file.name}")


def embed_cells(
    data: Path, work: Path, recipe: Recipe, bags: Path | None = None, leave_out: tuple[str, ...] = ()
) -> Cells:
    """Embed all cells of ``data`` with the commands. Results that exist in ``work`` are reused.

    Args:
        data: see `folder_bags`.
        work: folder for bags, encoder and features.
        recipe: the encoder and its use.
        bags: the training bags of a trained encoder; by default those of the cells.
        leave_out: see `folder_bags`.
    """
    pool = work.parent / f"{data.name}-cells"
    if not (pool / "bags.csv").is_file():
        folder_bags(data, pool, leave_out)
    encoder, features = work / "encoder", work / "features"
    if not (encoder / "encoder.json").is_file():
        child.cytomil("pretrain", "--bags", str(bags or pool), "--out", str(encoder), *recipe.pretrain)
    if not (features / "features.csv").is_file():
        engine = "eager"
        if recipe.precision:
            engine = f"openvino-{recipe.precision}"
            line = ["--bags", str(bags or pool), "--encoder", str(encoder), "--layer", recipe.layer]
            child.cytomil("compile", "--precision", recipe.precision, *line)
        line = ["--layer", recipe.layer, "--orientations", str(recipe.orientations), "--engine", engine]
        child.cytomil("embed", "--bags", str(pool), "--encoder", str(encoder), "--out", str(features), *line)
    return read_cells(features)


def read_cells(features: Path) -> Cells:
    """Read the caches that `embed_cells` made."""
    opened = read_index(features).open("all")
    values = [one.load() for _, one in opened]
    names = np.repeat([row.bag_id.replace("--", "/") for row, _ in opened], [len(one) for one in values])
    return Cells(np.concatenate(values), names, opened[0][1].groups)
