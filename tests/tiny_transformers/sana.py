"""Tiny Sana."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import SanaTransformer2DModel
from tiny_diffusers import shake

from .case import Case, Size, randn

CONFIG: dict[str, Any] = {
    "sample_size": 8,
    "patch_size": 1,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 2,
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "num_cross_attention_heads": 2,
    "cross_attention_head_dim": 12,
    "cross_attention_dim": 24,
    "caption_channels": 16,
}


def build(**options: Any) -> Callable[[], Any]:
    """Makes a model."""
    return lambda: shake(SanaTransformer2DModel(**{**CONFIG, **options}))


def call(size: Size, batch: int, dtype: torch.dtype) -> dict[str, Any]:
    """The forward's arguments."""
    return {
        "hidden_states": randn(batch, 4, *size, dtype=dtype),
        "timestep": torch.full((batch,), 500),
        "encoder_hidden_states": randn(batch, 6, 16, dtype=dtype, seed=1),
        "encoder_attention_mask": (torch.arange(6) < 4).long().expand(batch, -1),
    }


def guided(size: Size, batch: int, dtype: torch.dtype) -> dict[str, Any]:
    """The forward's arguments with an embedded guidance scale."""
    return {**call(size, batch, dtype), "guidance": torch.full((batch,), 0.4, dtype=dtype)}


CASES: tuple[Case, ...] = (
    Case("sana", "SanaFamily", build(), call, (8, 12), (4, 4)),
    Case("sana-4k", "SanaFamily", build(interpolation_scale=2, guidance_embeds=True), guided, (8, 8), (4, 4)),
)
