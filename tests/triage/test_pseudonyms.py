"""rank under pseudonyms: no name of a slide in what it writes or says, and the table leads back."""

import csv
import shutil
import stat

import pytest
from typer.testing import CliRunner

from cytomil.app.cli.app import app
from cytomil.bags import open_bag, read_manifest
from cytomil.errors import SettingsError, WorkersError
from cytomil.mil.config import FitMilConfig
from cytomil.mil.fit import fit_mil
from cytomil.progress import Silent
from cytomil.triage.config import RankConfig
from cytomil.triage.rank import rank
from cytomil.triage.write import AuditLog, write_worklist
from cytomil.workers import on_ray

NAMES = ("Miller_Anna-1951", "H23-00412", "broken", "Nobody")


@pytest.fixture(scope="module")
def model(features_folder, encoder_folder, shared):
    def make(root):
        chosen = {"aggregator": "knn", "folds": 2, "ensemble": 1}
        fit_mil(FitMilConfig(features=features_folder, encoder=encoder_folder, out=root / "model", **chosen), Silent())

    return shared.folder("pseudonyms", make) / "model"


@pytest.fixture
def slides(bags_folder, tmp_path):
    folder = tmp_path / "ward seven"
    manifest = read_manifest(bags_folder)
    folder.mkdir()
    for name, row in zip(NAMES, manifest.rows, strict=False):
        (folder / name).mkdir()
        for i, image in enumerate(open_bag(manifest.file_of(row)).images()):
            (folder / name / f"cell {i}.png").write_bytes(image)
    shutil.rmtree(folder / "broken")
    (folder / "broken.h5").write_text("not a bag")
    for file in (folder / "Nobody").iterdir():
        file.write_text("no image")
    (folder / "Miller notes.txt").write_text("left alone")
    return folder


def settings(model, out, key, **changes):
    return RankConfig(model=model, out=out, top=2, device="cpu", engine="eager", pseudonymise=key, **changes)


def test_no_name_is_written_or_said_and_the_table_leads_back(model, slides, tmp_path):
    key, out = tmp_path / "vault" / "key", tmp_path / "out"
    line = ["rank", str(slides), "--model", str(model), "--out", str(out), "--engine", "eager", "--json"]
    done = CliRunner().invoke(app, [*line, "--pseudonymise", str(key), "--device", "cpu"], env={"COLUMNS": "200"})
    assert done.exit_code == 3, done.output
    told = [done.output.encode(), *(file.read_bytes() for file in out.rglob("*") if file.is_file())]
    told += [file.name.encode() for file in out.rglob("*")]
    for name in (*NAMES, "Miller", "ward seven"):
        assert not any(name.encode() in one for one in told), name
    assert not any(b"vault" in one for one in told[:-1])
    with key.with_name("key.csv").open(newline="") as file:
        table = {line["slide"]: line["pseudonym"] for line in csv.DictReader(file)}
    assert set(table) == {"Miller_Anna-1951", "H23-00412", "broken.h5", "Nobody"}
    assert all(pseudonym.encode() in done.output.encode() for pseudonym in table.values())
    for file in (key, key.with_name("key.csv")):
        assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_the_same_key_gives_the_same_pseudonyms_and_another_key_others(model, slides, tmp_path):
    called = []
    for name in ("a", "a", "b"):
        worklist = rank(slides, settings(model, tmp_path / f"out-{name}", tmp_path / name), Silent())
        called.append({slide.slide for slide in worklist.slides})
    assert called[0] == called[1]
    assert not called[0] & called[2]


def test_a_key_file_among_reports_or_slides_and_a_folder_with_names_are_refused(model, slides, tmp_path):
    out = tmp_path / "out"
    for key in (out / "key", slides / "key"):
        with pytest.raises(SettingsError, match="Keep the key file apart"):
            rank(slides, settings(model, out, key), Silent())
    write_worklist(rank(slides, settings(model, out, None), Silent()), out)
    with pytest.raises(SettingsError, match="holds a worklist with the slides' names"):
        rank(slides, settings(model, out, tmp_path / "key"), Silent())
    (tmp_path / "key").write_text("1234")
    with pytest.raises(SettingsError, match="is not a key file"):
        rank(slides, settings(model, tmp_path / "new", tmp_path / "key"), Silent())


@pytest.mark.parametrize("why", ["Ray is not installed", "Ray cannot be reached"])
def test_the_audit_log_has_no_line_of_a_run_that_was_refused(model, slides, tmp_path, monkeypatch, why):
    if "installed" in why:
        monkeypatch.setattr(on_ray.util, "find_spec", lambda name: None)
    else:
        monkeypatch.setattr(on_ray, "require_ray", lambda: None)
        monkeypatch.setattr(on_ray, "connected", refuse)
    changed = settings(model, tmp_path / "out", None).model_copy(update={"ray_address": "nowhere:1"})
    with pytest.raises(WorkersError, match=f"{why}|needs Ray, which is not installed"):
        rank(slides, changed, Silent())
    assert not AuditLog(tmp_path / "out").path.exists()


def refuse(address, listener):
    raise WorkersError(f"{address}: Ray cannot be reached")


def test_the_audit_log_has_a_line_per_run_and_slide_and_shows_any_change(model, slides, tmp_path):
    out = tmp_path / "out"
    for _ in range(2):
        worklist = rank(slides, settings(model, out, None), Silent())
    log = AuditLog(out)
    entries = log.entries()
    assert log.faults() == []
    assert [entry.slide == "" for entry in entries] == [True, *[False] * 4] * 2
    assert {entry.slide: entry.call for entry in entries[6:]} == {s.slide: s.call.value for s in worklist.slides}
    assert {entry.model_sha256 for entry in entries} == {worklist.model_card["model_sha256"]}
    lines = log.path.read_text().splitlines(keepends=True)
    log.path.write_text("".join(lines[:3] + lines[4:]))
    assert "line 4: a line before it was changed or removed" in AuditLog(out).faults()[0]
    log.path.write_text(
        "".join(lines[:-1]) + lines[-1].replace("not assessed", "low priority").replace("review", "revieW")
    )
    assert "line 10, was changed" in AuditLog(out).faults()[0]
