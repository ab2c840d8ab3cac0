"""What pretraining starts from: other architectures, others' weights; and `none`, which takes no step."""

from __future__ import annotations

import shutil
from typing import ClassVar

import pytest
import timm
import torch
from torchvision.models import resnet18

from cytomil.encoders.architecture import Architecture, Encoder
from cytomil.encoders.stages import default_layer
from cytomil.encoders.start import resolve_initialisation
from cytomil.errors import ResumeError, SettingsError
from cytomil.layer import Layer
from cytomil.progress import Silent
from cytomil.training.config import PretrainConfig
from cytomil.training.loop import pretrain
from cytomil.training.processes import OneProcess
from cytomil.training.training_encoder import TrainingEncoder

SMALL = {"epochs": 2, "batch_size": 32, "image_size": 32, "projection_dim": 8, "learning_rate": 0.01, "device": "cpu"}
SMALL |= {"weights": "none"}
LITE_LAYER = default_layer(Encoder(Architecture("tf_efficientnet_lite0", "standard", 0)))


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    """A ResNet-18 as torchvision ships them."""
    torch.manual_seed(5)
    path = tmp_path_factory.mktemp("weights") / "resnet18-imagenet.pth"
    torch.save(resnet18(weights=None).state_dict(), path)
    return path


@pytest.fixture
def run(bags_folder, tmp_path):
    """``run("encoder", method="none")``: the bundle that pretrain writes there."""

    def made(out, resume=False, on_epoch=None, **changed):
        # A small network where no weights name another one.
        small = {} if "weights" in changed else {"arch": "test_resnet"}
        settings = PretrainConfig(**{**SMALL, **small, "bags": bags_folder, "out": tmp_path / out, **changed})
        return pretrain(settings, Silent(), on_epoch, resume).bundle

    return made


def same(first, second):
    one, two = first.state_dict(), second.state_dict()
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


class TestNone:
    def test_the_encoder_is_kept_as_it_starts(self, run):
        bundle = run("encoder", method="none", seed=3, arch="resnet18")
        torch.manual_seed(3)
        assert same(bundle.encoder.backbone, Encoder(Architecture(projection_dim=0)).backbone)
        pixels = torch.rand(2, 3, 32, 32)
        with torch.inference_mode():
            h, z = bundle.encoder(pixels)
        assert torch.equal(h, z)
        assert bundle.encoder.dim_of("z") == 512

    def test_its_card_says_what_it_is(self, run, imagenet):
        records = []
        card = run("encoder", method="none", weights=imagenet, stem="standard", on_epoch=records.append).card
        assert card.method == "none"
        assert card.start_weights.file == "resnet18-imagenet.pth"
        assert card.start_weights.tensors == 120
        assert len(card.start_weights.sha256) == 64
        assert card.caveats == ()
        assert card.architecture.projection_dim == 0
        assert card.nt_xent_margin is None
        assert card.data.n_cells == 60
        assert [record["epoch"] for record in card.history] == [0]
        assert records == list(card.history)

    def test_an_untrained_encoder_has_not_collapsed_but_a_dead_one_has(self, run, tmp_path):
        assert run("untrained", method="none", arch="resnet18").card.collapsed is False
        dead = {name: torch.zeros_like(tensor) for name, tensor in resnet18(weights=None).state_dict().items()}
        torch.save(dead, tmp_path / "dead.pth")
        card = run("dead", method="none", weights=tmp_path / "dead.pth", stem="standard").card
        assert card.collapsed is True
        assert card.collapse_reason

    def test_a_finished_one_is_left_as_it_is(self, run, bags_folder, tmp_path):
        run("encoder", method="none", weights="none")
        settings = PretrainConfig(**{**SMALL, "bags": bags_folder, "out": tmp_path / "encoder", "method": "none"})
        assert pretrain(settings, Silent(), resume=True).already_done

    def test_few_cells_are_enough(self, run):
        assert run("encoder", method="none", batch_size=4096).card.data.n_cells == 60


class TestWeights:
    def test_training_starts_from_them_and_from_their_channel_statistics(self, run, imagenet):
        bundle = run("encoder", method="simclr", weights=imagenet, stem="standard", epochs=1, learning_rate=1e-9)
        start = torch.load(imagenet, weights_only=True)
        trained = bundle.encoder.backbone.state_dict()
        for name in ("conv1.weight", "layer4.1.conv2.weight", "bn1.bias"):
            torch.testing.assert_close(trained[name], start[name], rtol=1e-4, atol=1e-7)
        torch.testing.assert_close(bundle.encoder.mean.flatten(), torch.tensor([0.485, 0.456, 0.406]))
        torch.testing.assert_close(bundle.encoder.std.flatten(), torch.tensor([0.229, 0.224, 0.225]))
        assert bundle.card.start_weights.file == imagenet.name

    def test_without_them_the_statistics_are_the_cells(self, run):
        card = run("encoder", method="none").card
        assert card.start_weights is None
        assert card.normalisation.mean != pytest.approx([0.485, 0.456, 0.406], abs=1e-3)

    def test_a_run_goes_on_wherever_its_weights_lie_but_not_with_others(self, run, tmp_path):
        wanted = {"method": "simclr", "arch": "test_resnet"}
        weights, other = tmp_path / "weights.pth", tmp_path / "other.pth"
        for path in (weights, other):
            torch.save(timm.create_model("test_resnet").state_dict(), path)

        def stop(record):
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run("broken", weights=weights, on_epoch=stop, **wanted)
        with pytest.raises(ResumeError, match="weights"):
            run("broken", weights=other, resume=True, **wanted)
        moved = shutil.copy(weights, tmp_path / "moved.pth")
        resumed = run("broken", weights=moved, resume=True, **wanted)
        assert same(resumed.encoder, run("unbroken", weights=weights, **wanted).encoder)

    def test_dsvdd_keeps_the_backbone_that_it_starts_from(self, run, imagenet):
        bundle = run("encoder", method="dsvdd", weights=imagenet, stem="standard", epochs=1)
        start = torch.load(imagenet, weights_only=True)
        trained = bundle.encoder.backbone.state_dict()
        assert {"conv1.weight", "bn1.running_mean"} <= set(trained)
        assert all(torch.equal(tensor, start[name]) for name, tensor in trained.items() if "num_batches" not in name)

    def test_training_goes_on_from_named_weights(self, run):
        bundle = run("encoder", method="simclr", weights="efficientnet-lite0", epochs=1, learning_rate=1e-9)
        start = resolve_initialisation("efficientnet-lite0", "auto", "auto", 32, 8).weights
        trained = bundle.encoder.backbone.state_dict()
        for name in ("conv_stem.weight", "blocks.4.1.conv_dw.weight", "conv_head.weight"):
            torch.testing.assert_close(trained[name], start.state[name], rtol=1e-4, atol=1e-6)
        assert bundle.encoder.mean.flatten().tolist() == [0.5, 0.5, 0.5]
        assert bundle.card.start_weights.name == "efficientnet-lite0"


class TestGoingOn:
    """Training that goes on from others' weights."""

    LITE: ClassVar = {"weights": "efficientnet-lite0", "method": "slam-ags", "image_size": 16}

    def state(self):
        return resolve_initialisation("efficientnet-lite0", "auto", "auto", 32, 8).weights.state

    def test_frozen_stages_stay_as_they_came_and_the_others_are_trained(self, run):
        start, bundle = self.state(), run("encoder", frozen_stages=5, **self.LITE)
        trained = bundle.encoder.backbone.state_dict()
        for name, tensor in start.items():
            if name.startswith(("conv_stem", "bn1", *(f"blocks.{number}." for number in range(5)))):
                assert torch.equal(trained[name], tensor), name
        for name in ("blocks.5.0.conv_pw.weight", "blocks.6.0.conv_dw.weight", "conv_head.weight", "bn2.weight"):
            assert not torch.equal(trained[name], start[name]), name
        assert bundle.card.frozen_stages == 5

    def test_batch_norms_keep_their_statistics_even_where_weights_are_trained(self, run):
        start, bundle = self.state(), run("encoder", frozen_stages=0, **self.LITE)
        trained = bundle.encoder.backbone.state_dict()
        kept = [name for name in start if "running" in name or "num_batches" in name]
        assert kept and all(torch.equal(trained[name], start[name]) for name in kept)
        assert not torch.equal(trained["conv_stem.weight"], start["conv_stem.weight"])
        # The projector is new, and has statistics of its own to find.
        assert float(bundle.encoder.projector[1].running_mean.abs().max()) > 0

    def test_the_usual_rate_is_lower_and_all_but_two_stages_are_frozen(self, run):
        from_weights = run("start", epochs=1, learning_rate=None, **self.LITE).card
        from_random = run("random", epochs=1, learning_rate=None, method="simclr").card
        assert (from_weights.frozen_stages, from_random.frozen_stages) == (5, 0)
        assert from_weights.peak_learning_rate < from_random.peak_learning_rate

    def test_a_run_resumes_to_the_weights_of_an_unbroken_one(self, run):
        def stop(record):
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run("broken", on_epoch=stop, **self.LITE)
        assert same(run("broken", resume=True, **self.LITE).encoder, run("unbroken", **self.LITE).encoder)

    def test_it_says_where_training_does_not_reach_the_layer_that_is_kept(self, bags_folder, tmp_path, monkeypatch):
        early = Layer.parse("stages:1,2,4")
        monkeypatch.setattr("cytomil.training.loop.default_layer", lambda encoder: early)
        told = []

        class Heard(Silent):
            def note(self, text):
                told.append(text)

        for number, frozen_stages in enumerate((5, 3)):
            changed = {"bags": bags_folder, "out": tmp_path / str(number), "frozen_stages": frozen_stages, "epochs": 1}
            pretrain(PretrainConfig(**{**SMALL, **self.LITE, **changed}), Heard())
        assert [
            text.split(", the default")[0] for text in told if "5 stages are frozen" in text or "3 stages" in text
        ] == [f"layer {early}"]

    def test_a_frozen_network_is_refused(self, run):
        with pytest.raises(SettingsError, match="--frozen-stages 7 freezes all stages"):
            run("encoder", frozen_stages=7, **self.LITE)

    def test_random_stages_are_not_frozen(self, run):
        with pytest.raises(SettingsError, match="random weights"):
            run("encoder", frozen_stages=1, weights="none")

    def test_timms_batch_norms_need_no_sharing_where_they_keep_their_statistics(self):
        class Two(OneProcess):
            count = 2

        processes = Two(torch.device("cpu"))
        lite = Architecture("tf_efficientnet_lite0", "standard", 8)
        encoder = TrainingEncoder(lite, torch.float32, processes, from_weights=True)
        encoder.train()
        assert encoder.projector.training
        assert not encoder.backbone.bn1.training
        with pytest.raises(SettingsError, match="several processes cannot synchronise"):
            TrainingEncoder(lite, torch.float32, processes)

    @pytest.mark.parametrize("method", ["moco-v3", "weaksupcon", "weakly-supervised"])
    def test_other_methods_go_on_as_well(self, run, method):
        start = self.state()
        trained = run("encoder", epochs=1, weights="efficientnet-lite0", method=method).encoder.backbone.state_dict()
        assert torch.equal(trained["blocks.4.2.bn3.running_var"], start["blocks.4.2.bn3.running_var"])
        assert torch.equal(trained["blocks.4.2.conv_pw.weight"], start["blocks.4.2.conv_pw.weight"])
        assert not torch.equal(trained["blocks.6.0.conv_pw.weight"], start["blocks.6.0.conv_pw.weight"])


class TestOtherArchitectures:
    @pytest.mark.parametrize("method", ["slam-ags", "moco-v3"])
    def test_a_vision_transformer_trains_and_resumes(self, run, method):
        wanted = {"method": method, "arch": "test_vit"}

        def stop(record):
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run("broken", on_epoch=stop, **wanted)
        resumed, unbroken = run("broken", resume=True, **wanted), run("unbroken", **wanted)
        assert same(resumed.encoder, unbroken.encoder)
        assert not same(resumed.encoder, run("untrained", **(wanted | {"epochs": 1})).encoder)
        assert resumed.card.architecture.name == "test_vit"
        assert resumed.card.effective_rank <= resumed.encoder.dim_of("h") == 64
        assert resumed.card.versions["timm"] == timm.__version__

    def test_resnet50_trains(self, run):
        bundle = run("encoder", method="simclr", arch="resnet50", epochs=1, image_size=16)
        assert bundle.encoder.dim_of("h") == 2048
        assert bundle.card.architecture.stem == "small"
        assert "timm" not in bundle.card.versions

    def test_several_processes_refuse_batch_norms_they_cannot_share(self):
        several = OneProcess(torch.device("cpu"))
        several.count = 2
        TrainingEncoder(Architecture(), torch.float32, several)
        with pytest.raises(SettingsError, match=r"BatchNormAct2d.*one process"):
            TrainingEncoder(Architecture("mobilenetv3_small_050", "standard"), torch.float32, several)
        TrainingEncoder(Architecture("test_vit", "standard"), torch.float32, several)
