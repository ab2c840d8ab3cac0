"""Real cells that the benches read in place; a bench whose cells are not there is skipped, and says so."""

from __future__ import annotations

from pathlib import Path

from bench.tables import SkippedError

DATA = Path(__file__).parents[2] / "shared" / "data"
BLOOD_SMEAR = DATA / "blood-smear"
BONE_MARROW = DATA / "bone-marrow"
PATIENTS = DATA / "patients"
SLIDES = DATA / "slides"
BLOOD_SMEAR_CLASSES = (
    "--normal",
    "neutrophil,eosinophil,lymphocyte,monocyte",
    "--abnormal",
    "ig,erythroblast,basophil",
)
BONE_MARROW_CLASSES = ("--normal", "LYT,NGS,EOS,MON", "--abnormal", "BLA,PMO")


def require_cells(folder: Path, holds: str = "") -> None:
    """Raises `SkippedError` where ``folder``, or what it should hold, is not there."""
    if not (folder / holds).exists():
        told = f" with {holds}" if holds else ""
        raise SkippedError(f"there are no cells in {folder.name}. Name the data folder{told} as the first argument.")


def blood_smear_bags(
    data: Path, out: Path, bag_size: int, train_bags: int, test_bags: int = 0, witness_rate: float = 0.2
) -> Path:
    """Simulated bags of blood-smear cells, made in ``out``."""
    from cytomil.bags.config import MakeBagsConfig
    from cytomil.bags.make import make_bags
    from cytomil.progress import Silent

    settings = MakeBagsConfig(
        source=str(data),
        out=out,
        normal=tuple(BLOOD_SMEAR_CLASSES[1].split(",")),
        abnormal=tuple(BLOOD_SMEAR_CLASSES[3].split(",")),
        bag_size=bag_size,
        train_bags=train_bags,
        test_bags=test_bags,
        witness_rate=witness_rate,
    )
    make_bags(settings, Silent())
    return out
