"""The server: what it shows, what it keeps, and whom it answers."""

from __future__ import annotations

import io
import json
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image

from cytomil.review.log import Action, ReviewLog
from cytomil.review.slides import Triage
from cytomil.review.summary import summarise
from tests.serving import serving
from tests.triage.requests import abort

from .conftest import N_CELLS, N_KEYS, SECRET, TOKEN, Client

SMEAR, CELLS = 1, 2


def picture(answer):
    assert answer.status == 200, answer.body
    assert answer.headers["content-type"] == "image/jpeg"
    return np.asarray(Image.open(io.BytesIO(answer.body)))


def test_the_worklist_is_the_triages(client):
    told = client.ask("/api/worklist?reader=AB").json()
    assert [slide["slide"] for slide in told["slides"]] == ["gone.svs", "smear.tif", "cells"]
    assert told["slides"][0]["reason"]


def test_a_slide_has_a_pyramid_whose_tiles_are_the_slide(client):
    told = client.ask(f"/api/slides/{SMEAR}?reader=AB").json()
    pyramid = told["pyramid"]
    assert (pyramid["width"], pyramid["height"], pyramid["max_level"]) == (800, 600, 10)
    assert len(told["key_instances"]) == N_KEYS
    assert picture(client.ask(f"/api/slides/{SMEAR}/tiles/10/0/0")).shape == (256, 256, 3)
    assert picture(client.ask(f"/api/slides/{SMEAR}/tiles/10/3/2")).shape == (600 - 512, 800 - 768, 3)
    assert picture(client.ask(f"/api/slides/{SMEAR}/tiles/0/0/0")).shape == (1, 1, 3)
    for level, column, row in ((10, 4, 0), (10, 0, 3), (11, 0, 0), (8, 1, 0)):
        assert client.ask(f"/api/slides/{SMEAR}/tiles/{level}/{column}/{row}").status == 404


def test_the_label_image_is_in_no_tile(client):
    for level in range(11):
        for column in range(4):
            for row in range(3):
                answer = client.ask(f"/api/slides/{SMEAR}/tiles/{level}/{column}/{row}")
                if answer.status == 200:
                    assert np.abs(picture(answer).reshape(-1, 3).astype(int) - SECRET).sum(axis=1).min() > 100


def test_all_cells_come_with_place_and_score(client):
    numbers = np.frombuffer(client.ask(f"/api/slides/{SMEAR}/cells").body, "<f4").reshape(-1, 4)
    ids = client.ask(f"/api/slides/{SMEAR}/ids").json()
    assert numbers.shape == (N_CELLS, 4)
    assert len(ids) == N_CELLS
    np.testing.assert_allclose(numbers[:, 2], 12, atol=0.2)
    np.testing.assert_allclose(numbers[:, 3], np.linspace(9, 0.1, N_CELLS), rtol=1e-3)
    for (x, y, *_), name in zip(numbers, ids, strict=True):
        named = [float(part) for part in name.removeprefix("x").split("y")]
        np.testing.assert_allclose(named, (x, y), atol=0.6)


@pytest.mark.parametrize("around", [0, 1])
def test_a_cell_is_shown_enlarged_from_slide_and_folder(client, around):
    for number in (SMEAR, CELLS):
        cell = client.ask(f"/api/slides/{number}").json()["key_instances"][3]["instance_id"]
        assert picture(client.ask(f"/api/slides/{number}/cell?cell={cell}&around={around}")).ndim == 3
        assert client.ask(f"/api/slides/{number}/cell?cell=../../etc/passwd").status == 404


def test_a_slide_that_is_gone_says_so_and_ends_nothing(client, triage):
    slides = triage.parent / "slides"
    (slides / "smear.tif").unlink()
    told = client.ask(f"/api/slides/{SMEAR}?reader=AB").json()
    assert "no longer exists" in told["fault"]
    assert client.ask(f"/api/slides/{SMEAR}/tiles/0/0/0").status == 404
    assert client.ask(f"/api/slides/{CELLS}").status == 200


def test_a_slide_that_changed_since_it_was_ranked_is_noticed(client, triage):
    assert client.ask(f"/api/slides/{SMEAR}/check").json() == {"unchanged": True}
    with (triage.parent / "slides" / "smear.tif").open("ab") as file:
        file.write(b"x")
    assert client.ask(f"/api/slides/{SMEAR}/check").json() == {"unchanged": False}


def test_a_slide_that_crashes_its_reader_is_refused_and_ends_nothing(client, triage, monkeypatch):
    sound = client.ask(f"/api/slides/{SMEAR}/tiles/10/0/0")
    monkeypatch.setattr("cytomil.review.slides._region", abort)
    crashed = client.ask(f"/api/slides/{SMEAR}/tiles/10/1/1")
    assert crashed.status == 404
    assert "its reader stopped (killed by signal 6)" in crashed.json()["error"]
    monkeypatch.undo()
    assert client.ask(f"/api/slides/{SMEAR}/tiles/10/0/0").body == sound.body  # read before
    assert client.ask(f"/api/slides/{SMEAR}/tiles/10/2/1").json() == crashed.json()  # not tried again
    assert client.ask(f"/api/slides/{SMEAR}/check").status == 404
    cell = client.ask(f"/api/slides/{CELLS}").json()["key_instances"][0]["instance_id"]
    assert picture(client.ask(f"/api/slides/{CELLS}/cell?cell={quote(cell)}")).shape == (8, 8, 3)


def test_judgements_are_on_disk_when_the_answer_comes(client, triage):
    cell = client.ask(f"/api/slides/{SMEAR}").json()["key_instances"][1]["instance_id"]
    told = client.act("AB", "cell", cell=cell, value="abnormal").json()
    assert told["own"]["cells"] == {cell: "abnormal"}
    (entry,) = ReviewLog(triage).entries()
    assert (entry.reader, entry.cell, entry.value, entry.rank) == ("AB", cell, "abnormal", 2)
    assert entry.slide_sha256
    assert entry.score == pytest.approx(np.linspace(9, 0.1, N_CELLS)[1])


def test_a_cell_that_is_no_key_cell_can_be_judged(client, triage):
    cell = client.ask(f"/api/slides/{SMEAR}/ids").json()[-1]
    assert client.act("AB", "cell", cell=cell, value="not a cell").status == 200
    (entry,) = ReviewLog(triage).entries()
    assert (entry.cell, entry.rank) == (cell, None)
    assert entry.score == pytest.approx(0.1)


def test_undo_takes_back_the_readers_own_last_action(client):
    first, second = (one["instance_id"] for one in client.ask(f"/api/slides/{SMEAR}").json()["key_instances"][:2])
    client.act("AB", "cell", cell=first, value="abnormal")
    client.act("CD", "cell", cell=first, value="normal")
    client.act("AB", "cell", cell=second, value="normal")
    assert client.act("AB", "undo").json()["own"]["cells"] == {first: "abnormal"}
    assert client.act("AB", "undo").json()["own"]["cells"] == {}
    assert client.act("AB", "undo").json()["own"]["cells"] == {}
    assert client.ask(f"/api/slides/{SMEAR}?reader=CD").json()["own"]["cells"] == {first: "normal"}


def test_a_second_reader_sees_nothing_of_the_first_until_done(client):
    cell = client.ask(f"/api/slides/{SMEAR}").json()["key_instances"][0]["instance_id"]
    client.act("AB", "cell", cell=cell, value="abnormal")
    client.act("AB", "slide", value="positive")
    client.act("AB", "remark", value="blasts at the edge")
    seen = [
        client.ask("/api/worklist?reader=CD").body,
        client.ask(f"/api/slides/{SMEAR}?reader=CD").body,
        client.act("CD", "cell", cell=cell, value="normal").body,
    ]
    for body in seen:
        assert b"blasts" not in body
        assert b'"AB"' not in body
    told = client.act("CD", "slide", value="negative").json()
    assert told["others"]["AB"] == {"cells": {cell: "abnormal"}, "verdict": "positive", "remark": "blasts at the edge"}


BAD = [
    {"reader": "AB", "action": "cell", "slide": "smear.tif", "cell": "nowhere", "value": "normal"},
    {"reader": "AB", "action": "cell", "slide": "nowhere", "cell": "c", "value": "normal"},
    {"reader": "AB", "action": "slide", "slide": "smear.tif", "value": "malignant"},
    {"reader": "../..", "action": "slide", "slide": "smear.tif", "value": "positive"},
    {"reader": "AB", "action": "delete", "slide": "smear.tif"},
    {"reader": "AB"},
    [],
    None,
    b"{",
    b"[" * 60_000,
    b'"' + b"x" * 70_000 + b'"',
]


@pytest.mark.parametrize("body", BAD, ids=range(len(BAD)))
def test_what_is_no_action_gets_one_line_and_is_not_kept(client, triage, body):
    answer = client.ask("/api/act", b"null" if body is None else body)
    assert 400 <= answer.status < 600
    assert "\n" not in json.loads(answer.body)["error"]
    assert ReviewLog(triage).entries() == []
    assert client.ask("/api/worklist").status == 200


def test_the_address_is_exchanged_for_a_cookie_and_shows_the_page(client):
    client.cookie = ""
    answer = client.ask(f"/?token={TOKEN}")
    assert (answer.status, answer.headers["location"]) == (303, "/")
    assert "HttpOnly" in answer.headers["set-cookie"]
    assert "samesite=strict" in answer.headers["set-cookie"].lower()
    client.cookie = answer.headers["set-cookie"].split("=", 1)[1].split(";")[0]
    for path in ("/", "/review.js", "/review.css", "/openseadragon.min.js"):
        page = client.ask(path)
        assert page.status == 200
        assert "default-src 'none'" in page.headers["content-security-policy"]


PATHS = ["/", "/review.js", "/api/worklist", f"/api/slides/{SMEAR}", f"/api/slides/{SMEAR}/tiles/0/0/0", "/nothing"]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("cookie", "headers"),
    [
        ("", {}),
        ("wrong", {}),
        ("é", {}),
        (TOKEN, {"Host": "evil.example"}),
        (TOKEN, {"Host": "127.0.0.1:1"}),
        (TOKEN, {"Origin": "http://evil.example"}),
        (TOKEN, {"Origin": "null"}),
        (TOKEN, {"Sec-Fetch-Site": "cross-site"}),
        (TOKEN, {"Sec-Fetch-Site": "same-site"}),
    ],
)
def test_a_stranger_gets_nothing(client, path, cookie, headers):
    client.cookie = cookie
    for body in (None, {"reader": "AB", "action": "slide", "slide": "smear.tif", "value": "positive"}):
        answer = client.ask(path, body, **headers)
        assert (answer.status, answer.body) == (403, b"")


def test_a_wrong_token_in_the_address_gets_nothing(client):
    client.cookie = ""
    for query in ("token=wrong", "token=", "", f"token={TOKEN}x", f"token={TOKEN[:-1]}"):
        assert client.ask(f"/?{query}").status == 403
    assert client.ask(f"/api/worklist?token={TOKEN}").status == 403


DOTS = [
    "/../../../etc/passwd",
    "/..%2f..%2fetc%2fpasswd",
    "/api/slides/../../etc/passwd",
    "/static/../log.py",
    "/api/slides/-1",
    "/api/slides/99",
    f"/api/slides/{SMEAR}/tiles/10/-1/0",
    f"/api/slides/{SMEAR}/tiles/99999999999999999999/0/0",
    "/review.jsonl",
    "/triage.json",
]


@pytest.mark.parametrize("path", DOTS)
def test_no_path_leads_out_of_the_page(client, path):
    assert client.ask(path).status == 404


def test_another_type_than_json_is_refused(client, triage):
    body = json.dumps({"reader": "AB", "action": "slide", "slide": "smear.tif", "value": "positive"}).encode()
    assert client.ask("/api/act", body, **{"Content-Type": "text/plain"}).status == 415
    assert ReviewLog(triage).entries() == []


def test_a_geojson_outside_of_the_folder_is_not_read(triage, tmp_path):
    from cytomil.errors import ReviewError
    from cytomil.review.slides import Triage

    document = json.loads((triage / "triage.json").read_text())
    document["slides"][SMEAR]["files"]["geojson"] = "../outside.geojson"
    (tmp_path / "outside.geojson").write_text("{}")
    (triage / "triage.json").write_text(json.dumps(document))
    with pytest.raises(ReviewError, match="outside"):
        _ = Triage(triage).shown(SMEAR).cells


def rerank(triage, **changed):
    """Change what triage.json says of the smear, or of the model."""
    document = json.loads((triage / "triage.json").read_text())
    for key, value in changed.items():
        where = document["model_card"] if key == "model_sha256" else document["slides"][SMEAR]
        where[key] = value
    (triage / "triage.json").write_text(json.dumps(document))


def judged_before(triage):
    """A reader's judgement of a key cell and of the slide, by the server's own fields."""
    shown, log = Triage(triage), ReviewLog(triage)
    slide = shown.slides[SMEAR]
    cell = slide.key_instances[0].instance_id
    named = {"slide_sha256": slide.sha256, "model_sha256": shown.model_sha256}
    log.append("AB", Action.CELL, slide.slide, cell=cell, value="abnormal", **named)
    log.append("AB", Action.SLIDE, slide.slide, value="positive", **named)
    return cell


def test_judgements_outlive_a_new_model(triage):
    cell = judged_before(triage)
    rerank(triage, model_sha256="e" * 64)
    with serving(triage, TOKEN) as port:
        client = Client(port, TOKEN)
        told = client.ask(f"/api/slides/{SMEAR}?reader=AB").json()
    assert (told["own"]["cells"], told["own"]["verdict"], told["earlier"]) == ({cell: "abnormal"}, "positive", "")


def test_judgements_of_another_version_of_the_slide_are_told_and_do_not_count(triage):
    cell = judged_before(triage)
    rerank(triage, sha256="d" * 64)
    with serving(triage, TOKEN) as port:
        client = Client(port, TOKEN)
        told = client.ask(f"/api/slides/{SMEAR}?reader=AB").json()
        (listed,) = [one for one in client.ask("/api/worklist?reader=AB").json()["slides"] if one["number"] == SMEAR]
        other = client.ask(f"/api/slides/{SMEAR}?reader=CD").json()
        undone = client.act("AB", "undo").json()
        judged = client.act("AB", "cell", cell=cell, value="normal").json()
    assert (told["own"]["cells"], told["own"]["verdict"]) == ({}, None)
    assert told["earlier"].startswith("You judged another version of this slide's file (cells: 1; slide: positive).")
    assert (listed["judged"], listed["verdict"]) == (0, None)
    assert other["earlier"] == ""
    assert undone["own"]["cells"] == {}
    assert judged["own"]["cells"] == {cell: "normal"}
    assert len(ReviewLog(triage).entries()) == 3


def test_a_folder_ranked_again_is_shown_at_once_and_numbers_stay(client, triage):
    client.act("AB", "slide", value="positive")
    before = client.ask("/api/state").json()
    document = json.loads((triage / "triage.json").read_text())
    gone, smear, cells = document["slides"]
    document |= {"slides": [smear | {"slide": "new.tif", "rank": 1}, smear, cells], "created": "2026-01-02"}
    (triage / "triage.json").write_text(json.dumps(document))
    now = client.ask("/api/state").json()
    assert now == {"created": "2026-01-02", "slides": ["new.tif", "smear.tif", "cells"], "fault": ""} != before
    listed = client.ask("/api/worklist?reader=AB").json()["slides"]
    assert [(one["slide"], one["number"]) for one in listed] == [("new.tif", 3), ("smear.tif", SMEAR), ("cells", CELLS)]
    assert [one["verdict"] for one in listed] == [None, "positive", None]
    assert client.ask(f"/api/slides/{SMEAR}?reader=AB").json()["slide"] == "smear.tif"
    assert client.ask("/api/slides/3?reader=AB").json()["slide"] == "new.tif"
    assert client.ask("/api/slides/0?reader=AB").status == 404
    assert client.act("AB", "slide", gone["slide"], value="positive").status == 404


def test_a_damaged_new_worklist_leaves_the_one_before(client, triage):
    whole = (triage / "triage.json").read_bytes()
    (triage / "triage.json").write_bytes(whole[:-40])
    assert "Rank again" in client.ask("/api/state").json()["fault"]
    assert len(client.ask("/api/worklist?reader=AB").json()["slides"]) == 3
    assert client.act("AB", "slide", value="positive").status == 200
    (triage / "triage.json").write_bytes(whole)
    assert client.ask("/api/state").json()["fault"] == ""


def test_a_verdict_on_a_version_that_was_replaced_is_refused(client, triage):
    shown = client.ask(f"/api/slides/{SMEAR}?reader=AB").json()
    cell = shown["key_instances"][0]["instance_id"]
    rerank(triage, sha256="d" * 64)
    answer = client.act("AB", "cell", cell=cell, value="abnormal", sha256=shown["sha256"])
    assert (answer.status, "ranked again" in answer.json()["error"]) == (409, True)
    assert ReviewLog(triage).entries() == []
    now = client.ask(f"/api/slides/{SMEAR}?reader=AB").json()
    assert client.act("AB", "cell", cell=cell, value="abnormal", sha256=now["sha256"]).status == 200


def test_cells_to_teach_the_model_are_listed_apart_and_are_no_finds_at_the_top(client, triage):
    ids = client.ask(f"/api/slides/{SMEAR}/ids").json()
    taught = [{"instance_id": ids[i], "score": 1.0} for i in (20, 30)]
    rerank(triage, to_teach=taught)
    told = client.ask(f"/api/slides/{SMEAR}?reader=AB").json()
    numbers = np.frombuffer(client.ask(f"/api/slides/{SMEAR}/cells").body, "<f4").reshape(-1, 4)
    assert len(told["key_instances"]) == N_KEYS
    assert [(one["instance_id"], one["x_px"]) for one in told["to_teach"]] == [
        (ids[i], pytest.approx(numbers[i, 0])) for i in (20, 30)
    ]
    client.act("AB", "cell", cell=ids[20], value="abnormal")
    client.act("AB", "cell", cell=told["key_instances"][0]["instance_id"], value="normal")
    (summary,) = summarise(ReviewLog(triage).entries())
    assert (summary.judged, summary.abnormal, summary.key_judged, summary.key_abnormal) == (2, 1, 1, 0)


def test_cells_of_a_folder_to_teach_the_model_have_pictures(triage):
    document = json.loads((triage / "triage.json").read_text())
    keys = document["slides"][CELLS]["key_instances"]
    document["slides"][CELLS] |= {"key_instances": keys[:5], "to_teach": [keys[7]]}
    (triage / "triage.json").write_text(json.dumps(document))
    with serving(triage, TOKEN) as port:
        client = Client(port, TOKEN)
        name = keys[7]["instance_id"]
        assert picture(client.ask(f"/api/slides/{CELLS}/cell?cell={name}")).ndim == 3
        assert client.ask(f"/api/slides/{CELLS}/cell?cell={keys[8]['instance_id']}").status == 404
        assert client.act("AB", "cell", slide="cells", cell=name, value="normal").status == 200
