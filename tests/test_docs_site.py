"""The documentation site builds without warnings, needs no network to read, and has no broken link."""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

from cytomil.app.cli.app import app

ROOT = Path(__file__).parents[1]
MISSING = [name for name in ("mkdocs", "material") if find_spec(name) is None]

pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"not installed: {MISSING}; pip install --group docs")


class Page(HTMLParser):
    """What a page loads, where it links to, and which anchors it has."""

    def __init__(self, text):
        super().__init__()
        self.assets, self.links, self.anchors = [], [], set()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        given = dict(attrs)
        self.anchors |= {given[name] for name in ("id", "name") if given.get(name)}
        if tag in {"script", "img", "iframe", "source", "video"}:
            self.assets += [given[name] for name in ("src", "srcset") if given.get(name)]
        elif tag == "link" and given.get("rel") != "canonical":
            self.assets.append(given.get("href", ""))
        elif tag == "a" and given.get("href"):
            self.links.append(given["href"])


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    site = tmp_path_factory.mktemp("docs") / "site"
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1", "NO_COLOR": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    return site, done


@pytest.fixture(scope="module")
def pages(built):
    site, _ = built
    return {path: Page(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}


def test_it_builds_without_warnings(built):
    _, done = built
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr, done.stderr


def test_it_has_every_page(built, pages):
    site, _ = built
    for source in (ROOT / "docs").rglob("*.md"):
        assert site / source.relative_to(ROOT / "docs").with_suffix(".html") in pages, source


def test_reading_it_needs_no_network(pages):
    for path, page in pages.items():
        remote = [url for url in page.assets if urlsplit(url).scheme in {"http", "https"} or url.startswith("//")]
        assert not remote, f"{path.name} loads {remote}"
        assert 'class="mermaid"' not in path.read_text(encoding="utf-8"), "the theme fetches mermaid's code from a CDN"


def test_its_style_sheets_need_no_network(built):
    site, _ = built
    for path in site.rglob("*.css"):
        remote = re.findall(r"(?:url\(|@import)\s*['\"]?(?:https?:)?//[^)'\"]+", path.read_text(encoding="utf-8"))
        assert not remote, f"{path.name} loads {remote}"


def test_every_internal_link_and_asset_is_there(built, pages):
    site, _ = built
    for path, page in pages.items():
        if path.name == "404.html":  # its addresses begin at the root of a server
            continue
        for url in page.links + page.assets:
            parts = urlsplit(url)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            assert target.is_file() and site in target.parents, f"{path.relative_to(site)} links {url}"
            if parts.fragment and target in pages:
                anchors = pages[target].anchors | {"", "__top"}
                assert unquote(parts.fragment) in anchors, f"{path.relative_to(site)} links {url}"


def test_the_reference_is_generated_from_cytomil(built):
    site, _ = built
    command_line = (site / "reference" / "cli.html").read_text(encoding="utf-8")
    for command in app.registered_commands:
        assert f"cytomil {command.name}" in command_line
    settings = (site / "reference" / "settings.html").read_text(encoding="utf-8")
    for name in ("make_bags", "fit_mil", "witness_rate", "slam-ags"):
        assert name in settings
    assert "generated:" not in command_line + settings
