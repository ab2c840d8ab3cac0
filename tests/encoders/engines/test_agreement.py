import math

import numpy as np
import pytest
from sklearn.covariance import LedoitWolf

from cytomil.encoders.engines.record import agreement, refusal, top_overlap


@pytest.fixture
def embeddings():
    return np.random.default_rng(0).normal(size=(200, 16)).astype(np.float32)


def noisy(embeddings, share):
    return embeddings + share * np.random.default_rng(1).normal(size=embeddings.shape).astype(np.float32)


def test_the_same_embeddings_agree_wholly(embeddings):
    figures = agreement(embeddings, embeddings.copy())
    assert figures["min_cosine"] == pytest.approx(1)
    assert figures["mean_cosine"] == pytest.approx(1)
    assert figures["top_overlap"] == 1
    assert figures["cells"] == 200


def test_one_cell_that_strays_is_seen_in_the_min_cosine(embeddings):
    other = embeddings.copy()
    other[7] *= -1
    figures = agreement(embeddings, other)
    assert figures["min_cosine"] == pytest.approx(-1)
    assert figures["mean_cosine"] == pytest.approx(1 - 2 / 200)


def test_overlap_falls_with_noise_and_is_chance_for_unrelated_embeddings(embeddings):
    overlaps = [top_overlap(embeddings, noisy(embeddings, share)) for share in (0, 0.05, 0.5)]
    assert overlaps[0] == 1 > overlaps[1] > overlaps[2]
    unrelated = np.random.default_rng(9).normal(size=embeddings.shape).astype(np.float32)
    assert top_overlap(embeddings, unrelated) < 0.2


def test_overlap_is_of_what_scores_high_not_of_scale_or_place_in_the_batch(embeddings):
    order = np.random.default_rng(3).permutation(len(embeddings))
    other = noisy(embeddings, 0.1)
    assert top_overlap(embeddings[order], other[order]) == pytest.approx(top_overlap(embeddings, other))


def overlap_by_definition(eager, other):
    """The mean of the shared tops by Ledoit and Wolf's distance and by the five nearest neighbours."""
    distance = LedoitWolf().fit(eager).mahalanobis
    k = math.ceil(0.05 * len(eager))

    def shared(ours, theirs):
        return len({*np.argsort(-ours)[:k]} & {*np.argsort(-theirs)[:k]}) / k

    def neighbours(cells):
        apart = np.linalg.norm(cells[:, None] - eager[None], axis=2)
        return np.array([np.sort(np.delete(row, i))[:5].mean() for i, row in enumerate(apart)])

    return (shared(distance(eager), distance(other)) + shared(neighbours(eager), neighbours(other))) / 2


@pytest.mark.parametrize(("n", "dim"), [(200, 16), (60, 300)])
def test_overlap_is_that_of_ledoit_and_wolfs_distance_and_of_neighbours(n, dim):
    eager = np.random.default_rng(4).normal(size=(n, dim)) * np.linspace(0.2, 2, dim)
    other = noisy(eager, 0.4)
    expected = overlap_by_definition(eager, other)
    assert 0 < expected < 1
    assert top_overlap(eager, other) == pytest.approx(expected)


def test_axes_too_narrow_for_single_precision_have_no_say():
    narrow = np.random.default_rng(5).normal(size=(400, 400)) * np.where(np.arange(400) < 1, 1, 0.001)
    eager = narrow.astype(np.float32)
    other = noisy(eager, 0.002)
    assert top_overlap(eager, other) == overlap_by_definition(eager, other) > 0.9
    assert top_overlap(eager.astype(np.float64), other.astype(np.float64)) < 0.6


def test_embeddings_at_one_point_agree():
    assert top_overlap(np.ones((50, 8), np.float32), np.ones((50, 8), np.float32)) == 1


GOOD = {"min_cosine": 0.9995, "mean_cosine": 0.9999, "top_overlap": 0.99}


@pytest.mark.parametrize("precision", ["float32", "bf16", "fp16", "int8"])
def test_what_agrees_is_kept(precision):
    assert refusal(GOOD, precision) == ""


@pytest.mark.parametrize(
    ("precision", "change", "words"),
    [
        ("float32", {"min_cosine": 0.9989}, "min cosine 0.998900"),
        ("bf16", {"min_cosine": 0.9899}, "min cosine 0.989900, the minimum is 0.99"),
        ("fp16", {"min_cosine": float("nan")}, "min cosine nan"),
        ("int8", {"mean_cosine": 0.979}, "mean cosine 0.9790"),
        ("int8", {"top_overlap": 0.94}, "top-5 % overlap 0.940"),
        ("int8", {"mean_cosine": float("nan")}, "mean cosine nan"),
    ],
)
def test_what_strays_is_refused_with_its_figure(precision, change, words):
    assert words in refusal(GOOD | change, precision)


def test_int8_is_judged_by_its_mean_and_float_by_its_worst():
    low = GOOD | {"min_cosine": 0.9}
    assert refusal(low, "int8") == ""
    assert refusal(low, "float32") != ""
    assert refusal(GOOD | {"top_overlap": 0.1}, "float32") == ""
