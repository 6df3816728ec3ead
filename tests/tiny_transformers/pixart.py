"""Tiny PixArt."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import PixArtTransformer2DModel
from tiny_diffusers import shake

from .case import Case, Size, randn

CONFIG: dict[str, Any] = {
    "sample_size": 8,
    "patch_size": 2,
    "in_channels": 4,
    "out_channels": 8,
    "num_layers": 3,
    "attention_head_dim": 12,
    "num_attention_heads": 2,
    "cross_attention_dim": 24,
    "caption_channels": 16,
    "use_additional_conditions": False,
}


def build(**options: Any) -> Callable[[], Any]:
    """Makes a model."""
    return lambda: shake(PixArtTransformer2DModel(**{**CONFIG, **options}))


def call(size: Size, batch: int, dtype: torch.dtype) -> dict[str, Any]:
    """The forward's arguments, as PixArt-Sigma's pipeline gives them."""
    return {
        "hidden_states": randn(batch, 4, *size, dtype=dtype),
        "timestep": torch.full((batch,), 500),
        "encoder_hidden_states": randn(batch, 6, 16, dtype=dtype, seed=1),
        "encoder_attention_mask": (torch.arange(6) < 4).to(dtype).expand(batch, -1),
        "added_cond_kwargs": {"resolution": None, "aspect_ratio": None},
    }


def sized(size: Size, batch: int, dtype: torch.dtype) -> dict[str, Any]:
    """The forward's arguments, as PixArt-alpha's pipeline gives them."""
    height, width = (8 * n for n in size)
    told = {"resolution": torch.tensor([[height, width]]), "aspect_ratio": torch.tensor([[height / width]])}
    added = {name: value.to(dtype).expand(batch, -1) for name, value in told.items()}
    return {**call(size, batch, dtype), "added_cond_kwargs": added}


CASES: tuple[Case, ...] = (
    Case("pixart-sigma", "PixArtFamily", build(), call, (16, 24), (8, 8)),
    Case("pixart-alpha", "PixArtFamily", build(use_additional_conditions=True), sized, (16, 16), (8, 8)),
)
