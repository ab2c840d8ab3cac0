"""The commands that the fault runs try: their inputs, their outputs, and what is compared of them."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.forked import Forks
from cytomil.files import SEAL

_BAGS = ("--bag-size", "8", "--witness-rate", "0.3", "--train-bags", "6", "--test-bags", "4", "--cell-size", "24")
_ENCODER = (
    *("--arch", "test_resnet", "--weights", "none", "--image-size", "24", "--engine", "none", "--device", "cpu"),
    *("--precision", "float32", "--method", "slam-ags", "--epochs", "2", "--batch-size", "16", "--projection-dim", "8"),
)
_EMBED = ("--layer", "z", "--orientations", "1", "--device", "cpu", "--engine", "eager", "--workers", "1")
_FIT = ("--ensemble", "1", "--folds", "2", "--workers", "1", "--aggregator", "mahalanobis")
_RANK = ("--device", "cpu", "--engine", "eager", "--workers", "1", "--accept-left-out")
_COMPILE = ("--engine", "openvino", "--precision", "float32", "--layer", "z", "--cells", "48")


# A curve, in which an epoch that a killed run did has no point; and the log to which each run adds its lines.
_LEFT_OUT = ("images_per_second.tsv", "audit.jsonl")


@dataclass(frozen=True)
class Command:
    """One command of the pipeline.

    Args:
        name: its name in the table.
        line: its words.
        former: the words that made the output that it replaces.
        output: the folder or file that it writes, below the working folder.
        is_replaced_whole: whether the output is one, either the former or the new one. Otherwise each file is.
    """

    name: str
    line: tuple[str, ...]
    former: tuple[str, ...]
    output: str
    is_replaced_whole: bool = True


COMMANDS = (
    Command(
        "make-bags",
        ("make-bags", "synthetic", "--out", "out", "--seed", "2", *_BAGS),
        ("make-bags", "synthetic", "--out", "out", "--seed", "1", *_BAGS),
        "out",
    ),
    Command(
        "make-bags --labels",
        ("make-bags", "slides", "--labels", "labels.csv", "--out", "out"),
        ("make-bags", "slides", "--labels", "former.csv", "--out", "out"),
        "out",
    ),
    Command(
        "pretrain",
        ("pretrain", "--bags", "bags", "--out", "out", "--seed", "2", *_ENCODER),
        ("pretrain", "--bags", "bags", "--out", "out", "--seed", "1", *_ENCODER),
        "out",
    ),
    Command(
        "embed",
        ("embed", "--bags", "bags", "--encoder", "encoder", "--out", "out", *_EMBED),
        ("embed", "--bags", "bags", "--encoder", "former-encoder", "--out", "out", *_EMBED),
        "out",
        is_replaced_whole=False,
    ),
    Command(
        "fit-mil",
        ("fit-mil", "--features", "features", "--encoder", "encoder", "--out", "out", "--seed", "2", *_FIT),
        ("fit-mil", "--features", "features", "--encoder", "encoder", "--out", "out", "--seed", "1", *_FIT),
        "out",
    ),
    Command(
        "evaluate",
        ("evaluate", "--features", "features", "--model", "model", "--bags", "bags", "--out", "out"),
        ("evaluate", "--features", "features", "--model", "former-model", "--bags", "bags", "--out", "out"),
        "out",
        is_replaced_whole=False,
    ),
    Command(
        "rank",
        ("rank", "slides", "--model", "model", "--out", "out", *_RANK),
        ("rank", "slides", "--model", "former-model", "--out", "out", *_RANK),
        "out",
        is_replaced_whole=False,
    ),
    Command(
        "feedback",
        ("feedback", "triage", "--out", "out.csv"),
        ("feedback", "former-triage", "--out", "out.csv"),
        "out.csv",
    ),
)
COMPILE = Command(
    "compile",
    ("compile", "--encoder", "encoder", "--bags", "bags", "--seed", "2", *_COMPILE),
    ("compile", "--encoder", "encoder", "--bags", "bags", "--seed", "1", *_COMPILE),
    "encoder/engines",
)
"""Takes some seconds, and measures speeds, which differ from run to run."""


def make_inputs(forks: Forks, root: Path) -> None:
    """Make what the commands read, in ``root``: slides, bags, two encoders, features, two models, two reviews."""
    import numpy as np
    from PIL import Image

    from cytomil.review.log import Action, ReviewLog

    labels = []
    for number in range(8):
        folder = root / "slides" / f"s{number}"
        folder.mkdir(parents=True)
        labels.append(f"s{number},{number % 2},{'train' if number < 6 else 'test'}")
        for cell in range(6):
            pixels = np.random.default_rng([number, cell]).integers(0, 256, (24, 24, 3), np.uint8)
            content = io.BytesIO()
            Image.fromarray(pixels).save(content, "PNG")
            (folder / f"cell-{cell}.png").write_bytes(content.getvalue())
    (root / "labels.csv").write_text("\n".join(["slide,label,split", *labels, ""]))
    (root / "former.csv").write_text("\n".join(["slide,label,split", *labels[:-2], "s6,1,test", "s7,0,test", ""]))

    def made(*line: str) -> None:
        ended = forks.run(line, root)
        if ended.status:
            raise RuntimeError(f"cytomil {' '.join(line)} ended with status {ended.status}: {ended.output}")

    made("make-bags", "synthetic", "--out", "bags", *_BAGS)
    for seed, prefix in ((2, ""), (1, "former-")):
        encoder, model = f"{prefix}encoder", f"{prefix}model"
        made("pretrain", "--bags", "bags", "--out", encoder, "--seed", str(seed), *_ENCODER)
        if not prefix:
            made("embed", "--bags", "bags", "--encoder", encoder, "--out", "features", *_EMBED)
        made("fit-mil", "--features", "features", "--encoder", "encoder", "--out", model, "--seed", str(seed), *_FIT)
        made("rank", "slides", "--model", model, "--out", f"{prefix}triage", *_RANK)
        shown = json.loads((root / f"{prefix}triage" / "triage.json").read_text(encoding="utf-8"))["slides"]
        log = ReviewLog(root / f"{prefix}triage")
        for slide in shown[: 2 + seed]:
            log.append(
                "AB", Action.CELL, slide["slide"], cell=slide["key_instances"][0]["instance_id"], value="abnormal"
            )
    for name in ("cache", "checkpoints", "dvclive"):
        shutil.rmtree(root / name, ignore_errors=True)


def contents(folder: Path) -> dict[str, bytes]:
    """The files below a folder by path, without what varies between equal runs. The path of an empty folder ends with "/"."""
    found = {}
    for one in sorted(folder.rglob("*")):
        name = one.relative_to(folder).as_posix()
        if one.name in _LEFT_OUT:
            continue
        if one.is_file():
            found[name] = _comparable(one)
        elif not any(one.iterdir()):
            found[f"{name}/"] = b""
    return found


def _comparable(file: Path) -> bytes:
    """The content of a file without measured speeds, moments of DVCLive's points, and keys that hold inodes of slides."""
    content = file.read_bytes()
    if file.parent.name == "made-from":
        return json.dumps(_without(json.loads(content), "key", SEAL)).encode()
    if file.suffix == ".tsv" and "dvclive" in file.parts:
        rows = [line.split("\t") for line in content.decode().splitlines()]
        kept = [i for i, name in enumerate(rows[0]) if name != "timestamp"]
        return "\n".join("\t".join(row[i] for i in kept) for row in rows).encode()
    if file.name == "engine.json" or (file.name == "metrics.json" and "dvclive" in file.parts):
        return json.dumps(_without(json.loads(content), "images_per_second", "eager_images_per_second", SEAL)).encode()
    return content


def _without(document: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in document.items() if key not in keys}
