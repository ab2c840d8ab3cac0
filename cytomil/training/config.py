"""How `pretrain` trains an encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from cytomil.config import Config
from cytomil.registry import METHODS


def _named_weights(value: Any) -> Any:
    # An empty value in YAML, and a path from Python.
    return "none" if value is None else str(value) if isinstance(value, Path) else value


class PretrainConfig(Config):
    """The encoder's training."""

    method: Annotated[str, AfterValidator(METHODS.known)] = Field(
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
    options: dict[str, Any] = Field(
        {},
        description="settings of the method's own, such as slam-ags's objective; `pretrain --method NAME --help` lists them",
    )
    seed: int = Field(0, ge=0, description="seed of weights, batches and views")
    device: str = Field("auto", description="'auto', 'cpu', 'cuda' or 'cuda:N'")
    precision: Literal["auto", "float32", "bf16", "float16"] = Field(
        "auto",
        description="number format inside the network; auto: bf16 where GPU or processor has it, else float16 on a "
        "GPU, float32 on a processor",
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
