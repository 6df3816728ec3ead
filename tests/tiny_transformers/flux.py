"""Tiny Flux.1: dev, schnell and Fill, and Kontext's calls."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import FluxTransformer2DModel
from tiny_diffusers import shake
from torch import Tensor

from .case import Case, Size, randn


def flux(**options: Any) -> Callable[[], Any]:
    """Two blocks of each kind; 16 channels a token."""
    config = {
        "in_channels": 16,
        "num_layers": 2,
        "num_single_layers": 2,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 16,
        "pooled_projection_dim": 16,
        "axes_dims_rope": (4, 4, 8),
        "guidance_embeds": True,
    }
    return lambda: shake(FluxTransformer2DModel(**{**config, **options}))


def image_ids(size: Size, image: int = 0) -> Tensor:
    """(image, row, column) of the tokens of an image."""
    rows, columns = size
    places = torch.cartesian_prod(torch.arange(rows), torch.arange(columns)).float()
    return torch.cat([torch.full((rows * columns, 1), float(image)), places], 1)


def flux_call(size: Size, batch: int, dtype: torch.dtype, channels: int = 16, guidance: bool = True) -> dict[str, Any]:
    """A text-to-image call."""
    return {
        "hidden_states": randn(batch, size[0] * size[1], channels, dtype=dtype),
        "timestep": torch.full((batch,), 0.5, dtype=dtype),
        "encoder_hidden_states": randn(batch, 6, 16, dtype=dtype, seed=1),
        "pooled_projections": randn(batch, 16, dtype=dtype, seed=2),
        "img_ids": image_ids(size).to(dtype),
        "txt_ids": torch.zeros(6, 3, dtype=dtype),
        **({"guidance": torch.full((batch,), 3.5)} if guidance else {}),
    }


def kontext_call(size: Size, batch: int, dtype: torch.dtype) -> dict[str, Any]:
    """A call with a reference image as large as the canvas."""
    call = flux_call(size, batch, dtype)
    reference = randn(batch, size[0] * size[1], 16, dtype=dtype, seed=3)
    call["hidden_states"] = torch.cat([call["hidden_states"], reference], 1)
    call["img_ids"] = torch.cat([call["img_ids"], image_ids(size, 1).to(dtype)])
    return call


CASES: tuple[Case, ...] = (
    Case("flux", "FluxFamily", flux(), flux_call, (6, 8), (3, 4)),
    Case(
        "flux-schnell",
        "FluxFamily",
        flux(guidance_embeds=False),
        lambda *args: flux_call(*args, guidance=False),
        (4, 9),
        (4, 3),
    ),
    Case(
        "flux-fill",
        "FluxFamily",
        flux(in_channels=32, out_channels=16),
        lambda *args: flux_call(*args, channels=32),
        (6, 8),
        (3, 4),
    ),
    Case("flux-kontext", "FluxFamily", flux(), kontext_call, (6, 8), (3, 4)),
)
