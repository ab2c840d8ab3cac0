from __future__ import annotations

import base64
import hashlib
import io
import json
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cytomil.mil.triage_model import Weakness
from cytomil.triage.report import render_report, write_report
from cytomil.triage.worklist import Call, KeyInstance, SlideResult, Worklist, in_reading_order
from tests.browser import set_width, start_chromium

NASTY = "<img src=x onerror=alert(1)>"
UMLAUT = "Präparat Müller 7 “rot” & 'blau'"


def jpeg(shade: int, size: int = 16) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (size, size), (shade, 40, 160)).save(buffer, "JPEG")
    return buffer.getvalue()


def cells(n: int, top: float, placed: bool = True) -> tuple[KeyInstance, ...]:
    return tuple(
        KeyInstance(
            f"cell-{i:03d}",
            top * 0.9**i,
            jpeg(10 * i),
            x_px=10_000.0 + i if placed else None,
            y_px=8_000.0 if placed else None,
            x_um=2_500.0 + i if placed else None,
            y_um=2_000.0 if placed else None,
            why="weighs most",
        )
        for i in range(n)
    )


EDGES = (0.0, 0.3, 1.0, 3.0, 10.0, math.inf)
NORMAL = (0.2, 0.5, 0.295, 0.005, 0.0)
SLIDES = (
    SlideResult(NASTY, f"/s/{NASTY}.svs", Call.NOT_ASSESSED, reason="The file cannot be <opened>."),
    SlideResult(
        UMLAUT,
        "/s/u.svs",
        Call.REVIEW_FIRST,
        0.9996,
        n_instances=1840,
        mpp=0.25,
        key_instances=cells(4, 14.2),
        score_shares=(0.3, 0.4, 0.2, 0.06, 0.04),
        thumbnail=jpeg(200, 64),
        qc_picture=jpeg(220, 64),
    ),
    SlideResult(
        "slide 2",
        "/s/2.svs",
        Call.REVIEW,
        0.6196,
        n_instances=900,
        n_unreadable=31,
        cautions=("Unlike the training slides: read with care.",),
        key_instances=cells(3, 6.0, placed=False),
        score_shares=NORMAL,
    ),
    SlideResult("slide 10", "/s/10.svs", Call.LOW_PRIORITY, 0.12, n_instances=160),
    SlideResult("slide 11", "/s/11.svs", Call.NOT_ASSESSED, reason="Only 12 cells were found.", n_instances=12),
)


def worklist(*slides: SlideResult, **changes: Any) -> Worklist:
    made = Worklist(
        folder="/s",
        created="2024-03-14 09:12",
        slides=in_reading_order(list(slides or SLIDES)),
        threshold=0.62,
        low_threshold=0.3,
        model_card={"method": "slam-ags", "trained_on": {"bags": 54}, "figures": [{"name": "AUROC", "value": 0.93123}]},
        settings={"top": 24},
        versions={"cytomil": "0.1.0"},
        score_bin_edges=EDGES,
        reference_shares=NORMAL,
    )
    return replace(made, **changes)


class Page(HTMLParser):
    """The parts of a page that the tests ask for, as a browser's parser would see them."""

    VOID = frozenset({"img", "meta", "link", "input", "path", "rect", "use", "circle"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.pieces: list[str] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()
        self.text = " ".join(" ".join(self.pieces).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self._open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th") and self.rows:
            self.rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag, f"</{tag}> closes nothing at line {self.getpos()[0]}"

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] in ("script", "style"):
            return
        self.pieces.append(data)
        if "tr" in self._open and ("td" in self._open or "th" in self._open):
            self.rows[-1][-1] = " ".join(f"{self.rows[-1][-1]} {data}".split())

    def all(self, tag: str, **wanted: str) -> list[dict[str, str | None]]:
        return [a for t, a in self.tags if t == tag and all(a.get(k) == v for k, v in wanted.items())]

    def worklist_rows(self) -> list[list[str]]:
        return [row for row in self.rows if len(row) == 8 and row[0] != "Order"]


def page_of(*slides: SlideResult, **changes: Any) -> Page:
    return Page(render_report(worklist(*slides, **changes)))


def test_every_slide_has_its_row_and_its_section() -> None:
    page = page_of()
    assert [row[1] for row in page.worklist_rows()] == [NASTY, "slide 11", UMLAUT, "slide 2", "slide 10"]
    assert [a["id"] for a in page.all("details")] == [f"slide-{i}" for i in range(1, 6)]
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))
    targets = {a["href"] for a in page.all("a")}
    assert targets <= {f"#{i}" for i in ids}


def test_names_are_shown_never_interpreted() -> None:
    html = render_report(worklist())
    assert NASTY not in html
    page = Page(html)
    assert not [a for _, a in page.tags if any(name.startswith("on") for name in a)]
    assert page.text.count(NASTY) >= 3
    assert UMLAUT in page.text
    assert "cannot be <opened>" in page.text
    assert any(a["alt"] == f"Cell 1 of {UMLAUT}" for a in page.all("img"))


def test_a_name_that_is_not_utf8_is_shown_and_can_be_written(tmp_path: Path) -> None:
    slide = replace(SLIDES[3], slide="M\udcfcller")
    write_report(worklist(slide), tmp_path / "r.html")
    assert "M\\udcfcller" in (tmp_path / "r.html").read_text(encoding="utf-8")


def test_not_assessed_slides_come_first_whatever_the_order_given() -> None:
    html = render_report(worklist(slides=tuple(reversed(in_reading_order(list(SLIDES))))))
    assert [row[3] for row in Page(html).worklist_rows()][:3] == ["not assessed", "not assessed", "review first"]
    assert html.index("NOT ASSESSED") < html.index('id="worklist"')


def test_each_reason_stands_above_the_worklist() -> None:
    html = render_report(worklist())
    panel = html[html.index('id="not-assessed"') : html.index('id="worklist"')]
    assert "The file cannot be &lt;opened&gt;." in panel
    assert "Only 12 cells were found." in panel


@pytest.mark.parametrize("probability", [None, math.nan, 1.3])
def test_a_slide_without_a_usable_probability_counts_as_not_assessed(probability: float | None) -> None:
    page = page_of(replace(SLIDES[3], probability=probability))
    assert page.worklist_rows()[0][2:4] == ["none", "not assessed"]
    assert "1 of 1 slide NOT ASSESSED" in page.text


def test_a_slide_not_assessed_without_a_reason_says_so() -> None:
    assert "No reason was recorded." in page_of(replace(SLIDES[0], reason="")).text


def test_counts() -> None:
    assert "2 not assessed 1 review first 1 review 1 low priority" in page_of().text
    assert "2 of 5 slides NOT ASSESSED" in page_of().text
    assert "NOT ASSESSED" not in page_of(*SLIDES[1:4]).text


def test_unreadable_cells_are_told_at_the_top_and_in_the_row() -> None:
    page = page_of()
    assert "31 cells could not be read on 1 of the slides" in page.text
    assert page.worklist_rows()[3][5] == "31"


def test_a_slide_that_never_opened_shows_no_count() -> None:
    assert page_of().worklist_rows()[0][4:6] == ["–", "–"]


@pytest.mark.parametrize(
    ("value", "shown"),
    [(1.0, "> 0.99"), (0.9951, "> 0.99"), (0.0, "< 0.01"), (0.41, "0.41"), (0.62, "0.62"), (0.6196, "0.6196")],
)
def test_a_probability_never_looks_surer_or_across_a_threshold(value: float, shown: str) -> None:
    assert page_of(replace(SLIDES[3], probability=value)).worklist_rows()[0][2] == shown


def test_a_threshold_near_the_end_of_the_scale_keeps_its_sides() -> None:
    slides = [replace(SLIDES[3], slide=str(p), probability=p) for p in (1.0, 0.9961, 0.9949, 0.0041, 0.0)]
    rows = page_of(*slides, threshold=0.995, low_threshold=0.004).worklist_rows()
    assert [row[2] for row in rows] == ["> 0.999", "0.996", "0.99", "0.004", "< 0.001"]


def test_the_probability_is_explained_and_its_thresholds_shown() -> None:
    text = page_of().text
    assert "scale from 0 to 1. It is not the patient's risk" in text
    assert "review first 0.62 and above" in text
    assert "low priority below 0.30" in text
    assert "Decision support, not a diagnosis" in text


@pytest.mark.parametrize(
    ("flag", "words"), [("synthetic", "SYNTHETIC DATA"), ("collapsed", "Do not trust this ranking")]
)
def test_banners_follow_the_flags(flag: str, words: str) -> None:
    assert words not in page_of(**{flag: False}).text
    html = render_report(worklist(**{flag: True}))
    assert words in html[: html.index('id="worklist"')]
    assert html.count('<p class="stamp') == len(SLIDES)


def test_cells_carry_score_place_and_reason() -> None:
    text = page_of().text
    assert "Numbers are × the average cell." in text
    assert "1 14 × x 2,500, y 2,000 µm 2 13 ×" in " ".join(text.replace("smaller", " ").split())
    assert "cell-000" not in " ".join(page_of(SLIDES[1]).text.split("Cells to look at")[1:])
    assert "Why marked: weighs most" in text
    assert "0.25 µm, about 40× objective" in text


def test_a_score_of_many_digits_is_not_written_out() -> None:
    vast = replace(cells(1, 2.0)[0], score=3e86)
    assert "1 more than 1,000,000 ×" in page_of(replace(SLIDES[1], key_instances=(vast,))).text


def test_reasons_that_differ_stand_under_their_cells() -> None:
    first, second = cells(2, 5.0)
    page = page_of(replace(SLIDES[1], key_instances=(first, replace(second, why="large nucleus"))))
    assert "Why marked" not in page.text
    assert "y 2,000 µm weighs most" in page.text
    assert "y 2,000 µm large nucleus" in page.text


def test_shares_of_cells_are_written_out() -> None:
    all_high = replace(SLIDES[1], score_shares=(0.0, 0.0, 0.0, 0.0, 1.0))
    assert "100 % here" in page_of(all_high).text
    assert "e+0" not in page_of(all_high).text


def test_what_lies_beside_the_page_is_linked() -> None:
    slide = replace(SLIDES[1], files={"heatmap": "heatmaps/a b.png", "geojson": "geojson/x.geojson"})
    links = [a["href"] for a in page_of(slide).all("a")]
    assert "heatmaps/a%20b.png" in links
    assert "geojson/x.geojson" in links


def test_a_scale_that_the_user_gave_is_marked_wherever_it_is_shown() -> None:
    page = page_of(replace(SLIDES[1], mpp_given=True))
    assert "given by you, not by the slide's file" in page.text
    assert "x 2,500, y 2,000 µm*" in page.text
    assert "µm (by the µm per pixel that you gave)" in page.worklist_rows()[0][6]
    assert "that you gave" not in page_of(SLIDES[1]).text


def test_a_cell_enlarges_with_what_lies_around_it() -> None:
    cell = replace(cells(1, 2.0)[0], context=jpeg(99, 40))
    page = page_of(replace(SLIDES[1], key_instances=(cell,)))
    (link,) = [a["href"] for a in page.all("a") if a.get("class") == "enlarge"]
    assert page.all("li", id=link[1:])
    assert len(page.all("img", alt="What lies around cell 1")) == 1


def test_a_flagged_slide_shows_nothing_that_looks_sure() -> None:
    page = page_of(replace(SLIDES[2], is_unlike=True, probability=0.8765))
    assert "0.88" not in page.text
    assert "0.8765" not in page.text
    assert "not to be relied on" in page.worklist_rows()[0][2]


def test_a_weak_model_says_so_before_anything_else() -> None:
    weak = (Weakness("MAY BE NO BETTER THAN CHANCE", "AUROC 0.54, 95 % interval 0.29 to 0.77."),)
    text = page_of(weaknesses=weak).text
    assert text.index("MAY BE NO BETTER THAN CHANCE") < text.index("Decision support") < text.index("At a glance")


def test_slides_unlike_the_training_ones_lead_those_of_their_call() -> None:
    unlike = replace(SLIDES[2], slide="odd", probability=0.01, is_unlike=True)
    names = [slide.slide for slide in in_reading_order([SLIDES[3], SLIDES[2], unlike, SLIDES[1]])]
    assert names == [UMLAUT, "odd", "slide 2", "slide 10"]


def test_a_caution_is_in_the_row_and_in_the_section() -> None:
    page = page_of()
    assert page.worklist_rows()[3][7] == "Unlike the training slides: read with care."
    assert page.worklist_rows()[3][6].startswith("Read the caution first.")
    assert page.text.count("Unlike the training slides") == 2


def test_the_chart_compares_with_normal_slides() -> None:
    page = page_of()
    assert len(page.all("svg", role="img")) == 2
    assert "Cells at 3 × the average cell or more: 10 % here, 0.5 % on normal training slides." in page.text


@pytest.mark.parametrize(
    "changes",
    [
        {"score_bin_edges": ()},
        {"score_bin_edges": (1.0, 0.5, 0.2, 0.1, 0.05, 0.01)},
        {"score_bin_edges": (0.0, 1.0)},
        {"score_bin_edges": (0.0, math.nan, 1.0, 3.0, 10.0, math.inf)},
    ],
)
def test_bins_that_make_no_axis_leave_the_chart_out(changes: dict[str, Any]) -> None:
    page = page_of(**changes)
    assert not page.all("svg", role="img")
    assert "How this slide's scores are spread is not known." in page.text


@pytest.mark.parametrize("edges", [(0.0, 0.1, 0.2, 0.5, 0.8, 1.0), (-3.0, -1.0, 0.0, 1.0, 2.0, 4.0)])
def test_other_scales_make_an_axis_too(edges: tuple[float, ...]) -> None:
    page = page_of(score_bin_edges=edges, reference_shares=())
    assert len(page.all("svg", role="img")) == 2
    assert "nothing to compare with" in page.text


def test_missing_pieces() -> None:
    bare = SlideResult("bare", "/s/bare", Call.REVIEW, 0.5)
    page = page_of(bare, model_card={}, settings={}, versions={}, score_bin_edges=(), reference_shares=())
    assert "No cells are marked on this slide." in page.text
    assert page.text.count("Not recorded.") == 3
    assert not page.all("img")
    odd = replace(cells(1, 2.0)[0], image=b"", score=math.nan, x_um=math.nan, x_px=math.nan)
    text = page_of(replace(bare, key_instances=(odd,), mpp=math.nan)).text
    assert "no picture 1 not known weighs most" in text
    assert "nan" not in text.lower().split()


def test_an_empty_folder_says_so() -> None:
    text = page_of(slides=()).text
    assert "There was no slide in this folder. Nothing was assessed." in text


def test_the_model_card_is_laid_out() -> None:
    page = page_of(model_card={"by_<lab>": None, "limits": ["one", "two"], "open": True, "n": 123456.0})
    assert "by <lab> not recorded limits one; two open yes n 123,456" in page.text
    assert ["AUROC", "0.9312"] in page_of().rows


def test_the_page_is_alone_and_its_policy_forbids_company() -> None:
    html = render_report(worklist())
    assert not re.search(r"https?:", html)
    assert not re.search(r"@import|url\(", html)
    page = Page(html)
    sources = [a["src"] for a in page.all("img")]
    assert len(sources) == 9
    assert all(source and source.startswith("data:image/jpeg;base64,") for source in sources)
    assert base64.b64decode(str(sources[0]).partition(",")[2]).startswith(b"\xff\xd8")
    (policy,) = (a["content"] for a in page.all("meta") if a.get("http-equiv"))
    assert str(policy).startswith("default-src 'none'; img-src data:;")
    for tag in ("script", "style"):
        (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in str(policy)
    assert not [a for _, a in page.tags if "style" in a]


def test_the_page_speaks_to_a_screen_reader() -> None:
    page = page_of()
    assert page.all("html", lang="en")
    assert page.all("main")
    assert page.all("caption")
    assert page.all("a", href="#worklist")
    assert len(page.all("th", scope="col", role="columnheader")) == 8
    assert len(page.all("th", scope="row")) == 5
    assert all(a.get("alt") for a in page.all("img"))


def test_without_javascript_nothing_looks_usable_that_is_not() -> None:
    page = page_of()
    assert all("hidden" in a for a in page.all("form"))
    assert not [a for a in page.all("button") if a.get("id") is None]


def test_writing_leaves_only_the_report(tmp_path: Path) -> None:
    path = tmp_path / "out" / "report.html"
    write_report(worklist(), path)
    write_report(worklist(), path)
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]
    assert path.read_text(encoding="utf-8") == render_report(worklist())


def test_a_failed_write_leaves_the_old_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")

    def fail(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_report(worklist(), path)
    assert [p.name for p in tmp_path.iterdir()] == ["report.html"]
    assert path.read_text() == "old"


def test_split_images_are_files_beside_the_page(tmp_path: Path) -> None:
    path = tmp_path / "my report #1.html"
    write_report(worklist(), path, split_images=True)
    page = Page(path.read_text(encoding="utf-8"))
    sources = {str(a["src"]) for a in page.all("img")}
    folder = tmp_path / "my report #1_files"
    assert {f"my%20report%20%231_files/{p.name}" for p in folder.iterdir()} == sources
    assert jpeg(200, 64) in {p.read_bytes() for p in folder.iterdir()}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["my report #1.html", "my report #1_files"]


def test_a_second_split_report_drops_the_pictures_of_the_first(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_report(worklist(), path, split_images=True)
    write_report(worklist(SLIDES[2]), path, split_images=True)
    assert len(list((tmp_path / "report_files").iterdir())) == 3


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    driver = start_chromium(tmp_path_factory.mktemp("chromium"))
    yield driver
    driver.quit()


@pytest.fixture
def opened(browser: Any, tmp_path: Path) -> Any:
    set_width(browser, 1280)
    write_report(worklist(), tmp_path / "report.html")
    browser.get((tmp_path / "report.html").as_uri())
    return browser


def names(browser: Any) -> list[str]:
    script = (
        "return [...document.querySelectorAll('#worklist-table tbody tr:not([hidden]) th')].map(e => e.textContent)"
    )
    return list(browser.execute_script(script))


def sort_by(browser: Any, name: str) -> str:
    button = browser.find_element("xpath", f"//thead//button[.='{name}']")
    button.click()
    return str(button.find_element("xpath", "..").get_attribute("aria-sort"))


def requests(browser: Any) -> list[str]:
    messages = (json.loads(entry["message"])["message"] for entry in browser.get_log("performance"))
    return [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]


def all_pictures_load(browser: Any) -> bool:
    return bool(
        browser.execute_async_script(
            """const done = arguments[0];
            const until = performance.now() + 5000;
            const look = () => {
              const all = [...document.images].every((image) => image.complete && image.naturalWidth > 0);
              if (all || performance.now() > until) done(all); else setTimeout(look, 20);
            };
            look();"""
        )
    )


@pytest.mark.long
def test_browser_renders_without_errors_or_requests(opened: Any) -> None:
    assert all_pictures_load(opened)
    assert opened.get_log("browser") == []
    outside = [url for url in requests(opened) if not url.startswith(("file:", "data:", "chrome", "about:"))]
    assert outside == []


@pytest.mark.long
def test_browser_shows_split_pictures(browser: Any, tmp_path: Path) -> None:
    path = tmp_path / "my report #1.html"
    write_report(worklist(), path, split_images=True)
    browser.get(path.as_uri())
    assert all_pictures_load(browser)
    assert browser.get_log("browser") == []


@pytest.mark.long
def test_browser_sorts_and_keeps_unassessed_slides_on_top(opened: Any) -> None:
    assert sort_by(opened, "Slide") == "ascending"
    assert names(opened) == [NASTY, "slide 11", UMLAUT, "slide 2", "slide 10"]
    assert sort_by(opened, "Slide") == "descending"
    assert names(opened) == ["slide 11", NASTY, "slide 10", "slide 2", UMLAUT]
    assert sort_by(opened, "Probability") == "descending"
    assert names(opened)[2:] == [UMLAUT, "slide 2", "slide 10"]
    assert sort_by(opened, "Probability") == "ascending"
    assert names(opened)[2:] == ["slide 10", "slide 2", UMLAUT]
    assert sort_by(opened, "Cells") == "descending"
    assert names(opened)[2:] == [UMLAUT, "slide 2", "slide 10"]
    assert opened.execute_script("return document.querySelectorAll('[aria-sort]').length") == 1


@pytest.mark.long
def test_browser_filters_and_says_what_is_hidden(opened: Any) -> None:
    opened.find_element("css selector", "#filter-call option[value=review]").click()
    assert names(opened) == ["slide 2"]
    assert "Showing 1 of 5 slides; the filter hides 4." in opened.find_element("id", "status").text
    assert opened.find_element("css selector", ".banner.missing").is_displayed()
    opened.find_element("id", "filter-reset").click()
    opened.execute_async_script("setTimeout(arguments[0], 0)")
    assert len(names(opened)) == 5
    opened.find_element("id", "filter-text").send_keys("müller")
    assert names(opened) == [UMLAUT]


@pytest.mark.long
def test_browser_opens_a_slide_from_the_worklist(opened: Any) -> None:
    link = opened.find_element("link text", "slide 2")
    opened.execute_script("arguments[0].scrollIntoView({block: 'center'})", link)
    link.click()
    section = opened.find_element("id", "slide-4")
    opened.execute_async_script("setTimeout(arguments[0], 50)")
    assert section.get_attribute("open") is not None
    assert len(section.find_elements("css selector", ".cells img")) == 3
    assert section.find_element("css selector", ".cells img").is_displayed()
    opened.execute_script("arguments[0].open = false; arguments[1].scrollIntoView({block: 'center'})", section, link)
    link.click()
    assert section.get_attribute("open") is not None


@pytest.mark.long
def test_browser_prints_everything(opened: Any) -> None:
    opened.find_element("id", "filter-text").send_keys("nothing has this name")
    assert names(opened) == []
    opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    opened.execute_script("dispatchEvent(new Event('beforeprint'))")
    try:
        heights = opened.execute_script(
            "return [...document.querySelectorAll('tbody tr, .body')].map(e => e.getBoundingClientRect().height)"
        )
    finally:
        opened.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    assert len(heights) > 10
    assert min(heights) > 10


@pytest.mark.long
@pytest.mark.parametrize("width", [320, 390, 768, 1280])
def test_browser_never_scrolls_sideways(opened: Any, width: int) -> None:
    set_width(opened, width)
    opened.find_element("id", "open-all").click()
    assert opened.execute_script("return document.documentElement.scrollWidth") <= width


@pytest.mark.long
@pytest.mark.parametrize("scripts", [True, False])
def test_browser_prints_every_picture_with_and_without_javascript(browser: Any, tmp_path: Path, scripts: bool) -> None:
    shown = tuple(replace(cell, image=jpeg(20 * i)) for i, cell in enumerate(cells(8, 9.0)))
    write_report(worklist(SLIDES[3], replace(SLIDES[1], key_instances=shown)), tmp_path / "report.html")
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": not scripts})
    try:
        browser.get((tmp_path / "report.html").as_uri())
        assert not scripts or all_pictures_load(browser)
        pdf = base64.b64decode(browser.execute_cdp_cmd("Page.printToPDF", {})["data"])
    finally:
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
    assert len(re.findall(rb"/Subtype ?/Image", pdf)) == 10
