import pytest

from cytomil.errors import FeatureFileError
from cytomil.features.embed import max_image_px, n_morphology, preparation_sha256, stored_layer
from cytomil.layer import Layer
from cytomil.morphology.measure import N_DESCRIPTORS, SIDE

DESCRIBED = Layer("h", described=True)


def test_a_described_layer_has_the_description_after_the_encoders_columns():
    assert n_morphology(DESCRIBED) == N_DESCRIPTORS
    assert n_morphology(DESCRIBED.embedded) == 0


@pytest.mark.parametrize(("image_size", "seen"), [(32, SIDE), (SIDE, SIDE), (224, 224)])
def test_the_finest_picture_decides_how_finely_cells_are_cut(image_size, seen):
    assert max_image_px(DESCRIBED, image_size) == seen
    assert max_image_px(Layer("h"), 32) == 32


def test_another_description_is_another_preparation_of_described_cells_alone(monkeypatch):
    before = {layer: preparation_sha256(layer, "pixels") for layer in (Layer("z"), DESCRIBED)}
    monkeypatch.setattr("cytomil.features.embed.DESCRIPTION", "another")
    after = {layer: preparation_sha256(layer, "pixels") for layer in (Layer("z"), DESCRIBED)}
    assert before[Layer("z")] == after[Layer("z")] == "pixels"
    assert before[DESCRIBED] != after[DESCRIBED]


@pytest.mark.parametrize("text", ["multi", "morphology", "auto", "None"])
def test_what_another_version_stored_is_refused_with_what_to_do(text):
    with pytest.raises(FeatureFileError, match=r"does not support layer.*cytomil embed"):
        stored_layer(text)


def test_a_stored_layer_is_rebuilt_as_it_was():
    for layer in (Layer("h"), DESCRIBED, Layer("stages", (0, 4), ("max",), described=True)):
        assert stored_layer(str(layer)) == layer
