"""positions="canvas": who takes it, and who says why not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_diffusers import make_unet
from tiny_transformers import CASES, Case
from tiny_transformers.wan import CASES as WAN

import tiledattn.diffusers as td
from tiledattn.diffusers.families import family_of

from .test_families import error, run

REFUSING = [case for case in CASES if family_of(case.build()).no_canvas_positions is not None]
TAKING = [case for case in CASES if case not in REFUSING]


@pytest.mark.parametrize("case", WAN, ids=lambda case: case.name)
def test_wan_takes_both_for_the_same(case: Case) -> None:
    """Across tiles rotary offsets are the canvas's already."""
    model, call = case.build(), case.call(case.size, 1, torch.float32)
    results = []
    for positions in ("tile", "canvas"):
        with td.enable_tiling(model, tile=case.tile, positions=positions, unit="latent"):
            results.append(run(model, call))
    assert error(results[0], results[1]) < 1e-6


@pytest.mark.parametrize("case", TAKING, ids=lambda case: case.name)
def test_one_tile_equals_the_stock_model(case: Case) -> None:
    model, call = case.build(), case.call(case.tile, 2, torch.float32)
    want = run(model, call)
    with td.enable_tiling(model, tile=case.tile, positions="canvas", unit="latent"):
        assert error(run(model, call), want) < 1e-6


@pytest.mark.parametrize("case", REFUSING, ids=lambda case: case.name)
def test_a_refusal_gives_the_reason(case: Case) -> None:
    refuse(case.build(), str(family_of(case.build()).no_canvas_positions))


def test_a_unet_refuses() -> None:
    refuse(make_unet("sd"), "a UNet's tokens have no positions")


def refuse(model: Any, reason: str) -> None:
    """Enabling raises the reason, and leaves the model alone."""
    with pytest.raises(ValueError, match="positions: got") as caught:
        td.enable_tiling(model, positions="canvas", unit="latent")
    assert reason in str(caught.value)
    assert "forward" not in vars(model)
