"""How `make-bags` makes bags."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from cytomil.config import Config, Names

EXECUTION_SETTINGS = ("workers", "ray_address")
"""Fields of `MakeBagsConfig` that do not change the result."""


class MakeBagsConfig(Config):
    """Where cells come from and how bags are made of them."""

    source: str = Field("synthetic", description="'synthetic', or a folder of class folders, slide folders or slides")
    out: Path = Field(Path("data/bags"), description="folder for the bag files and bags.csv")
    normal: Names = Field((), description="class folders of normal cells, comma-separated")
    abnormal: Names = Field((), description="class folders of abnormal cells, comma-separated")
    patients: str | None = Field(
        None,
        description="whose cells class folders hold: 'folder' (CLASS/PATIENT/cell.png), or a CSV of image,patient; "
        "a bag then holds one patient's cells",
    )
    labels: Path | None = Field(None, description="CSV of slide,label[,patient][,split][,mpp]; makes one bag per slide")
    positive: Names = Field((), description="words in the label column that mean diseased, comma-separated; none: 1")
    negative: Names = Field((), description="words in the label column that mean healthy, comma-separated; none: 0")
    bag_size: int = Field(100, ge=2, description="cells per simulated bag")
    witness_rate: float = Field(0.2, gt=0, le=1, description="fraction of abnormal cells in a positive bag, 0 to 1")
    train_bags: int = Field(18, ge=0, description="simulated training bags, half of them positive")
    test_bags: int = Field(6, ge=0, description="simulated test bags, half of them positive")
    test_fraction: float = Field(
        0.25, gt=0, lt=1, description="fraction of labelled slides kept for testing, if there is no split column"
    )
    diameter_um: float = Field(7.0, ge=1, le=200, description="expected diameter of the cells of a whole slide, µm")
    crop_um: float = Field(12.0, ge=1, le=1000, description="side of the crop around each cell of a whole slide, µm")
    crop_px: int = Field(64, ge=8, le=1024, description="side of that crop, pixels")
    mpp: float | None = Field(
        None, gt=0, description="µm per pixel of whole slides whose file gives no value or a wrong one"
    )
    mpp_csv: Path | None = Field(None, description="CSV of slide,mpp; takes precedence over the slides' files")
    cell_size: int = Field(72, ge=16, le=512, description="side of a synthetic cell image, pixels")
    difficulty: float = Field(0.0, ge=0, le=1, description="of the synthetic cells: 0 easy, 1 almost indistinguishable")
    seed: int = Field(0, ge=0, description="seed of every random choice")
    workers: int = Field(
        0,
        ge=0,
        description="labelled slides read in parallel, one process each; 0: one per core, fewer for small slides",
    )
    ray_address: str = Field(
        "", description="distribute slides over Ray: 'local', or HOST:PORT of a running cluster; empty: no Ray"
    )
