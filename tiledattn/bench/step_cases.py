"""Whole denoiser steps: tiles alone, coupled, blended over an overlap, and the untiled model.

The gate: the prediction that was timed must be what the same options give in float64 (float32 for large models) on the
PyTorch backend, within twice what they give there in the same precision, plus a rounding unit. Where those options
couple tiles, it must be far from that of tiles alone, since options that were lost would be lost in both precisions.
And, where a law says so (law 4 for UNets, law 5 for transformers without joint attention), the denoiser tiled with
everything coupled must equal the untiled one on a canvas of 2 x 1 tiles, within the same budget. Only ours has ours'
result: all other ways are other work.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from weakref import WeakValueDictionary

import torch
from torch import Tensor, nn

import tiledattn as ta

from .denoisers import DIT, FLUX_DIT, SDXL_UNET, UNET, Denoiser, sharing_copy
from .ways import Call, Inputs, Judge, Kind, NotOfferedError, Verdict, Way, budget, nearest, random, relative_error
from .ways import Case as AnyCase

ALONE: dict[str, Any] = {"halo": 0, "conv_halo": False, "norm": "tile"}
UNCOUPLED = {**ALONE, "blend": "prediction"}  # joined tiles can't be alone
MULTIDIFFUSION = {**ALONE, "window": "uniform"}
OURS, TILES_ALONE, UNTILED = "coupled, no overlap", "tiles alone, no overlap", "untiled"
SMALL_PARAMETERS = 50_000_000  # a model with more is judged by float32, not float64
FAR = 100  # couplings move a prediction at least so many times as far as it may err

# A model may fill the device: it lives as long as the calls of a case do.
_held: WeakValueDictionary[tuple[Denoiser, str, torch.dtype], nn.Module] = WeakValueDictionary()


@dataclass(frozen=True)
class StepCase(AnyCase):
    """One step of a denoiser on a canvas of rows x columns native tiles, by every way in one batch.

    Attributes:
        denoiser: the model.
        grid: rows and columns of native tiles.
        untiled: whether the untiled model is run, too.
    """

    denoiser: Denoiser = field(kw_only=True)
    grid: tuple[int, int] = field(kw_only=True)
    untiled: bool = field(default=True, kw_only=True)

    def amount(self, dtype: torch.dtype) -> float:
        """0: ways differ in the work that they need."""
        return 0.0

    def inputs(self, device: torch.device, dtype: torch.dtype, seed: int) -> Inputs:
        """The canvas [B, C, *size]."""
        needs_diffusers()
        size = self.denoiser.canvas(self.grid)
        return (random((self.denoiser.batch, self.denoiser.channels, *size), device, dtype, seed),)

    def ways(self, device: torch.device, dtype: torch.dtype) -> list[Way]:
        """Ours; less work (no coupling); more of it (overlap, by MultiDiffusion's rule or coupled; the whole canvas).

        MultiDiffusion's tiles run in one batch through `enable_tiling`, which cuts and blends them faster than the
        loops of pipelines do: `end_to_end` compares with such a pipeline.
        """
        return [Way(name, kind, partial(self._ready, options)) for name, kind, options in self._tilings()]

    def _tilings(self) -> list[tuple[str, Kind, dict[str, Any] | None]]:
        """Name, kind and options of `enable_tiling`, None for the untiled model."""
        tile = self.denoiser.tile
        overlap = {share: tuple(0 if n == 1 else n // share for n in tile) for share in (4, 2)}
        found: list[tuple[str, Kind, dict[str, Any] | None]] = [
            (OURS, "ours", {}),
            (TILES_ALONE, "bound", ALONE),
            ("MultiDiffusion, 25% overlap", "bound", {**MULTIDIFFUSION, "overlap": overlap[4]}),
            ("MultiDiffusion, 50% overlap", "bound", {**MULTIDIFFUSION, "overlap": overlap[2]}),
        ]
        if self.denoiser.joins:
            found += [
                (
                    f"coupled, {100 // share}% overlap, blended {where}",
                    "bound",
                    {"overlap": overlap[share], "blend": blend},
                )
                for share in overlap
                for blend, where in (("prediction", "as predictions"), ("attention", "behind attention"))
            ]
        return [*found, (UNTILED, "bound", None)] if self.untiled else found

    def judge(self, inputs: Inputs, yardstick: torch.dtype | None = None) -> Judge:
        """By the same options in a wider precision, coupled ways also by tiles alone; ours by a law, too."""
        (canvas,) = inputs
        options = {name: chosen for name, _, chosen in self._tilings()}

        def verdict(found: Tensor, way: Way) -> Verdict:
            same = same_verdict(self.denoiser, options[way.name], canvas, found, yardstick)
            if way.kind != "ours" or self.denoiser.law is None or not same.passed:
                return same
            return nearest(same, law_verdict(self.denoiser, canvas.device, canvas.dtype, yardstick))

        return verdict

    def _ready(self, options: Mapping[str, Any] | None, inputs: Inputs) -> Call:
        (canvas,) = inputs
        model = held_model(self.denoiser, canvas.device, canvas.dtype)
        used = model if options is None else tiled_copy(self.denoiser, model, options)

        def call(kept: nn.Module = model) -> Tensor:  # kept for the other ways of the case
            return self.denoiser.step(used, canvas)

        return call


def needs_diffusers() -> None:
    """Raises NotOfferedError where diffusers is missing."""
    try:
        import tiledattn.diffusers  # noqa: F401
    except ImportError as missing:
        raise NotOfferedError(f"{missing}: pip install 'tiledattn[diffusers]'") from None


def held_model(denoiser: Denoiser, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """The denoiser, untiled: one for all that ask while any of them keeps it."""
    key = (denoiser, str(device), dtype)
    model = _held.get(key)
    if model is None:
        model = _held[key] = denoiser.build(device, dtype)
    return model


def tiled_copy(denoiser: Denoiser, model: nn.Module, options: Mapping[str, Any]) -> nn.Module:
    """The model in tiles of its native size, beside the model itself, with its weights."""
    import tiledattn.diffusers as td

    copied = sharing_copy(model)
    td.enable_tiling(copied, **{"tile": denoiser.tile, "unit": "latent", **options})
    return copied


@torch.no_grad()
def same_verdict(
    denoiser: Denoiser,
    options: Mapping[str, Any] | None,
    canvas: Tensor,
    found: Tensor,
    yardstick: torch.dtype | None = None,
) -> Verdict:
    """How far a prediction is from the one that the same options give in a wider precision, on the PyTorch backend.

    Where options couple tiles and the prediction is not far from that of tiles alone, it is the verdict on that.

    Args:
        options: of `enable_tiling`; None: untiled.
        found: the prediction of the canvas.
        yardstick: the precision that sets the budget, if not that of the canvas.
    """
    model = held_model(denoiser, canvas.device, canvas.dtype)

    def step(dtype: torch.dtype, options: Mapping[str, Any] | None = options) -> Tensor:
        used = model if dtype == canvas.dtype else _converted(model, dtype)
        if options is not None:
            used = tiled_copy(denoiser, used, options)
        return denoiser.step(used, canvas.to(dtype))

    with ta.use_backend("torch"):
        exact = step(_wide(model))
        same = finite_budget(found, step(yardstick or canvas.dtype).to(canvas.dtype), exact)
        if options is None or not couples(options) or not same.passed:
            return same
        alone = step(_wide(model), {**options, **UNCOUPLED})
    if torch.finfo(canvas.dtype).bits < 32:  # may err by more than weak couplings move: the exact one stands in for it
        moved = far_verdict(exact, alone, torch.finfo(torch.float32).eps)
    else:
        moved = far_verdict(found, alone, same.allowed)
    return same if moved.passed else moved


def couples(options: Mapping[str, Any]) -> bool:
    """Whether tiles influence one another with these options of `enable_tiling`."""
    return any(name not in options or options[name] != off for name, off in ALONE.items())


def far_verdict(found: Tensor, alone: Tensor, allowed: float) -> Verdict:
    """Whether couplings move a result `FAR` times as far as it may err.

    The verdict's `error` is how far they must, its `allowed` how far they do.
    """
    moved = relative_error(alone, found)
    return Verdict(FAR * allowed, moved if math.isfinite(moved) else 0.0)


@torch.no_grad()
def law_verdict(
    denoiser: Denoiser, device: torch.device, dtype: torch.dtype, yardstick: torch.dtype | None = None
) -> Verdict:
    """How far the denoiser with everything coupled is from the untiled one, on a canvas of 2 x 1 tiles."""
    assert denoiser.law is not None
    model, step = held_model(denoiser, device, dtype), denoiser.step
    canvas = random((denoiser.batch, denoiser.channels, *denoiser.canvas((2, 1))), device, dtype, 0)
    exact = step(_converted(model, _wide(model)), canvas.to(_wide(model)))
    plain = step(model if yardstick is None else _converted(model, yardstick), canvas.to(yardstick or dtype))
    return finite_budget(step(tiled_copy(denoiser, model, denoiser.law), canvas), plain.to(dtype), exact)


def finite_budget(found: Tensor, plain: Tensor, exact: Tensor) -> Verdict:
    """The `budget`, never met by what is not finite: a model that breaks would break in every precision."""
    if not all(bool(x.isfinite().all()) for x in (found, plain, exact)):
        return Verdict(math.inf, 0.0)
    return budget(found, plain, exact)


def _wide(model: nn.Module) -> torch.dtype:
    small = sum(p.numel() for p in model.parameters()) < SMALL_PARAMETERS
    return torch.float64 if small else torch.float32


def _converted(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy in another precision; diffusers' own `to` warns of modules that half precisions keep in float32."""
    import copy

    return nn.Module.to(copy.deepcopy(model), dtype=dtype)


_SMALL = {"cpu": ("float32",), "cuda": ("float32", "bfloat16")}
_LARGE = {"cuda": ("bfloat16",)}
STEP = "denoiser step"

CASES: list[AnyCase] = [
    StepCase(STEP, "shipped UNet, 4x4 tiles of 16x16", _SMALL, denoiser=UNET, grid=(4, 4)),
    StepCase(STEP, "shipped DiT, 4x4 tiles of 16x16", _SMALL, denoiser=DIT, grid=(4, 4)),
    StepCase(STEP, "SDXL, 2048x2048 px", _LARGE, denoiser=SDXL_UNET, grid=(2, 2)),
    StepCase(STEP, "SDXL, 4096x4096 px", _LARGE, denoiser=SDXL_UNET, grid=(4, 4)),
    StepCase(STEP, "Flux.1, 2048x2048 px", _LARGE, denoiser=FLUX_DIT, grid=(2, 2)),
    StepCase(STEP, "Flux.1, 4096x4096 px", _LARGE, denoiser=FLUX_DIT, grid=(4, 4)),
]
