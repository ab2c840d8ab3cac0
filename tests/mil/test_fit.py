import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from cytomil.errors import FeatureFileError
from cytomil.mil import cross_validate as cross_validation
from cytomil.mil.bags import Standardiser, TrainingBag
from cytomil.mil.config import FitMilConfig, InstanceScore
from cytomil.mil.cross_validate import (
    SCORE_BIN_EDGES,
    Ensemble,
    Member,
    assign_folds,
    cross_validate,
    fit_in_parallel,
    one_thread,
    positive_probability,
    reference_evidence,
    score_shares,
    training_epochs,
)
from cytomil.mil.thresholds import choose_thresholds
from cytomil.progress import Silent

SETTINGS = FitMilConfig(
    aggregator="pamil", epochs=8, folds=3, ensemble=2, options={"pamil": {"n_prototypes": 4}}, precision="float32"
)


def make_bags(n=12, size=30, witnesses=6, shift=3.0, seed=0, patients=None):
    generator = torch.Generator().manual_seed(seed)
    bags = []
    for i in range(n):
        values = torch.randn(size, 8, generator=generator)
        if i % 2:
            values[:witnesses, 0] += shift
        bags.append(TrainingBag(f"b{i}", values, i % 2, patients[i] if patients else f"p{i}"))
    return bags


def test_no_patient_stands_in_two_folds_and_every_fold_has_both_labels():
    patients = [f"p{i // 2 * 2 + i % 2 if i < 6 else i}" for i in range(12)]
    bags = make_bags(patients=patients)
    folds = assign_folds(bags, SETTINGS)
    fold_of = {}
    for bag, fold in zip(bags, folds, strict=True):
        assert fold_of.setdefault(bag.patient, fold) == fold
    for fold in range(folds.max() + 1):
        assert {bag.label for bag, other in zip(bags, folds, strict=True) if other == fold} == {0, 1}


def test_too_few_patients_is_one_clear_error():
    bags = make_bags(4, patients=["a", "b", "c", "b"])
    with pytest.raises(FeatureFileError, match="two patients"):
        assign_folds(bags, SETTINGS)


def test_held_out_probabilities_come_from_models_that_did_not_see_the_bag():
    bags = make_bags()
    found = cross_validate(bags, SETTINGS, Silent())
    assert found.probabilities.shape == (12,)
    assert 1 <= found.n_epochs <= SETTINGS.epochs
    labels = np.array([bag.label for bag in bags])
    assert found.loss_by_epoch[found.n_epochs - 1] == found.loss_by_epoch.min()
    held = int(np.flatnonzero(found.fold == 0)[0])
    kept = [bag for bag, fold in zip(bags, found.fold, strict=True) if fold != 0]
    expected = 0.0
    for member in range(SETTINGS.ensemble):
        *_, (model, standardise) = training_epochs(kept, SETTINGS, found.n_epochs, SETTINGS.seed * 1000 + member)
        expected += positive_probability(model, standardise(bags[held].values)) / SETTINGS.ensemble
    assert found.probabilities[held] == pytest.approx(expected, abs=1e-6)
    assert found.probabilities[labels == 1].mean() > found.probabilities[labels == 0].mean()


@pytest.mark.parametrize("kind", list(InstanceScore))
def test_the_aggregator_finds_planted_witnesses(kind):
    bags = make_bags(n=16, shift=5.0)
    settings = SETTINGS.model_copy(update={"epochs": 40})
    *_, (model, standardise) = training_epochs(bags, settings, 40, 0)
    ensemble = Ensemble("pamil", (Member(model, standardise, reference_evidence(model, standardise, bags)),), kind)
    (positive, negative) = make_bags(n=2, shift=5.0, seed=9)[::-1]
    assert ensemble.assess(positive.values.numpy()).probability > 0.5
    assert ensemble.assess(negative.values.numpy()).probability < 0.5
    scores = ensemble.assess(positive.values.numpy()).scores
    assert len(set(np.argsort(-scores)[:6].tolist()) & set(range(6))) >= 5
    assert (scores > 0).all()
    if kind is InstanceScore.ATTENTION:
        assert scores.mean() == pytest.approx(1.0, abs=1e-4)


def test_evidence_is_the_odds_of_a_bag_of_that_instance_alone_in_units_of_the_average_negative_cell():
    bags = make_bags(6)
    *_, (model, standardise) = training_epochs(bags, SETTINGS, 2, 0)
    instances = standardise(bags[1].values)
    alone = torch.stack([model(instances[i : i + 1])[0] for i in range(len(instances))]).detach()
    torch.testing.assert_close(model.assess(instances)[1].float(), (alone[:, 1] - alone[:, 0]).exp())
    unit = reference_evidence(model, standardise, bags)
    ensemble = Ensemble("pamil", (Member(model, standardise, unit),), InstanceScore.EVIDENCE)
    scores = [ensemble.assess(bag.values.numpy()).scores for bag in bags if bag.label == 0]
    assert np.concatenate(scores).mean() == pytest.approx(1.0, abs=1e-4)


def test_any_number_of_workers_gives_the_same_to_the_bit():
    bags = make_bags()
    one, three = (
        cross_validate(bags, SETTINGS.model_copy(update={"workers": workers}), Silent()) for workers in (1, 3)
    )
    assert np.array_equal(one.loss_by_epoch, three.loss_by_epoch)
    assert np.array_equal(one.probabilities, three.probabilities)


def test_bfloat16_products_change_probabilities_and_ranks_little_and_weights_and_scores_stay_float32():
    bags = make_bags(16, size=60, shift=2.0)

    def fitted(precision):
        settings = SETTINGS.model_copy(update={"precision": precision})
        # Few epochs: every one amplifies what rounding began, and what it comes to differs between processors.
        *_, (model, standardise) = training_epochs(bags, settings, 10, 0)
        assert {p.dtype for p in model.parameters()} == {torch.float32}
        return [model.assess(standardise(bag.values)) for bag in make_bags(8, size=60, shift=2.0, seed=7)]

    exact, reduced = fitted("float32"), fitted("bf16")
    differ = [abs(one[0] - other[0]) for one, other in zip(exact, reduced, strict=True)]
    assert 0 < max(differ) < 0.05
    for (_, one), (_, other) in zip(exact, reduced, strict=True):
        assert spearmanr(one, other).statistic > 0.95


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_held_out_bags_are_read_as_training_reads_its_own_and_next_to_exactly(precision):
    bags = make_bags(16, size=60, shift=2.0)
    settings = SETTINGS.model_copy(update={"precision": precision, "ensemble": 1})
    found = cross_validate(bags, settings, Silent())
    kept = [bag for bag, fold in zip(bags, found.fold, strict=True) if fold != 0]
    seed = SETTINGS.seed * 1000
    # As cross-validation does: reduced products are rounded otherwise when they are shared between threads.
    with one_thread():
        *_, (model, standardise) = training_epochs(kept, settings, found.n_epochs, seed)
    held = [(bag, p) for bag, fold, p in zip(bags, found.fold, found.probabilities, strict=True) if fold == 0]
    exact = [positive_probability(model, standardise(bag.values)) for bag, _ in held]
    read = [positive_probability(model, standardise(bag.values).to(model.fitted_in(settings))) for bag, _ in held]
    assert [p for _, p in held] == pytest.approx(read, abs=1e-6)
    assert read == pytest.approx(exact, abs=0.01)


def test_a_failing_fit_ends_the_others_and_pytorchs_threads_are_as_before():
    threads, started = torch.get_num_threads(), []

    def fit(job, check):
        started.append(job)
        if job == 0:
            raise FeatureFileError("broken")
        while True:
            check()

    with pytest.raises(FeatureFileError, match="broken"):
        fit_in_parallel(range(20), fit, 2, Silent(), "")
    assert len(started) < 20
    assert torch.get_num_threads() == threads


def test_fits_side_by_side_come_back_in_the_order_of_their_jobs_each_with_one_thread():
    found = fit_in_parallel(range(7), lambda job, check: (job, torch.get_num_threads()), 3, Silent(), "")
    assert found == [(job, 1) for job in range(7)]


@pytest.mark.parametrize("prototypes", ["random", "kmeans"])
def test_training_follows_its_seed(prototypes):
    bags = make_bags()
    settings = SETTINGS.model_copy(update={"options": {"pamil": {"n_prototypes": 4, "prototypes": prototypes}}})

    def weights(seed):
        *_, (model, _) = training_epochs(bags, settings, 2, seed)
        return torch.cat([p.flatten() for p in model.parameters()])

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_standardiser_gives_zero_mean_and_unit_variance_and_survives_a_constant_dimension():
    bags = make_bags(4)
    for bag in bags:
        bag.values[:, 3] = 7.0
    standardise = Standardiser.of(bags)
    values = torch.cat([standardise(bag.values) for bag in bags])
    torch.testing.assert_close(values.mean(dim=0), torch.zeros(8), atol=1e-5, rtol=0)
    assert torch.isfinite(values).all()
    spread = values.std(dim=0, correction=0)
    torch.testing.assert_close(spread[[0, 1, 2, 4, 5, 6, 7]], torch.ones(7), atol=1e-4, rtol=0)


def test_score_shares_are_shares_and_keep_outliers():
    shares = score_shares(np.array([0.0, 1.0, 1.0, 1e9]))
    assert len(shares) == len(SCORE_BIN_EDGES) - 1
    assert shares.sum() == pytest.approx(1)
    assert shares[0] == pytest.approx(0.25)
    assert shares[-1] == pytest.approx(0.25)
    json.dumps(shares.tolist())


@pytest.mark.parametrize("aggregator", ["mahalanobis", "density-ratio"])
def test_what_holds_bags_out_itself_is_fitted_once_and_no_patient_stands_in_two_folds(aggregator, monkeypatch):
    bags = make_bags(12)
    settings = SETTINGS.model_copy(update={"aggregator": aggregator, "folds": 3})
    n_fits = []
    real = cross_validation.training_epochs
    monkeypatch.setattr(
        cross_validation, "training_epochs", lambda *given: (n_fits.append(len(given[0])), real(*given))[1]
    )
    found = cross_validate(bags, settings, Silent())
    assert n_fits == [12]
    assert sorted(set(found.fold.tolist())) == [0, 1, 2]
    for patient in {bag.patient for bag in bags}:
        assert len({int(fold) for bag, fold in zip(bags, found.fold, strict=True) if bag.patient == patient}) == 1
    labels = np.array([bag.label for bag in bags])
    expected = -np.log(np.where(labels == 1, found.probabilities, 1 - found.probabilities)).mean()
    assert roc_auc_score(labels, found.probabilities) > 0.7
    assert found.loss_by_epoch == pytest.approx([expected])


@pytest.mark.parametrize("aggregator", ["mahalanobis", "density-ratio"])
def test_a_bags_label_has_no_part_in_the_scale_of_its_held_out_probability(aggregator):
    settings = SETTINGS.model_copy(update={"aggregator": aggregator, "folds": 4})

    def loss(probabilities, labels):
        return -np.log(np.where(labels == 1, probabilities, 1 - probabilities)).mean()

    own, apart = [], []
    for seed in range(12):
        bags = make_bags(18, size=20, shift=0.0, seed=seed)
        *_, (model, _) = training_epochs(bags, settings, 1, 0)
        own.append(loss(model.cross_fitted.probabilities, model.cross_fitted.labels))
        apart.append(loss(model.cross_fitted.held_out_probabilities, model.cross_fitted.labels))
    assert np.mean(own) < np.mean(apart)
    assert np.mean(apart) > 0.99 * np.log(2)  # nothing can be known of noise


@pytest.mark.parametrize(
    ("aggregator", "negatives", "positives"),
    [
        ("mahalanobis", "abcdefgh", "ij"),  # fewer positive patients than folds
        ("self-paced", "xay", "acd"),  # a patient has bags of both labels
        ("density-ratio", "xay", "acd"),
    ],
)
def test_folds_without_a_positive_bag_give_thresholds_all_the_same(aggregator, negatives, positives):
    patients = [*negatives, *positives]
    made = make_bags(2 * len(patients))
    bags = [
        replace(made[2 * i + (i >= len(negatives))], bag_id=f"b{i}", patient=patient)
        for i, patient in enumerate(patients)
    ]
    settings = SETTINGS.model_copy(update={"aggregator": aggregator, "folds": 4, "workers": 1})
    held_out = cross_validate(bags, settings, Silent())
    labels = np.array([bag.label for bag in bags])
    found = choose_thresholds(held_out, labels, None, 0.95, 0)
    assert 0 <= found.low <= found.decision <= 1
