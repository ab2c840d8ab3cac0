"""The review page in a real browser: judged by keyboard, the server killed, nothing lost, the second reader blinded."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cytomil.review.log import Action, CellVerdict, ReviewLog
from tests.browser import set_width, start_chromium

pytestmark = pytest.mark.long  # a browser and servers in other processes


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    driver = start_chromium(tmp_path_factory.mktemp("chromium"))
    yield driver
    driver.quit()


class Server:
    """`cytomil review` in a process of its own."""

    def __init__(self, triage: Path) -> None:
        line = [sys.executable, "-m", "cytomil", "review", str(triage), "--no-browser"]
        environment = os.environ | {"COLUMNS": "300", "PYTHONUNBUFFERED": "1"}
        self.process = subprocess.Popen(
            line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
        )
        assert self.process.stdout is not None
        said = ""
        while not (found := re.search(r"http://\S+", said)):
            line = self.process.stdout.readline()
            assert line, said
            said += line
        self.address = found.group(0)

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def start(triage: Path) -> Iterator[Any]:
    servers: list[Server] = []

    def start_one() -> Server:
        servers.append(Server(triage))
        return servers[-1]

    yield start_one
    for server in servers:
        server.kill()


def wait_for(browser: Any, script: str) -> Any:
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, 30).until(lambda driver: driver.execute_script(f"return {script}"))


def enter(browser: Any, address: str, reader: str, n_keys: int = 12) -> None:
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    browser.get(address)
    browser.execute_script("sessionStorage.clear()")
    browser.get(address)
    wait_for(browser, "document.querySelectorAll('#worklist tr[data-number]').length === 3")
    field = browser.find_element(By.ID, "reader")
    field.send_keys(reader, Keys.TAB)
    wait_for(browser, "document.querySelector('#slide-name').textContent === 'gone.svs'")
    open_slide(browser, "smear.tif", n_keys)


def open_slide(browser: Any, name: str, n_keys: int = 12) -> None:
    browser.execute_script(
        "[...document.querySelectorAll('#worklist tr[data-number]')].find(r => r.textContent.includes(arguments[0])).click()",
        name,
    )
    wait_for(browser, f"document.querySelector('#slide-name').textContent === '{name}'")
    wait_for(browser, f"document.querySelectorAll('#keys li').length === {n_keys}")
    browser.execute_script("document.activeElement.blur()")


def press(browser: Any, keys: str) -> None:
    from selenium.webdriver.common.by import By

    browser.find_element(By.TAG_NAME, "body").send_keys(keys)


def judged(browser: Any) -> list[str]:
    script = "[...document.querySelectorAll('#keys li')].map(e => e.dataset.verdict)"
    return list(browser.execute_script(f"return {script}"))


def test_ten_cells_by_keyboard_survive_a_kill_and_are_hidden_from_a_second_reader(browser, start, triage):
    set_width(browser, 1280)
    server = start()
    enter(browser, server.address, "AB")
    wait_for(browser, "typeof viewer === 'object' && viewer.world.getItemCount() === 1 && state.cells !== null")
    verdicts = [*CellVerdict] * 2 + [CellVerdict.ABNORMAL, CellVerdict.NORMAL]
    for i, verdict in enumerate(verdicts):
        press(browser, str(list(CellVerdict).index(verdict) + 1))
        wait_for(browser, f"document.querySelectorAll('#keys li')[{i}].dataset.verdict !== ''")
    assert judged(browser) == [*verdicts, "", ""]
    server.kill()
    kept = [entry for entry in ReviewLog(triage).entries() if entry.action is Action.CELL]
    assert [entry.value for entry in kept] == verdicts
    press(browser, "1")
    wait_for(browser, "document.querySelector('#message').textContent.includes('does not answer')")

    again = start()
    enter(browser, again.address, "AB")
    assert judged(browser) == [*verdicts, "", ""]
    press(browser, "u")
    wait_for(browser, "document.querySelectorAll('#keys li')[9].dataset.verdict === ''")
    browser.execute_script("document.querySelector('#slide-buttons [data-value=positive]').click()")
    wait_for(browser, "document.querySelector('#slide-buttons .chosen') !== null")

    enter(browser, again.address, "CD")
    assert judged(browser) == [""] * 12
    assert "AB" not in browser.execute_script("return document.body.innerText")
    browser.execute_script("document.querySelector('#slide-buttons [data-value=negative]').click()")
    wait_for(browser, "document.querySelector('#slide-others').textContent.includes('AB: positive')")
    severe = [one for one in browser.get_log("browser") if one["level"] == "SEVERE"]
    assert [one for one in severe if "ERR_CONNECTION_REFUSED" not in one["message"]] == []


def test_arrows_go_from_cell_to_cell_and_from_slide_to_slide(browser, start):
    from selenium.webdriver.common.keys import Keys

    set_width(browser, 1280)
    enter(browser, start().address, "AB")
    wait_for(browser, "typeof viewer === 'object' && viewer.world.getItemCount() === 1 && state.cells !== null")
    whole = browser.execute_script("return viewer.viewport.getZoom()")
    press(browser, Keys.ARROW_RIGHT)
    wait_for(browser, f"viewer.viewport.getZoom() > {2 * whole}")
    assert browser.execute_script("return document.querySelector('#keys li.chosen span').textContent") == "2"
    press(browser, Keys.ARROW_DOWN)
    wait_for(browser, "document.querySelector('#slide-name').textContent === 'cells'")
    wait_for(browser, "document.querySelectorAll('#gallery img').length === 12")
    press(browser, Keys.ARROW_UP)
    wait_for(browser, "document.querySelector('#slide-name').textContent === 'smear.tif'")


def test_a_cell_is_chosen_on_the_slide(browser, start, triage):
    set_width(browser, 1280)
    enter(browser, start().address, "AB")
    wait_for(browser, "state.ids !== null && viewer.world.getItemCount() === 1")
    cell = browser.execute_script("return state.ids[30]")
    browser.execute_script(
        "const i = state.cells.order.indexOf(30); const image = viewer.world.getItemAt(0);"
        "chooseAt(image.imageToViewerElementCoordinates(new OpenSeadragon.Point(state.cells.x[i], state.cells.y[i])));"
    )
    press(browser, "3")
    wait_for(browser, "Object.keys(state.slide.own.cells).length === 1")
    (entry,) = [entry for entry in ReviewLog(triage).entries() if entry.action is Action.CELL]
    assert (entry.cell, entry.value, entry.rank) == (cell, "not a cell", None)


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_window(browser, start, width):
    set_width(browser, width)
    enter(browser, start().address, "AB")
    wait_for(browser, "document.querySelectorAll('#keys li').length === 12")
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width


def test_new_slides_of_a_watched_folder_are_offered_and_the_place_is_kept(browser, start, triage):
    from selenium.webdriver.common.keys import Keys

    set_width(browser, 1280)
    enter(browser, start().address, "AB")
    press(browser, "1")
    wait_for(browser, "Object.keys(state.slide.own.cells).length === 1")
    chosen = browser.execute_script("return state.chosen")
    document = json.loads((triage / "triage.json").read_text())
    new = document["slides"][1] | {"slide": "new.tif"}
    document |= {"slides": [new, *document["slides"]], "created": "2026-01-02T00:00:00+00:00"}
    (triage / "triage.json").write_text(json.dumps(document))
    wait_for(browser, "!document.querySelector('#news').hidden")
    assert "1 new slide." in browser.execute_script("return document.querySelector('#news').textContent")
    press(browser, "2")
    wait_for(browser, "Object.keys(state.slide.own.cells).length === 2")
    assert len(browser.execute_script("return [...document.querySelectorAll('#worklist tr[data-number]')]")) == 3
    browser.execute_script("document.querySelector('#news').click()")
    wait_for(browser, "document.querySelectorAll('#worklist tr[data-number]').length === 4")
    assert "new.tif" in browser.execute_script("return document.querySelector('#worklist tr.new').textContent")
    assert browser.execute_script("return document.querySelector('#news').hidden")
    assert browser.execute_script("return document.querySelector('#slide-name').textContent") == "smear.tif"
    assert browser.execute_script("return document.querySelector('tr.chosen').textContent").count("smear.tif") == 1
    assert judged(browser)[:3] == ["abnormal", "normal", ""] and chosen != ""
    press(browser, Keys.ARROW_UP)
    wait_for(browser, "document.querySelector('#slide-name').textContent === 'gone.svs'")
    press(browser, Keys.ARROW_UP)
    wait_for(browser, "document.querySelector('#slide-name').textContent === 'new.tif'")
    wait_for(browser, "document.querySelector('#worklist tr.new') === null")


def test_the_keyboard_walks_the_cells_to_teach_the_model_after_the_key_cells(browser, start, triage):
    document = json.loads((triage / "triage.json").read_text())
    smear = document["slides"][1]
    smear["to_teach"] = [{"instance_id": one["instance_id"], "score": 1.0} for one in smear["key_instances"][10:]]
    smear["key_instances"] = smear["key_instances"][:10]
    (triage / "triage.json").write_text(json.dumps(document))
    set_width(browser, 1280)
    enter(browser, start().address, "AB", n_keys=10)
    assert "To teach the model" in browser.execute_script("return document.querySelector('#teach').innerText")
    for i in range(12):
        press(browser, "2")
        wait_for(browser, f"Object.keys(state.slide.own.cells).length === {i + 1}")
    script = "return [...document.querySelectorAll('#taught li')].map(e => [e.dataset.verdict, e.innerText])"
    assert browser.execute_script(script) == [["normal", "T1"], ["normal", "T2"]]
    entries = [entry for entry in ReviewLog(triage).entries() if entry.action is Action.CELL]
    assert [entry.rank for entry in entries] == [*range(1, 11), None, None]
    browser.execute_script("document.querySelector('#worklist tr[data-number=\"2\"]').click()")
    wait_for(browser, "document.querySelector('#slide-name').textContent === 'cells'")
    assert browser.execute_script("return document.querySelector('#teach').hidden")
