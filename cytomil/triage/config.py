"""How `rank` makes a worklist."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from cytomil.config import Config
from cytomil.encoders.engines.registry import EngineName


class RankConfig(Config):
    """From a folder of slides to a worklist."""

    model: Path = Field(Path("models/triage"), description="folder of the triage model")
    out: Path = Field(Path("triage"), description="folder for triage.csv, triage.json and report.html")
    top: int = Field(24, ge=1, le=500, description="cells shown per slide")
    learn: int = Field(
        0, ge=0, le=500, description="further cells per slide, marked as such, whose review teaches the model; 0: none"
    )
    mpp: float | None = Field(
        None, gt=0, description="µm per pixel of whole slides whose file gives no value or a wrong one"
    )
    mpp_csv: Path | None = Field(None, description="CSV of slide,mpp; takes precedence over the slides' files")
    crop_um: float | None = Field(
        None, ge=1, le=1000, description="side of a crop, µm; only for a model trained on cell images of unknown size"
    )
    diameter_um: float | None = Field(
        None, ge=1, le=200, description="diameter of a cell, µm; only for such a model; none: 7"
    )
    cells_csv: bool = Field(
        False, description="also write the position and score of every cell, one CSV per whole slide"
    )
    split_images: bool = Field(False, description="store the report's pictures in a folder beside it")
    summaries: bool = Field(False, description="also write one page to print per slide, into the folder summaries")
    workers: int = Field(0, ge=0, description="threads that find, crop and decode cells; 0: one per core")
    batch_size: int = Field(256, ge=1, description="cells per forward pass")
    second_look: float = Field(
        0.2,
        ge=0,
        le=1,
        description="fraction of a large slide's cells, the most suspicious, embedded in all orientations; 1: all cells",
    )
    engine: EngineName = "auto"
    pseudonymise: Path | None = Field(
        None,
        description="key file: slides appear under pseudonyms only; made if missing, with a table of names beside it",
    )
    patients: Path | None = Field(
        None,
        description="CSV of slide,patient,accession: a patient's slides are shown together, under these identifiers",
    )
    require_signature: Path | None = Field(
        None, description="public key, PEM file: refuse a triage model that is not signed with its private key"
    )
    watch: bool = Field(False, description="go on, and rank slides as they arrive, until Ctrl-C")
    watch_s: float = Field(10, ge=0.1, le=3600, description="seconds between two looks at the folder, with --watch")
    device: str = Field("auto", description="'auto', 'cpu', 'cuda' or 'cuda:N'")
    ray_address: str = Field(
        "", description="distribute over Ray: 'local', or HOST:PORT of a running cluster; empty: no Ray"
    )
