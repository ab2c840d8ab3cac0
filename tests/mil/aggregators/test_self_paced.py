import json
from dataclasses import replace

import numpy as np
import torch
from sklearn.covariance import LedoitWolf
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestNeighbors

from cytomil.mil.aggregators.mahalanobis import Mahalanobis
from cytomil.mil.aggregators.self_paced import SelfPaced
from cytomil.mil.bags import TrainingBag
from cytomil.settings import FitMilSettings

SETTINGS = FitMilSettings(top_share=0.05)


def make_bags(n, size=100, witnesses=4, seed=0, d=8):
    """Witnesses are alike, and far out in one thing; every bag holds five odd cells, a little out in many."""
    generator = torch.Generator().manual_seed(seed)
    bags = []
    for i in range(n):
        values = torch.randn(size, d, generator=generator)
        values[-5:] *= 1.5
        if i % 2:
            values[:witnesses] = 5.0 * (torch.arange(d) == 0) + 0.5 * values[:witnesses]
        bags.append(TrainingBag(f"b{i}", values, i % 2, f"p{i}"))
    return bags


def sides(bags):
    return [torch.cat([bag.values for bag in bags if bag.label == label]) for label in (0, 1)]


def whitening(cells):
    values, vectors = np.linalg.eigh(np.cov(cells.T))
    return lambda x: (x - cells.mean(0)) @ (vectors / np.sqrt(values))


def principal(cells):
    vectors = np.linalg.eigh(np.cov(cells.T))[1]
    return lambda x: (x - cells.mean(0)) @ vectors


def opinions(n, p, new, bend):
    """Written out: both opinions on ``new`` of a scorer that has seen ``n`` and ``p``, in the negatives' units."""
    bent = principal(bend(np.vstack([n, p])))
    cloud = LedoitWolf().fit(bent(bend(n)))
    whiten = whitening(np.vstack([n, p]))
    raw_n, n, p = n, whiten(n), whiten(p)
    unit_n, unit_p = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (n, p))
    to_n = NearestNeighbors(n_neighbors=10).fit(unit_n).kneighbors(unit_p)[0][:, -1]
    to_p = NearestNeighbors(n_neighbors=11).fit(unit_p).kneighbors(unit_p)[0][:, -1]  # itself among them
    order = np.argsort(-to_n / to_p)
    for _ in range(2):
        suspects = p[order[: round(0.06 * len(p))]]
        model = LogisticRegression(C=0.1, class_weight="balanced", max_iter=1000)
        model.fit(np.vstack([n, suspects]), [0] * len(n) + [1] * len(suspects))
        order = np.argsort(-model.decision_function(p))

    def both(x):
        return np.stack([model.decision_function(whiten(x)), np.sqrt(cloud.mahalanobis(bent(bend(x))))], axis=1)

    middle, upper = np.quantile(both(raw_n), [0.5, 0.84], axis=0)
    return (both(new) - middle) / (upper - middle)


def test_it_equals_all_opinions_written_out():
    negatives, positives = sides(make_bags(6))
    new = torch.randn(20, 8, generator=torch.Generator().manual_seed(9))
    n, p, x = (cells.double().numpy() for cells in (negatives, positives, new))
    for n_described in (0, 3):
        asked = [opinions(*(cells[:, : 8 - n_described] for cells in (n, p, x)), lambda cells: cells * abs(cells))]
        if n_described:
            asked.append(opinions(*(cells[:, -n_described:] for cells in (n, p, x)), lambda cells: cells))
        expected = np.log1p(np.exp((4 * np.arcsinh(np.concatenate(asked, axis=1) / 4)).mean(1)))
        found = SelfPaced.learn(negatives, positives, SETTINGS, n_described).distances(new)
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-4)


def test_witnesses_that_only_their_morphology_shows_are_found():
    def bags(seed):
        made = make_bags(12, seed=seed)
        blind = torch.Generator().manual_seed(seed + 100)
        return [
            replace(bag, values=torch.cat([torch.randn(100, 6, generator=blind), bag.values], dim=1), n_described=8)
            for bag in made
        ]

    (model,) = SelfPaced.fit(bags(0), SETTINGS, 1, 0)
    (blind,) = SelfPaced.fit([replace(b, values=b.values[:, :6], n_described=0) for b in bags(0)], SETTINGS, 1, 0)
    cells = torch.cat([bag.values for bag in bags(1) if bag.label])
    is_witness = torch.arange(len(cells)) % 100 < 4
    found = int(is_witness[model.distances(cells).topk(24).indices].sum())
    found_blind = int(is_witness[blind.distances(cells[:, :6]).topk(24).indices].sum())
    assert found > 16
    assert found_blind < 4


def test_a_model_is_the_same_after_its_weights_went_through_a_file():
    negatives, positives = sides(make_bags(6))
    for n_described in (0, 3):
        model = SelfPaced.learn(negatives, positives, SETTINGS, n_described)
        again = SelfPaced(**json.loads(json.dumps(model.config)))
        again.load_state_dict(model.state_dict())
        assert torch.equal(model.distances(positives), again.distances(positives))


def test_what_lies_far_out_counts_by_its_logarithm():
    negatives, positives = sides(make_bags(6))
    model = SelfPaced.learn(negatives, positives, SETTINGS)
    far, farther = (torch.full((1, 8), value) for value in (1e2, 1e4))
    usual = model.distances(negatives).median()
    assert model.distances(far) > usual
    assert model.distances(farther) > model.distances(far)
    assert model.distances(farther) < 4 * model.distances(far)


def test_a_direction_in_which_nothing_varies_is_left_as_it_is():
    negatives, positives = (torch.cat([side, torch.zeros(len(side), 3)], dim=1) for side in sides(make_bags(6)))
    model = SelfPaced.learn(negatives, positives, SETTINGS)
    new = torch.randn(20, 11, generator=torch.Generator().manual_seed(9))
    assert torch.isfinite(model.distances(new)).all()


def test_few_witnesses_come_before_most_odd_cells_and_call_their_bags():
    negatives, positives = sides(make_bags(12))
    test = make_bags(12, seed=1)
    cells = torch.cat([bag.values for bag in test if bag.label])
    is_witness = torch.arange(len(cells)) % 100 < 4
    model = SelfPaced.learn(negatives, positives, SETTINGS)
    scores = model.distances(cells), Mahalanobis.learn(negatives, SETTINGS, 0).distances(cells)
    witnesses, of_distance = (int(is_witness[score.topk(24).indices].sum()) for score in scores)
    assert witnesses > 20 > of_distance

    (model,) = SelfPaced.fit(make_bags(12), SETTINGS, 1, 0)
    probabilities = [model.assess(bag.values)[0] for bag in test]
    assert min(probabilities[1::2]) > max(probabilities[::2])
