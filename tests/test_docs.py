"""The commands that the documentation shows exist, with the options it gives them."""

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cytomil.app.cli.app import app

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "experiments").rglob("*.md"))]


def commands(page):
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.startswith("    ")]
    lines += re.findall(r"`(cytomil [^`]+)`", text)
    for line in lines:
        for part in re.split(r"&&|#.*", line):
            words = part.split()
            if words[:1] == ["cytomil"] and len(words) > 1:
                yield words[1:]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_and_option_in_the_documentation_exists(page):
    for verb, *words in commands(page):
        if verb.isupper():
            continue
        result = CliRunner().invoke(app, [verb, "--help"], env={"COLUMNS": "200", "TERMINAL_WIDTH": "200"})
        assert result.exit_code == 0, f"{page.name}: there is no `cytomil {verb}`"
        for option in (word.split("=")[0] for word in words if word.startswith("--")):
            assert option in result.stdout, f"{page.name}: `cytomil {verb}` has no {option}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_to_a_file_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links {target}"


def test_the_readme_names_every_verb():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for command in app.registered_commands:
        assert f"cytomil {command.name}" in readme
