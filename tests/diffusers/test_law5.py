"""Law 5: with halo "all" a transformer whose tokens mix by canvas self-attention only equals the untiled one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_transformers import CASES

import tiledattn.diffusers as td

from .test_families import error, run

LAYOUTS: dict[str, dict[str, Any]] = {
    "spatial": {"size": (3, 12, 16), "tile": (3, 4, 8), "overlap": 0},
    "temporal": {"size": (7, 8, 8), "tile": (3, 8, 8), "overlap": 0},
    "mixed": {"size": (5, 12, 12), "tile": (2, 4, 8), "overlap": 0},
    "overlapping": {"size": (5, 12, 12), "tile": (3, 8, 8), "overlap": (1, 2, 4)},
}
VIDEO = [case for case in CASES if case.name in ("wan", "ltx", "ltx2", "ltx2-split")]


@pytest.mark.parametrize("case", VIDEO, ids=lambda case: case.name)
@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("positions", ["tile", "canvas"])
def test_video(case: Any, name: str, positions: str) -> None:
    """LTX-2 with its sound, which hears every position of the canvas once."""
    layout = dict(LAYOUTS[name])
    model, call = case.build(), case.call(layout.pop("size"), 2, torch.float32)
    want = run(model, call)
    options = {**layout, "unit": "latent", "positions": positions}
    with td.enable_tiling(model, halo="all", **options):
        assert error(run(model, call), want) < 1e-5
    with td.enable_tiling(model, halo=0, **options):
        assert error(run(model, call), want) > 1e-2
