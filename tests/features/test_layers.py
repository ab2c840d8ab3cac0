import pytest

from cytomil.encoders.architecture import Architecture, Encoder
from cytomil.encoders.stages import layers_of
from cytomil.features.layers import default_layer, encoder_layer, n_described, preparation_sha256, seen_px
from cytomil.morphology.descriptors import N_DESCRIPTORS, SIDE
from cytomil.settings import Layer


def test_a_resnets_default_is_morphology_and_its_engine_gives_multi():
    encoder = Encoder(Architecture(projection_dim=16))
    assert default_layer(encoder) is Layer.MORPHOLOGY
    assert encoder_layer(default_layer(encoder)) in layers_of(encoder)
    assert n_described(Layer.MORPHOLOGY) == N_DESCRIPTORS


@pytest.mark.parametrize("layer", ["h", "z", "multi"])
def test_the_encoders_own_layers_are_what_they_were(layer):
    assert encoder_layer(layer) == layer
    assert n_described(layer) == 0
    assert seen_px(layer, 32) == 32


@pytest.mark.parametrize(("image_size", "seen"), [(32, SIDE), (SIDE, SIDE), (224, 224)])
def test_the_finest_picture_decides_how_finely_cells_are_cut(image_size, seen):
    assert seen_px("morphology", image_size) == seen


def test_only_a_described_layers_preparation_names_the_description(monkeypatch):
    before = {layer: preparation_sha256(layer, "pixels") for layer in ("z", "morphology")}
    monkeypatch.setattr("cytomil.features.layers.DESCRIPTION", "another")
    after = {layer: preparation_sha256(layer, "pixels") for layer in ("z", "morphology")}
    assert before["z"] == after["z"] == "pixels"
    assert len({before["morphology"], after["morphology"], "pixels"}) == 3
