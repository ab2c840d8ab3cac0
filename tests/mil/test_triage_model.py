"""The triage model on disk, with every aggregator, and what its card says of its weaknesses."""

import json

import numpy as np
import pytest

from cytomil.errors import FeatureFileError, SettingsError, TriageModelError
from cytomil.features.config import EmbedConfig
from cytomil.features.embed import embed
from cytomil.features.index import read_index
from cytomil.files import sha256_of_file, write_json_card
from cytomil.mil.aggregators.registry import AGGREGATORS, find_aggregator
from cytomil.mil.config import FitMilConfig, InstanceScore
from cytomil.mil.fit import fit_mil
from cytomil.mil.pamil import PAMIL
from cytomil.mil.triage_model import CARD_NAME, FEW_BAGS, HeldOutFigures, load_triage_model, weaknesses
from cytomil.progress import Silent


def fit(features_folder, encoder_folder, out, **changes):
    chosen = {"epochs": 2, "folds": 2, "ensemble": 2} | changes
    return fit_mil(FitMilConfig(features=features_folder, encoder=encoder_folder, out=out, **chosen), Silent())


@pytest.mark.parametrize("name", AGGREGATORS)
def test_a_model_loaded_again_says_the_same(name, features_folder, encoder_folder, tmp_path):
    made = fit(features_folder, encoder_folder, tmp_path / "model", aggregator=name)
    loaded = load_triage_model(tmp_path / "model")
    assert (tmp_path / "model" / "aggregator.safetensors").is_file()
    assert loaded.card.score_meaning == find_aggregator(name).meaning[InstanceScore.EVIDENCE]
    assert (loaded.card.epochs_chosen is None) is not find_aggregator(name).by_epochs
    for _, features in read_index(features_folder).open("test"):
        first, again = made.ensemble.assess(features.load()), loaded.ensemble.assess_blocks(features.blocks())
        assert again.probability == pytest.approx(first.probability, abs=1e-6)
        np.testing.assert_allclose(again.scores, first.scores, rtol=1e-5)
        assert (again.scores > 0).all()


def test_the_card_records_the_aggregators_own_settings_with_their_defaults(features_folder, encoder_folder, tmp_path):
    made = fit(
        features_folder, encoder_folder, tmp_path / "model", aggregator="pamil", options={"pamil": {"n_prototypes": 4}}
    )
    expected = {"pamil": PAMIL.Config(n_prototypes=4).model_dump(mode="json")}
    assert made.card.settings["options"] == expected
    assert FitMilConfig(**made.card.settings).options == expected
    assert made.card.aggregator.config["n_prototypes"] == 4


def test_an_unknown_own_setting_is_refused_before_anything_is_read(encoder_folder, tmp_path):
    with pytest.raises(SettingsError, match=r"'pamil' has no setting 'n_prototype'\. Did you mean 'n_prototypes'"):
        fit(
            tmp_path / "absent",
            encoder_folder,
            tmp_path / "model",
            aggregator="pamil",
            options={"pamil": {"n_prototype": 4}},
        )


def test_a_model_of_an_unknown_aggregator_is_one_clear_line(features_folder, encoder_folder, tmp_path):
    fit(features_folder, encoder_folder, tmp_path / "model")
    card = json.loads((tmp_path / "model" / CARD_NAME).read_text())
    card["aggregator"]["name"] = "someone-elses"
    write_json_card(tmp_path / "model" / CARD_NAME, card)
    with pytest.raises(TriageModelError, match="there is no aggregator 'someone-elses'"):
        load_triage_model(tmp_path / "model")


def test_a_model_of_cells_described_in_another_way_is_refused(
    bags_folder, encoder_folder, features_folder, tmp_path, monkeypatch
):
    features = tmp_path / "features"
    settings = EmbedConfig(
        bags=bags_folder, encoder=encoder_folder, out=features, layer="morphology", orientations=1, device="cpu"
    )
    embed(settings, Silent())
    fit(features, encoder_folder, tmp_path / "model", aggregator="knn")
    fit(features_folder, encoder_folder, tmp_path / "undescribed", aggregator="knn")
    monkeypatch.setattr("cytomil.features.embed.DESCRIPTION", "another")
    load_triage_model(tmp_path / "undescribed")
    with pytest.raises(TriageModelError, match="fitted to morphology measurements that differ"):
        load_triage_model(tmp_path / "model")
    with pytest.raises(FeatureFileError, match="made by another"):
        fit(features, encoder_folder, tmp_path / "again", aggregator="knn")


def test_a_model_of_a_layer_of_another_version_is_one_clear_line(features_folder, encoder_folder, tmp_path):
    fit(features_folder, encoder_folder, tmp_path / "model", aggregator="knn")
    card = json.loads((tmp_path / "model" / CARD_NAME).read_text())
    write_json_card(tmp_path / "model" / CARD_NAME, card | {"layer": "multi"})
    with pytest.raises(TriageModelError, match=r"does not support layer 'multi'.*cytomil fit-mil") as caught:
        load_triage_model(tmp_path / "model")
    assert "\n" not in str(caught.value)


def test_a_model_made_before_there_was_a_choice_is_still_read(features_folder, encoder_folder, tmp_path):
    made = fit(features_folder, encoder_folder, tmp_path / "model", aggregator="pamil")
    card = json.loads((tmp_path / "model" / CARD_NAME).read_text())
    known = ("name", "members", "in_dim", "n_prototypes", "instance_score")
    card["aggregator"] = {key: card["aggregator"][key] for key in known}
    write_json_card(tmp_path / "model" / CARD_NAME, card)
    loaded = load_triage_model(tmp_path / "model")
    _, features = read_index(features_folder).open("test")[0]
    assert loaded.ensemble.assess(features.load()).probability == made.ensemble.assess(features.load()).probability


def test_what_cannot_be_fitted_is_refused_before_anything_is_written(features_folder, encoder_folder, tmp_path):
    for changes in ({"aggregator": "nobodys"}, {"aggregator": "knn", "instance_score": "attention"}):
        with pytest.raises(SettingsError):
            fit(features_folder, encoder_folder, tmp_path / "model", **changes)
    assert not (tmp_path / "model").exists()


def test_any_number_of_workers_writes_the_same_weights(features_folder, encoder_folder, tmp_path):
    for workers in (1, 2):
        fit(features_folder, encoder_folder, tmp_path / str(workers), workers=workers)
    one, two = (sha256_of_file(tmp_path / name / "aggregator.safetensors") for name in ("1", "2"))
    assert one == two


def facts_of(n, auroc, low, high):
    others = dict.fromkeys(("f1", "sensitivity", "specificity", "log_loss"), 0.5)
    return n, HeldOutFigures(auroc=auroc, auroc_interval=(low, high), **others)


@pytest.mark.parametrize(
    ("facts", "titles"),
    [
        (facts_of(60, 0.9, 0.8, 0.95), []),
        (facts_of(FEW_BAGS, 0.9, 0.8, 0.95), []),
        (facts_of(18, 0.9, 0.7, 0.97), ["LEARNT FROM 18 SLIDES"]),
        (facts_of(60, 0.55, 0.4, 0.7), ["MAY BE NO BETTER THAN CHANCE"]),
        (facts_of(6, 1.0, 0.5, 1.0), ["MAY BE NO BETTER THAN CHANCE", "LEARNT FROM 6 SLIDES"]),
        (facts_of(60, 0.2, 0.1, 0.3), ["WORSE THAN CHANCE"]),
    ],
)
def test_weaknesses_follow_the_interval_and_the_number_of_slides(facts, titles):
    found = weaknesses(*facts)
    assert [one.title for one in found] == titles
    for one in found:
        assert f"AUROC {facts[1].auroc:.2f}, 95 % interval" in one.text
