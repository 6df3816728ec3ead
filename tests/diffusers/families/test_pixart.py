"""PixArt: law 5 with positions of the canvas, sizes that the model is told, what is refused, hooks and copies."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tiny_transformers.pixart import build, call, sized

import tiledattn.diffusers as td
from tiledattn.diffusers.families.pixart import PixArtFamily

from ..test_families import error, run, snapshot

ALPHA = build(use_additional_conditions=True)
OVERLAPS = {"apart": 0, "overlapping": (4, 2)}


@pytest.mark.parametrize("overlap", OVERLAPS.values(), ids=OVERLAPS)
@pytest.mark.parametrize("size", [(16, 24), (8, 8), (24, 16)], ids=str)
@pytest.mark.parametrize("make", [build(), build(interpolation_scale=2)], ids=["plain", "scaled"])
def test_law_5_with_positions_of_the_canvas(make: Any, size: tuple[int, int], overlap: Any) -> None:
    """Halo "all": over all layers the untiled transformer, whose positions are stretched over the canvas."""
    model, arguments = make(), call(size, 2, torch.float32)
    want = run(model, arguments)
    options = {"tile": (8, 4), "overlap": (4, 2) if overlap else 0, "positions": "canvas", "unit": "latent"}
    with td.enable_tiling(model, halo="all", **options):
        assert error(run(model, arguments), want) < 1e-5
    with td.enable_tiling(model, halo=0, **options):
        assert error(run(model, arguments), want) > 1e-2
    with td.enable_tiling(model, halo="all", **{**options, "positions": "tile"}):
        assert error(run(model, arguments), want) > 1e-2


def test_law_5_in_half_precision() -> None:
    model, arguments = build()(), call((16, 16), 2, torch.float32)
    exact = run(model, arguments)
    model, arguments = model.to(torch.bfloat16), call((16, 16), 2, torch.bfloat16)
    budget = 2 * error(run(model, arguments).float(), exact) + 1e-2
    with td.enable_tiling(model, tile=8, halo="all", positions="canvas", unit="latent"):
        assert error(run(model, arguments).float(), exact) < budget


def test_positions_are_taken_off_to_the_bit() -> None:
    model, arguments = build()(), call((16, 16), 1, torch.float32)
    want, before = run(model, arguments), snapshot(model)
    td.enable_tiling(model, tile=8, positions="canvas", unit="latent")
    assert snapshot(model) != before
    td.disable_tiling(model)
    assert snapshot(model) == before
    assert torch.equal(run(model, arguments), want)


def test_a_copy_has_positions_of_its_own() -> None:
    model, arguments = build()(), call((16, 16), 1, torch.float32)
    stock = run(model, arguments)
    with td.enable_tiling(model, tile=8, halo="all", positions="canvas", unit="latent"):
        copied = copy.deepcopy(model)
    assert error(run(copied, arguments), stock) < 1e-5
    td.disable_tiling(copied)
    assert torch.equal(run(copied, arguments), stock)
    assert not copied.pos_embed._forward_hooks


def test_a_forward_within_a_forward_is_left_alone() -> None:
    """Another model's patches, or the same model's outside a tiled pass, get the positions they always had."""
    model, arguments = build()(), call((16, 16), 1, torch.float32)
    want = model.pos_embed(arguments["hidden_states"])
    with td.enable_tiling(model, tile=8, positions="canvas", unit="latent"):
        run(model, arguments)
        assert torch.equal(model.pos_embed(arguments["hidden_states"]), want)


@pytest.mark.parametrize("wrap", [False, (False, True), True])
def test_a_canvas_far_larger_than_the_trained_size(wrap: Any) -> None:
    model, arguments = build()(), call((16, 64), 1, torch.float32)
    with td.enable_tiling(model, tile=8, wrap=wrap, unit="latent"):
        assert run(model, arguments).isfinite().all()
    with td.enable_tiling(model, tile=8, positions="canvas", unit="latent"):
        assert run(model, arguments).isfinite().all()


def test_a_periodic_canvas_has_no_positions_of_its_own() -> None:
    with pytest.raises(ValueError, match="periodic"):
        td.enable_tiling(build()(), tile=8, wrap=True, positions="canvas", unit="latent")


def told(size_conditioning: str, arguments: dict[str, Any], tile: tuple[int, int]) -> dict[str, torch.Tensor]:
    """What the model is told of sizes under tiling."""
    model, seen = ALPHA(), []
    handle = model.adaln_single.register_forward_pre_hook(lambda module, args: seen.append(args[1]))
    with td.enable_tiling(model, tile=tile, size_conditioning=size_conditioning, unit="latent"):
        run(model, arguments)
    handle.remove()
    return seen[0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_size_that_is_the_canvas_becomes_the_tile(dtype: torch.dtype) -> None:
    arguments = sized((16, 24), 2, torch.float32)
    arguments["added_cond_kwargs"] = {k: v.to(dtype) for k, v in arguments["added_cond_kwargs"].items()}
    sizes = told("tile", arguments, (16, 8))
    assert sizes["resolution"].tolist() == [[128.0, 64.0]] * 6
    assert sizes["aspect_ratio"].tolist() == [[2.0]] * 6
    assert sizes["resolution"].dtype == dtype
    kept = told("canvas", arguments, (16, 8))
    assert kept["resolution"].tolist() == [[128.0, 192.0]] * 6


def test_another_size_is_left_as_it_is() -> None:
    arguments = sized((16, 24), 1, torch.float32)
    arguments["added_cond_kwargs"]["resolution"] = torch.tensor([[1024.0, 1024.0]])
    sizes = told("tile", arguments, (16, 8))
    assert sizes["resolution"].tolist() == [[1024.0, 1024.0]] * 3
    assert sizes["aspect_ratio"].tolist() == [[2.0]] * 3


def test_a_crop_cannot_be_told() -> None:
    with pytest.raises(ValueError, match='size_conditioning: got "crop"'):
        told("crop", sized((16, 24), 1, torch.float32), (16, 8))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("attention_mask", torch.ones(1, 64)),
        ("cross_attention_kwargs", {"gligen": {}}),
        ("added_cond_kwargs", {"time_ids": torch.zeros(1, 6)}),
    ],
)
def test_what_is_refused(name: str, value: Any) -> None:
    model, arguments = build()(), call((16, 16), 1, torch.float32)
    with td.enable_tiling(model, tile=8, unit="latent"), pytest.raises(NotImplementedError, match=name):
        run(model, {**arguments, name: value})


def test_gligen_is_refused() -> None:
    with pytest.raises(ValueError, match="attention_type"):
        PixArtFamily().check(build(attention_type="gated")())
