from functools import cache
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from cytomil.bags.synthetic_cells import ABNORMAL_KINDS, MIN_SIZE, NORMAL_KINDS, render_cell

KINDS = NORMAL_KINDS + ABNORMAL_KINDS
EACH = 150


@cache
def cells(difficulty: float) -> NDArray[np.uint8]:
    """150 normal then 150 abnormal cells, kinds mixed evenly; (300, 72, 72, 3)."""
    rng = np.random.default_rng(7)
    kinds = [group[i % len(group)] for group in (NORMAL_KINDS, ABNORMAL_KINDS) for i in range(EACH)]
    return np.stack([render_cell(kind, rng, difficulty=difficulty) for kind in kinds])


def auc(features: NDArray[np.float64], model: LogisticRegression | SVC) -> float:
    labels = np.repeat([0, 1], EACH)
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    pipeline = make_pipeline(StandardScaler(), model)
    scores = cross_val_predict(pipeline, features, labels, cv=folds, method="decision_function")
    return float(roc_auc_score(labels, scores))


def mean_colour(images: NDArray[np.uint8]) -> NDArray[np.float64]:
    return images.mean(axis=(1, 2))


def border_colour(images: NDArray[np.uint8]) -> NDArray[np.float64]:
    margin = round(0.1 * images.shape[1])
    outer = np.ones(images.shape[1:3], dtype=bool)
    outer[margin:-margin, margin:-margin] = False
    pixels = images[:, outer].astype(float)
    return np.concatenate([pixels.mean(axis=1), pixels.std(axis=1)], axis=1)


def cytology(images: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Nuclear area, shape, colour and texture at three scales, and the cytoplasm's area and colour."""
    return np.array([_cytology_of(-np.log((image + 1.0) / 256.0)) for image in images])


def _cytology_of(density: NDArray[np.float64]) -> NDArray[np.float64]:
    red = density[8:-8, 8:-8, 0]
    smooth = gaussian_filter(red, 1.0)
    nucleus = smooth > max(0.5 * np.quantile(smooth, 0.99), 0.3)
    cytoplasm = (smooth > 0.12) & ~nucleus
    scales = [gaussian_filter(red, sigma) for sigma in (0.7, 1.3, 2.5, 4.0)]
    texture = [(fine - coarse)[nucleus].std() for fine, coarse in pairwise(scales)]
    rows, columns = np.nonzero(nucleus)
    spread = np.sqrt(np.linalg.eigvalsh(np.cov(rows, columns))) / np.sqrt(nucleus.sum())
    outline = np.hypot(*np.gradient(nucleus.astype(float))).sum() / np.sqrt(nucleus.sum())
    colours = [density[8:-8, 8:-8][part].mean(axis=0) for part in (nucleus, cytoplasm)]
    sizes = [nucleus.sum(), cytoplasm.sum(), nucleus.sum() / (nucleus | cytoplasm).sum()]
    return np.array([*sizes, *spread, outline, *texture, red[nucleus].std(), red[cytoplasm].std(), *np.ravel(colours)])


@settings(max_examples=20, deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 2**32),
    size=st.integers(MIN_SIZE, 100),
    difficulty=st.floats(0.0, 1.0),
)
def test_same_seed_gives_same_bytes(kind: str, seed: int, size: int, difficulty: float) -> None:
    first, second = (render_cell(kind, np.random.default_rng(seed), size=size, difficulty=difficulty) for _ in "ab")
    assert first.shape == (size, size, 3)
    assert first.dtype == np.uint8
    assert first.tobytes() == second.tobytes()


@pytest.mark.parametrize("kind", KINDS)
def test_different_seeds_differ(kind: str) -> None:
    first, second = (render_cell(kind, np.random.default_rng(seed)) for seed in (1, 2))
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [MIN_SIZE, 72, 145])
def test_every_kind_shows_a_dark_cell_on_pale_plasma(kind: str, size: int) -> None:
    image = render_cell(kind, np.random.default_rng(3), size=size, difficulty=0.0)
    middle = image[size // 4 : -size // 4, size // 4 : -size // 4, 0]
    assert np.quantile(middle, 0.02) < 170
    assert np.quantile(image[..., 0], 0.9) > 200


def test_kinds_are_distinct_and_apart() -> None:
    assert len(set(KINDS)) == len(KINDS)
    assert len(NORMAL_KINDS) >= 4
    assert len(ABNORMAL_KINDS) >= 3


def test_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="unknown kind of cell 'platypus'"):
        render_cell("platypus", np.random.default_rng(0))


@pytest.mark.parametrize("difficulty", [-0.01, 1.01, float("nan"), float("inf")])
def test_difficulty_out_of_range_is_refused(difficulty: float) -> None:
    with pytest.raises(ValueError, match="difficulty must lie between 0 and 1"):
        render_cell(KINDS[0], np.random.default_rng(0), difficulty=difficulty)


@pytest.mark.parametrize("size", [0, -72, MIN_SIZE - 1, 72.0, True, "72"])
def test_bad_size_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match="size must be a whole number"):
        render_cell(KINDS[0], np.random.default_rng(0), size=size)


def test_mean_colour_does_not_give_the_label_away() -> None:
    assert auc(mean_colour(cells(0.5)), LogisticRegression(max_iter=500)) < 0.75


def test_border_does_not_give_the_label_away() -> None:
    assert auc(border_colour(cells(0.5)), LogisticRegression(max_iter=500)) < 0.65


def test_cytological_features_tell_abnormal_from_normal() -> None:
    assert auc(cytology(cells(0.5)), SVC(C=3.0)) > 0.85


def test_difficulty_makes_it_harder() -> None:
    easy, default, hard = (auc(cytology(cells(difficulty)), SVC(C=3.0)) for difficulty in (0.0, 0.5, 1.0))
    assert easy > 0.95
    assert easy > default - 0.02
    assert default > hard + 0.04
