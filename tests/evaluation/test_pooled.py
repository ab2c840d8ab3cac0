import numpy as np
import pytest
from sklearn.metrics import f1_score

from cytomil.evaluation.record import EvaluationRecord
from cytomil.experiments.blocks import make_blocks
from cytomil.experiments.runs import Cell, Run, read_runs
from cytomil.experiments.tables import make_table, pool_f1
from cytomil.experiments.write_tables import markdown


def redrawn(seed, threshold, n=40):
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 2
    probabilities = rng.normal(0.4 + 0.2 * labels, 0.1).clip(0, 1)
    bag = {"threshold": threshold, "auroc": 0.9, "f1": f1_score(labels, probabilities >= threshold)}
    return {"bag": bag, "best_f1": 0.95, "probabilities": probabilities.tolist(), "labels": labels.tolist()}


def runs_of(records):
    cards = [EvaluationRecord.model_validate(one) for one in records]
    return [Run(Cell("simclr", 0.1, card.seed), "own", "bags", card, None) for card in cards]


def test_each_models_bags_are_called_by_its_own_threshold_and_the_best_is_one_for_all(make_record):
    found = [redrawn(0, 0.45), redrawn(1, 0.6)]
    pooled = pool_f1(runs_of([make_record(seed=i, metrics={"redrawn": one}) for i, one in enumerate(found)]))
    labels = np.concatenate([one["labels"] for one in found])
    probabilities = np.concatenate([one["probabilities"] for one in found])
    assert pooled.n_runs == 2
    assert pooled.f1 == pytest.approx(f1_score(labels, probabilities >= np.repeat([0.45, 0.6], 40)))
    assert pooled.best == pytest.approx(max(f1_score(labels, probabilities >= t) for t in probabilities))


def test_records_without_the_bags_probabilities_have_nothing_to_pool(make_record):
    older = {key: value for key, value in redrawn(0, 0.5).items() if key not in ("probabilities", "labels")}
    assert pool_f1(runs_of([make_record(), make_record(metrics={"redrawn": older})])) is None


def test_the_table_shows_both_figures_and_how_many_runs_they_are_of(make_record, write_reports):
    records = [make_record(seed=0, metrics={"redrawn": redrawn(0, 0.45)}), make_record(seed=1)]
    table = make_table(read_runs([write_reports(records)]), None, 100, 0)
    said = markdown(make_blocks(table))
    pooled = table.at("pamil", "simclr", 0.1).pooled_f1
    assert "redrawn bags of all seeds together" in said
    assert f"{100 * pooled.f1:.1f} (1/2)<br>best {100 * pooled.best:.1f}" in said
