"""Cards that somebody edited: each loads, or gives one line that names the file."""

import copy
import json
import shutil
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as how
from hypothesis import strategies as st

from cytomil.bags.manifest import CARDS_FOLDER
from cytomil.bags.whole_slides import FinishedSlide, FinishedSlides
from cytomil.encoders.bundle import CARD_NAME as ENCODER_CARD
from cytomil.encoders.bundle import EncoderCard, load_bundle, read_card
from cytomil.errors import CytomilError, EncoderBundleError, EvaluationError, TriageModelError
from cytomil.experiments.runs import RUN_SCHEMA, read_runs
from cytomil.experiments.tables import make_table
from cytomil.files import read_json, sealed, write_json_card
from cytomil.mil.config import FitMilConfig
from cytomil.mil.fit import fit_mil
from cytomil.mil.triage_model import CARD_NAME, TriageCard, load_triage_model
from cytomil.progress import Problem, Silent
from cytomil.triage.rank import model_card
from cytomil.triage.result_cache import ResultCache
from cytomil.triage.worklist import Call, KeyInstance, SlideResult
from tests.evaluation.conftest import record

ODD = (
    st.none()
    | st.booleans()
    | st.sampled_from([0, -1, 1, 3, 10**18, -(10**30), 10**4000, 0.0, -0.5, 1.5, 1e-300, 1e308, -1e308])
    | st.sampled_from(["", "0.5", "nan", "\ud800", "\n", "x" * 200, [], [[]], [0.5], {}, {"a": 1}, [None] * 3])
)


def places(document, at=()):
    """The path of every value in a JSON document."""
    pairs = document.items() if isinstance(document, dict) else enumerate(document)
    for key, value in pairs:
        yield (*at, key)
        if isinstance(value, dict | list):
            yield from places(value, (*at, key))


def mutated(data, card, kept):
    """The card with one to three values dropped, exchanged or added."""
    card = copy.deepcopy(card)
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.sampled_from([one for one in places(card) if one[0] not in kept]))
        parent = card
        for key in place[:-1]:
            parent = parent[key]
        action = data.draw(st.sampled_from(["drop", "exchange", "add"]))
        if action == "drop":
            del parent[place[-1]]
        elif action == "exchange" or isinstance(parent, list):
            parent[place[-1]] = copy.deepcopy(data.draw(ODD))
        else:
            parent["unheard of"] = copy.deepcopy(data.draw(ODD))
    return card


def loaded(load):
    """What ``load`` gives; None where it refuses, in one line."""
    try:
        return load()
    except CytomilError as error:
        assert "\n" not in str(error)
        assert len(str(error)) < 1500
        return None


@pytest.fixture(scope="session")
def triage_folder(features_folder, encoder_folder, shared):
    def make(root):
        chosen = {"aggregator": "knn", "folds": 2, "ensemble": 1}
        fit_mil(FitMilConfig(features=features_folder, encoder=encoder_folder, out=root / "triage", **chosen), Silent())

    return shared.folder("card-triage", make) / "triage"


@pytest.fixture
def model_copy(triage_folder, tmp_path):
    return shutil.copytree(triage_folder, tmp_path / "model")


@pytest.fixture
def bundle_copy(encoder_folder, tmp_path):
    return shutil.copytree(encoder_folder, tmp_path / "encoder")


any_data = given(st.data())
quick = how(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@quick
@any_data
def test_any_edited_triage_card_loads_or_is_one_line(triage_folder, model_copy, data):
    card = json.loads((triage_folder / CARD_NAME).read_text())
    write_json_card(model_copy / CARD_NAME, mutated(data, card, ("schema",)))
    model = loaded(lambda: load_triage_model(model_copy))
    if model:
        assert 0 <= model.card.thresholds.low <= model.card.thresholds.decision <= 1
        json.dumps(model_card(model), allow_nan=False)


@quick
@any_data
def test_any_edited_encoder_card_loads_or_is_one_line(encoder_folder, bundle_copy, data):
    card = json.loads((encoder_folder / ENCODER_CARD).read_text())
    write_json_card(bundle_copy / ENCODER_CARD, mutated(data, card, ("schema",)))
    bundle = loaded(lambda: load_bundle(bundle_copy))
    if bundle:
        json.loads(bundle.provenance)
        assert sealed(bundle.card.to_json())


@quick
@any_data
def test_any_edited_record_gives_a_table_or_one_line(tmp_path, data):
    redrawn = {"bag": {"auroc": 0.9, "f1": 0.8, "threshold": 0.5}, "best_f1": 0.9, "probabilities": [0.1, 0.9]}
    metrics = {"redrawn": redrawn | {"labels": [0, 1]}}
    told = {"sources": ["synthetic"], "n_bags": 6, "n_cells": 60}
    edited = mutated(data, record(seed=1, metrics=metrics, data=told), ("schema",))
    written = {"a": edited, "b": record(seed=0, metrics=metrics, data=told)}
    if data.draw(st.booleans()):
        place = {"name": "simclr", "witness_rate": 0.1, "seed": 1}
        grid = {"schema": RUN_SCHEMA, "cell": place, "failed": None, "evaluations": [edited]}
        written["a"] = mutated(data, grid, ("schema",))
    for name, document in written.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(document))
    loaded(lambda: make_table(read_runs([tmp_path]), None, 20, 0))


@quick
@any_data
def test_any_edited_card_of_a_finished_slide_is_read_or_passed_over(tmp_path, data):
    slides = FinishedSlides(tmp_path)
    slides.write("slide", "key", FinishedSlide(reason="few cells", problems=(Problem("a", "b"),)))
    (card,) = (tmp_path / CARDS_FOLDER).iterdir()
    write_json_card(card, mutated(data, json.loads(card.read_text()), ()))
    found = slides.read("slide", "key", None)
    assert found is None or isinstance(found, FinishedSlide)


@quick
@any_data
def test_any_edited_result_is_read_or_passed_over(tmp_path, data):
    found = SimpleNamespace(name="slide", shown_path="slides/slide")
    cell = KeyInstance("c", 2.0, b"jpeg", 1.0, 2.0, why="rare", context=b"around")
    result = SlideResult("slide", "slides/slide", Call.REVIEW, 0.5, key_instances=(cell,), score_shares=(0.5, 0.5))
    cache = ResultCache(tmp_path, tmp_path / "cache", {})
    cache.write(found, "files", SimpleNamespace(assumed_mpp=None), result)
    assert cache.read(found, "files", None) == result
    (card,) = (tmp_path / "cache").iterdir()
    write_json_card(card, mutated(data, json.loads(card.read_text()), ()))
    again = cache.read(found, "files", None)
    assert again is None or isinstance(again, SlideResult)


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (("thresholds", "decision"), 1.5, "thresholds.decision is 1.5: input should be less than or equal to 1"),
        (("thresholds", "low"), "0.1", "thresholds.low is '0.1': input should be a number"),
        (("thresholds", "low"), 1.0, "thresholds: 'low' should be at most 'decision'"),
        (("held_out", "auroc_interval"), [0.5], "lacks held_out.auroc_interval.1"),
        (("held_out", "auroc"), True, "held_out.auroc is True: input should be a number"),
        (("trained_on",), None, "trained_on is None: input should be an object"),
        (("orientations",), 3, "orientations is 3: must be 1, 2, 4 or 8"),
        (("cutting",), {"crop_um": -5.0, "crop_px": 32}, "crop_um is -5.0; give a crop's side between 1 and 1000 µm"),
        (("reference_shares",), [0.5], "'score_bin_edges' should have one entry more"),
        (("limits",), "none", "limits is 'none': input should be a list"),
    ],
)
def test_the_line_names_file_field_fault_and_cure(triage_folder, model_copy, place, value, said):
    card = json.loads((triage_folder / CARD_NAME).read_text())
    parent = card
    for key in place[:-1]:
        parent = parent[key]
    parent[place[-1]] = value
    write_json_card(model_copy / CARD_NAME, card)
    with pytest.raises(
        TriageModelError, match=rf"triage\.json:? {said}.*Make it again with `cytomil fit-mil`\."
    ) as one:
        load_triage_model(model_copy)
    assert "\n" not in str(one.value)


@pytest.mark.parametrize("crop", [-0.5, 0, 1.5, "wide", 10**400])
def test_a_centre_crop_that_cannot_be_is_refused(bundle_copy, crop):
    card = json.loads((bundle_copy / ENCODER_CARD).read_text())
    card["transform"]["center_crop"] = crop
    write_json_card(bundle_copy / ENCODER_CARD, card)
    with pytest.raises(EncoderBundleError, match=r"encoder\.json: transform\.center_crop is .*`cytomil pretrain`"):
        read_card(bundle_copy)


@pytest.mark.parametrize("content", ["[" * 100_000, '{"a":' * 5000 + "1" + "}" * 5000, "NaN", "1e999", "9" * 5000])
@pytest.mark.parametrize("name", ["triage.json", "encoder/encoder.json"])
def test_deep_json_and_numbers_without_end_are_one_line(model_copy, name, content):
    card = (model_copy / name).read_text().replace('"made":', f'"odd": {content}, "made":')
    (model_copy / name).write_text(card.replace('"method":', f'"odd": {content}, "method":'))
    with pytest.raises(TriageModelError, match=r"(triage|encoder)\.json") as one:
        load_triage_model(model_copy)
    assert "\n" not in str(one.value)
    assert len(str(one.value)) < 800


def test_unknown_keys_are_ignored_and_go_into_the_models_copy(triage_folder, bundle_copy, features_folder, tmp_path):
    card = json.loads((bundle_copy / ENCODER_CARD).read_text())
    write_json_card(bundle_copy / ENCODER_CARD, card | {"of_tomorrow": [1.0, 2]})
    assert load_bundle(bundle_copy).card.method == card["method"]
    chosen = {"aggregator": "knn", "folds": 2, "ensemble": 1}
    fit_mil(FitMilConfig(features=features_folder, encoder=bundle_copy, out=tmp_path / "model", **chosen), Silent())
    assert json.loads((tmp_path / "model/encoder" / ENCODER_CARD).read_text())["of_tomorrow"] == [1.0, 2]


@pytest.mark.parametrize(("name", "kind"), [("triage.json", TriageCard), ("encoder/encoder.json", EncoderCard)])
def test_a_card_read_and_written_again_is_the_same_to_the_byte(model_copy, name, kind):
    before = (model_copy / name).read_bytes()
    write_json_card(model_copy / name, kind.model_validate(read_json(model_copy / name)).to_json())
    assert (model_copy / name).read_bytes() == before


def test_a_model_older_than_some_fields_loads(triage_folder, model_copy):
    card = json.loads((model_copy / CARD_NAME).read_text())
    younger = ("orientations", "engine", "preparation_sha256", "epochs_chosen", "uses_instance_labels")
    old = {key: value for key, value in card.items() if key not in younger}
    for key in ("n_positive_patients", "n_negative_patients", "probabilities", "labels"):
        del old["held_out"][key]
    write_json_card(model_copy / CARD_NAME, old)
    model = load_triage_model(model_copy)
    assert (model.orientations, model.card.engine) == (1, None)


def test_a_report_edited_into_nonsense_is_named_with_its_field(tmp_path):
    edited = record()
    edited["bags"][2]["probability"] = 7
    (tmp_path / "evaluate.json").write_text(json.dumps(edited))
    with pytest.raises(EvaluationError, match=r"evaluate\.json: bags\.2\.probability is 7: .*`cytomil evaluate`"):
        read_runs([tmp_path])
