"""The site in a browser: at the widths of a phone and a desktop nothing is missing, broken or wider than the window."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("mkdocs", reason="the site needs mkdocs: pip install 'tiledattn[docs]'")
pytest.importorskip("material", reason="the site needs mkdocs-material: pip install 'tiledattn[docs]'")
pytest.importorskip("mkdocstrings", reason="the site needs mkdocstrings: pip install 'tiledattn[docs]'")

from .chromium import Chromium, Visit, binary, write_picture
from .pages import ROOT
from .site import build

SHOTS = ROOT / "build" / "site-shots"
PAGES = ("index", "concepts", "api/tiledattn", "benchmarks", "quality")
WIDTHS = {390: 844, 1280: 800}
ASKED = {
    "overflow": "document.documentElement.scrollWidth - window.innerWidth",
    # images that wait to be scrolled to are loaded by force
    "broken": """Promise.all([...document.images].map(i => { i.loading = 'eager';
        return i.decode().then(() => null, () => i.src) })).then(all => all.filter(src => src))""",
    "length": "document.documentElement.scrollHeight",
}

pytestmark = pytest.mark.skipif(binary() is None, reason="no Chromium here (Debian: apt-get install chromium)")


class Quiet(SimpleHTTPRequestHandler):
    """Serves a folder without a word."""

    def log_message(self, *args: Any) -> None:
        pass


def serve(folder: Path) -> Iterator[str]:
    """The address of a folder on this machine."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The site's address."""
    folder = tmp_path_factory.mktemp("site")
    build(folder)
    yield from serve(folder)


@pytest.fixture(scope="module")
def browser() -> Iterator[Chromium]:
    program = binary()
    assert program is not None
    with Chromium(program) as browser:
        yield browser


def faults(visit: Visit, address: str) -> list[str]:
    """What is wrong with a page that was shown; what it asks of other machines is."""
    found = [*visit.complaints, *(f"image: {src}" for src in visit.values["broken"])]
    found += [f"from elsewhere: {url}" for url in visit.requests if not url.startswith((address, "data:", "blob:"))]
    if visit.values["overflow"] > 0:
        found.append(f"wider than the window by {visit.values['overflow']}")
    return found


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("page", PAGES)
def test_pages_are_shown_well(site: str, browser: Chromium, page: str, width: int) -> None:
    visit = browser.visit(f"{site}/{page}.html", width, WIDTHS[width], **ASKED)
    write_picture(visit, SHOTS / f"{page.replace('/', '-')}-{width}.png")
    assert faults(visit, site) == []
    assert visit.values["length"] > WIDTHS[width]


def test_search_finds_a_page(site: str, browser: Chromium) -> None:
    browser.visit(f"{site}/index.html", 1280, 800)
    found = browser.value("""new Promise(resolve => {
        const field = document.querySelector('[data-md-component=search-query]');
        field.focus(); field.value = 'halo_schedule'; field.dispatchEvent(new Event('keyup'));
        field.dispatchEvent(new Event('input'));
        const timer = setInterval(() => {
            const hits = document.querySelectorAll('.md-search-result__link');
            if (hits.length) { clearInterval(timer); resolve([...hits].map(a => a.href)) }
        }, 50);
        setTimeout(() => { clearInterval(timer); resolve([]) }, 30000);
    })""")
    assert any("diffusers.html" in address for address in found)


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        ("<p>fine</p>", None),
        ("<script>nothing.at(all)</script>", "exception"),
        ("<script>console.error('bad')</script>", "console error"),
        ('<img src="none.png">', "404"),
        ('<img src="http://127.0.0.2:1/a.png">', "from elsewhere"),
        ('<div style="width: 2000px">wide</div>', "wider than the window"),
        ('<style>html { overflow-x: hidden }</style><div style="width: 2000px">cut off</div>', "wider than the window"),
    ],
)
def test_faults_are_noticed(tmp_path: Path, browser: Chromium, body: str, fault: str | None) -> None:
    head = '<meta name="viewport" content="width=device-width"><link rel="icon" href="data:,">'
    (tmp_path / "page.html").write_text(f"<!doctype html><html><head>{head}</head><body>{body}</body></html>")
    for address in serve(tmp_path):
        found = faults(browser.visit(f"{address}/page.html", 390, 844, **ASKED), address)
    assert found == [] if fault is None else any(fault in text for text in found), found
