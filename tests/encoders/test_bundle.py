from __future__ import annotations

import json
import shutil

import pytest
import torch

from cytomil.encoders.architecture import Architecture, Encoder, resolve_architecture
from cytomil.encoders.bundle import (
    CARD_NAME,
    WEIGHTS_NAME,
    Normalisation,
    load_bundle,
    pick_device,
    read_card,
    save_bundle,
)
from cytomil.encoders.transform import CellTransform
from cytomil.errors import CytomilError, EncoderBundleError, NotFoundError
from cytomil.files import write_json_card


@pytest.fixture
def bundle_copy(encoder_folder, tmp_path):
    return shutil.copytree(encoder_folder, tmp_path / "encoder")


def rewrite_card(folder, **changes):
    card = json.loads((folder / CARD_NAME).read_text())
    write_json_card(folder / CARD_NAME, {k: v for k, v in (card | changes).items() if v is not None})


class TestRoundTrip:
    @pytest.mark.parametrize("stem", ["small", "standard"])
    def test_weights_and_outputs_are_bit_equal(self, tmp_path, stem):
        torch.manual_seed(3)
        encoder = Encoder(Architecture(stem=stem, projection_dim=8))
        encoder.mean.copy_(torch.rand(1, 3, 1, 1))
        with torch.no_grad():
            encoder(torch.rand(8, 3, 24, 24))  # moves the batch norms' running statistics
        saved = save_bundle(tmp_path / "encoder", encoder, CellTransform(24, 0.8), {"method": "simclr"})
        loaded = load_bundle(tmp_path / "encoder")
        state, again = encoder.state_dict(), loaded.encoder.state_dict()
        assert state.keys() == again.keys()
        assert all(torch.equal(state[name], again[name]) for name in state)
        pixels = torch.rand(3, 3, 24, 24)
        with torch.inference_mode():
            for before, after in zip(encoder.eval()(pixels), loaded.encoder(pixels), strict=True):
                assert torch.equal(before, after)
        assert loaded.transform == CellTransform(24, 0.8)
        assert loaded.sha256 == saved.sha256
        assert not loaded.encoder.training

    def test_channels_last_weights_are_kept(self, tmp_path):
        encoder = Encoder(Architecture(projection_dim=8)).to(memory_format=torch.channels_last)
        save_bundle(tmp_path / "encoder", encoder, CellTransform(24, 0.8), {})
        weight = load_bundle(tmp_path / "encoder").encoder.backbone.layer1[0].conv1.weight
        assert torch.equal(weight, encoder.backbone.layer1[0].conv1.weight)

    def test_the_card_says_what_it_is_and_what_was_told(self, encoder_folder):
        card = read_card(encoder_folder)
        built = {"name": "test_resnet", "stem": "standard", "projection_dim": 16, "image_size": None}
        built |= {"projector": "plain"}
        assert card.architecture == Architecture(**built)
        assert card.transform == CellTransform(24, 0.8)
        assert card.normalisation == Normalisation(mean=[0.5] * 3, std=[0.25] * 3)
        assert card.method == "slam-ags"
        assert card.data.sources == ("synthetic",)
        assert load_bundle(encoder_folder).card == card
        assert load_bundle(encoder_folder).sha256 == card.weights_sha256

    def test_the_folder_holds_no_pickle(self, encoder_folder):
        assert {path.name for path in encoder_folder.iterdir()} == {WEIGHTS_NAME, CARD_NAME}
        header = (encoder_folder / WEIGHTS_NAME).read_bytes()
        length = int.from_bytes(header[:8], "little")
        assert "mean" in json.loads(header[8 : 8 + length])

    def test_same_weights_same_name(self, make_encoder, encoder_folder, tmp_path):
        assert make_encoder(tmp_path / "a").sha256 == load_bundle(encoder_folder).sha256
        assert make_encoder(tmp_path / "b", seed=1).sha256 != load_bundle(encoder_folder).sha256

    def test_a_bundle_written_before_there_were_other_architectures_opens(self, make_encoder, tmp_path):
        bundle_copy = make_encoder(tmp_path / "encoder", arch="resnet18").path
        before = load_bundle(bundle_copy).encoder.state_dict()
        rewrite_card(bundle_copy, architecture={"name": "resnet18", "stem": "small", "projection_dim": 16})
        after = load_bundle(bundle_copy).encoder.state_dict()
        assert all(torch.equal(before[name], after[name]) for name in before)

    @pytest.mark.parametrize("name", ["resnet50", "test_vit"])
    def test_other_architectures_come_back_as_they_were(self, tmp_path, name):
        encoder = Encoder(resolve_architecture(name, "auto", 8, 32)).eval()
        save_bundle(tmp_path / "encoder", encoder, CellTransform(32, 0.8), {"method": "simclr"})
        loaded = load_bundle(tmp_path / "encoder")
        pixels = torch.rand(3, 3, 32, 32)
        with torch.inference_mode():
            for before, after in zip(encoder(pixels), loaded.encoder(pixels), strict=True):
                assert torch.equal(before, after)

    def test_replaces_an_older_bundle_whole(self, make_encoder, bundle_copy):
        (bundle_copy / "engines").mkdir()
        make_encoder(bundle_copy, seed=1)
        assert {path.name for path in bundle_copy.iterdir()} == {WEIGHTS_NAME, CARD_NAME}

    def test_a_folder_of_other_things_is_left_alone(self, make_encoder, tmp_path):
        (tmp_path / "models" / "triage").mkdir(parents=True)
        with pytest.raises(CytomilError, match=r"models .*--out"):
            make_encoder(tmp_path / "models")
        assert (tmp_path / "models" / "triage").is_dir()

    def test_what_json_does_not_have_leaves_nothing(self, make_encoder, tmp_path):
        with pytest.raises(ValueError, match="JSON"):
            make_encoder(tmp_path / "encoder", effective_rank=float("nan"))
        assert list(tmp_path.iterdir()) == []


class TestDamage:
    def refused(self, folder):
        with pytest.raises(EncoderBundleError) as caught:
            load_bundle(folder)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    def test_missing_folder(self, tmp_path):
        with pytest.raises(NotFoundError, match="cytomil pretrain"):
            load_bundle(tmp_path / "none")

    def test_empty_folder(self, tmp_path):
        assert f"has no {CARD_NAME}" in self.refused(tmp_path)

    def test_missing_weights(self, bundle_copy):
        (bundle_copy / WEIGHTS_NAME).unlink()
        assert f"has no {WEIGHTS_NAME}" in self.refused(bundle_copy)

    def test_missing_card(self, bundle_copy):
        (bundle_copy / CARD_NAME).unlink()
        assert f"has no {CARD_NAME}" in self.refused(bundle_copy)

    def test_truncated_weights(self, bundle_copy):
        weights = bundle_copy / WEIGHTS_NAME
        weights.write_bytes(weights.read_bytes()[:-1000])
        assert "damaged or replaced" in self.refused(bundle_copy)

    def test_one_altered_byte(self, bundle_copy):
        content = bytearray((bundle_copy / WEIGHTS_NAME).read_bytes())
        content[len(content) // 2] ^= 1
        (bundle_copy / WEIGHTS_NAME).write_bytes(content)
        assert "damaged or replaced" in self.refused(bundle_copy)

    def test_weights_of_another_encoder(self, bundle_copy, make_encoder, tmp_path):
        other = make_encoder(tmp_path / "other", seed=1)
        shutil.copy(other.path / WEIGHTS_NAME, bundle_copy / WEIGHTS_NAME)
        assert "damaged or replaced" in self.refused(bundle_copy)

    def test_an_architecture_that_is_not_to_be_had_here(self, bundle_copy):
        rewrite_card(bundle_copy, architecture={"name": "resnet19", "stem": "small", "projection_dim": 16})
        assert "cannot be opened here: there is no arch 'resnet19'" in self.refused(bundle_copy)

    @pytest.mark.parametrize("schema", ["cytomil.encoder/2", "cytomil.triage-model/1", None, 1])
    def test_another_schema(self, bundle_copy, schema):
        rewrite_card(bundle_copy, schema=schema)
        assert f"schema {schema!r}" in self.refused(bundle_copy)

    @pytest.mark.parametrize("content", [b"", b"{", b'"text"', b"[1]", b"null", b"\xff\xfe"])
    def test_a_card_that_is_none(self, bundle_copy, content):
        (bundle_copy / CARD_NAME).write_bytes(content)
        assert CARD_NAME in self.refused(bundle_copy)

    @pytest.mark.parametrize(
        "changes",
        [
            {"architecture": None},
            {"architecture": {"depth": 3}},
            {"architecture": {"name": "test_resnet", "stem": "standard", "projection_dim": 17}},
            {"architecture": {"name": "resnet18", "stem": "standard", "projection_dim": 16}},
            {"architecture": "test_resnet"},
            {"transform": None},
            {"transform": {"image_size": 24}},
            {"weights_sha256": None},
        ],
    )
    def test_a_card_that_does_not_fit_the_weights(self, bundle_copy, changes):
        rewrite_card(bundle_copy, **changes)
        self.refused(bundle_copy)


class TestDevice:
    def test_cpu(self):
        assert pick_device("cpu") == torch.device("cpu")

    @pytest.mark.parametrize(("available", "kind"), [(False, "cpu"), (True, "cuda")])
    def test_auto_takes_a_gpu_where_there_is_one(self, monkeypatch, available, kind):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: available)
        assert pick_device("auto").type == kind

    @pytest.mark.parametrize("device", ["cuda", "cuda:1"])
    def test_a_gpu_that_is_not_there_is_refused(self, monkeypatch, device):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        with pytest.raises(EncoderBundleError, match=f"'{device}'.*--device cpu"):
            pick_device(device)

    @pytest.mark.parametrize("device", ["gpu", "", "cpu:x"])
    def test_an_unknown_device_is_refused(self, device):
        with pytest.raises(EncoderBundleError, match="auto, cpu, cuda"):
            pick_device(device)
