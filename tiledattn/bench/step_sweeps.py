"""Whole denoiser steps of the models that ship with the package against canvas area (needs the extra `diffusers`)."""

from __future__ import annotations

from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import tiledattn as ta
from tiledattn import models

from .step_cases import finite_budget
from .sweeps import Load, Ready, Sweep
from .ways import Call, NotOfferedError

NATIVE = 16  # latents a side of both models' pictures
TEXT_TOKENS, TEXT_WIDTH = 16, 64


def step_area(name: str, device: torch.device, grids: tuple[int, ...]) -> Sweep:
    """A step of the shipped "UNet" or "DiT", tiled as by default, on a periodic canvas of n x n native tiles."""
    loads = tuple(Load(float(n * n), partial(_ready, name, device, n)) for n in grids)
    # below, what a step costs whatever the canvas is a part of it; a short list has too few sizes beyond
    fit_from = 36.0 if max(grids) >= 10 else 4.0
    note = "Memory of a denoiser step is what it takes at its peak beyond the weights."
    if fit_from > 4.0:
        note += " Fitted from 6x6 tiles on: below, a part of a step costs the same on any canvas."
    return Sweep(f"denoiser step, {name}", "canvas area", "tiles", "float32", loads, fit_from=fit_from, note=note)


@cache
def _model(name: str, dtype: torch.dtype, device: torch.device) -> Any:
    """The denoiser, tiled."""
    try:
        import diffusers

        import tiledattn.diffusers as td
    except ImportError as missing:
        raise NotOfferedError(f"{missing}: pip install 'tiledattn[diffusers]'") from None
    if name == "UNet":
        source = Path(models.textures_unet()) / "unet"
        model = diffusers.UNet2DConditionModel.from_pretrained(source, local_files_only=True)
    else:
        source = Path(models.textures_dit()) / "transformer"
        model = diffusers.WanTransformer3DModel.from_pretrained(source, local_files_only=True)
    torch.nn.Module.to(model, device, dtype)  # diffusers' own warns of modules that half precisions keep in float32
    model.eval()
    td.enable_tiling(model, tile=(NATIVE, NATIVE), unit="latent", wrap=True)
    return model


def _call(name: str, n: int, dtype: torch.dtype, device: torch.device) -> tuple[Call, int]:
    """One step of random latents, and the bytes of its inputs."""
    generator = torch.Generator().manual_seed(0)
    frames = () if name == "UNet" else (1,)
    latents = torch.randn(1, 4, *frames, NATIVE * n, NATIVE * n, generator=generator).to(device, dtype)
    text = torch.randn(1, TEXT_TOKENS, TEXT_WIDTH, generator=generator).to(device, dtype)
    model, timestep = _model(name, dtype, device), torch.full((1,), 500, device=device)

    def run() -> Tensor:
        with torch.no_grad():
            (result,) = model(latents, timestep, text, return_dict=False)
        found: Tensor = result
        return found

    return run, latents.nbytes + text.nbytes


def _ready(name: str, device: torch.device, n: int) -> Ready:
    """A step by the backends that "auto" takes, judged by the same step in float64 on the PyTorch backend."""
    call, size = _call(name, n, torch.float32, device)
    found = call()
    with ta.use_backend("torch"):
        plain = call()
        exact = _call(name, n, torch.float64, device)[0]()
    return Ready(call, size, finite_budget(found, plain, exact))
