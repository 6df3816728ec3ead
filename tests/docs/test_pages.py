"""The documentation says what is true: generated tables, links, pictures."""

from __future__ import annotations

import importlib.util
import pathlib
import re
from typing import Any

import pytest

import tiledattn as ta
from tiledattn import dispatch

from .pages import ROOT, pages, read


def load(name: str) -> Any:
    """A script of the docs folder as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def generate() -> Any:
    return load("generate")


def test_generated_tables_are_up_to_date(generate: Any) -> None:
    for name in generate.TABLES:
        assert generate.rendered(name) == read(f"docs/{name}"), "run `python docs/generate.py`"


def test_the_backends_table_lists_them_all(generate: Any) -> None:
    table = generate.backends_table()
    for name in ta.backends():
        assert f"| `{name}` |" in table
    assert {c.name for c in dispatch.capabilities() if c.automatic} == set(dispatch._AUTOMATIC)


def test_a_stale_table_is_noticed(generate: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "OPERATIONS", (*dispatch.OPERATIONS, "something_new"))
    assert generate.rendered("backends.md") != read("docs/backends.md")


def missing(page: str, text: str) -> list[str]:
    """Links and pictures of a page that lead nowhere in the source tree."""
    folder = (ROOT / page).parent
    targets = [t for t in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text) if not t.startswith(("http:", "https:"))]
    return [target for target in targets if not folder.joinpath(target).exists()]


@pytest.mark.parametrize("page", pages())
def test_links_and_pictures_exist(page: str) -> None:
    assert missing(page, read(page)) == []


def test_a_link_to_nothing_is_noticed() -> None:
    text = "[a](concepts.md#words) [b](no-such-page.md) ![c](images/none.png) [d](https://example.org)"
    assert missing("docs/index.md", text) == ["no-such-page.md", "images/none.png"]


def unlike(one: pathlib.Path, other: pathlib.Path) -> float:
    """The part of a picture's area that has another colour in the other; letters may be of another font."""
    image, numpy = pytest.importorskip("PIL.Image"), pytest.importorskip("numpy")
    with image.open(one) as a, image.open(other) as b:
        small = [numpy.asarray(x.convert("RGB").resize((160, 100)), dtype=int) for x in (a, b)]
    return float((abs(small[0] - small[1]).max(-1) > 48).mean())


def test_drawings_are_up_to_date(tmp_path: pathlib.Path) -> None:
    pytest.importorskip("matplotlib")
    draw = load("draw")
    drawn = {name: tmp_path / f"{name}.png" for name in draw.DRAWINGS}
    for name, drawing in draw.DRAWINGS.items():
        drawing.layout.plot(drawn[name], halo=drawing.halo, tile=drawing.tile)
        assert unlike(ROOT / "docs" / "images" / f"{name}.png", drawn[name]) < 0.01, "run `python docs/draw.py`"
        assert any(f"images/{name}.png" in read(page) for page in pages())
    halo = draw.DRAWINGS["layout-halo"]
    halo.layout.plot(tmp_path / "other.png", halo=halo.halo + 2)
    assert unlike(drawn["layout-halo"], tmp_path / "other.png") > 0.02
