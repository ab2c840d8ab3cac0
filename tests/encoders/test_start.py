"""Start weights from local files. DinoBloom's own checkpoint was not at hand: its layout is, from DINOv2's code, with
random numbers, and the result is compared with that network written out plainly."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F
from torchvision.models import resnet18, resnet50

from cytomil.encoders.architecture import Architecture, Encoder, resolve_architecture
from cytomil.encoders.start import prepare_initialisation, resolve_initialisation
from cytomil.errors import CytomilError, NotFoundError, SettingsError, WeightsFileError

RESNETS = {"resnet18": resnet18, "resnet50": resnet50}
IMAGENET_MEAN, IMAGENET_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def trained_resnet(name):
    """As an ImageNet ResNet: batch norms that have seen images, a classifier of 1000 classes."""
    torch.manual_seed(0)
    network = RESNETS[name](weights=None)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -0.1, 0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
    return network.eval()


def normalised(pixels):
    return (pixels - torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1)) / torch.tensor(IMAGENET_STD).view(1, 3, 1, 1)


def embedded(start, pixels):
    encoder = Encoder(start.architecture)
    start.weights.load_into(encoder)
    with torch.inference_mode():
        return encoder.eval()(pixels)[0]


LAYOUTS = ["new", "before 0.4.1", "half", "DataParallel", "nested", "safetensors"]


# How a file is laid out has nothing to do with the network in it, and a ResNet-50 has 100 MB.
@pytest.mark.parametrize(("name", "layout"), [*(("resnet18", layout) for layout in LAYOUTS), ("resnet50", "new")])
def test_an_imagenet_resnet_gives_what_it_gave(tmp_path, name, layout):
    network = trained_resnet(name)
    state = network.state_dict()
    path = tmp_path / ("weights.safetensors" if layout == "safetensors" else "weights.pth")
    if layout == "before 0.4.1":
        state = {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}
    if layout == "half":
        state = {k: v.half() for k, v in state.items()}
    if layout == "DataParallel":
        state = {f"module.{k}": v for k, v in state.items()}
    content = {"state_dict": state, "epoch": 90} if layout == "nested" else state
    save_file(content, path) if layout == "safetensors" else torch.save(content, path)
    start = prepare_initialisation(resolve_architecture(name, "standard", 8, 64), 64, path)
    network.fc = torch.nn.Identity()
    pixels = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        expected = network(normalised(pixels))
    tolerance = {"rtol": 0.1, "atol": 0.02} if layout == "half" else {}
    torch.testing.assert_close(embedded(start, pixels), expected, **tolerance)
    assert start.weights.file == path.name
    assert start.weights.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert start.weights.caveats == ()
    assert start.libraries == ()


def test_without_weights_nothing_is_read(tmp_path):
    start = prepare_initialisation(Architecture(), 32)
    assert start.weights is None
    assert start.architecture == Architecture()


@pytest.fixture(scope="module")
def backbone():
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape):
        return torch.randn(shape, generator=generator) * 0.05

    d = 384
    state = {"cls_token": drawn(1, 1, d), "pos_embed": drawn(1, 257, d), "mask_token": drawn(1, d)}
    state |= {"patch_embed.proj.weight": drawn(d, 3, 14, 14), "patch_embed.proj.bias": drawn(d)}
    for i in range(12):
        block = {"norm1": (d,), "attn.qkv": (3 * d, d), "attn.proj": (d, d), "norm2": (d,)}
        block |= {"mlp.fc1": (4 * d, d), "mlp.fc2": (d, 4 * d)}
        for name, shape in block.items():
            state[f"blocks.{i}.{name}.weight"] = drawn(*shape) + (1 if name.startswith("norm") else 0)
            state[f"blocks.{i}.{name}.bias"] = drawn(shape[0])
        state |= {f"blocks.{i}.ls1.gamma": drawn(d) + 1, f"blocks.{i}.ls2.gamma": drawn(d) + 1}
    return state | {"norm.weight": drawn(d) + 1, "norm.bias": drawn(d)}


@pytest.fixture(scope="module")
def checkpoint(backbone, tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "teacher_checkpoint.pth"
    heads = {f"{head}_head.mlp.0.weight": torch.zeros(2, 384) for head in ("dino", "ibot")}
    torch.save({"teacher": {f"backbone.{name}": tensor for name, tensor in backbone.items()} | heads}, path)
    return path


def class_token(state, pixels):
    """The network of arXiv 2304.07193 and 2010.11929, written out."""

    def linear(x, name):
        return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])

    def norm(x, name):
        return F.layer_norm(x, (384,), state[f"{name}.weight"], state[f"{name}.bias"], 1e-6)

    def attention(x, name):
        n, tokens, _ = x.shape
        q, k, v = linear(x, f"{name}.qkv").view(n, tokens, 3, 6, 64).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) / 8).softmax(-1)
        return linear((weights @ v).transpose(1, 2).reshape(n, tokens, 384), f"{name}.proj")

    x = F.conv2d(pixels, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"], stride=14)
    x = torch.cat([state["cls_token"].expand(len(x), -1, -1), x.flatten(2).transpose(1, 2)], dim=1)
    x = x + state["pos_embed"]
    for i in range(12):
        block = f"blocks.{i}"
        x = x + state[f"{block}.ls1.gamma"] * attention(norm(x, f"{block}.norm1"), f"{block}.attn")
        hidden = F.gelu(linear(norm(x, f"{block}.norm2"), f"{block}.mlp.fc1"))
        x = x + state[f"{block}.ls2.gamma"] * linear(hidden, f"{block}.mlp.fc2")
    return norm(x, "norm")[:, 0]


class TestDinoBloom:
    """ViT-S/14 of DINOv2, 224 px, no registers, saved under ``teacher`` with its heads."""

    SMALL = "vit_small_patch14_dinov2"

    def test_h_is_the_class_token_of_the_network_written_out(self, backbone, checkpoint):
        start = prepare_initialisation(resolve_architecture(self.SMALL, "auto", 0, 224), 224, checkpoint)
        pixels = torch.rand(1, 3, 224, 224)
        expected = class_token(backbone, normalised(pixels))
        torch.testing.assert_close(embedded(start, pixels), expected, rtol=1e-3, atol=1e-4)
        assert start.weights.tensors == len(backbone) - 1  # but the mask token, which is for training
        assert start.libraries == ("timm",)

    def test_it_says_that_the_bone_marrow_set_was_seen(self, checkpoint):
        start = prepare_initialisation(resolve_architecture(self.SMALL, "auto", 0, 224), 224, checkpoint)
        (caveat,) = start.weights.caveats
        assert "bone-marrow" in caveat

    def test_the_file_name_alone_says_it_too(self, tmp_path):
        torch.save(trained_resnet("resnet18").state_dict(), tmp_path / "DinoBloom-X.pth")
        start = prepare_initialisation(Architecture(stem="standard"), 32, tmp_path / "DinoBloom-X.pth")
        assert "bone-marrow" in start.weights.caveats[0]

    def test_at_another_size_the_patches_positions_are_interpolated_and_the_class_tokens_kept(
        self, backbone, checkpoint
    ):
        start = prepare_initialisation(resolve_architecture(self.SMALL, "auto", 0, 28), 28, checkpoint)
        position = start.weights.state["pos_embed"]
        assert position.shape == (1, 5, 384)
        assert torch.equal(position[:, 0], backbone["pos_embed"][:, 0])

    def test_a_plain_state_dict_will_do(self, backbone, tmp_path):
        torch.save(backbone, tmp_path / "pytorch_model_s.bin")
        architecture = resolve_architecture(self.SMALL, "auto", 0, 28)
        assert (
            "bone-marrow"
            in prepare_initialisation(architecture, 28, tmp_path / "pytorch_model_s.bin").weights.caveats[0]
        )

    @pytest.mark.parametrize(
        ("name", "reason"),
        [
            ("vit_base_patch14_dinov2", r"\(1, 1, 384\) in the file, \(1, 1, 768\) in the network"),
            ("resnet50", "conv1.weight: not in the file"),
        ],
    )
    def test_another_architecture_is_told_how_far_it_fits(self, checkpoint, name, reason):
        with pytest.raises(WeightsFileError, match=reason) as caught:
            prepare_initialisation(
                resolve_architecture(name, "standard" if name == "resnet50" else "auto", 0, 28), 28, checkpoint
            )
        assert f"does not fit {name}: " in str(caught.value)
        assert "--arch" in str(caught.value)


class TestRefusals:
    def refused(self, path, kind=WeightsFileError, architecture=None, size=32):
        architecture = architecture or Architecture(stem="standard")
        with pytest.raises(CytomilError) as caught:
            prepare_initialisation(architecture, size, path)
        assert type(caught.value) is kind
        assert "\n" not in str(caught.value)
        return str(caught.value)

    @pytest.fixture
    def resnet_file(self, tmp_path):
        torch.save(trained_resnet("resnet18").state_dict(), tmp_path / "resnet18.pth")
        return tmp_path / "resnet18.pth"

    def test_missing_file(self, tmp_path):
        assert "does not exist" in self.refused(tmp_path / "none.pth", NotFoundError)
        assert "is a folder" in self.refused(tmp_path, NotFoundError)

    def test_how_many_tensors_match_and_which_first_does_not(self, resnet_file):
        said = self.refused(resnet_file, architecture=Architecture("resnet50", "standard"))
        assert "97 of 318 tensors match, the first mismatch is layer1.0.conv1.weight" in said
        assert "(64, 64, 3, 3) in the file, (64, 64, 1, 1) in the network" in said

    def test_a_deeper_network_is_not_taken_in_part(self, tmp_path):
        state = trained_resnet("resnet18").state_dict()
        deeper = state | {"layer4.2.conv1.weight": torch.zeros(512, 512, 3, 3)}
        torch.save(deeper, tmp_path / "deeper.pth")
        said = self.refused(tmp_path / "deeper.pth")
        assert "120 of 120 tensors match, but the file has 1 more; the first is layer4.2.conv1.weight" in said

    def test_imagenets_first_layers_and_the_small_stem(self, resnet_file):
        said = self.refused(resnet_file, architecture=Architecture(stem="small"))
        assert "119 of 120 tensors match" in said
        assert "conv1.weight: (64, 3, 7, 7) in the file, (64, 3, 3, 3) in the network" in said
        assert "--stem standard" in said

    def test_what_is_not_finite(self, tmp_path):
        state = trained_resnet("resnet18").state_dict()
        state["layer2.0.conv1.weight"][0, 0, 0, 0] = float("nan")
        torch.save(state, tmp_path / "nan.pth")
        assert "layer2.0.conv1.weight is not finite" in self.refused(tmp_path / "nan.pth")

    @pytest.mark.parametrize("content", [b"", b"PK\x03\x04 but no zip", b"<html>not found</html>"])
    @pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
    def test_what_is_no_weights_file(self, tmp_path, content, suffix):
        path = tmp_path / f"weights{suffix}"
        path.write_bytes(content)
        assert "cannot be read as weights" in self.refused(path)

    def test_a_truncated_file(self, resnet_file):
        resnet_file.write_bytes(resnet_file.read_bytes()[:-5000])
        assert "cannot be read as weights" in self.refused(resnet_file)

    def test_pickled_code_is_not_run(self, tmp_path):
        class Harmful:
            def __reduce__(self):
                return (Path.touch, (tmp_path / "touched",))

        torch.save({"state_dict": Harmful()}, tmp_path / "harmful.pth")
        assert "runs no pickled code" in self.refused(tmp_path / "harmful.pth")
        assert not (tmp_path / "touched").exists()

    @pytest.mark.parametrize("content", [{}, {"epoch": 3}, [1, 2], torch.zeros(3)])
    def test_a_file_without_a_state_dict(self, tmp_path, content):
        torch.save(content, tmp_path / "other.pth")
        assert "holds no state dict" in self.refused(tmp_path / "other.pth")

    def test_an_encoder_of_cytomils_is_used_as_it_is(self, encoder_folder):
        said = self.refused(encoder_folder / "encoder.safetensors", architecture=Architecture("test_resnet"))
        assert "is an encoder of cytomil" in said

    def test_a_size_that_does_not_suit_is_told_before_weights_are_read(self, tmp_path):
        architecture = resolve_architecture("vit_small_patch14_dinov2", "auto", 8, 32)
        said = self.refused(tmp_path / "none.pth", SettingsError, architecture, 32)
        assert "patches of 14 px" in said
        assert "--image-size 28 or 42" in said


class TestForeignNames:
    """A network's weights under names that no library here knows."""

    ARCH = "tf_efficientnet_lite0"

    @pytest.fixture
    def foreign(self, tmp_path):
        named = resolve_initialisation("efficientnet-lite0", "auto", "auto", 64, 0)
        state = {
            f"part{i:03d}.{name.rpartition('.')[2]}": tensor
            for i, (name, tensor) in enumerate(named.weights.state.items())
            if not name.endswith("num_batches_tracked")
        }
        path = tmp_path / "elsewhere.pth"
        torch.save(state | {"last.weight": torch.zeros(10, 1280), "last.bias": torch.zeros(10)}, path)
        return named, path

    def test_they_are_taken_in_order_and_a_caveat_says_so(self, foreign):
        named, path = foreign
        start = resolve_initialisation(str(path), self.ARCH, "auto", 64, 0)
        for name, tensor in named.weights.state.items():
            if not name.endswith("num_batches_tracked"):
                assert torch.equal(start.weights.state[name], tensor), name
        (caveat,) = start.weights.caveats
        assert "assigned in the order of the file" in caveat
        assert "elsewhere.pth" in caveat
        assert named.weights.caveats == ()

    def test_another_architecture_is_refused_all_the_same(self, foreign):
        with pytest.raises(WeightsFileError, match=r"does not fit resnet18.*--arch"):
            resolve_initialisation(str(foreign[1]), "auto", "auto", 96, 0)


def test_without_weights_and_architecture_it_is_a_resnet18_at_random():
    start = resolve_initialisation("none", "auto", "auto", 32, 8)
    assert start == prepare_initialisation(Architecture(projection_dim=8), 32)
