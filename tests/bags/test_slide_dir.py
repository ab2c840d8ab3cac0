from __future__ import annotations

import os

import pytest

from bench.hostile_slides import deep_dicom
from bench.slide_formats import dicom, dicom_elements
from cytomil.bags import slide_dir
from cytomil.bags.slide_dir import list_slide_dir
from cytomil.files import write_json
from cytomil.litter import mark_own
from cytomil.workers.apart import ProcessApart


def touch(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")


def names(folder, *outputs):
    listed = list_slide_dir(folder, outputs)
    return [slide.name for slide in listed.slides], list(listed.ignored)


def test_slides_notes_and_litter(tmp_path):
    touch(tmp_path, "a.svs", "b.tif", "c/1.png", "d.h5", "what.xyz", "labels.xlsx", "notes.txt")
    touch(tmp_path, "Thumbs.db", "desktop.ini", "__MACOSX/c/1.png", "~$labels.xlsx", ".DS_Store", "@eaDir/a.svs/t.jpg")
    (tmp_path / "gone.svs").symlink_to(tmp_path / "nowhere.svs")
    slides, ignored = names(tmp_path)
    assert slides == ["a.svs", "b.tif", "c", "d.h5", "gone.svs", "what.xyz"]
    assert ignored == ["labels.xlsx", "notes.txt"]


def test_parts_of_a_slide_are_no_slides(tmp_path):
    touch(tmp_path, "m.mrxs", "m/Data0000.dat", "h.vms", "h-1.jpg", "h-2.jpg", "h.opt", "h_macro.jpg", "other.jpg")
    (tmp_path / "h.vms").write_text(
        "[Virtual Microscope Specimen]\nImageFile=h-1.jpg\nImageFile(1,0)=h-2.jpg\nOptimisationFile=h.opt\n"
        "MacroImage=h_macro.jpg\nNoLayers=1\n"
    )
    slides, ignored = names(tmp_path)
    assert slides == ["h.vms", "m.mrxs", "other.jpg"]
    assert ignored == ["h-1.jpg", "h-2.jpg", "h.opt", "h_macro.jpg", "m"]


def test_what_cytomil_wrote_is_no_slide_under_any_name(tmp_path):
    touch(tmp_path, "s/1.png", "started/cache/x.h5", "finished/heatmaps/a.png", "bags/qc/a.jpg", "now/qc/a.jpg")
    mark_own(tmp_path / "started")
    write_json(tmp_path / "finished" / "triage.json", {"schema": "cytomil.triage/1"})
    (tmp_path / "bags" / "bags.csv").write_text("bag_id,path,patient_id,split,label,n_instances,witness_rate,sha256\n")
    assert names(tmp_path, tmp_path / "now") == (["s"], ["bags", "finished", "now", "started"])


def test_a_table_of_the_same_name_does_not_make_a_folder_cytomils(tmp_path):
    touch(tmp_path, "s/1.png")
    (tmp_path / "s" / "features.csv").write_text("cell,area\n1,2\n")
    write_json(tmp_path / "s" / "triage.json", {"who": "someone else"})
    assert names(tmp_path) == (["s"], [])


@pytest.mark.parametrize("is_given", [True, False])
def test_output_written_beside_the_slides_is_no_slide(tmp_path, is_given):
    touch(tmp_path, "s/1.png", "qc/s.jpg", "heatmaps/s.png", "cache/s.h5", "geojson/s.geojson")
    touch(tmp_path, "plots/roc.png", "report_files/s.jpg", "summaries/s.html", "audit.jsonl", "validation.html")
    if not is_given:
        mark_own(tmp_path)
    slides, _ = names(tmp_path, *([tmp_path] if is_given else []))
    assert slides == ["s"]


def test_files_of_dicom_that_cannot_be_opened_stand_alone(tmp_path):
    for name in ("a.dcm", "b.dcm", "c/1.dcm"):
        touch(tmp_path, name)
        (tmp_path / name).write_bytes(bytes(128) + b"DICM" + name.encode())
    assert names(tmp_path)[0] == ["a.dcm", "b.dcm", "c"]


def test_a_dicom_file_that_crashes_openslide_stands_alone(tmp_path):
    (tmp_path / "sound").mkdir()
    (tmp_path / "sound" / "a.dcm").write_bytes(dicom(dicom_elements()).files["a.dcm"])
    for name in ("hostile-1.dcm", "hostile-2.dcm"):
        (tmp_path / name).write_bytes(dicom(deep_dicom()).files["a.dcm"])
    assert names(tmp_path) == (["hostile-1.dcm", "hostile-2.dcm", "sound"], [])
    assert list_slide_dir(tmp_path).slides[2].path == tmp_path / "sound" / "a.dcm"


def test_a_dicom_file_is_opened_once_until_it_changes_and_what_is_remembered_is_bounded(tmp_path, monkeypatch):
    file = tmp_path / "a.dcm"
    file.write_bytes(dicom(dicom_elements()).files["a.dcm"])
    asked = []
    ask = ProcessApart.ask
    monkeypatch.setattr(ProcessApart, "ask", lambda self, item: asked.append(item) or ask(self, item))
    for _ in range(3):
        list_slide_dir(tmp_path)
    assert asked == [file]
    os.utime(file, ns=(1, 1))
    list_slide_dir(tmp_path)
    assert asked == [file, file]
    assert slide_dir._identity_apart.cache_info().maxsize == slide_dir._IDENTITIES
