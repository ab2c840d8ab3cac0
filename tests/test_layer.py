from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cytomil.layer import STATISTICS, Layer, known_layer, known_layers, resolve_layer

DEFAULT = Layer.of_stages((4, 1, 2))
stages = st.lists(st.integers(0, 40), min_size=1, max_size=5, unique=True).map(lambda n: tuple(sorted(n)))
statistics = st.sets(st.sampled_from(STATISTICS), min_size=1).map(lambda s: tuple(x for x in STATISTICS if x in s))
layers = st.one_of(
    st.builds(Layer, st.sampled_from(["h", "z"]), described=st.booleans()),
    st.builds(Layer, st.just("stages"), stages, statistics, st.booleans()),
)


@given(layers)
def test_every_layer_is_read_as_it_is_written(layer):
    assert Layer.parse(str(layer)) == layer
    assert known_layer(str(layer)) == str(layer)
    assert not layer.embedded.described


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("stages:4,1,2:spread,mean,max", "stages:1,2,4:mean,max,spread"),
        ("stages:2,2", "stages:2:mean,max,spread"),
        (" h ", "h"),
        ("stages:1:max+morphology", "stages:1:max+morphology"),
    ],
)
def test_different_spellings_of_one_layer_are_one(text, canonical):
    assert str(Layer.parse(text)) == canonical


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("multi", "there is no layer 'multi'"),
        ("stage:1", "Did you mean stages?"),
        ("stages", "stages:1,2,4"),
        ("stages:", "numbers"),
        ("stages:-1", "numbers"),
        ("stages:1,,2", "numbers"),
        ("stages:1:median", "there is no statistic 'median'. There are mean, max, spread"),
        ("stages:1:", "no statistic ''"),
        ("stages:1:mean:max", "there is no layer"),
        ("h:1", "there is no layer"),
        ("", "there is no layer"),
    ],
)
def test_what_is_no_layer_is_told_in_one_line(text, said):
    with pytest.raises(ValueError, match="layer") as caught:
        known_layer(text)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_auto_and_morphology_are_the_encoders_default_alone_and_described():
    assert resolve_layer("auto", lambda: DEFAULT) == DEFAULT
    assert str(resolve_layer("morphology", lambda: DEFAULT)) == "stages:1,2,4:mean,max,spread+morphology"
    assert resolve_layer("z", lambda: DEFAULT) == Layer("z")


def test_several_layers_stand_with_spaces_between_them():
    assert known_layers("h  stages:2,1:mean h auto") == "h stages:1,2:mean auto"
    with pytest.raises(ValueError, match="at least one layer"):
        known_layers(" ")
