import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cytomil.bags import open_bag
from cytomil.encoders.bundle import load_bundle
from cytomil.encoders.engines import open_engine
from cytomil.features.cells import bag_blocks
from cytomil.features.embed import Embedder
from cytomil.layer import Layer
from cytomil.mil.novelty import is_sampled
from cytomil.progress import Silent
from cytomil.triage.second_look import SecondLook


@given(
    sizes=st.lists(st.integers(0, 40), max_size=6),
    fraction=st.floats(0, 1),
    all_of_first=st.integers(0, 60),
    seed=st.integers(0, 5),
)
def test_the_first_cells_the_sample_and_the_most_suspicious_of_each_block_are_chosen(
    sizes, fraction, all_of_first, seed
):
    rng = np.random.default_rng(seed)
    look = SecondLook(lambda values: values[:, 0], fraction, all_of_first)
    start = 0
    for size in sizes:
        values = rng.normal(size=(size, 3)).astype(np.float32)
        chosen = look.choose(values)
        assert chosen.shape == (size,)
        where = np.arange(start, start + size)
        always = (where < all_of_first) | (where % 8 == 0)
        assert chosen[always].all()
        if not always.all():
            n = math.ceil(fraction * size)
            top = np.argsort(-values[:, 0])[:n]
            assert chosen[top].all()
            assert chosen.sum() == len(set(top) | set(np.flatnonzero(always)))
        start += size


def test_a_sample_does_not_depend_on_blocks():
    assert np.array_equal(np.concatenate([is_sampled(0, 5), is_sampled(5, 20)]), is_sampled(0, 25))


def test_chosen_cells_have_all_orientations_and_the_others_one(encoder_folder, bags_folder):
    bundle = load_bundle(encoder_folder)
    bag = open_bag(next(bags_folder.glob("*.h5")))
    engine = open_engine(bundle, Layer.parse("h"), "eager", "cpu", Silent().note)

    def values(orientations, choose=None):
        embedder = Embedder(bundle, engine, Layer.parse("h"), "float32", orientations)
        blocks = bag_blocks(bag, embedder.preparation, 7)
        return np.concatenate([block.values for block in embedder.embedded("bag", blocks, [], choose)])

    chosen = np.arange(len(bag)) % 3 == 0
    parts = iter(np.split(chosen, range(7, len(bag), 7)))
    found = values(2, lambda _: next(parts))
    np.testing.assert_allclose(found[chosen], values(2)[chosen], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found[~chosen], values(1)[~chosen], rtol=1e-4, atol=1e-5)
    assert not np.allclose(found[~chosen], values(2)[~chosen], rtol=1e-3)
