"""Self-paced: its rounds, and its detectors combined."""

import json
from dataclasses import replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr

from cytomil.mil.aggregators import self_paced
from cytomil.mil.aggregators.one_class import Mahalanobis
from cytomil.mil.aggregators.self_paced import SUSPECT_FRACTIONS, SelfPaced, learn_paced
from cytomil.mil.aggregators.self_paced_detectors import Discriminant, Paced, shrunk
from cytomil.mil.bags import TrainingBag
from cytomil.mil.config import FitConfig, InstanceScore

SETTINGS = FitConfig(top_fraction=0.05)


def make_bags(n, size=100, witnesses=4, seed=0, d=8, between=0.0):
    """Witnesses are alike, and far out in one thing; every bag holds five odd cells, a little out in many."""
    generator = torch.Generator().manual_seed(seed)
    bags = []
    for i in range(n):
        values = torch.randn(size, d, generator=generator)
        values[-5:] *= 1.5
        if i % 2:
            values[:witnesses] = 5.0 * (torch.arange(d) == 0) + 0.5 * values[:witnesses]
        values += between * torch.randn(d, generator=generator)
        bags.append(TrainingBag(f"b{i}", values, i % 2, f"p{i}"))
    return bags


def learnt(bags):
    return SelfPaced.learn_from(bags, SETTINGS)


def n_found(model, bags, witnesses=4):
    """How many of the positive bags' most suspicious cells are witnesses, each bag read whole; of as many as there are."""
    positives = [bag for bag in bags if bag.label]
    scores = torch.cat([model.distances(bag.values) for bag in positives])
    is_witness = torch.cat([torch.arange(len(bag.values)) < witnesses for bag in positives])
    return int(is_witness[scores.topk(witnesses * len(positives)).indices].sum())


@pytest.fixture(scope="module")
def model():
    return learnt(make_bags(12))


def test_each_family_of_opinions_counts_alike():
    bags = [replace(bag, groups=(5, 3)) for bag in make_bags(6)]
    model, negatives = learnt(bags), [bag.values for bag in bags if not bag.label]

    def asked(values):
        families: dict[str, list[np.ndarray]] = {}
        for opinion, part in zip(model.opinions, model.config["parts"], strict=True):
            view = model.views[part["view"]]
            cells = [view.relative(view.project(bag))[:, : part["n_components"]] for bag in values]
            families.setdefault(part["kind"], []).append(opinion(torch.cat(cells)).numpy())
        return families

    usual, found = asked(negatives), asked([bags[1].values])
    assert {name: len(opinions) for name, opinions in found.items()} == {
        "Discriminant": 2,
        "WitnessMixture": 2,
        "NormalDensity": 2,
        "MatchedContrast": 1,
    }
    squeezed = []
    for name, opinions in found.items():
        of_family = []
        for of_normal, opinion in zip(usual[name], opinions, strict=True):
            middle, upper = np.quantile(of_normal, [0.5, 0.84])
            of_family.append(4 * np.arcsinh((opinion - middle) / (upper - middle) / 4))
        squeezed.append(np.mean(of_family, axis=0))
    expected = np.log1p(np.exp(np.mean(squeezed, axis=0)))
    np.testing.assert_allclose(model.distances(bags[1].values), expected, rtol=1e-5)


def test_few_witnesses_that_are_alike_are_found_and_call_their_bags(model):
    test = make_bags(12, seed=1)
    negatives = torch.cat([bag.values for bag in make_bags(12) if not bag.label])
    assert n_found(model, test) > 20 > n_found(Mahalanobis.learn(negatives, SETTINGS), test)
    (calibrated,) = SelfPaced.fit(make_bags(12), SETTINGS)
    probabilities = [calibrated.assess(bag.values)[0] for bag in test]
    assert min(probabilities[1::2]) > max(probabilities[::2])


def test_witnesses_that_only_one_group_of_columns_shows_are_found():
    def bags(seed):
        made = make_bags(12, seed=seed)
        blind = torch.Generator().manual_seed(seed + 100)
        noise = [torch.randn(100, 60, generator=blind) for _ in made]
        return [
            replace(bag, stored=torch.cat([part, bag.values], dim=1), groups=(60, 8))
            for bag, part in zip(made, noise, strict=True)
        ]

    def without(bags):
        return [replace(bag, stored=bag.values[:, :60], groups=()) for bag in bags]

    assert n_found(learnt(bags(0)), bags(1)) > 16
    assert n_found(learnt(without(bags(0))), without(bags(1))) < 6


def test_where_bags_differ_as_people_do_a_shift_of_a_whole_slide_leaves_its_cells_order():
    model = learnt(make_bags(24, between=1.0))
    bag = make_bags(2, seed=1, between=1.0)[1].values
    moved = model.distances(bag + torch.tensor([2.0, -2, 2, -2, 2, -2, 2, -2]))
    assert spearmanr(model.distances(bag), moved).statistic > 0.95
    assert n_found(model, make_bags(12, seed=2, between=1.0)) > 20


def test_a_bag_is_called_by_three_shares_of_its_top_cells(model):
    scores = torch.rand(200, generator=torch.Generator().manual_seed(0))
    ordered = np.sort(scores.double().numpy())[::-1]
    expected = np.mean([np.log(ordered[:n].mean()) for n in (3, 10, 30)])
    assert model.pool(scores) == pytest.approx(expected)


def test_a_model_is_the_same_after_its_weights_went_through_a_file(tmp_path):
    model = learnt([replace(bag, groups=(5, 3)) for bag in make_bags(6)])
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    again = SelfPaced(**json.loads(json.dumps(model.config)))
    again.load_state_dict(torch.load(tmp_path / "weights.pt"))
    bag = make_bags(2, seed=1)[1].values
    assert torch.equal(model.distances(bag), again.distances(bag))


@pytest.mark.parametrize("size", [1, 7])
def test_block_by_block_a_bag_is_read_as_it_is_whole(model, size):
    bag = make_bags(2, seed=1)[1].values
    reading = model.read(InstanceScore.EVIDENCE)
    for block in bag.split(size):
        reading.add(block)
    probability, scores = reading.result()
    assert probability == pytest.approx(model.assess(bag)[0], rel=1e-6)
    torch.testing.assert_close(scores, model.distances(bag), rtol=1e-4, atol=1e-5)


def test_what_lies_far_out_counts_by_its_logarithm(model):
    bag = make_bags(2, seed=1)[0].values
    scores = []
    for far in (1e2, 1e4, 1e6):
        bag[0] = torch.where(torch.arange(8) == 0, far, 0)
        scores.append(float(model.distances(bag)[0]))
    assert scores[0] > float(model.distances(bag).median())
    assert scores == sorted(scores)
    assert scores[2] - scores[1] == pytest.approx(scores[1] - scores[0], rel=0.1)


def test_a_direction_in_which_nothing_varies_gives_finite_scores():
    def flat(bags):
        return [replace(b, stored=torch.cat([b.values, torch.zeros(100, 3)], dim=1), groups=(8, 3)) for b in bags]

    model = learnt(flat(make_bags(6)))
    assert torch.isfinite(model.distances(torch.randn(20, 11, generator=torch.Generator().manual_seed(9)))).all()
    assert n_found(model, flat(make_bags(6, seed=1))) > 9


@pytest.mark.parametrize(("n", "size", "d"), [(2, 100, 8), (3, 100, 1), (4, 1, 8), (2, 1, 8)])
def test_single_bags_features_and_cells_are_enough_for_numbers(n, size, d):
    bags = make_bags(n, size, 1, d=d)
    (model,) = SelfPaced.fit(bags, SETTINGS)
    for bag in bags:
        probability, scores = model.assess(bag.values)
        assert 0 <= probability <= 1
        assert torch.isfinite(scores).all()


def test_an_empty_bag_does_no_harm():
    bags = make_bags(6)
    empty = TrainingBag("empty", torch.zeros(0, 8), 0, "nobody")
    test = make_bags(2, seed=1)[1].values
    assert torch.equal(learnt([*bags, empty]).distances(test), learnt(bags).distances(test))


def test_of_many_cells_as_many_of_each_label_are_learnt_from(monkeypatch):
    counts = []

    def counting(kind, negatives, positives, folds, seed, confirmed):
        counts.append((sum(map(len, negatives)), sum(map(len, positives))))
        return learn_paced(kind, negatives, positives, folds, seed, confirmed)

    learn_paced = self_paced.learn_paced
    monkeypatch.setattr(self_paced, "learn_paced", counting)
    monkeypatch.setattr(self_paced, "_MAX_CELLS", 120)
    model = learnt(make_bags(6))
    assert set(counts) == {(120, 120)}
    assert n_found(model, make_bags(12, seed=1)) > 12


def test_a_patients_bags_are_held_out_together(monkeypatch):
    given = []

    def watch(kind, negatives, positives, folds, seed, confirmed):
        given.append(folds)
        return learn_paced(kind, negatives, positives, folds, seed, confirmed)

    learn_paced = self_paced.learn_paced
    monkeypatch.setattr(self_paced, "learn_paced", watch)
    patients = ["n", "a", "n", "b", "m", "b", "m", "c"]
    learnt([replace(bag, patient=patient) for bag, patient in zip(make_bags(8), patients, strict=True)])
    assert {tuple(map(tuple, folds)) for folds in given} == {((0, 0, 1, 1), (0, 1, 1, 0))}


def drawn_bags(n, seed, witnesses=0, size=50, d=4):
    values = torch.randn(n, size, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    values[:, :witnesses, 0] += 5
    return list(values)


def folds(n_negatives, n_positives):
    n = min(5, n_negatives, n_positives)
    return [i % n for i in range(n_negatives)], [i % n for i in range(n_positives)]


@pytest.mark.parametrize(("n_negatives", "n_positives"), [(7, 6), (3, 8), (1, 1)])
def test_it_equals_pacing_written_out(n_negatives, n_positives):
    negatives, positives = drawn_bags(n_negatives, 0), drawn_bags(n_positives, 1, witnesses=3)
    n_folds = min(5, n_negatives, n_positives)
    n, p = ([bag.numpy() for bag in side] for side in (negatives, positives))

    def weight(some, suspects):
        some, suspects = np.vstack(some), np.vstack(suspects)
        return np.linalg.inv(shrunk(torch.from_numpy(np.cov(some.T, ddof=0))).numpy()) @ (
            suspects.mean(0) - some.mean(0)
        )

    suspects = p
    for share in (0.3, 0.2, 0.12, 0.08, 0.06):
        scores = []
        for i, bag in enumerate(p):
            of_fold = [j % n_folds == i % n_folds for j in range(10)]
            single = n_folds == 1
            w = weight(
                [one for j, one in enumerate(n) if single or not of_fold[j]],
                [one for j, one in enumerate(suspects) if single or not of_fold[j]],
            )
            usual = np.vstack([one for j, one in enumerate(n) if of_fold[j]]) @ w
            scores.append((bag @ w - usual.mean()) / usual.std())
        threshold = np.quantile(np.concatenate(scores), 1 - share)
        suspects = [bag[score >= threshold] for bag, score in zip(p, scores, strict=True)]
    found = learn_paced(Discriminant, negatives, positives, folds(n_negatives, n_positives), 0)
    for held, score in zip(found.positives, scores, strict=True):
        np.testing.assert_allclose(held, score, rtol=1e-6)
    np.testing.assert_allclose(found.detector.weight, weight(n, suspects), rtol=1e-6)


class Recorder(Paced):
    """Cells are (score, bag). Notes which bags each scorer has seen, and which it is then asked about."""

    asked: ClassVar = []
    n_suspects: ClassVar = []

    def __init__(self, seen):
        super().__init__()
        self.seen = seen

    @classmethod
    def fit_background(cls, negatives, seed):
        return set(negatives[:, 1].tolist())

    @classmethod
    def fit_contrast(cls, background, suspects):
        cls.n_suspects.append(len(suspects))
        return cls(background | set(suspects[:, 1].tolist()))

    def forward(self, cells):
        self.asked.append((self.seen, set(cells[:, 1].tolist())))
        return cells[:, 0]


@pytest.fixture
def recorder():
    class Fresh(Recorder):
        asked: ClassVar = []
        n_suspects: ClassVar = []

    return Fresh


def numbered(n, start, seed=0):
    scores = torch.randn(n, 100, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return [torch.stack([score, torch.full_like(score, start + i)], dim=1) for i, score in enumerate(scores)]


def test_no_bag_is_judged_by_a_scorer_that_has_seen_it(recorder):
    learn_paced(recorder, numbered(6, 0), numbered(7, 100), folds(6, 7), 0)
    assert set.union(*(bags for _, bags in recorder.asked)) == {*range(6), *range(100, 107)}
    assert all(not seen & bags for seen, bags in recorder.asked)


def test_nor_where_all_suspects_lie_in_the_bag_that_is_held_out(recorder):
    positives = numbered(4, 100)
    positives[0][:, 0] += 100
    learn_paced(recorder, numbered(4, 0), positives, folds(4, 4), 0)
    assert all(not seen & bags for seen, bags in recorder.asked)


def test_at_last_six_cells_in_a_hundred_are_suspects(recorder):
    model = learn_paced(recorder, numbered(5, 0), numbered(10, 100), folds(5, 10), 0)
    assert recorder.n_suspects[-1] == pytest.approx(SUSPECT_FRACTIONS[-1] * 1000, abs=1)
    assert model.detector.seen >= set(range(5))


def test_whose_bags_are_held_out_together_is_the_callers_to_say(recorder):
    learn_paced(recorder, numbered(4, 0), numbered(4, 100), ([0, 0, 1, 1], [0, 0, 1, 1]), 0)
    first, second = {0, 1, 100, 101}, {2, 3, 102, 103}
    assert all(not (seen & first and bags & first) for seen, bags in recorder.asked)
    assert all(not (seen & second and bags & second) for seen, bags in recorder.asked)
