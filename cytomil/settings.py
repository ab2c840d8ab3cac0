"""Every setting of every stage: one section per verb, the same names and defaults as params.yaml.

A command-line option wins over the environment (``CYTOMIL_PRETRAIN__EPOCHS=20``), which wins over the chosen profile in
params.yaml, which wins over params.yaml's own section, which wins over the defaults below.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)
from pydantic_settings import SettingsError as SourceError

from cytomil.errors import SettingsError
from cytomil.layer import known_layer, known_layers
from cytomil.registry import METHODS, known_method

PARAMS_FILE = Path("params.yaml")
WHERE_WORK_IS_DONE = ("workers", "ray_address")
"""Settings of make-bags that shape nothing of its result."""

_PREFIX = "CYTOMIL_"


class Surgery(StrEnum):
    """How the gradients of two tasks become one update."""

    SUM = "sum"
    PCGRAD = "pcgrad"
    ADAPTIVE = "adaptive"
    PRIORITY = "priority"
    CAGRAD = "cagrad"
    MGDA = "mgda"
    IMTL_G = "imtl-g"


class Rescale(StrEnum):
    """When gradient surgery restores the norm of the plain sum."""

    PAPER = "paper"
    ALWAYS = "always"
    NEVER = "never"


class EngineName(StrEnum):
    """What runs the encoder. ``openvino``, ``ncnn`` and ``tensorrt`` alone mean the fastest stored engine of that library."""

    AUTO = "auto"
    EAGER = "eager"
    OPENVINO = "openvino"
    OPENVINO_FLOAT32 = "openvino-float32"
    OPENVINO_BF16 = "openvino-bf16"
    OPENVINO_INT8 = "openvino-int8"
    NCNN = "ncnn"
    NCNN_FLOAT32 = "ncnn-float32"
    TORCH_COMPILE = "torch-compile"
    TENSORRT = "tensorrt"
    TENSORRT_FP16 = "tensorrt-fp16"
    TENSORRT_FLOAT32 = "tensorrt-float32"


class CompiledEngine(StrEnum):
    """What `cytomil compile` can make."""

    OPENVINO = "openvino"
    NCNN = "ncnn"
    TENSORRT = "tensorrt"
    TORCH_COMPILE = "torch-compile"


class Precision(StrEnum):
    """The numbers a compiled engine computes with."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BF16 = "bf16"
    FP16 = "fp16"
    INT8 = "int8"


class Split(StrEnum):
    """Which bags of the manifest."""

    TRAIN = "train"
    TEST = "test"
    ALL = "all"


class Prototypes(StrEnum):
    """How PAMIL's prototypes start."""

    RANDOM = "random"
    KMEANS = "kmeans"


def _split_names(value: Any) -> Any:
    return tuple(name.strip() for name in value.split(",") if name.strip()) if isinstance(value, str) else value


def _named_weights(value: Any) -> Any:
    # An empty value in YAML, and a path from Python.
    return "none" if value is None else str(value) if isinstance(value, Path) else value


def _a_group_of_turns(n: int) -> int:
    if n not in (1, 2, 4, 8):
        raise ValueError("must be 1, 2, 4 or 8")
    return n


Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split_names)]


class InstanceScore(StrEnum):
    """What an aggregator says of one instance."""

    EVIDENCE = "evidence"
    ATTENTION = "attention"


class Section(BaseModel):
    """A stage's settings; a key it does not know is refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


class MakeBagsSettings(Section):
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
    positive: Names = Field((), description="words of the label column that mean diseased, comma-separated; none: 1")
    negative: Names = Field((), description="words of the label column that mean healthy, comma-separated; none: 0")
    bag_size: int = Field(100, ge=2, description="cells per simulated bag")
    witness_rate: float = Field(0.2, gt=0, le=1, description="share of abnormal cells in a positive bag, 0 to 1")
    train_bags: int = Field(18, ge=0, description="simulated training bags, half of them positive")
    test_bags: int = Field(6, ge=0, description="simulated test bags, half of them positive")
    test_share: float = Field(
        0.25, gt=0, lt=1, description="share of labelled slides for testing, without a split column"
    )
    diameter_um: float = Field(7.0, ge=1, le=200, description="expected diameter of the cells of a whole slide, µm")
    crop_um: float = Field(12.0, ge=1, le=1000, description="side of the crop around each cell of a whole slide, µm")
    crop_px: int = Field(64, ge=8, le=1024, description="side of that crop, pixels")
    mpp: float | None = Field(
        None, gt=0, description="µm per pixel of whole slides whose file gives none, or a wrong one"
    )
    mpp_csv: Path | None = Field(None, description="CSV of slide,mpp; wins over the slides' files")
    cell_size: int = Field(72, ge=16, le=512, description="side of a synthetic cell image, pixels")
    difficulty: float = Field(0.0, ge=0, le=1, description="of the synthetic cells: 0 plain, 1 hardly told apart")
    seed: int = Field(0, ge=0, description="seed of every random choice")
    workers: int = Field(
        0,
        ge=0,
        description="labelled slides read at a time, each by a process; 0: one per core, fewer for small slides",
    )
    ray_address: str = Field(
        "", description="spread slides over Ray: 'local', or a running cluster's HOST:PORT; empty: this machine alone"
    )


class PretrainSettings(Section):
    """The encoder's training."""

    method: Annotated[str, AfterValidator(known_method)] = Field(
        "none", description=f"{', '.join(METHODS)}, or a method that another package brings"
    )
    with_instance_labels: bool = Field(
        False, description="let fully-supervised, the ceiling, read instance labels; no other method may"
    )
    bags: Path = Field(Path("data/bags"), description="folder with bags.csv")
    out: Path = Field(Path("models/encoder"), description="folder for the encoder bundle")
    cells_per_bag: int = Field(
        2000, ge=0, description="cells of each bag that training sees, drawn by seed; 0: all of them"
    )
    epochs: int = Field(10, ge=1, description="passes over the training cells")
    warmup_epochs: float = Field(1, ge=0, description="epochs of linear warm-up before the cosine schedule")
    batch_size: int = Field(64, ge=4, description="cells per step, half from each side")
    learning_rate: float | None = Field(
        None, gt=0, description="peak learning rate of SGD; none: 0.06, or 0.01 where training goes on from weights"
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum of SGD")
    weight_decay: float = Field(1e-4, ge=0, description="weight decay of SGD")
    image_size: int = Field(128, ge=16, le=512, description="side of the encoder's input, pixels")
    center_crop: float = Field(0.8, gt=0, le=1, description="centre share of a cell image's side that is kept")
    arch: str = Field(
        "auto",
        description="resnet18, resnet50, or any name that timm has; auto: that of the named weights, else resnet18",
    )
    weights: Annotated[str, BeforeValidator(_named_weights)] = Field(
        "efficientnet-lite0",
        description="what the encoder starts from: a published name (efficientnet-lite0 to 2, resnet18, resnet50, "
        "dinobloom-s to l, reddino-s to l, timm/NAME), a local file, or none: random weights",
    )
    frozen_stages: int | None = Field(
        None,
        ge=0,
        description="how many of the network's stages stay as they came, the stem with them; none: all but the last two "
        "where training goes on from weights, else 0",
    )
    stem: Literal["auto", "standard", "small"] = Field(
        "auto", description="first layers: ImageNet's, or one for small images; auto: small up to 64 pixels"
    )
    crop_scale: float = Field(0.4, gt=0, le=1, description="least share of a cell's area that a view keeps")
    jitter: float = Field(0.5, ge=0, le=1, description="strength of a view's colour changes")
    projector: Literal["standardised", "plain"] = Field(
        "standardised",
        description="standardised: batch norm after either layer, as SimCLR's; plain: as papers print it",
    )
    projection_dim: int = Field(128, ge=2, description="length of the projection z")
    temperature: float = Field(0.2, gt=0, description="temperature τ of both contrastive losses")
    objective: Literal["stable", "paper"] = Field(
        "stable",
        description="slam-ags's tasks; stable: all cells are contrasted, and that task goes first; paper: positive slides' "
        "cells alone, as printed, which collapses",
    )
    similarity_scale: float | Literal["tau"] | None = Field(
        None,
        description="factor on the similarity loss; none: 0.04, or 1 for --objective paper; 'tau': undoes its 1/τ",
    )
    surgery: Surgery | None = Field(
        None,
        description="how slam-ags makes one update of its two tasks' gradients; none: priority, or adaptive for "
        "--objective paper",
    )
    rescale: Rescale = Field(Rescale.PAPER, description="when adaptive surgery restores the plain sum's norm")
    seed: int = Field(0, ge=0, description="seed of weights, batches and views")
    device: str = Field("auto", description="'auto', 'cpu', 'cuda' or 'cuda:N'")
    precision: Literal["auto", "float32", "bf16", "float16"] = Field(
        "auto",
        description="number format inside the network; auto: bf16 where GPU or processor has it, else float16 on a "
        "GPU (never run on one yet), float32 on a processor",
    )
    compile: bool = Field(
        False, description="train by torch.compile's code: a minute or more to make; needs g++, on a GPU Triton"
    )
    engine: Literal["auto", "none"] = Field(
        "auto",
        description="auto: compile the finished encoder for this processor, as `cytomil compile` does, unless a GPU runs it",
    )
    cache: Literal["ram", "disk"] = Field(
        "ram", description="where decoded cells are kept; disk: a file beside the bundle that the next run uses again"
    )


class CompileSettings(Section):
    """A faster form of the encoder, for this machine."""

    encoder: Path = Field(Path("models/encoder"), description="encoder bundle to compile; the engine is stored in it")
    bags: Path = Field(Path("data/bags"), description="folder with bags.csv; the engine is tried on training cells")
    engine: CompiledEngine = Field(
        CompiledEngine.OPENVINO,
        description="openvino, ncnn: processors; tensorrt: NVIDIA GPUs (never run yet); torch-compile: either",
    )
    precision: Precision = Field(
        Precision.AUTO,
        description="openvino: float32, bf16, int8; tensorrt: fp16, float32; ncnn, torch-compile: float32; auto: openvino's "
        "bf16 where the processor has it, else float32",
    )
    layer: Annotated[str, AfterValidator(known_layers)] = Field(
        "auto", description="layers that the engine gives, as embed's --layer; several with spaces between them"
    )
    cells: int = Field(512, ge=40, description="training cells on which the engine is compared with eager")
    seed: int = Field(0, ge=0, description="seed of the choice of cells")
    device: str = Field("auto", description="'auto', 'cpu', 'cuda' or 'cuda:N'")


class EmbedSettings(Section):
    """From bags to feature caches."""

    bags: Path = Field(Path("data/bags"), description="folder with bags.csv")
    encoder: Path = Field(Path("models/encoder"), description="folder of the encoder bundle")
    out: Path = Field(Path("data/features"), description="folder for the feature caches")
    layer: Annotated[str, AfterValidator(known_layer)] = Field(
        "auto",
        description="h: the encoder's output; z: the projector's; stages:1,2,4:mean,max,spread: what inner stages see; "
        "auto: the encoder's default stages; morphology: those, and nucleus and cytoplasm measured",
    )
    split: Split = Field(Split.ALL, description="which bags to embed")
    orientations: Annotated[int, AfterValidator(_a_group_of_turns)] = Field(
        2, description="turns and mirror images of a cell that its embedding averages; costs as many times the work"
    )
    batch_size: int = Field(256, ge=1, description="cells per forward pass")
    dtype: Literal["float16", "float32"] = Field("float16", description="number format on disk")
    workers: int = Field(0, ge=0, description="threads that decode cells; 0: one per core")
    engine: EngineName = Field(
        EngineName.AUTO,
        description="what runs the encoder; auto: the fastest one that `cytomil compile` stored, else eager",
    )
    device: str = Field("auto", description="'auto', 'cpu', 'cuda' or 'cuda:N'")
    ray_address: str = Field(
        "", description="spread over Ray: 'local', or a running cluster's HOST:PORT; empty: this process alone"
    )


class FitMilSettings(Section):
    """From feature caches to the triage model."""

    features: Path = Field(Path("data/features"), description="folder of feature caches")
    encoder: Path = Field(Path("models/encoder"), description="encoder bundle that made them; copied into the model")
    out: Path = Field(Path("models/triage"), description="folder for the triage model")
    aggregator: str = Field(
        "self-paced",
        description="self-paced, density-ratio, pamil, abmil, dtfd-mil, clam, transmil, mean, max, top-k; "
        "one-class: knn, mahalanobis, ocsvm, gaussian",
    )
    n_prototypes: int = Field(10, ge=1, description="PAMIL's prototypes")
    prototypes: Prototypes = Field(Prototypes.RANDOM, description="how PAMIL's prototypes start")
    prototype_branch: bool = Field(
        False, description="PAMIL: the original's prototypes classify the bag along with attention"
    )
    instance_branch: bool = Field(False, description="PAMIL: the original's pseudo labels of instances train it too")
    epochs: int = Field(60, ge=1, description="most epochs; cross-validation chooses how many of them")
    learning_rate: float = Field(1e-3, gt=0, description="learning rate of Adam")
    weight_decay: float = Field(0.0, ge=0, description="weight decay of Adam")
    cluster_weight: float = Field(0.005, ge=0, description="weight of each of PAMIL's two cluster losses")
    top_share: float = Field(
        0.03,
        gt=0,
        le=1,
        description="share of a bag's cells that top-k, density-ratio, self-paced and one-class scorers pool",
    )
    cells_per_bag: int = Field(
        2000, ge=0, description="cells of each bag that fitting reads, drawn by seed; 0: all of them"
    )
    folds: int = Field(4, ge=2, description="cross-validation folds, by patient where known")
    ensemble: int = Field(3, ge=1, description="models from different seeds, averaged")
    instance_score: InstanceScore = Field(
        InstanceScore.EVIDENCE,
        description="what ranks cells: evidence, the odds of a bag of that cell alone; or attention",
    )
    sensitivity: float = Field(
        0.95, gt=0, le=1, description="share of positive held-out bags kept out of 'low priority'"
    )
    precision: Literal["auto", "float32", "bf16"] = Field(
        "auto",
        description="format of PAMIL's matrix products in fitting; auto: bf16 where the processor has it, else float32",
    )
    workers: int = Field(0, ge=0, description="fits side by side; 0: one per core; the result is the same")
    seed: int = Field(0, ge=0, description="seed of folds, weights and order")


class EvaluateSettings(Section):
    """Figures on bags the model has not seen."""

    features: Path = Field(Path("data/features"), description="folder of feature caches")
    model: Path = Field(Path("models/triage"), description="folder of the triage model")
    bags: Path = Field(Path("data/bags"), description="folder with bags.csv; instance labels are read from here alone")
    out: Path = Field(Path("reports"), description="folder for metrics, predictions and curves")
    split: Split = Field(Split.TEST, description="which bags to evaluate")
    k: int = Field(0, ge=0, description="cells reviewed for Recall@k; 0: 40 % of each bag")
    redraw: int = Field(
        0, ge=0, description="bags redrawn from the measured bags' cells, for bag figures over many; 0: none"
    )
    control: bool = Field(
        False,
        description="also cross-validate over all bags without their witnesses: what is told apart then is people, not cells",
    )
    permutations: int = Field(
        0, ge=0, le=1000, description="with control: keep the witnesses, but permute the labels, so many times"
    )
    sites: Path | None = Field(
        None, description="CSV of patient,site (bags of unknown patient by name): labels are permuted within a site"
    )
    name: str | None = Field(None, description="row of this run in tables; without one, the pretraining method's name")
    table: Names = Field((), description="folders of reports: make tables and figures of them, and evaluate nothing")
    against: str | None = Field("simclr", description="row that --table compares every other one with, run by run")
    resamples: int = Field(2000, ge=100, description="bootstrap resamples behind each interval of --table")
    seed: int = Field(0, ge=0, description="seed of the bootstrap")


class RankSettings(Section):
    """From a folder of slides to a worklist."""

    model: Path = Field(Path("models/triage"), description="folder of the triage model")
    out: Path = Field(Path("triage"), description="folder for triage.csv, triage.json and report.html")
    top: int = Field(24, ge=1, le=500, description="cells shown per slide")
    mpp: float | None = Field(
        None, gt=0, description="µm per pixel of whole slides whose file gives none, or a wrong one"
    )
    mpp_csv: Path | None = Field(None, description="CSV of slide,mpp; wins over the slides' files")
    crop_um: float | None = Field(
        None, ge=1, le=1000, description="side of a crop, µm; only for a model trained on cell images of unknown size"
    )
    diameter_um: float | None = Field(
        None, ge=1, le=200, description="diameter of a cell, µm; only for such a model; 7 where not given"
    )
    cells_csv: bool = Field(False, description="also write every cell's position and score, one CSV a whole slide")
    split_images: bool = Field(False, description="keep the report's pictures in a folder beside it")
    workers: int = Field(0, ge=0, description="threads that look for cells, cut and decode them; 0: one per core")
    batch_size: int = Field(256, ge=1, description="cells per forward pass")
    engine: EngineName = Field(
        EngineName.AUTO,
        description="what runs the encoder; auto: the fastest one that `cytomil compile` stored, else eager",
    )
    device: str = Field("auto", description="'auto', 'cpu', 'cuda' or 'cuda:N'")
    ray_address: str = Field(
        "", description="spread over Ray: 'local', or a running cluster's HOST:PORT; empty: this process alone"
    )


class Settings(BaseSettings):
    """All sections, read from the command line, the environment and params.yaml."""

    model_config = SettingsConfigDict(extra="forbid", env_prefix=_PREFIX, env_nested_delimiter="__", frozen=True)

    profile: str = Field("default", description="a name under 'profiles:' in params.yaml laid over the sections")
    make_bags: MakeBagsSettings = MakeBagsSettings()
    pretrain: PretrainSettings = PretrainSettings()
    compile: CompileSettings = CompileSettings()
    embed: EmbedSettings = EmbedSettings()
    fit_mil: FitMilSettings = FitMilSettings()
    evaluate: EvaluateSettings = EvaluateSettings()
    rank: RankSettings = RankSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what `load` hands over: it has merged the sources already and knows which one to blame."""
        return (init_settings,)


def load(
    options: dict[str, dict[str, Any]] | None = None, params: Path | None = None, profile: str | None = None
) -> Settings:
    """Merge params.yaml, a profile, the environment and ``options`` (section → key → value; None means not given).

    ``params`` is the file to read; None reads ``params.yaml`` in the working folder if there is one. Raises
    `SettingsError` for an unknown key, a value out of range, an unknown profile, or a file that is not YAML.
    """
    file = params or PARAMS_FILE
    document = _read_params(file, required=params is not None)
    environment = _read_environment()
    given = {section: {k: v for k, v in keys.items() if v is not None} for section, keys in (options or {}).items()}
    chosen = str(profile or environment.get("profile") or document.get("profile", "default"))
    profiles = document.pop("profiles", None) or {}
    if chosen != "default" and chosen not in profiles:
        if not file.exists():
            raise SettingsError(f"profile '{chosen}': there is no {file} in this folder. Name one with --params.")
        known = ", ".join(["default", *profiles])
        raise SettingsError(f"profile '{chosen}' is not in {file}; there are: {known}.")
    laid_over = profiles.get(chosen) or {}
    if not isinstance(laid_over, dict):
        raise SettingsError(f"{file}: profile '{chosen}' must hold sections such as 'pretrain:'; it is {laid_over!r}.")
    layers = {
        "command line": given,
        "environment": environment,
        str(file): _merge(document, laid_over),
    }
    merged: dict[str, Any] = {}
    for layer in reversed(layers.values()):
        merged = _merge(merged, layer)
    try:
        return Settings(**(merged | {"profile": chosen}))
    except ValidationError as error:
        raise SettingsError(_one_line(error, layers)) from None


def _read_params(file: Path, required: bool) -> dict[str, Any]:
    if not file.exists() and not required:
        return {}
    try:
        document = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise SettingsError(f"{file} cannot be read ({error.strerror}). Name another with --params.") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise SettingsError(f"{file} is not valid YAML: {str(error)[:300]}") from None
    if not isinstance(document, dict):
        raise SettingsError(f"{file} must hold sections such as 'pretrain:', not a {type(document).__name__}.")
    for name, section in document.items():
        if name != "profile" and section is not None and not isinstance(section, dict):
            raise SettingsError(f"{file}: '{name}' must hold settings as 'key: value' lines; it is {section!r}.")
    return {name: section for name, section in _with_names(document).items() if section is not None}


def _with_names(document: Any) -> Any:
    """The document with every key a string, as YAML's ``5:`` and ``yes:`` are not."""
    if not isinstance(document, dict):
        return document
    return {str(key): _with_names(value) for key, value in document.items()}


def _read_environment() -> dict[str, Any]:
    sections = tuple(Settings.model_fields)
    for name in sorted(name for name in os.environ if name.startswith(_PREFIX)):
        head, *keys = name.removeprefix(_PREFIX).lower().split("__")
        if head not in sections or (head == "profile" and keys):
            raise SettingsError(f"environment variable {name}: no such setting.{_suggestion(head, sections)}")
    try:
        return EnvSettingsSource(Settings)()
    except SourceError as error:
        raise SettingsError(f"environment: {error}") from None


def _merge(low: dict[str, Any], high: dict[str, Any]) -> dict[str, Any]:
    merged = dict(low)
    for key, value in high.items():
        below = merged.get(key)
        merged[key] = _merge(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return merged


def _one_line(error: ValidationError, layers: dict[str, dict[str, Any]]) -> str:
    first = error.errors()[0]
    path = [str(part) for part in first["loc"]]
    blamed = next((name for name, layer in layers.items() if _holds(layer, path)), "settings")
    place = f"{blamed}: {'.'.join(path[:2])}"
    if first["type"] == "extra_forbidden":
        section = Settings.model_fields.get(path[0])
        known = section.annotation.model_fields if section and len(path) > 1 else Settings.model_fields  # type: ignore[union-attr]
        return f"{place} is not a setting of cytomil.{_suggestion(path[-1], known)}"
    message = first["msg"].removeprefix("Value error, ")
    return f"{place}: {message[0].lower()}{message[1:]} (it is {first['input']!r})."


def _holds(layer: Any, path: list[str]) -> bool:
    for part in path[:2]:
        if not isinstance(layer, dict) or part not in layer:
            return False
        layer = layer[part]
    return True


def _suggestion(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(known), n=1)
    return f" Did you mean '{close[0]}'?" if close else f" There are: {', '.join(known)}."
