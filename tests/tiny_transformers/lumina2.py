"""Tiny Lumina-Image 2.0."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import Lumina2Transformer2DModel
from tiny_diffusers import shake

from .case import Case, Size, randn

CONFIG: dict[str, Any] = {
    "sample_size": 8,
    "patch_size": 2,
    "in_channels": 4,
    "hidden_size": 32,
    "num_layers": 2,
    "num_refiner_layers": 1,
    "num_attention_heads": 2,
    "num_kv_heads": 1,
    "multiple_of": 2,
    "axes_dim_rope": (4, 8, 4),
    "axes_lens": (32, 32, 32),
    "cap_feat_dim": 16,
}


def build(**options: Any) -> Callable[[], Any]:
    """Makes a model."""
    return lambda: shake(Lumina2Transformer2DModel(**{**CONFIG, **options}))


def call(size: Size, batch: int, dtype: torch.dtype) -> dict[str, Any]:
    """The forward's arguments: captions of one length."""
    return {
        "hidden_states": randn(batch, 4, *size, dtype=dtype),
        "timestep": torch.linspace(0.3, 0.5, batch, dtype=dtype),
        "encoder_hidden_states": randn(batch, 6, 16, dtype=dtype, seed=1),
        "encoder_attention_mask": torch.tensor([[1, 1, 1, 1, 0, 0]]).expand(batch, -1),
    }


def unlike_captions(size: Size, batch: int, dtype: torch.dtype) -> dict[str, Any]:
    """The forward's arguments: captions of several lengths."""
    lengths = torch.arange(batch)[:, None] * 3 + 2
    return {**call(size, batch, dtype), "encoder_attention_mask": (torch.arange(6) < lengths).long()}


CASES: tuple[Case, ...] = (
    Case("lumina2", "Lumina2Family", build(), call, (16, 24), (8, 16)),
    Case("lumina2-captions", "Lumina2Family", build(), unlike_captions, (16, 16), (8, 8)),
)
