"""Settings of `pretrain`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from cytomil.config import Config
from cytomil.registry import METHODS


def _named_weights(value: Any) -> Any:
    # YAML gives None for an empty value; Python users may pass a path.
    return "none" if value is None else str(value) if isinstance(value, Path) else value


class PretrainConfig(Config):
    """Settings of an encoder's training."""

    method: Annotated[str, AfterValidator(METHODS.known)] = Field(
        "none", description=f"{', '.join(METHODS)}, or a method of another package"
    )
    with_instance_labels: bool = Field(
        False,
        description="allow the method fully-supervised, the upper bound, to read instance labels; other methods never do",
    )
    bags: Path = Field(Path("data/bags"), description="folder with bags.csv")
    out: Path = Field(Path("models/encoder"), description="folder for the encoder bundle")
    cells_per_bag: int = Field(2000, ge=0, description="cells per bag used for training, sampled with the seed; 0: all")
    epochs: int = Field(10, ge=1, description="passes over the training cells")
    warmup_epochs: float = Field(1, ge=0, description="epochs of linear warm-up before the cosine schedule")
    batch_size: int = Field(64, ge=4, description="cells per step, half of them from negative bags")
    learning_rate: float | None = Field(
        None, gt=0, description="peak learning rate of SGD; none: 0.06, or 0.01 when training starts from weights"
    )
    momentum: float = Field(0.9, ge=0, lt=1, description="momentum of SGD")
    weight_decay: float = Field(1e-4, ge=0, description="weight decay of SGD")
    image_size: int = Field(128, ge=16, le=512, description="side of the encoder's input, pixels")
    center_crop: float = Field(
        0.8, gt=0, le=1, description="fraction of a cell image's side that the centre crop keeps"
    )
    arch: str = Field(
        "auto",
        description="resnet18, resnet50, or any name of timm; auto: that of the named weights, else resnet18",
    )
    weights: Annotated[str, BeforeValidator(_named_weights)] = Field(
        "efficientnet-lite0",
        description="initial weights: a published name (efficientnet-lite0 to 2, resnet18, resnet50, "
        "dinobloom-s to l, reddino-s to l, timm/NAME), a local file, or none: random weights",
    )
    frozen_stages: int | None = Field(
        None,
        ge=0,
        description="number of stages that are not trained, the stem included; none: all but the last two "
        "when training starts from weights, else 0",
    )
    stem: Literal["auto", "standard", "small"] = Field(
        "auto", description="first layers: ImageNet's, or one for small images; auto: small up to 64 pixels"
    )
    crop_scale: float = Field(0.4, gt=0, le=1, description="min fraction of a cell's area that a view keeps")
    jitter: float = Field(0.5, ge=0, le=1, description="strength of a view's colour changes")
    projector: Literal["standardised", "plain"] = Field(
        "standardised",
        description="standardised: batch norm after both layers, as in SimCLR; plain: as printed in the papers",
    )
    projection_dim: int = Field(128, ge=2, description="length of the projection z")
    temperature: float = Field(0.2, gt=0, description="temperature τ of both contrastive losses")
    options: dict[str, Any] = Field(
        {},
        description="the method's own settings, such as slam-ags's objective; `pretrain --method NAME --help` lists them",
    )
    seed: int = Field(0, ge=0, description="seed of weights, batches and views")
    device: str = Field("auto", description="'auto', 'cpu', 'cuda' or 'cuda:N'")
    precision: Literal["auto", "float32", "bf16", "float16"] = Field(
        "auto",
        description="number format inside the network; auto: bf16 if the GPU or processor supports it, else float16 on a "
        "GPU, float32 on a processor",
    )
    compile: bool = Field(
        False,
        description="train with torch.compile; compiling takes a minute or more and needs g++, or Triton on a GPU",
    )
    engine: Literal["auto", "none"] = Field(
        "auto",
        description="auto: compile the finished encoder for this processor, as `cytomil compile` does, unless there is a GPU",
    )
    cache: Literal["ram", "disk"] = Field(
        "ram", description="where decoded cells are kept; disk: in a file next to the bundle, reused by the next run"
    )
