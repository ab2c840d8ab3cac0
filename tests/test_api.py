"""cytomil from Python."""

import doctest
import importlib
import inspect
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import cytomil

PAGE = Path(__file__).parents[1] / "docs" / "how-to" / "python.md"
# In the order of the pipeline, because each one uses the files of those before it.
STAGES = ("make_bags", "open_bags", "pretrain", "load_encoder", "embed", "fit", "load_model", "evaluate", "rank")
NAMES = ("methods", "get_method", "aggregators", "get_aggregator")


def documented(name):
    """The function behind a name. A package that is a function too hides it."""
    value = getattr(cytomil, name)
    return value._function() if inspect.ismodule(value) else value


@pytest.fixture(scope="module")
def project(shared):
    """The docstrings' examples, run in their order in one folder: read it, never write to it."""

    def make(folder):
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            for name in STAGES:
                (test,) = (one for one in doctest.DocTestFinder(recurse=False).find(documented(name), name, globs={}))
                assert test.examples, name
                output = []
                result = doctest.DocTestRunner(verbose=False).run(test, out=output.append)
                assert result.failed == 0, "".join(output)

    return shared.folder("documented", make)


@pytest.fixture
def inside(project, monkeypatch):
    """The working folder with the examples' bags, encoder, features and model."""
    monkeypatch.chdir(project)
    return project


@pytest.fixture(scope="module")
def cells(tmp_path_factory, project):
    """A folder of cell images."""
    folder = tmp_path_factory.mktemp("cells")
    for number, image in enumerate(cytomil.open_bags(project / "data" / "bags")[0]):
        Image.fromarray(image).save(folder / f"{number:02d}.png")
    return folder


def test_the_examples_of_the_stages_do_what_they_say(project):
    assert (project / "triage" / "report.html").is_file()
    assert (project / "reports" / "metrics.json").is_file()


@pytest.mark.parametrize("name", NAMES)
def test_the_example_of_each_name_does_what_it_says(name):
    (test,) = doctest.DocTestFinder(recurse=False).find(getattr(cytomil, name), name, globs={})
    assert test.examples
    assert doctest.DocTestRunner(verbose=False).run(test).failed == 0


@pytest.mark.parametrize("name", cytomil.__all__)
def test_every_name_is_there_and_documented(name):
    value = getattr(cytomil, name)
    assert name == "__version__" or inspect.getdoc(value)
    assert name in dir(cytomil)


def test_the_stub_and_the_names_agree():
    stub = Path(cytomil.__file__).with_suffix(".pyi").read_text(encoding="utf-8")
    named = {line.split()[-1] for line in stub.splitlines() if line.startswith("from ")} | {"__version__"}
    assert named == set(cytomil.__all__)
    assert (Path(cytomil.__file__).parent / "py.typed").is_file()


def test_no_package_takes_the_name_of_a_function():
    packages = {path.stem for path in Path(cytomil.__file__).parent.iterdir()}
    assert packages & set(cytomil.__all__) == set()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: cytomil.make_bags("synthetic", "b", bag_sizes=3),
            "'make_bags' has no setting 'bag_sizes'. Did you mean",
        ),
        (lambda: cytomil.make_bags("synthetic", "b", bag_size=0), "'make_bags': bag_size: input should be greater"),
        (lambda: cytomil.pretrain("b", "e", epochs=0), "'pretrain': epochs: input should be greater"),
        (lambda: cytomil.pretrain("b", "e", "magic"), "there is no method 'magic'"),
        (lambda: cytomil.pretrain("b", "e", "slam-ags", surgeri="sum"), "method 'slam-ags' has no setting 'surgeri'"),
        (lambda: cytomil.embed("b", "e", "f", layer="nonsense"), "'embed': layer: "),
        (lambda: cytomil.fit("f", "e", "m", seed=-1), "'fit': seed: input should be greater"),
        (lambda: cytomil.fit("f", "e", "m", "pamil", prototypez=3), "aggregator 'pamil' has no setting 'prototypez'"),
        (lambda: cytomil.evaluate("f", "m", "b", "r", table=["x"]), "makes no tables"),
        (lambda: cytomil.rank("s", "m", "t", tops=1), "'rank' has no setting 'tops'. Did you mean 'top'?"),
        (lambda: cytomil.load_encoder("e", enginn="auto"), "'load_encoder' has no setting 'enginn'"),
        (lambda: cytomil.load_model("m", device=3), "'load_model': device: "),
        (lambda: cytomil.get_method("magic"), "there is no method 'magic'"),
        (lambda: cytomil.get_aggregator("magic"), "there is no aggregator 'magic'"),
    ],
)
def test_a_wrong_setting_is_one_clear_line(call, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(cytomil.SettingsError) as caught:
        call()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_own_settings_of_a_method_are_keywords(tmp_path, bags_folder):
    tiny = {"arch": "test_resnet", "weights": "none", "image_size": 24, "projection_dim": 8, "batch_size": 16}
    made = cytomil.pretrain(bags_folder, tmp_path / "e", "slam-ags", epochs=1, engine="none", surgery="sum", **tiny)
    assert made.card["settings"]["options"]["slam-ags"]["surgery"] == "sum"


def test_paths_may_be_text_paths_or_what_was_returned(inside, tmp_path):
    bags, encoder = cytomil.open_bags("data/bags"), cytomil.load_encoder(Path("models/encoder"))
    assert cytomil.embed(bags, encoder, str(tmp_path / "f"), layer="h", split="test").n_new == 2


def test_bags_carry_names_labels_and_images_and_no_instance_labels(bags_folder):
    bags = cytomil.open_bags(str(bags_folder))
    assert bags.names == tuple(bag.name for bag in bags)
    assert bags.labels == tuple(bag.label for bag in bags)
    assert {bag.split for bag in bags} == {"train", "test"}
    assert bags.left_out == ()
    bag = bags[-1]
    assert len(bag.images) == len(bag) == len(bag.instance_ids)
    assert all(np.array_equal(a, b) for a, b in zip(bag, bag.images, strict=True))
    assert not [name for name in dir(bag) if "instance_label" in name]


def test_an_encoder_embeds_every_form_of_images_alike(inside, cells):
    encoder = cytomil.load_encoder("models/encoder", layer="h", engine="eager")
    files = sorted(cells.iterdir())
    arrays = [np.asarray(Image.open(file)) for file in files]
    wanted = encoder.embed(arrays)
    assert wanted.dtype == np.float32
    assert wanted.shape[0] == len(files)
    bag = cytomil.open_bags("data/bags")[0]
    for form in (cells, str(cells), files, [str(file) for file in files], np.stack(arrays), bag, bag.path):
        assert np.array_equal(encoder.embed(form), wanted)
    assert np.array_equal(encoder.embed([Image.open(file) for file in files]), wanted)
    assert np.allclose(encoder.embed(files[0]), wanted[:1], atol=1e-5)
    assert encoder.embed([]).shape == (0, wanted.shape[1])


def test_an_encoder_embeds_as_the_feature_caches_do(inside):
    from cytomil.features import open_features

    bag = cytomil.open_bags("data/bags")[3]
    cached = open_features(f"data/features/{bag.name}.h5").load()
    assert np.allclose(cytomil.load_encoder("models/encoder", layer="h").embed(bag), cached, atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (np.zeros((24, 24, 3), np.uint8), ValueError, r"shape \(N, H, W, 3\)"),
        ([np.zeros((24, 24, 3), np.float32)], ValueError, "image 0: an image needs uint8"),
        ([np.zeros((24, 24, 4), np.uint8)], ValueError, "image 0: an image needs uint8"),
        ([7], ValueError, "image 0: an image needs uint8"),
        ("nowhere", cytomil.CytomilError, "nowhere does not exist"),
        (["nowhere.png"], cytomil.CytomilError, "nowhere.png: "),
        ([b"no image"], cytomil.CytomilError, "image 0: "),
    ],
)
def test_what_is_no_image_is_named(images, error, message, inside):
    with pytest.raises(error, match=message):
        cytomil.load_encoder("models/encoder", layer="h", engine="eager").embed(images)


def test_a_model_scores_as_rank_does(inside, cells, tmp_path):
    slides = tmp_path / "slides"
    (slides / "s1").mkdir(parents=True)
    for file in cells.iterdir():
        (slides / "s1" / file.name).write_bytes(file.read_bytes())
    (slide,) = cytomil.rank(slides, "models/triage", tmp_path / "triage", top=10).slides
    scored = cytomil.load_model("models/triage").score(slides / "s1")
    assert scored.probability == slide.probability
    assert scored.is_unlike == slide.is_unlike
    assert scored.top(10) == [(cell.instance_id, cell.score) for cell in slide.key_instances]


def test_a_model_scores_embeddings_as_the_images_they_came_from(inside, cells):
    model = cytomil.load_model("models/triage")
    files = sorted(cells.iterdir())
    scored, again = model.score(files), model.score_embeddings(model.embed(files), map(str, files))
    assert np.allclose(scored.scores, again.scores)
    assert scored.probability == pytest.approx(again.probability)
    assert scored.names == again.names
    assert model.score_embeddings(model.embed(files)).names[1] == "cell 1"
    with pytest.raises(ValueError, match="shape"):
        model.score_embeddings(np.zeros((3, 2)))
    with pytest.raises(ValueError, match="1 names for"):
        model.score_embeddings(model.embed(files), ["one"])


def test_a_model_lists_cells_that_cannot_be_read(inside, cells):
    scored = cytomil.load_model("models/triage").score([*sorted(cells.iterdir()), b"no image"])
    assert len(scored.scores) == 10
    assert [problem.where for problem in scored.problems] == ["image 10"]
    with pytest.raises(cytomil.CytomilError, match="no cells to score"):
        cytomil.load_model("models/triage").score([b"no image"])


def test_it_is_quiet_unless_asked(inside, tmp_path, capfd):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cytomil.embed("data/bags", "models/encoder", tmp_path / "quiet", layer="h")
    assert capfd.readouterr() == ("", "")
    cytomil.embed("data/bags", "models/encoder", tmp_path / "loud", layer="h", progress=True)
    out, err = capfd.readouterr()
    assert out == ""
    assert "80 of 80 cells" in err


def test_the_api_is_above_all_but_the_application():
    source = Path(importlib.import_module("cytomil.api").__file__).parent
    assert all("cytomil.app" not in file.read_text(encoding="utf-8") for file in source.glob("*.py"))
