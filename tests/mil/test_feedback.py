"""Readers' verdicts: read from a table, matched to bags by slide and cell, used by fitting."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cytomil.errors import CytomilError, SettingsError, TableError
from cytomil.mil.aggregators.self_paced import SelfPaced
from cytomil.mil.bags import TrainingBag, informative_cells, read_feedback
from cytomil.mil.config import FitMilConfig
from cytomil.mil.fit import fit_mil
from cytomil.progress import Silent


def write(path, *lines):
    path.write_text("\n".join(("slide,instance_id,verdict", *lines)) + "\n")
    return path


def test_verdicts_reach_the_cells_of_their_slide_alone(tmp_path):
    path = write(tmp_path / "f.csv", "a.svs,c1,abnormal", "a.svs,c2,normal", "b,c1,Not a cell")
    feedback = read_feedback(path)
    assert feedback.codes("a", ["c0", "c1", "c2"]).tolist() == [-1, 1, 0]
    assert feedback.codes("a.svs", ["c1"]).tolist() == [1]
    assert feedback.codes("b", ["c1", "c2"]).tolist() == [0, -1]
    assert feedback.codes("c", ["c1"]).tolist() == [-1]
    said = []
    feedback.note_unused(["a"], said.append)
    assert said == ["1 verdicts are not used, because these slides are not training bags: b"]


@pytest.mark.parametrize("line", ["a,c1,malignant", "a,c1,", "a,c1,unsure"])
def test_a_verdict_of_another_name_is_one_line(tmp_path, line):
    with pytest.raises(TableError, match="line 2"):
        read_feedback(write(tmp_path / "f.csv", line))


def test_two_verdicts_on_one_cell_are_refused(tmp_path):
    with pytest.raises(TableError, match="two verdicts"):
        read_feedback(write(tmp_path / "f.csv", "a,c1,normal", "a,c1,abnormal"))
    # Normal and not a cell say the same: not abnormal.
    read_feedback(write(tmp_path / "f.csv", "a,c1,normal", "a,c1,not a cell"))


def bags_of_two_oddities(seed, n=60, dim=12):
    """Positive bags hold witnesses (column 0) and harmless odd cells (column 1) that are farther out, and more of them."""
    rng = np.random.default_rng(seed)
    bags, witness = [], []
    for i in range(16):
        values = rng.normal(size=(n, dim))
        label = i % 2
        is_witness = np.zeros(n, bool)
        if label:
            is_witness[:3] = True
            values[:3, 0] += 3
            values[3:9, 1] += 5
        bags.append(TrainingBag(f"b{i}", torch.from_numpy(values).float(), label, f"b{i}"))
        witness.append(is_witness)
    return bags, witness


def rank_of_witnesses(model, bags, witness):
    """Mean rank of the witnesses in their bags, 0 the most suspicious."""
    found = []
    for bag, own in zip(bags, witness, strict=True):
        if own.any():
            order = np.argsort(np.argsort(-model.assess(bag.values)[1].numpy()))
            found.append(order[own].mean())
    return float(np.mean(found))


def fitted(bags):
    (model,) = SelfPaced.fit(bags, seed=0)
    return model


def test_verdicts_lead_to_the_witnesses():
    bags, witness = bags_of_two_oddities(0)
    told = []
    for bag, own in zip(bags, witness, strict=True):
        verdicts = torch.full((len(bag),), -1, dtype=torch.int8)
        if bag.label:
            verdicts[:9] = torch.from_numpy(own[:9].astype(np.int8))
        told.append(TrainingBag(bag.bag_id, bag.stored, bag.label, bag.patient, verdicts=verdicts))
    tests, of_tests = bags_of_two_oddities(1)
    before = rank_of_witnesses(fitted(bags), tests, of_tests)
    after = rank_of_witnesses(fitted(told), tests, of_tests)
    assert before > 4
    assert after < 3


def test_no_verdicts_change_nothing():
    bags, _ = bags_of_two_oddities(2)
    silent = [
        TrainingBag(b.bag_id, b.stored, b.label, b.patient, verdicts=torch.full((len(b),), -1, dtype=torch.int8))
        for b in bags
    ]
    one, other = fitted(bags), fitted(silent)
    for (name, a), b in zip(one.state_dict().items(), other.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, msg=name)


def config(features_folder, encoder_folder, tmp_path, **more):
    return FitMilConfig(features=features_folder, encoder=encoder_folder, out=tmp_path / "model", workers=1, **more)


def test_fitting_says_what_the_verdicts_changed(features_folder, encoder_folder, tmp_path):
    from cytomil.features.index import read_index

    opened = read_index(features_folder).open("train")
    lines = [
        f"{row.bag_id},{name},{'abnormal' if row.label else 'normal'}"
        for row, features in opened
        for name in features.instance_ids[:2]
    ]
    path = write(tmp_path / "f.csv", *lines, "elsewhere,c1,abnormal")
    model = fit_mil(config(features_folder, encoder_folder, tmp_path, feedback=path), Silent())
    facts = model.card.feedback
    n_positive = sum(row.label for row, _ in opened)
    assert (facts.confirmed, facts.rejected, facts.unused) == (2 * n_positive, 2 * (len(opened) - n_positive), 1)
    assert any("readers' verdicts" in limit for limit in model.card.limits)


def test_an_aggregator_that_cannot_use_verdicts_is_refused_first(features_folder, encoder_folder, tmp_path):
    settings = config(features_folder, encoder_folder, tmp_path, aggregator="mean", feedback=tmp_path / "no.csv")
    with pytest.raises(SettingsError, match="--feedback"):
        fit_mil(settings, Silent())


def test_a_missing_file_is_one_line(features_folder, encoder_folder, tmp_path):
    with pytest.raises(CytomilError, match="cytomil feedback"):
        fit_mil(config(features_folder, encoder_folder, tmp_path, feedback=tmp_path / "no.csv"), Silent())


@given(st.integers(1, 3000), st.integers(0, 60), st.integers(0, 60), st.integers(0, 9))
def test_cells_to_teach_lie_below_the_top_and_reach_the_last(n_cells, n_top, n, seed):
    scores = np.random.default_rng(seed).permutation(n_cells).astype(float)
    chosen = informative_cells(scores, n_top, n)
    top = set(np.argsort(-scores)[:n_top].tolist())
    assert len(set(chosen.tolist())) == len(chosen) <= min(n, max(0, n_cells - n_top))
    assert not top & set(chosen.tolist())
    assert (np.diff(scores[chosen]) < 0).all()
    if n and n_cells > n_top:
        assert scores[chosen[0]] == n_cells - n_top - 1
        assert len(chosen) == 1 or scores[chosen[-1]] == 0
