"""manifest.json, which lists the files of a folder with their hashes, and manifest.sig, a signature of it.

The signature is Ed25519 over the bytes of manifest.json. Keys are PEM files, as OpenSSL makes them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cytomil.cards import Card, Text, read_card
from cytomil.errors import CytomilError, SignatureError, require_file
from cytomil.files import sha256_of_file, write_bytes, write_json_card
from cytomil.litter import left_by_system
from cytomil.text import is_inside

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

NAME = "manifest.json"
SIGNATURE_NAME = "manifest.sig"
SCHEMA = "cytomil.manifest/1"


class _Manifest(Card):
    files: dict[Text, Text]


def write_file_manifest(folder: Path, files: Iterable[Path]) -> None:
    """Write manifest.json with the SHA-256 of each of these files of ``folder``."""
    hashes = {file.relative_to(folder).as_posix(): sha256_of_file(file) for file in sorted(files)}
    write_json_card(folder / NAME, {"schema": SCHEMA, "files": hashes})


def altered_files(folder: Path, error: type[CytomilError], made_by: str) -> Iterator[tuple[Path, str]]:
    """Each file that manifest.json lists, and what is wrong with it, "" for nothing. Raises ``error`` if it is damaged."""
    manifest = read_card(folder / NAME, _Manifest, SCHEMA, error, made_by)
    for name, sha256 in manifest.files.items():
        if not is_inside(name):
            raise error(f"{folder / NAME} lists a file outside its folder. Make it again with `{made_by}`.")
        file = folder / name
        if not file.is_file():
            yield file, f"is missing, although {NAME} lists it. Make it again with `{made_by}`."
        else:
            same = sha256_of_file(file) == sha256
            yield file, "" if same else f"is not the file that {NAME} lists. Make it again with `{made_by}`."


def sign_folder(folder: Path, private_key: Path) -> None:
    """List all files of ``folder`` in manifest.json and sign that.

    Raises `SignatureError` if the key is not an Ed25519 key in PEM format without a password, or `cryptography` is missing.
    """
    key = _private_key(private_key)
    write_file_manifest(folder, _all_files(folder))
    write_bytes(folder / SIGNATURE_NAME, key.sign((folder / NAME).read_bytes()))


def require_signature(folder: Path, public_key: Path) -> None:
    """Check that manifest.json is signed by this key and lists every file of ``folder`` with its present hash.

    Raises `SignatureError` with the first file that does not fit.
    """
    key = _public_key(public_key)
    from cryptography.exceptions import InvalidSignature

    cure = "Do not use it, or sign it again with `cytomil verify MODEL --sign KEY`."
    if not (folder / NAME).is_file() or not (folder / SIGNATURE_NAME).is_file():
        raise SignatureError(f"{folder} is not signed: it has no {NAME} or no {SIGNATURE_NAME}. {cure}")
    try:
        key.verify((folder / SIGNATURE_NAME).read_bytes(), (folder / NAME).read_bytes())
    except InvalidSignature:
        raise SignatureError(
            f"{folder} is not signed with the key of {public_key}, or was altered since. {cure}"
        ) from None
    listed = set()
    for file, fault in altered_files(folder, SignatureError, "cytomil verify MODEL --sign KEY"):
        listed.add(file)
        if fault:
            raise SignatureError(f"{file} {fault}")
    if unlisted := sorted(set(_all_files(folder)) - listed):
        raise SignatureError(f"{unlisted[0]} is not among the signed files. Remove it, or sign {folder} again.")


def _all_files(folder: Path) -> list[Path]:
    own = {folder / NAME, folder / SIGNATURE_NAME}
    return [file for file in folder.rglob("*") if file.is_file() and file not in own and not left_by_system(file.name)]


def _private_key(path: Path) -> Ed25519PrivateKey:
    _require_library()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    key: Ed25519PrivateKey = _key(path, Ed25519PrivateKey, lambda text: load_pem_private_key(text, None), "private")
    return key


def _public_key(path: Path) -> Ed25519PublicKey:
    _require_library()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    key: Ed25519PublicKey = _key(path, Ed25519PublicKey, load_pem_public_key, "public")
    return key


def _key(path: Path, kind: Any, load: Callable[[bytes], Any], which: str) -> Any:
    made_by = "openssl genpkey -algorithm ed25519"
    try:
        key = load(require_file(path, made_by).read_bytes())
    except (ValueError, TypeError):  # TypeError: a password is needed
        key = None
    if not isinstance(key, kind):
        raise SignatureError(
            f"{path} is not an Ed25519 {which} key in PEM format without a password. Make one with `{made_by}`."
        )
    return key


def _require_library() -> None:
    try:
        import cryptography  # noqa: F401
    except ImportError:
        raise SignatureError(
            "signatures need the package cryptography. Install it: pip install 'cytomil[signature]'"
        ) from None
