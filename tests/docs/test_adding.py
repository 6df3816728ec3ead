"""What the pages on adding a backend and a family tell one to write is complete."""

from __future__ import annotations

import types
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import tiledattn as ta
from tiledattn import dispatch

from .pages import python_blocks, read

LAYOUTS = (
    ta.TileLayout(12, 5, 2),
    ta.TileLayout((7, 9), (3, 4), (1, 0), wrap=(False, True)),
    ta.TileLayout((4, 6, 6), (3, 4, 2), (0, 1, 1), wrap=(True, False, True)),
)


def code_of(page: str) -> types.ModuleType:
    """A page's first block of Python as a module."""
    module = types.ModuleType("written")
    exec(compile(python_blocks(read(page))[0].text, page, "exec"), module.__dict__)
    return module


@pytest.fixture
def mine(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The backend of the page, entered into the dispatcher."""
    module, find = code_of("docs/add-backend.md"), dispatch._module
    monkeypatch.setattr(dispatch, "_module", lambda name: module if name == "mine" else find(name))
    monkeypatch.setattr(dispatch, "_MODULES", {"mine": "", **dispatch._MODULES})
    monkeypatch.setattr(dispatch, "_AUTOMATIC", ("mine", *dispatch._AUTOMATIC))
    dispatch._first_on_cpu.cache_clear()
    yield module
    dispatch._first_on_cpu.cache_clear()


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_the_backend_computes_what_the_reference_does(mine: Any, layout: ta.TileLayout) -> None:
    canvas = torch.randn(2, 3, *layout.size)
    with ta.use_backend("reference"):
        want = ta.extract_tiles(canvas, layout)
    with ta.use_backend("mine"):
        got = ta.extract_tiles(canvas, layout)
        assert ta.blend_tiles(got, layout).shape == canvas.shape  # not its own: left to the automatic choice
    assert torch.equal(got, want)
    assert dispatch.select("extract_tiles", "auto", torch.device("cpu"), torch.float32) is mine
    assert next(c.name for c in dispatch.capabilities()) == "mine"


def test_the_backend_refuses_with_a_reason(mine: Any) -> None:
    canvas = torch.randn(1, 1, 8, dtype=torch.float64)
    with ta.use_backend("mine"), pytest.raises(ta.BackendUnavailableError, match=r"has no torch\.float64"):
        ta.extract_tiles(canvas, ta.TileLayout(8, 4))


def test_the_family_can_be_made_and_answers() -> None:
    pytest.importorskip("diffusers")
    family = code_of("docs/add-family.md").MyFamily()
    model = types.SimpleNamespace(config=types.SimpleNamespace(patch_size=2, sample_size=64))
    assert family.patch(model) == (2, 2)
    assert family.native_tile(model) == (64, 64)
    assert family.pixels(model, None) == (8, 8)
    assert family.rotary(model, None).frequencies.shape == (2, 32)
    for name in ("attention", "processors", "positions", "repeated"):
        assert hasattr(type(family).__mro__[1], name)
