"""The site builds without a warning, and loads nothing from elsewhere."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import pytest

pytest.importorskip("mkdocs", reason="the site needs mkdocs: pip install 'tiledattn[docs]'")
pytest.importorskip("material", reason="the site needs mkdocs-material: pip install 'tiledattn[docs]'")
pytest.importorskip("mkdocstrings", reason="the site needs mkdocstrings: pip install 'tiledattn[docs]'")

from .pages import ROOT, read
from .site import build, fetched


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """The site's folder, and the warnings of its build."""
    folder = tmp_path_factory.mktemp("site")
    return folder, build(folder)


def test_the_site_builds_without_a_warning(built: tuple[Path, list[str]]) -> None:
    folder, warnings = built
    assert warnings == []
    assert (folder / "index.html").exists()
    assert not list(folder.rglob("*.py"))


def test_nothing_is_loaded_from_elsewhere(built: tuple[Path, list[str]]) -> None:
    folder, _ = built
    files = [*folder.rglob("*.html"), *folder.rglob("*.css")]
    assert len(files) > 15
    assert {str(f.relative_to(folder)): fetched(f.read_text()) for f in files if fetched(f.read_text())} == {}


@pytest.mark.parametrize(
    "text",
    [
        '<script src="https://unpkg.com/a.js"></script>',
        '<link rel="stylesheet" href="//fonts.example/css">',
        '<img src="http://example.org/a.png">',
        "<style>@import 'https://example.org/a.css';</style>",
        "p { background: url(https://example.org/a.png) }",
    ],
)
def test_what_is_loaded_from_elsewhere_is_noticed(text: str) -> None:
    assert len(fetched(text)) == 1
    assert fetched('<a href="https://example.org">a</a> <img src="images/a.png">') == []


class _Names(HTMLParser):
    """The ids of a page's elements."""

    def __init__(self) -> None:
        super().__init__()
        self.ids: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.ids |= {value for name, value in attrs if name == "id" and value}


@pytest.mark.parametrize("module", ["tiledattn", "tiledattn.diffusers", "tiledattn.metrics", "tiledattn.geometry"])
def test_every_public_name_is_in_the_reference(built: tuple[Path, list[str]], module: str) -> None:
    import importlib

    if module.endswith("diffusers"):
        pytest.importorskip("diffusers")
    names = _Names()
    for page in (built[0] / "api").glob("*.html"):
        names.feed(page.read_text())
    public = [name for name in importlib.import_module(module).__all__ if not name.startswith("__")]
    assert [
        name for name in public if f"{module}.{name}" not in names.ids and f"tiledattn.{name}" not in names.ids
    ] == []
    assert f"{module}.no_such_name" not in names.ids


def test_the_changelog_is_the_project_s(built: tuple[Path, list[str]]) -> None:
    assert "Keep a Changelog" in (built[0] / "changelog.html").read_text()
    assert read("docs/changelog.md").count("\n") < 5


def test_a_link_to_nothing_is_a_warning(tmp_path: Path) -> None:
    """With strict, what is collected here ends `make docs`."""
    pages = tmp_path / "docs"
    pages.mkdir()
    (pages / "index.md").write_text("# Start\n\n[away](no-such-page.md)\n\n[there](#no-such-place)\n")
    alone = {"nav": [{"Start": "index.md"}], "hooks": [], "extra_css": [], "plugins": ["search"]}
    warnings = build(tmp_path / "site", docs_dir=str(pages), **alone)
    assert len(warnings) == 2
    assert "no-such-page.md" in warnings[0]
    assert "mkdocs build --strict" in (ROOT / "Makefile").read_text()
