"""Labels joined to slides, and training slides recognised."""

from types import SimpleNamespace

import pytest

from cytomil.bags.config import MakeBagsConfig
from cytomil.bags.make import make_bags
from cytomil.bags.manifest import FittedBag, patient_key
from cytomil.bags.patients import LabelledSlide, read_labels
from cytomil.errors import TableError
from cytomil.progress import Silent
from cytomil.triage.sources import discover
from cytomil.validation.validate import TrainingSlides, join


def model(of_model=(), of_encoder=()):
    data = SimpleNamespace(fitted_to=of_encoder)
    return SimpleNamespace(
        card=SimpleNamespace(fitted_to=of_model), encoder=SimpleNamespace(card=SimpleNamespace(data=data))
    )


@pytest.fixture
def slides(tmp_path, make_slide_folders):
    return make_slide_folders(tmp_path / "slides", ["a", "b", "c", "d"], cells=3)


def joined(slides, *lines):
    return join(slides.parent / "labels.csv", [LabelledSlide(*line) for line in lines], discover(slides)[0])


def test_each_slide_has_its_label_and_the_rest_is_named(slides):
    (slides / "e.h5").write_text("")
    labelled, left_out = joined(slides, ("e", 1), ("b", 0), ("nowhere", 1))
    assert [(one.found.name, one.line.label) for one in labelled] == [("e.h5", 1), ("b", 0)]
    assert {one.where for one in left_out} == {"nowhere", "a", "c", "d"}


def test_a_name_that_means_two_slides_is_not_guessed(slides):
    (slides / "e.h5").write_text("1")
    (slides / "e.svs").write_text("2")
    labelled, left_out = joined(slides, ("e", 1))
    assert labelled == []
    assert "e.h5 or e.svs" in left_out[0].reason


def test_two_lines_of_one_slide_are_refused(slides):
    (slides / "e.h5").write_text("")
    with pytest.raises(TableError, match=r"e and e\.h5 are the same slide"):
        joined(slides, ("e", 1), ("e.h5", 1))


def test_a_copy_counts_once_and_must_have_the_same_label(slides):
    for name in ("e.h5", "f.h5"):
        (slides / name).write_text("the same")
    labelled, left_out = joined(slides, ("e", 1), ("f", 1))
    assert [one.found.name for one in labelled] == ["e.h5"]
    assert "f.h5: a byte-identical copy of e.h5" in [f"{one.where}: {one.reason}" for one in left_out]
    with pytest.raises(TableError, match="different labels"):
        joined(slides, ("e", 1), ("f", 0))


def test_training_folders_bags_and_patients_are_recognised(slides, tmp_path):
    labels = tmp_path / "labels.csv"
    labels.write_text("slide,label,patient\na,1,P1\nb,0,P2\nc,1,\nd,0,P4\n")
    made = make_bags(MakeBagsConfig(source=str(slides), labels=labels, out=tmp_path / "bags"), Silent())
    sha256 = {row.bag_id: row.sha256 for row in made.rows}
    fitted = model([FittedBag(sha256=sha256["c"])], [FittedBag(sha256="0" * 64, patient=patient_key("P2"))])
    labelled, _ = join(labels, read_labels(labels), discover(slides)[0])
    training = TrainingSlides(fitted)
    assert {one.found.name: training.part_of(one) for one in labelled} == {
        "a": "",
        "b": "its patient had a part in fitting the encoder: left out",
        "c": "it had a part in fitting the model: left out",
        "d": "",
    }
    assert training.can_tell(labelled[2])


def test_a_bag_file_is_recognised_by_its_cells_and_by_its_own_patient(slides, tmp_path):
    labels = tmp_path / "labels.csv"
    labels.write_text("slide,label,patient\na,1,P1\nb,0,P2\nc,1,P3\nd,0,P4\n")
    made = make_bags(MakeBagsConfig(source=str(slides), labels=labels, out=tmp_path / "bags"), Silent())
    local = tmp_path / "local"
    local.mkdir()
    for row in made.rows:
        (local / row.path).write_bytes((made.folder / row.path).read_bytes())
    of_a = next(row.sha256 for row in made.rows if row.bag_id == "a")
    fitted = model([FittedBag(sha256=of_a), FittedBag(sha256="0" * 64, patient=patient_key("P2"))])
    labelled, _ = join(labels, [LabelledSlide(name, 0) for name in "abcd"], discover(local)[0])
    known = {one.found.name for one in labelled if TrainingSlides(fitted).part_of(one)}
    assert known == {"a.h5", "b.h5"}


def test_of_a_whole_slide_without_a_patient_nothing_can_be_told(slides):
    (slides / "e.svs").write_text("")
    labelled, _ = joined(slides, ("e", 1), ("a", 0))
    training = TrainingSlides(model([FittedBag(sha256="0" * 64)]))
    assert [training.can_tell(one) for one in labelled] == [False, True]
    assert not TrainingSlides(model()).can_tell(labelled[1])
