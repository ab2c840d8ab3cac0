"""What holds for every aggregator and one-class scorer."""

import copy
import itertools
import re
import subprocess
import sys

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import roc_auc_score

from cytomil import registry
from cytomil.config import Config
from cytomil.errors import SettingsError
from cytomil.mil.aggregators.base import attention_scores, odds
from cytomil.mil.aggregators.pooling import MeanPooling
from cytomil.mil.aggregators.registry import AGGREGATORS, find_aggregator, own_config, require_score
from cytomil.mil.bags import TrainingBag
from cytomil.mil.config import FitConfig, FitMilConfig, InstanceScore
from cytomil.mil.cross_validate import Ensemble, Member, cross_validate, reference_evidence, training_epochs
from cytomil.mil.pamil import PAMIL
from cytomil.progress import Silent

RATE = {"transmil": 1e-3}
EVERY = pytest.mark.parametrize("name", AGGREGATORS)
CLASSES = {name: find_aggregator(name) for name in AGGREGATORS}
KINDS = [(name, kind) for name, made in CLASSES.items() for kind in made.meaning]


def make_bags(n=12, size=40, witnesses=8, shift=8.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    bags = []
    for i in range(n):
        values = torch.randn(size, 6, generator=generator)
        if i % 2:
            values[:witnesses, 0] += shift
        bags.append(TrainingBag(f"b{i}", values, i % 2, f"p{i}"))
    return bags


def settings_for(name, **changes):
    return FitMilConfig(
        **({"aggregator": name, "options": {"pamil": {"n_prototypes": 4}}, "top_fraction": 0.1} | changes)
    )


def fit_all():
    bags = make_bags()
    found = {}
    for name in AGGREGATORS:
        *_, found[name] = training_epochs(bags, settings_for(name, learning_rate=RATE.get(name, 0.01)), 25, 0)
    return found


@pytest.fixture(scope="module")
def fitted(shared):
    """Every aggregator, fitted to bags whose positive ones hold planted outliers, with its standardiser."""
    return shared.object("every-aggregator", fit_all)


@EVERY
def test_planted_outliers_score_higher_and_positive_bags_are_likelier(name, fitted):
    model, standardise = fitted[name]
    negative, positive = make_bags(2, seed=9)
    probability, scores = model.assess(standardise(positive.values))
    assert probability > model.assess(standardise(negative.values))[0]
    assert scores.shape == (40,)
    assert (scores > 0).all()
    above = [float(out > usual) for out, usual in itertools.product(scores[:8], scores[8:])]
    assert np.mean(above) > 0.95


@pytest.mark.parametrize(("name", "kind"), [one for one in KINDS if one[0] != "transmil"])
def test_scores_follow_a_permutation_and_the_probability_does_not_change(name, kind, fitted):
    model, standardise = fitted[name]
    instances = standardise(make_bags(2, seed=3)[1].values)
    order = torch.randperm(len(instances), generator=torch.Generator().manual_seed(1))
    probability, scores = model.assess(instances, kind)
    moved_probability, moved_scores = model.assess(instances[order], kind)
    assert moved_probability == pytest.approx(probability, abs=1e-5)
    torch.testing.assert_close(moved_scores, scores[order], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(("name", "kind"), KINDS)
@pytest.mark.parametrize("size", [1, 7, 40])
@torch.inference_mode()
def test_blocks_of_any_size_give_what_the_whole_bag_gives(name, kind, size, fitted):
    model, standardise = fitted[name]
    instances = standardise(make_bags(2, seed=4)[1].values)
    reading = model.read(kind)
    for block in instances.split(size):
        reading.add(block)
    probability, scores = reading.result()
    assert probability == pytest.approx(model.assess(instances, kind)[0], abs=1e-5)
    torch.testing.assert_close(scores, model.assess(instances, kind)[1], rtol=1e-3, atol=1e-6)


def test_transmil_alone_depends_on_the_order_because_it_lays_the_bag_out_in_a_square(fitted):
    model, standardise = fitted["transmil"]
    instances = standardise(make_bags(2, seed=3)[1].values)
    assert model.assess(instances)[0] != model.assess(instances.flip(0))[0]


@EVERY
def test_a_bag_of_one_cell_can_be_read(name, fitted):
    model, standardise = fitted[name]
    probability, scores = model.assess(standardise(make_bags(1)[0].values[:1]))
    assert 0 <= probability <= 1
    assert scores.shape == (1,)


@pytest.mark.parametrize(("name", "kind"), KINDS)
@hypothesis.settings(max_examples=25, deadline=None)
@given(
    values=arrays(
        np.float32,
        st.tuples(st.integers(1, 6), st.just(6)),
        elements=st.floats(width=32, allow_nan=False, allow_infinity=False),
    )
)
def test_whatever_a_cell_is_its_score_is_finite_and_above_nought(name, kind, fitted, values):
    model, standardise = fitted[name]
    unit = reference_evidence(model, standardise, make_bags(2))
    found = Ensemble(name, (Member(model, standardise, unit),), kind).assess(values)
    assert 0 <= found.probability <= 1
    assert np.isfinite(found.scores).all()
    assert (found.scores > 0).all()


@pytest.mark.parametrize("name", [name for name, made in CLASSES.items() if made.averaged])
def test_weights_that_grew_large_leave_scores_finite_and_the_highest_apart(name, fitted):
    model, standardise = copy.deepcopy(fitted[name])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(30)
    bags = make_bags(2, seed=5)
    unit = reference_evidence(model, standardise, bags)
    scores = (
        Ensemble(name, (Member(model, standardise, unit),), InstanceScore.EVIDENCE)
        .assess(bags[1].values.numpy())
        .scores
    )
    assert np.isfinite(scores).all()
    assert (scores > 0).all()
    assert len(np.unique(np.sort(scores)[-6:])) == 6


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=2))
def test_odds_are_finite_above_nought_and_in_order_and_so_are_their_ratios(logits):
    logits = torch.tensor(sorted(logits))
    found = odds(logits)
    ratios = torch.cat([found / found.mean(), found / found.min(), found / found.max()])
    assert torch.isfinite(ratios).all()
    assert (ratios > 0).all()
    gaps, told_apart = found.diff(), logits.double().diff() > 1e-6 * logits.double().abs()[1:].clamp(min=1)
    assert (gaps >= 0).all()
    assert (gaps[told_apart] > 0).all()


def test_odds_are_the_exponential_where_it_can_be_told():
    logits = torch.linspace(-200, 200, 101)
    torch.testing.assert_close(odds(logits), logits.double().exp())


@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1))
def test_attention_is_a_softmax_in_units_of_its_mean_that_never_vanishes(raw):
    raw = torch.tensor(raw)
    found = attention_scores(raw)
    torch.testing.assert_close(found, raw.double().softmax(dim=0) * len(raw), rtol=1e-9, atol=1e-80)
    assert (found > 0).all()
    assert (found[raw.argsort()].diff() >= 0).all()


@EVERY
def test_fitting_follows_its_seed(name):
    bags = make_bags(6)

    def knowledge(seed):
        *_, (model, _) = training_epochs(bags, settings_for(name), 2, seed)
        return torch.cat([tensor.flatten().double() for tensor in model.state_dict().values()])

    first, again, other = knowledge(1), knowledge(1), knowledge(2)
    assert torch.equal(first, again)
    assert not (CLASSES[name].averaged and torch.equal(first, other))


@EVERY
def test_a_model_of_its_config_takes_its_weights(name, fitted):
    model, standardise = fitted[name]
    twin = CLASSES[name](**model.config)
    twin.load_state_dict(model.state_dict())
    instances = standardise(make_bags(1)[0].values)
    torch.testing.assert_close(twin.eval().assess(instances), model.assess(instances), rtol=0, atol=0)


SAVED = {
    "pamil": "attention.bias attention.weight classifiers.N.bias classifiers.N.weight instance_gate.N.bias "
    "instance_gate.N.weight prototype_gate.N.bias prototype_gate.N.weight prototypes shared.N.bias shared.N.weight",
    "self-paced": "intercept opinions.N.centres opinions.N.log_shares opinions.N.middle opinions.N.normal "
    "opinions.N.normal_log_share opinions.N.weight opinions.N.whitening opinions.N.whitenings opinions.N.witness slope "
    "spread usual views.N.between views.N.centre views.N.components.directions views.N.components.origin views.N.within",
    "mahalanobis": "intercept mean precision slope",
    "knn": "cells intercept slope",
    "ocsvm": "greatest intercept log_weights slope vectors",
    "gaussian": "centres intercept log_weights peak slope whitening",
    "density-ratio": "intercept negatives positives slope",
}


@pytest.mark.parametrize("name", SAVED)
def test_the_names_of_saved_weights_stay_so_that_older_models_load(name, fitted):
    names = {re.sub(r"\.\d+\.", ".N.", key) for key in fitted[name][0].state_dict()}
    assert sorted(names) == SAVED[name].split()


def test_self_paceds_card_names_its_parts_as_older_ones_do(fitted):
    config = fitted["self-paced"][0].config
    kinds = ["Discriminant", "WitnessMixture"] * 2 + ["NormalDensity", "MatchedContrast"]
    assert [part["kind"] for part in config["parts"]] == kinds
    assert set(config["parts"][0]) == {"kind", "view", "n_components", "shape"}
    assert set(config["views"][0]) == {"start", "stop", "n_components"}


# Cross-validation is the same code for all of them. The slowest three run nightly.
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.nightly) if name in ("transmil", "dtfd-mil", "clam") else name
        for name in AGGREGATORS
    ],
)
def test_cross_validation_tells_positive_bags(name):
    bags = make_bags()
    # A fit of TransMIL takes as long as ten of any other's.
    fits = {"folds": 3, "ensemble": 1} if name == "transmil" else {"ensemble": 2}
    chosen = settings_for(name, epochs=15, learning_rate=RATE.get(name, 0.01), **fits)
    found = cross_validate(bags, chosen, Silent())
    labels = np.array([bag.label for bag in bags])
    assert roc_auc_score(labels, found.probabilities) > 0.9
    assert len(found.loss_by_epoch) == (15 if CLASSES[name].by_epochs else 1)


@EVERY
def test_what_holds_bags_out_to_fit_its_curve_gives_them_back_on_its_own_scale(name, fitted):
    judged = fitted[name][0].cross_fitted
    if CLASSES[name].by_epochs:
        assert judged is None
        return
    assert sorted(judged.labels) == [0] * 6 + [1] * 6
    assert roc_auc_score(judged.labels, judged.probabilities) > 0.9
    model, standardise = fitted[name]
    seen = [model.assess(standardise(bag.values))[0] for bag in make_bags()]
    assert not set(seen) & set(judged.probabilities.tolist())
    assert np.mean(judged.probabilities[judged.labels == 0]) < 0.5 < np.mean(judged.probabilities[judged.labels == 1])


@EVERY
def test_each_says_what_its_score_means(name):
    for text in CLASSES[name].meaning.values():
        assert text.startswith("× ")
        assert 15 < len(text) < 90


def test_an_unknown_name_is_one_clear_line_with_the_nearest_one():
    with pytest.raises(SettingsError, match=r"no aggregator 'pamli'. Did you mean 'pamil'"):
        find_aggregator("pamli")
    with pytest.raises(SettingsError, match=r"There are: pamil, .*max"):
        find_aggregator("zzz")


def test_a_score_that_an_aggregator_cannot_give_is_refused_with_the_one_it_can():
    require_score("pamil", InstanceScore.ATTENTION)
    with pytest.raises(
        SettingsError, match=r"'mean' gives no instance score 'attention'. Use --instance-score evidence"
    ):
        require_score("mean", InstanceScore.ATTENTION)


def test_names_are_known_without_importing_what_they_name():
    code = (
        "import sys; from cytomil.mil.aggregators.registry import AGGREGATORS; "
        "print(AGGREGATORS.known('pamil'), 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["pamil", "False"]
    with pytest.raises(ValueError, match=r"no aggregator 'pamli'. Did you mean 'pamil'"):
        AGGREGATORS.known("pamli")


def test_own_settings_are_validated_and_default_to_the_classs():
    assert own_config("pamil", {}) == PAMIL.Config()
    assert (
        own_config(
            "pamil", {"pamil": {"n_prototypes": "4", "prototypes": "kmeans"}, "abmil": {"other": 1}}
        ).n_prototypes
        == 4
    )
    assert own_config("mean", {}).model_dump() == {}


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "pamil",
            {"n_prototype": 4},
            "'pamil' has no setting 'n_prototype'. Did you mean 'n_prototypes'?",
        ),
        ("pamil", {"epoch": 4}, "'pamil' has no setting 'epoch'. Did you mean 'epochs'?"),
        ("pamil", {"zzz": 4}, "'pamil' has no setting 'zzz'. There are: n_prototypes, prototypes, "),
        ("mean", {"zzz": 4}, "'mean' has no setting 'zzz'. It has no settings of its own."),
        ("pamil", {"n_prototypes": 0}, "'pamil': n_prototypes: input should be greater than or equal to 1 (it is 0)."),
        ("pamil", {"prototypes": "x"}, "'pamil': prototypes: input should be 'random' or 'kmeans' (it is 'x')."),
        ("pamli", {}, "there is no aggregator 'pamli'. Did you mean 'pamil'?"),
    ],
)
def test_an_unknown_or_bad_own_setting_is_one_clear_line(name, options, message):
    with pytest.raises(SettingsError) as raised:
        own_config(name, {name: options})
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


class OutsideConfig(Config):
    offset: float = 0.0


class Outside(MeanPooling):
    """What another package might bring, with a setting of its own."""

    Config = OutsideConfig

    @classmethod
    def untrained(cls, bags, settings, options, seed):
        model = super().untrained(bags, settings, options, seed)
        model.linear.bias.data.fill_(options.offset)
        return model


class Point:
    def __init__(self, name, found):
        self.name, self.value, self._found = name, f"outside:{name}", found

    def load(self):
        if isinstance(self._found, Exception):
            raise self._found
        return self._found


def test_another_package_adds_an_aggregator_by_an_entry_point(monkeypatch):
    points = [Point("outside", Outside), Point("broken", ImportError("no module")), Point("other", dict)]
    monkeypatch.setattr(registry, "entry_points", lambda group: points if group == "cytomil.aggregators" else [])
    *_, (model, _) = training_epochs(make_bags(4), settings_for("outside"), 1, 0)
    assert isinstance(model, Outside)
    *_, (moved, _) = training_epochs(make_bags(4), settings_for("outside", options={"outside": {"offset": 9.0}}), 1, 0)
    assert moved.linear.bias > 8 > model.linear.bias
    with pytest.raises(SettingsError, match=r"'outside' has no setting 'ofset'. Did you mean 'offset'"):
        own_config("outside", {"outside": {"ofset": 9.0}})
    with pytest.raises(SettingsError, match=r"'broken' .*cannot be loaded .*no module"):
        find_aggregator("broken")
    with pytest.raises(
        SettingsError, match=r"'other': .*not a subclass of cytomil\.mil\.aggregators\.base\.Aggregator"
    ):
        find_aggregator("other")


class Recording(FitMilConfig):
    """Settings that record which of them are read."""

    def __getattribute__(self, name):
        if name in FitConfig.model_fields:
            READ.add(name)
        return super().__getattribute__(name)


READ = set()


@EVERY
def test_settings_without_effect_are_those_that_are_never_read(name):
    settings = Recording.model_validate(settings_for(name).model_dump())
    READ.clear()
    training_epochs_of = training_epochs(make_bags(n=8, size=12), settings, 1, 0)
    for _ in training_epochs_of:
        pass
    ignored = {"learning_rate", "weight_decay", "top_fraction", "precision"} - READ
    assert ignored == set(CLASSES[name].unused)
