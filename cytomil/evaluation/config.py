"""How `evaluate` measures a triage model."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from cytomil.config import Config, Names
from cytomil.features.config import Split


class EvaluateConfig(Config):
    """Which bags and figures to evaluate. The model was not fitted on these bags."""

    features: Path = Field(Path("data/features"), description="folder of feature caches")
    model: Path = Field(Path("models/triage"), description="folder of the triage model")
    bags: Path = Field(Path("data/bags"), description="folder with bags.csv; instance labels are read only from here")
    out: Path = Field(Path("reports"), description="folder for metrics, predictions and curves")
    split: Split = Field(Split.TEST, description="which bags to evaluate")
    cells: Path | None = Field(
        None,
        description="labels of cells: CSV of slide, instance_id (or x and y) and verdict, or GeoJSON named after its slide",
    )
    k: int = Field(0, ge=0, description="cells reviewed for Recall@k; 0: 40 % of each bag")
    redraw: int = Field(
        0,
        ge=0,
        description="number of bags resampled from the evaluated cells, for bag metrics over many bags; 0: none",
    )
    control: bool = Field(
        False,
        description="also cross-validate without the witnesses, to find differences between slides other than their witnesses",
    )
    permutations: int = Field(
        0, ge=0, le=1000, description="with control: keep the witnesses and permute the labels this many times"
    )
    sites: Path | None = Field(
        None, description="CSV of patient,site (bags of unknown patient by name): labels are permuted within a site"
    )
    name: str | None = Field(None, description="row of this run in tables; none: the pretraining method's name")
    table: Names = Field((), description="folders of reports: only make tables and figures from them")
    against: str | None = Field("simclr", description="row that --table compares with all others, run by run")
    resamples: int = Field(2000, ge=100, description="bootstrap resamples per interval of --table")
    seed: int = Field(0, ge=0, description="seed of the bootstrap")
