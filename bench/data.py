"""Real cells for the benches. A bench whose cells are missing is skipped with a message."""

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


def require_cells(folder: Path, content: str = "") -> None:
    """Raise `SkippedError` if ``folder`` or its ``content`` does not exist."""
    if not (folder / content).exists():
        with_content = f" with {content}" if content else ""
        raise SkippedError(
            f"there are no cells in {folder.name}. Give the data folder{with_content} as first argument."
        )


def blood_smear_bags(
    data: Path, out: Path, bag_size: int, train_bags: int, test_bags: int = 0, witness_rate: float = 0.2
) -> Path:
    """Make simulated bags of blood-smear cells in ``out``."""
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
