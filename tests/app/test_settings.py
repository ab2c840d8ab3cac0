from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest
import yaml

from cytomil.app.settings import Settings, load
from cytomil.errors import SettingsError
from cytomil.features.config import Split
from cytomil.mil.config import InstanceScore

REPOSITORY = Path(__file__).parents[2]
SOURCES = ("options", "environment", "profile", "file")
GIVEN = [given for n in range(5) for given in itertools.combinations(SOURCES, n)]
SECTIONS = [name for name in Settings.model_fields if name != "profile"]


@pytest.fixture(autouse=True)
def nothing_set(tmp_path, monkeypatch):
    """An empty working folder and an environment without cytomil's variables."""
    monkeypatch.chdir(tmp_path)
    for name in os.environ:
        if name.upper().startswith("CYTOMIL_"):
            monkeypatch.delenv(name)


@pytest.fixture
def params(tmp_path):
    """Write params.yaml into the working folder."""

    def write(text):
        (tmp_path / "params.yaml").write_text(text, encoding="utf-8")
        return tmp_path / "params.yaml"

    return write


def refusal(**arguments):
    """The message with which these settings are refused."""
    with pytest.raises(SettingsError) as caught:
        load(**arguments)
    message = str(caught.value)
    assert "\n" not in message
    return message


class TestPrecedence:
    @pytest.mark.parametrize("given", GIVEN, ids=lambda given: "+".join(given) or "none")
    def test_the_first_source_that_gives_a_value_wins(self, params, monkeypatch, given):
        value = {"options": 40, "environment": 30, "profile": 20, "file": 15}
        own = "pretrain: {epochs: 15}\n" if "file" in given else ""
        laid_over = "{pretrain: {epochs: 20}}" if "profile" in given else "{}"
        params(f"{own}profile: big\nprofiles: {{big: {laid_over}}}\n")
        if "environment" in given:
            monkeypatch.setenv("CYTOMIL_PRETRAIN__EPOCHS", "30")
        options = {"pretrain": {"epochs": 40 if "options" in given else None}}
        wanted = next((value[source] for source in SOURCES if source in given), Settings().pretrain.epochs)
        loaded = load(options)
        assert loaded.pretrain.epochs == wanted
        assert loaded.pretrain.batch_size == Settings().pretrain.batch_size

    def test_sources_are_merged_key_by_key(self, params, monkeypatch):
        params("pretrain: {epochs: 15, seed: 3, momentum: 0.5, batch_size: 64}\nprofiles: {big: {pretrain: {seed: 4}}}")
        monkeypatch.setenv("CYTOMIL_PRETRAIN__MOMENTUM", "0.25")
        pretrain = load({"pretrain": {"batch_size": 32}}, profile="big").pretrain
        assert (pretrain.epochs, pretrain.seed, pretrain.momentum, pretrain.batch_size) == (15, 4, 0.25, 32)

    def test_a_named_file_is_read_in_place_of_the_working_folders(self, params, tmp_path):
        params("pretrain: {epochs: 15}")
        (tmp_path / "other.yaml").write_text("pretrain: {seed: 2}")
        loaded = load(params=tmp_path / "other.yaml")
        assert (loaded.pretrain.epochs, loaded.pretrain.seed) == (Settings().pretrain.epochs, 2)

    @pytest.mark.parametrize("text", [None, "", "# nothing\n", "pretrain:\n", "profiles:\n", "profile:\n"])
    def test_without_settings_the_defaults_hold(self, params, text):
        if text is not None:
            params(text)
        assert load() == Settings()

    def test_profile_is_chosen_by_option_then_environment_then_file(self, params, monkeypatch):
        params("profile: a\nprofiles: {a: {rank: {top: 1}}, b: {rank: {top: 2}}, c: {rank: {top: 3}}}")
        assert load().rank.top == 1
        monkeypatch.setenv("CYTOMIL_PROFILE", "b")
        assert load().rank.top == 2
        assert load().profile == "b"
        assert load(profile="c").rank.top == 3
        assert load(profile="default").rank.top == Settings().rank.top


class TestUnknownKeys:
    def test_in_the_file(self, params):
        params("pretrain: {epohcs: 3}")
        message = refusal()
        assert "params.yaml" in message
        assert "pretrain.epohcs" in message
        assert "'epochs'" in message

    def test_in_a_file_named_by_the_user(self, tmp_path):
        (tmp_path / "mine.yaml").write_text("pretrain: {epohcs: 3}")
        assert "mine.yaml" in refusal(params=tmp_path / "mine.yaml")

    def test_section_in_the_file(self, params):
        params("pretran: {epochs: 3}")
        message = refusal()
        assert "params.yaml" in message
        assert "'pretrain'" in message

    def test_in_a_profile(self, params):
        params("profiles: {big: {pretrain: {epohcs: 3}}}")
        message = refusal(profile="big")
        assert "params.yaml" in message
        assert "'epochs'" in message

    def test_in_a_profile_that_is_not_chosen_does_not_matter(self, params):
        params("profiles: {big: {pretrain: {epohcs: 3}}}")
        assert load() == Settings()

    def test_in_the_environment(self, monkeypatch):
        monkeypatch.setenv("CYTOMIL_PRETRAIN__EPOHCS", "3")
        message = refusal()
        assert message.startswith("environment: pretrain.epohcs")
        assert "'epochs'" in message

    @pytest.mark.parametrize(
        ("name", "nearest"),
        [
            ("CYTOMIL_PRETRAN__EPOCHS", "'pretrain'"),
            ("CYTOMIL_FIT_MIL_EPOCHS", "'fit_mil'"),
            ("CYTOMIL_EPOCHS", "pretrain"),
            ("CYTOMIL_", "pretrain"),
            ("CYTOMIL_PROFILE__EPOCHS", "'profile'"),
        ],
    )
    def test_environment_variable_of_no_section(self, monkeypatch, name, nearest):
        monkeypatch.setenv(name, "3")
        message = refusal()
        assert f"environment variable {name}:" in message
        assert nearest in message

    def test_another_programs_variables_do_not_matter(self, monkeypatch):
        monkeypatch.setenv("CYTOMILL_EPOCHS", "3")
        monkeypatch.setenv("EPOCHS", "3")
        assert load() == Settings()

    def test_on_the_command_line(self):
        message = refusal(options={"pretrain": {"epohcs": 3}})
        assert message.startswith("command line: pretrain.epohcs")

    def test_nothing_alike_lists_what_there_is(self, params):
        params("rank: {zzz: 3}")
        message = refusal()
        assert "top" in message
        assert "batch_size" in message

    def test_keys_that_yaml_does_not_take_for_text(self, params):
        params("pretrain: {5: 3}")
        assert "params.yaml: pretrain.5 is not a setting" in refusal()
        params("5: {epochs: 3}")
        assert "params.yaml: 5 is not a setting" in refusal()


class TestRefusedValues:
    @pytest.mark.parametrize(
        ("section", "key", "value"),
        [
            ("make_bags", "bag_size", 1),
            ("make_bags", "witness_rate", 0),
            ("make_bags", "witness_rate", 1.01),
            ("make_bags", "train_bags", -1),
            ("make_bags", "test_fraction", 1),
            ("make_bags", "cell_size", 8),
            ("make_bags", "difficulty", 1.5),
            ("make_bags", "normal", 5),
            ("pretrain", "method", "slam"),
            ("pretrain", "epochs", 0),
            ("pretrain", "epochs", 1.5),
            ("pretrain", "epochs", "ten"),
            ("pretrain", "epochs", None),
            ("pretrain", "epochs", [3]),
            ("pretrain", "learning_rate", 0),
            ("pretrain", "learning_rate", float("nan")),
            ("pretrain", "learning_rate", float("inf")),
            ("pretrain", "momentum", 1),
            ("pretrain", "center_crop", 0),
            ("pretrain", "temperature", -0.1),
            ("pretrain", "stem", "large"),
            ("pretrain", "bags", 5),
            ("embed", "layer", "y"),
            ("embed", "split", "validation"),
            ("embed", "dtype", "float64"),
            ("embed", "batch_size", 0),
            ("fit_mil", "folds", 1),
            ("fit_mil", "sensitivity", 0),
            ("fit_mil", "instance_score", "guess"),
            ("evaluate", "k", -1),
            ("rank", "top", 501),
        ],
    )
    def test_message_names_file_key_and_value(self, params, section, key, value):
        params(yaml.safe_dump({section: {key: value}}))
        message = refusal()
        assert f"params.yaml: {section}.{key}: " in message
        assert repr(value) in message

    def test_the_source_to_blame_is_named(self, params, monkeypatch):
        params("pretrain: {epochs: 0}")
        assert "params.yaml" in refusal()
        monkeypatch.setenv("CYTOMIL_PRETRAIN__EPOCHS", "-2")
        assert refusal().startswith("environment: pretrain.epochs")
        assert refusal(options={"pretrain": {"epochs": -3}}).startswith("command line: pretrain.epochs")

    def test_a_wrong_value_that_another_source_overrules_does_not_matter(self, params):
        params("pretrain: {epochs: 0}")
        assert load({"pretrain": {"epochs": 3}}).pretrain.epochs == 3

    @pytest.mark.parametrize("value", ["foo", "5", "[1]"])
    def test_a_section_in_the_environment_that_holds_no_settings(self, monkeypatch, value):
        monkeypatch.setenv("CYTOMIL_PRETRAIN", value)
        message = refusal()
        assert message.startswith("environment: ")
        assert "pretrain" in message


class TestDamagedFile:
    @pytest.mark.parametrize("text", ["a: b: c", "pretrain: {epochs: 3", "\tpretrain:", "pretrain: [1"])
    def test_not_yaml(self, params, text):
        assert "params.yaml is not valid YAML" in refusal(params=params(text))

    def test_not_text(self, params, tmp_path):
        (tmp_path / "params.yaml").write_bytes(b"pretrain:\n  out: M\xfcller\n")
        assert "params.yaml is not valid YAML" in refusal()

    @pytest.mark.parametrize("text", ["- pretrain", "just words", "5"])
    def test_no_sections(self, params, text):
        params(text)
        assert "params.yaml must hold sections" in refusal()

    @pytest.mark.parametrize("value", ["5", "[1, 2]", "words", "true"])
    @pytest.mark.parametrize("section", ["pretrain", "profiles"])
    def test_a_section_that_is_no_mapping(self, params, section, value):
        params(f"{section}: {value}")
        assert f"params.yaml: '{section}' must hold settings" in refusal()

    @pytest.mark.parametrize("value", ["5", "[1, 2]", "words"])
    def test_a_profile_that_is_no_mapping(self, params, value):
        params(f"profiles: {{big: {value}}}")
        assert "params.yaml: profile 'big' must hold sections" in refusal(profile="big")

    def test_a_profiles_section_that_is_no_mapping(self, params):
        params("profiles: {big: {pretrain: 5}}")
        assert "params.yaml: pretrain" in refusal(profile="big")

    def test_named_but_missing(self, tmp_path):
        message = refusal(params=tmp_path / "none.yaml")
        assert "none.yaml" in message
        assert "--params" in message

    def test_a_folder(self, tmp_path):
        assert "cannot be read" in refusal(params=tmp_path)


class TestProfile:
    def test_unknown_names_file_and_those_there_are(self, params):
        params("profiles: {paper: {}, small: {}}")
        message = refusal(profile="papre")
        assert "'papre'" in message
        assert "params.yaml" in message
        assert "default, paper, small" in message

    @pytest.mark.parametrize("value", ["[a]", "{a: 1}", "5"])
    def test_that_is_no_name(self, params, value):
        params(f"profile: {value}\nprofiles: {{big: {{}}}}")
        assert "is not in params.yaml; there are: default, big" in refusal()


class TestNames:
    def test_from_the_command_line(self):
        assert load({"make_bags": {"normal": "LYT, NGS,,EOS "}}).make_bags.normal == ("LYT", "NGS", "EOS")

    def test_from_the_environment(self, monkeypatch):
        monkeypatch.setenv("CYTOMIL_MAKE_BAGS__ABNORMAL", "BLA,PMO")
        assert load().make_bags.abnormal == ("BLA", "PMO")

    @pytest.mark.parametrize("text", ["[LYT, NGS]", "LYT,NGS", "\n  - LYT\n  - NGS"])
    def test_from_the_file(self, params, text):
        params(f"make_bags:\n  normal: {text}\n")
        assert load().make_bags.normal == ("LYT", "NGS")

    def test_choices_become_what_the_code_compares_with(self, params, monkeypatch):
        params("pretrain: {method: simclr, stem: small}\nfit_mil: {instance_score: attention}")
        monkeypatch.setenv("CYTOMIL_EMBED__LAYER", "h")
        loaded = load({"evaluate": {"split": "all"}})
        assert loaded.pretrain.method == "simclr"
        assert loaded.pretrain.stem == "small"
        assert loaded.fit_mil.instance_score is InstanceScore.ATTENTION
        assert loaded.embed.layer == "h"
        assert loaded.evaluate.split is Split.ALL


class TestRepositorysParams:
    """The project's own params.yaml, which DVC reads too."""

    @pytest.fixture
    def document(self):
        return yaml.safe_load((REPOSITORY / "params.yaml").read_text(encoding="utf-8"))

    def test_holds_every_section(self, document):
        assert set(document) == {"profile", "profiles", *SECTIONS}
        assert document["profile"] == "default"

    @pytest.mark.parametrize("section", SECTIONS)
    def test_holds_every_key_with_its_default(self, document, section):
        default = getattr(Settings(), section).model_dump(mode="json")
        assert document[section].keys() == default.keys()
        assert type(getattr(Settings(), section)).model_validate(document[section]) == getattr(Settings(), section)

    def test_loads_as_the_defaults(self):
        assert load(params=REPOSITORY / "params.yaml") == Settings()

    def test_paper_profile_holds_the_papers_numbers(self):
        paper = load(params=REPOSITORY / "params.yaml", profile="paper")
        bags, pretrain, mil = paper.make_bags, paper.pretrain, paper.fit_mil
        assert (bags.train_bags, bags.test_bags, bags.bag_size) == (18, 6, 1000)
        assert pretrain.method == "slam-ags"
        assert (pretrain.learning_rate, pretrain.momentum, pretrain.weight_decay) == (0.001, 0.9, 1e-4)
        assert (pretrain.epochs, pretrain.warmup_epochs, pretrain.batch_size) == (150, 10, 256)
        assert (pretrain.image_size, pretrain.temperature) == (224, 0.07)
        assert pretrain.options["slam-ags"] == {"objective": "paper", "similarity_scale": 1.0, "rescale": "paper"}
        assert (mil.epochs, mil.learning_rate, mil.options) == (100, 1e-3, {"pamil": {"n_prototypes": 10}})
        assert paper.evaluate.k == 400

    @pytest.mark.parametrize("section", SECTIONS)
    def test_every_setting_is_described(self, section):
        fields = type(getattr(Settings(), section)).model_fields
        assert [key for key, field in fields.items() if not field.description] == []


def test_settings_cannot_be_changed_once_loaded():
    loaded = load()
    with pytest.raises(ValueError, match="frozen"):
        loaded.pretrain.epochs = 3
