"""Every family: a tiny model of the real class, untiled against tiled. An entry in CASES gets all of these tests."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tiny_transformers import CASES, Case
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import tiledattn.diffusers as td
from tiledattn import TileLayout
from tiledattn.diffusers.families import FAMILIES, family_of
from tiledattn.diffusers.families.base import CallContext
from tiledattn.diffusers.families.unet import UNetFamily
from tiledattn.diffusers.view import CanvasView

EVERY = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


def flat(output: Any) -> Tensor:
    """A forward's predictions as one row of numbers, whatever they come in: row by row of the batch."""
    if isinstance(output, Tensor):
        return output.flatten()
    if isinstance(output, tuple) and len(output) > 1:
        return torch.cat([item.flatten(1) for item in output], 1).flatten()
    if isinstance(output, (list, tuple)):
        return torch.cat([flat(item) for item in output])
    return flat(output.to_tuple())


def run(model: Any, call: dict[str, Any]) -> Tensor:
    """A forward without gradients."""
    with torch.no_grad():
        return flat(model(**copy.copy(call)))


def error(got: Tensor, want: Tensor) -> float:
    """The largest difference over the largest wanted value."""
    assert got.shape == want.shape
    return float((got - want).abs().max() / want.abs().max())


def swap_rows(value: Any) -> Any:
    """A call of two rows with the rows in the other order."""
    if isinstance(value, dict):
        return {name: swap_rows(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(reversed(value)) if len(value) == 2 else type(value)(swap_rows(item) for item in value)
    return value.flip(0) if isinstance(value, Tensor) and value.ndim and value.shape[0] == 2 else value


def test_every_family_has_a_case() -> None:
    covered = {case.family for case in CASES} | {"UNetFamily", "ControlNetFamily", "FluxControlNetFamily"}
    assert {type(family).__name__ for family in FAMILIES} <= covered


@EVERY
def test_it_is_its_family(case: Case) -> None:
    assert type(family_of(case.build())).__name__ == case.family


@EVERY
@pytest.mark.parametrize("batch", [1, 2])
def test_one_tile_equals_the_stock_model(case: Case, batch: int) -> None:
    model, call = case.build(), case.call(case.tile, batch, torch.float32)
    want = run(model, call)
    with td.enable_tiling(model, tile=case.tile, unit="latent"):
        assert error(run(model, call), want) < 1e-6


@EVERY
def test_a_default_device_changes_nothing(case: Case) -> None:
    model, call = case.build(), case.call(case.size, 1, torch.float32)
    with td.enable_tiling(model, tile=case.tile, unit="latent"):
        want = run(model, call)
    with torch.device("meta"), td.enable_tiling(model, tile=case.tile, unit="latent"):
        assert torch.equal(run(model, call), want)


@EVERY
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_several_tiles(case: Case, dtype: torch.dtype) -> None:
    model = case.build().to(dtype)
    call = case.call(case.size, 2, dtype)
    want = run(model, call)
    with td.enable_tiling(model, tile=case.tile, unit="latent") as tiling:
        got = run(model, call)
        assert tiling.layout is not None
        assert tiling.layout.num_tiles > 1
    assert got.shape == want.shape
    assert got.isfinite().all()


@EVERY
@pytest.mark.filterwarnings("ignore:In CPU autocast", "ignore:Mismatch dtype")
def test_autocast(case: Case) -> None:
    """Norms of queries and keys may give float32 there, and values are half."""
    model, call = case.build(), case.call(case.size, 2, torch.float32)

    def rounding() -> float:
        want = run(model, call)
        with torch.autocast("cpu", torch.bfloat16):
            return error(run(model, call).float(), want)

    untiled = rounding()
    with td.enable_tiling(model, tile=case.tile, unit="latent"):
        assert rounding() < 2 * untiled + 0.01


@EVERY
def test_rows_are_told_apart(case: Case) -> None:
    """Guidance copies: the rows of the batch in another order come out in that order."""
    model, call = case.build(), case.call(case.size, 2, torch.float32)
    with td.enable_tiling(model, tile=case.tile, unit="latent"):
        first, second = run(model, call).unflatten(0, (2, -1))
        swapped = run(model, swap_rows(call)).unflatten(0, (2, -1))
    assert error(first, second) > 1e-2
    assert error(swapped, torch.stack([second, first])) < 1e-5


@EVERY
def test_rotary_frequencies_are_where_the_canvas_is(case: Case) -> None:
    model, call = case.build(), case.call(case.size, 1, torch.float32)
    family = family_of(model)
    context = CallContext(CanvasView(TileLayout(case.size, case.tile)), 1, (1,) * len(case.size), call=on_meta(call))
    rotary = family.rotary(model, context)
    assert rotary is None or rotary.frequencies.device.type == "meta"


class NoReading(TorchDispatchMode):
    """Refuses to read a tensor's values, which on a GPU would wait for it."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert func is not torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@EVERY
def test_rotary_frequencies_need_no_waiting(case: Case) -> None:
    model, call = case.build(), case.call(case.size, 1, torch.float32)
    context = CallContext(CanvasView(TileLayout(case.size, case.tile)), 1, (1,) * len(case.size), call=call)
    with NoReading():
        family_of(model).rotary(model, context)


def on_meta(value: Any) -> Any:
    """A call's tensors on the device without memory."""
    if isinstance(value, dict):
        return {name: on_meta(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(on_meta(item) for item in value)
    return value.to("meta") if isinstance(value, Tensor) else value


@EVERY
def test_disabling_restores_to_the_bit(case: Case) -> None:
    model, call = case.build(), case.call(case.size, 2, torch.float32)
    want, before = run(model, call), snapshot(model)
    td.enable_tiling(model, tile=case.tile, unit="latent")
    assert not torch.equal(run(model, call), want)
    td.disable_tiling(model)
    assert torch.equal(run(model, call), want)
    assert snapshot(model) == before


@EVERY
def test_a_copy_is_tiled_alike(case: Case) -> None:
    """And each of the two is taken apart alone."""
    model, call = case.build(), case.call(case.size, 1, torch.float32)
    stock = run(model, call)
    td.enable_tiling(model, tile=case.tile, unit="latent")
    want = run(model, call)
    other = copy.deepcopy(model)
    assert torch.equal(run(other, call), want)
    td.disable_tiling(model)
    assert torch.equal(run(model, call), stock)
    assert torch.equal(run(other, call), want)
    td.disable_tiling(other)
    assert torch.equal(run(other, call), stock)
    assert [hooks[:3] for hooks in snapshot(other).values()] == [hooks[:3] for hooks in snapshot(model).values()]


def snapshot(model: Any) -> dict[str, Any]:
    """What tiling could leave behind on a model's modules."""
    return {
        name: (set(vars(m)), len(m._forward_hooks), len(m._forward_pre_hooks), id(getattr(m, "processor", None)))
        for name, m in model.named_modules()
    }


@EVERY
def test_the_default_halo(case: Case) -> None:
    """A quarter of the tile where attention is all that crosses borders, an eighth beside convolutions."""
    model = case.build()
    family = family_of(model)
    part = 8 if isinstance(family, UNetFamily) else 4
    halo = td.enable_tiling(model, tile=case.tile, unit="latent").options.halo
    assert halo == tuple(0 if family.no_halo else max(1, n // part) for n in case.tile)
