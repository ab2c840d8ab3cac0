"""Signatures of a folder: made and checked with keys of OpenSSL's form."""

import shutil

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from cytomil.errors import NotFoundError, SignatureError, TriageModelError
from cytomil.file_manifest import altered_files, require_signature, sign_folder, write_file_manifest
from cytomil.files import read_json, write_json_card


def write_keys(folder, name, key):
    """A pair as `openssl genpkey -algorithm ed25519` and `openssl pkey -pubout` write it."""
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return private, public


@pytest.fixture
def keys(tmp_path):
    return write_keys(tmp_path, "key", ed25519.Ed25519PrivateKey.generate())


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "model"
    (folder / "encoder").mkdir(parents=True)
    (folder / "a.json").write_text("{}")
    (folder / "encoder" / "b").write_bytes(b"weights")
    return folder


def test_a_signed_folder_is_accepted_and_with_another_key_it_is_not(folder, keys, tmp_path):
    sign_folder(folder, keys[0])
    require_signature(folder, keys[1])
    other = write_keys(tmp_path, "other", ed25519.Ed25519PrivateKey.generate())
    with pytest.raises(SignatureError, match="not signed with the key of"):
        require_signature(folder, other[1])


@pytest.mark.parametrize("what", ["changed", "added", "removed", "manifest", "signature", "unsigned"])
def test_whatever_is_done_to_a_signed_folder_shows(folder, keys, what):
    sign_folder(folder, keys[0])
    done = {
        "changed": lambda: (folder / "encoder" / "b").write_bytes(b"Weights"),
        "added": lambda: (folder / "encoder" / "c").write_bytes(b"engine"),
        "removed": (folder / "encoder" / "b").unlink,
        "manifest": lambda: write_file_manifest(folder, [folder / "a.json"]),
        "signature": lambda: (folder / "manifest.sig").write_bytes(b"\0" * 64),
        "unsigned": (folder / "manifest.sig").unlink,
    }
    done[what]()
    with pytest.raises(SignatureError) as caught:
        require_signature(folder, keys[1])
    assert "\n" not in str(caught.value)


def test_what_is_no_key_is_one_clear_line(folder, keys, tmp_path):
    wrong = write_keys(tmp_path, "ec", ec.generate_private_key(ec.SECP256R1()))
    for key in (wrong[0], keys[1], folder / "a.json"):
        with pytest.raises(SignatureError, match=r"is not an Ed25519 private key.*openssl genpkey"):
            sign_folder(folder, key)
    with pytest.raises(NotFoundError):
        sign_folder(folder, tmp_path / "absent.pem")


def test_a_manifest_that_names_a_file_outside_is_refused(folder):
    (folder.parent / "x").write_text("")
    shutil.copy(folder / "a.json", folder / "c.json")
    write_file_manifest(folder, [folder / "a.json"])
    assert [fault for _, fault in altered_files(folder, TriageModelError, "cytomil fit-mil")] == [""]
    document = read_json(folder / "manifest.json") | {"files": {"../x": "0"}}
    write_json_card(folder / "manifest.json", document)
    with pytest.raises(TriageModelError, match="outside its folder"):
        list(altered_files(folder, TriageModelError, "cytomil fit-mil"))
