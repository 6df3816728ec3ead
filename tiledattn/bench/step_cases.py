"""Whole denoiser steps: tiles alone, coupled, blended over an overlap, and the untiled model.

The gate: the denoiser tiled with everything coupled must equal the untiled one on a canvas of 2 x 1 tiles where a law
says so (law 4 for UNets, law 5 for transformers without joint attention), within twice what the untiled one in the same
precision errs against a wider one, plus a rounding unit. Where no law does (Flux: text attends with its own tile), and
for the ways that aren't ours, the prediction must be finite and of the canvas's shape.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from .denoisers import DIT, FLUX_DIT, SDXL_UNET, UNET, Denoiser, sharing_copy
from .ways import Call, Inputs, Judge, NotOfferedError, Verdict, Way, budget, random
from .ways import Case as AnyCase

ALONE: dict[str, Any] = {"halo": 0, "conv_halo": False, "norm": "tile"}
MULTIDIFFUSION = {**ALONE, "window": "uniform"}
OURS, TILES_ALONE, UNTILED = "coupled, no overlap", "tiles alone, no overlap", "untiled"
SMALL_PARAMETERS = 50_000_000  # a model with more is judged by float32, not float64

_held: dict[tuple[str, str, torch.dtype], nn.Module] = {}  # at most one model, which may fill the device


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
        """Ours; less work (no coupling); more of it (overlap by MultiDiffusion's rule, the whole canvas at once).

        MultiDiffusion's tiles run in one batch through `enable_tiling`, which cuts and blends them faster than the
        loops of pipelines do: `end_to_end` compares with such a pipeline.
        """
        model = held_model(self.denoiser, device, dtype)
        tile = self.denoiser.tile
        overlap = {share: tuple(0 if n == 1 else n // share for n in tile) for share in (4, 2)}
        tilings: list[tuple[str, Any, dict[str, Any]]] = [
            (OURS, "ours", {}),
            (TILES_ALONE, "bound", ALONE),
            ("MultiDiffusion, 25% overlap", "peer", {**MULTIDIFFUSION, "overlap": overlap[4]}),
            ("MultiDiffusion, 50% overlap", "peer", {**MULTIDIFFUSION, "overlap": overlap[2]}),
        ]
        found = [Way(name, kind, partial(self._tiled, model, options)) for name, kind, options in tilings]
        if self.untiled:
            found.append(Way(UNTILED, "peer", partial(self._call, model)))
        return found

    def judge(self, inputs: Inputs, yardstick: torch.dtype | None = None) -> Judge:
        """By a law for ours, once; else finite and of the right shape."""
        (canvas,) = inputs
        law: list[Verdict] = []

        def verdict(found: Tensor, way: Way) -> Verdict:
            sound = found.shape == canvas.shape and bool(found.isfinite().all())
            if not sound or way.kind != "ours" or self.denoiser.law is None:
                return Verdict(0.0 if sound else math.inf, 0.0)
            if not law:
                law.append(law_verdict(self.denoiser, canvas.device, canvas.dtype, yardstick))
            return law[0]

        return verdict

    def _call(self, model: nn.Module, inputs: Inputs) -> Call:
        return lambda: self.denoiser.step(model, inputs[0])

    def _tiled(self, model: nn.Module, options: Mapping[str, Any], inputs: Inputs) -> Call:
        return self._call(tiled_copy(self.denoiser, model, options), inputs)


def needs_diffusers() -> None:
    """Raises NotOfferedError where diffusers is missing."""
    try:
        import tiledattn.diffusers  # noqa: F401
    except ImportError as missing:
        raise NotOfferedError(f"{missing}: pip install 'tiledattn[diffusers]'") from None


def held_model(denoiser: Denoiser, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """The denoiser, untiled, kept until another is asked for."""
    key = (denoiser.name, str(device), dtype)
    if key not in _held:
        _held.clear()
        _held[key] = denoiser.build(device, dtype)
    return _held[key]


def tiled_copy(denoiser: Denoiser, model: nn.Module, options: Mapping[str, Any]) -> nn.Module:
    """The model in tiles of its native size, beside the model itself, with its weights."""
    import tiledattn.diffusers as td

    copied = sharing_copy(model)
    td.enable_tiling(copied, **{"tile": denoiser.tile, "unit": "latent", **options})
    return copied


@torch.no_grad()
def law_verdict(
    denoiser: Denoiser, device: torch.device, dtype: torch.dtype, yardstick: torch.dtype | None = None
) -> Verdict:
    """How far the denoiser with everything coupled is from the untiled one, on a canvas of 2 x 1 tiles."""
    assert denoiser.law is not None
    model = held_model(denoiser, device, dtype)
    canvas = random((denoiser.batch, denoiser.channels, *denoiser.canvas((2, 1))), device, dtype, 0)
    small = sum(p.numel() for p in model.parameters()) < SMALL_PARAMETERS
    step: Callable[[nn.Module, Tensor], Tensor] = denoiser.step
    wide = torch.float64 if small else torch.float32
    exact = step(_converted(model, wide), canvas.to(wide))
    plain = step(model if yardstick is None else _converted(model, yardstick), canvas.to(yardstick or dtype))
    return budget(step(tiled_copy(denoiser, model, denoiser.law), canvas), plain, exact)


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
