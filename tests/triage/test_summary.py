"""The page per slide that is printed and signed."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cytomil.files import sha256_of_file
from cytomil.mil.triage_model import Weakness
from cytomil.triage.report import render_summary, write_summaries
from cytomil.triage.write import write_worklist
from tests.browser import start_chromium
from tests.triage.test_report import NASTY, SLIDES, UMLAUT, Page, cells, jpeg, worklist

LONG = "Unlike the training slides: do not rely on its call. " * 6


def test_it_says_what_the_slide_is_what_the_call_means_and_where_to_sign() -> None:
    text = Page(render_summary(worklist(), SLIDES[1])).text
    assert UMLAUT in text
    assert "review first To the model, this slide looks like the diseased slides" in text
    assert "Probability > 0.99 on a scale from 0 to 1" in text
    assert "is not the patient's risk. Review first from 0.62, low priority below 0.30." in text
    assert "1 14 × x 2,500, y 2,000 µm" in text
    assert text.startswith("Summary: ")
    assert "Decision support, not a diagnosis" in text
    assert text.endswith("Reader Date Signature")


def test_a_slide_that_was_not_assessed_has_its_reason_and_no_number() -> None:
    text = Page(render_summary(worklist(), SLIDES[0])).text
    assert "The file cannot be <opened>." in text
    assert "says nothing about this slide" in text
    assert "Probability" not in text


def test_a_slide_unlike_the_training_slides_has_no_probability() -> None:
    text = Page(render_summary(worklist(), replace(SLIDES[2], is_unlike=True))).text
    assert "Probability: not to be relied on" in text
    assert "0.6196" not in text
    assert "Unlike the training slides: read with care." in text


def test_what_is_wrong_with_the_model_is_on_every_page() -> None:
    weak = worklist(collapsed=True, synthetic=True, weaknesses=(Weakness("LEARNT FROM 9 SLIDES", "Look at cells."),))
    text = Page(render_summary(weak, SLIDES[3])).text
    for words in ("SYNTHETIC DATA", "has collapsed", "LEARNT FROM 9 SLIDES: Look at cells."):
        assert words in text


def test_it_needs_no_script_and_no_other_file_and_escapes_names() -> None:
    html = render_summary(worklist(), replace(SLIDES[1], slide=NASTY))
    page = Page(html)
    assert NASTY not in html
    assert not page.all("script")
    assert all(attributes["src"].startswith("data:image/jpeg;base64,") for attributes in page.all("img"))
    assert "http" not in html.replace("http-equiv", "")


def test_summaries_are_linked_hashed_and_replaced_as_a_whole(tmp_path: Path) -> None:
    write_summaries(worklist(replace(SLIDES[3], slide="gone")), tmp_path)
    report = write_worklist(worklist(), tmp_path, summaries=True)
    document = json.loads((tmp_path / "triage.json").read_text(encoding="utf-8"))
    files = {slide["slide"]: slide["files"]["summary"] for slide in document["slides"]}
    assert set(files) == {slide.slide for slide in SLIDES}
    assert sorted(files.values()) == sorted(f"summaries/{file.name}" for file in (tmp_path / "summaries").iterdir())
    for file in files.values():
        assert document["files_sha256"][file] == sha256_of_file(tmp_path / file)
        assert f'href="{file}"' in report.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    driver = start_chromium(tmp_path_factory.mktemp("chromium"))
    yield driver
    driver.quit()


@pytest.mark.long
@pytest.mark.parametrize(
    "slide",
    [
        replace(
            SLIDES[1], key_instances=cells(24, 14.2), thumbnail=jpeg(200, 900), cautions=(LONG, LONG), sha256="a" * 64
        ),
        replace(SLIDES[2], slide="n" * 200, key_instances=cells(24, 6.0, placed=False)),
        SLIDES[0],
    ],
    ids=["full", "long name", "not assessed"],
)
def test_browser_prints_one_page(browser: Any, tmp_path: Path, slide: Any) -> None:
    weak = worklist(weaknesses=(Weakness("LEARNT FROM 9 SLIDES", "Look at cells. " * 10),), synthetic=True)
    (tmp_path / "summary.html").write_text(render_summary(weak, slide), encoding="utf-8")
    browser.get((tmp_path / "summary.html").as_uri())
    assert browser.get_log("browser") == []
    answer = browser.execute_cdp_cmd("Page.printToPDF", {"preferCSSPageSize": True})
    pdf = base64.b64decode(answer["data"])
    assert len(re.findall(rb"/Type\s*/Page\b(?!s)", pdf)) == 1
    assert re.search(rb"/MediaBox\s*\[0 0 59[45]\S* 84[12]\S*\]", pdf)
