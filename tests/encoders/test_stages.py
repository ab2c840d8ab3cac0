import pytest
import torch
from torchvision.models.feature_extraction import create_feature_extractor

from cytomil.encoders.architecture import Architecture, Encoder
from cytomil.encoders.engines.eager import EagerEngine
from cytomil.encoders.stages import AllLayers, layer_dim, layers_of
from cytomil.errors import SettingsError

DIMS = {"resnet18": 3 * (64 + 128 + 256) + 512 + 8, "resnet50": 3 * (256 + 512 + 1024) + 2048 + 8}


@pytest.mark.parametrize(("name", "dim"), DIMS.items())
def test_multi_is_mean_spread_and_maximum_of_the_inner_stages_then_h_and_z(name, dim):
    torch.manual_seed(0)
    encoder = Encoder(Architecture(name, projection_dim=8)).eval()
    pixels = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    stages = ("layer1", "layer2", "layer3")
    with torch.no_grad():
        maps = create_feature_extractor(encoder.backbone, list(stages))((pixels - encoder.mean) / encoder.std)
        expected = [
            figure
            for stage in stages
            for figure in (
                maps[stage].mean((2, 3)),
                maps[stage].var((2, 3), correction=0).sqrt(),
                maps[stage].amax((2, 3)),
            )
        ]
        expected += encoder(pixels)
        h, z, found = AllLayers(encoder)(pixels)
    assert found.shape == (3, dim) == (3, layer_dim(encoder, "multi"))
    assert layers_of(encoder) == ("h", "z", "multi")
    torch.testing.assert_close((h, z), encoder(pixels))
    torch.testing.assert_close(found, torch.cat(expected, dim=1))


def test_the_eager_engine_gives_it():
    torch.manual_seed(0)
    encoder = Encoder(Architecture(projection_dim=8))
    engine = EagerEngine(encoder, "multi", torch.device("cpu"))
    cells = torch.randint(0, 256, (4, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)).numpy()
    found = engine.embed(cells)
    assert found.shape == (4, engine.dim)
    with torch.no_grad():
        _, z = encoder(torch.from_numpy(cells).permute(0, 3, 1, 2) / 255)
    torch.testing.assert_close(torch.from_numpy(found[:, -8:]), z)
    assert engine.embed(cells[:0]).shape == (0, engine.dim)


def test_an_encoder_without_such_stages_is_refused():
    pytest.importorskip("timm")
    encoder = Encoder(Architecture("convnext_atto", "standard", 8))
    with pytest.raises(SettingsError, match="convnext_atto has other stages"):
        EagerEngine(encoder, "multi", torch.device("cpu"))
