"""From weights' name to a file on this machine whose hash is checked: inside a package, in the cache, or downloaded now."""

from __future__ import annotations

import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import util
from pathlib import Path
from urllib.parse import urlsplit

import platformdirs
import torch

from cytomil.encoders.published import Download, Published, TimmWeights, Wheel
from cytomil.encoders.state_file import read_state
from cytomil.errors import WeightsFileError
from cytomil.files import sha256_of_file, write_text
from cytomil.weights import save_weights

_PATIENCE_S = 30.0


@dataclass(frozen=True)
class Obtained:
    """A local file of published weights. ``hash_from`` says against what its hash was checked."""

    path: Path
    sha256: str
    hash_from: str


def cache_folder() -> Path:
    """Where downloaded weights are kept: cytomil's folder in the user's cache, which XDG_CACHE_HOME moves."""
    return platformdirs.user_cache_path("cytomil", appauthor=False) / "weights"


def obtain(published: Published, note: Callable[[str], None]) -> Obtained:
    """The file of these weights, downloaded if it has to be; ``note`` is told so beforehand.

    The hash is checked on every call: against what is stated by others, and against that of the first download. Raises
    `WeightsFileError` where the file cannot be had or is not the one it should be.
    """
    if isinstance(published.source, Wheel):
        return _from_package(published, published.source)
    kept = cache_folder() / _file_name(published)
    recorded = kept.with_name(f"{kept.name}.sha256")
    if not (kept.is_file() and recorded.is_file()):
        _download(published, kept, recorded, note)
    sha256 = sha256_of_file(kept)
    # As sha256sum writes it, so that it can be checked without cytomil.
    first = recorded.read_text(encoding="utf-8").partition(" ")[0]
    if sha256 != first or not sha256.startswith(published.sha256):
        raise WeightsFileError(f"{kept} is damaged or exchanged: its SHA-256 is {sha256}. Delete it, and run again.")
    if not published.sha256:
        return Obtained(kept, sha256, "recorded at the first download; nobody states it")
    extent = "" if len(published.sha256) == 64 else f"its first {len(published.sha256)} digits, "
    return Obtained(kept, sha256, f"{extent}stated by {published.hash_from}")


def _from_package(published: Published, wheel: Wheel) -> Obtained:
    # Found without importing the package, whose code has nothing to do here.
    spec = util.find_spec(wheel.package)
    places = list(spec.submodule_search_locations or ()) if spec else []
    path = Path(places[0]) / wheel.path if places else None
    if path is None or not path.is_file():
        package = f"'cytomil[{wheel.extra}]'" if wheel.extra else wheel.distribution
        raise WeightsFileError(
            f"weights {published.name} lie in {wheel}, which is not installed. Run: pip install {package}"
        )
    sha256 = sha256_of_file(path)
    if sha256 != published.sha256:
        raise WeightsFileError(
            f"{path} is not the file of {published.name} that is known here: its SHA-256 is {sha256}. Install "
            f"{wheel.distribution} 0.1.0 again."
        )
    return Obtained(path, sha256, f"stated by {published.hash_from}")


def _file_name(published: Published) -> str:
    if isinstance(published.source, Download):
        return f"{published.name}-{Path(urlsplit(published.source.url).path).name}"
    assert isinstance(published.source, TimmWeights)
    return f"timm-{published.source.name}.safetensors"


def _download(published: Published, kept: Path, recorded: Path, note: Callable[[str], None]) -> None:
    size = f" ({published.megabytes} MB)" if published.megabytes else ""
    note(f"downloading weights {published.name}{size}, {published.source}, into {kept.parent}")
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".partial-", dir=kept.parent) as scratch, _impatient():
            partial = Path(scratch) / kept.name
            if isinstance(published.source, Download):
                torch.hub.download_url_to_file(
                    published.source.url, str(partial), hash_prefix=published.sha256 or None, progress=False
                )
            elif isinstance(published.source, TimmWeights):
                _save_what_timm_downloads(published.source.name, partial, Path(scratch))
            # What was cut off on the way, or is a page that says no, is never kept.
            read_state(partial)
            sha256 = sha256_of_file(partial)
            shutil.move(partial, kept)
    # torch.hub raises urllib's and RuntimeError for another hash, timm and the hub theirs, of many kinds.
    except Exception as error:
        said = str(error).strip().splitlines() or [type(error).__name__]
        unreadable = isinstance(error, WeightsFileError)
        reason = "what came cannot be read as weights: cut off, or a web page" if unreadable else said[0][:200]
        raise WeightsFileError(
            f"weights {published.name} could not be downloaded ({reason}). They are {published.source}; fetch the file on a "
            f"machine with network and run: cytomil pretrain --weights FILE --arch {published.architecture}"
        ) from None
    write_text(recorded, f"{sha256}  {kept.name}\n")


def _save_what_timm_downloads(name: str, path: Path, scratch: Path) -> None:
    import timm

    network = timm.create_model(name, pretrained=True, num_classes=0, cache_dir=scratch)
    state = {key: tensor.detach().contiguous().clone() for key, tensor in network.state_dict().items()}
    save_weights(state, path)


@contextmanager
def _impatient() -> Iterator[None]:
    """Give up a connection on which nothing comes; by default one would be waited for without end."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_PATIENCE_S)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
