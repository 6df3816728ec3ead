"""Sana: convolutions cross borders, linear attention does not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_diffusers import circular
from tiny_transformers.sana import build, call

import tiledattn.diffusers as td

from ..test_families import error, run


def without_attention(**options: Any) -> Any:
    """A Sana in which tokens mix by convolutions alone; text is still read by cross-attention."""
    model = build(**options)()
    for block in model.transformer_blocks:
        block.attn1.to_out[0].weight.zero_()
        block.attn1.to_out[0].bias.zero_()
    return model


@pytest.mark.parametrize("halo", ["all", 4, (0, 2)])
def test_a_halo_is_refused(halo: Any) -> None:
    with pytest.raises(ValueError, match=r"halo: .*linear.*blended only.*halo=0"):
        td.enable_tiling(build()(), tile=4, halo=halo, unit="latent")


@pytest.mark.parametrize("halo", [None, 0])
def test_without_a_halo_it_is_tiled(halo: Any) -> None:
    model = build()()
    with td.enable_tiling(model, tile=4, halo=halo, unit="latent") as tiling:
        assert tiling.options.halo == (0, 0)
        assert run(model, call((8, 12), 1, torch.float32)).isfinite().all()


@pytest.mark.parametrize("overlap", [0, 2])
@pytest.mark.parametrize("patch", [1, 2])
def test_convolutions_cross_borders(overlap: int, patch: int) -> None:
    """Without linear attention the tiled model is the untiled one; without rings it isn't."""
    model, arguments = without_attention(patch_size=patch), call((16, 24), 2, torch.float32)
    want = run(model, arguments)
    options = {"tile": 8, "overlap": overlap, "unit": "latent"}
    with td.enable_tiling(model, **options):
        assert error(run(model, arguments), want) < 1e-5
    with td.enable_tiling(model, conv_halo=False, **options):
        assert error(run(model, arguments), want) > 1e-3


def test_convolutions_cross_a_periodic_border() -> None:
    model, arguments = without_attention(), call((8, 12), 1, torch.float32)
    want = run(circular(model, (False, True)), arguments)
    with td.enable_tiling(model, tile=4, wrap=(False, True), unit="latent"):
        assert error(run(model, arguments), want) < 1e-5


@pytest.mark.parametrize("overlap", [0, 2])
def test_positions_of_the_canvas(overlap: int) -> None:
    """The models for 2K and 4K have sines and cosines; with their places tiles differ from tiles without."""
    model, arguments = without_attention(interpolation_scale=2), call((8, 12), 1, torch.float32)
    want = run(model, arguments)
    options = {"tile": 4, "overlap": overlap, "unit": "latent"}
    with td.enable_tiling(model, positions="canvas", **options):
        assert error(run(model, arguments), want) < 1e-5
    with td.enable_tiling(model, **options):
        assert error(run(model, arguments), want) > 1e-2


def test_without_positions_both_are_the_same() -> None:
    model, arguments = build()(), call((8, 12), 1, torch.float32)
    with td.enable_tiling(model, tile=4, unit="latent"):
        want = run(model, arguments)
    with td.enable_tiling(model, tile=4, positions="canvas", unit="latent"):
        assert torch.equal(run(model, arguments), want)


def test_a_canvas_far_larger_than_the_trained_size() -> None:
    model = build()()
    with td.enable_tiling(model, tile=8, wrap=(False, True), unit="latent"):
        assert run(model, call((8, 128), 1, torch.float32)).isfinite().all()


@pytest.mark.parametrize("name", ["attention_mask", "controlnet_block_samples"])
def test_what_is_refused(name: str) -> None:
    model, arguments = build()(), call((8, 8), 1, torch.float32)
    with td.enable_tiling(model, tile=4, unit="latent"), pytest.raises(NotImplementedError, match=name):
        run(model, {**arguments, name: torch.ones(1, 64)})
