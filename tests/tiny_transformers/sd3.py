"""Tiny Stable Diffusion 3 and 3.5."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import SD3Transformer2DModel
from tiny_diffusers import shake

from .case import Case, Size, randn

CONFIG: dict[str, Any] = {
    "sample_size": 8,
    "patch_size": 2,
    "in_channels": 4,
    "out_channels": 4,
    "num_layers": 3,
    "attention_head_dim": 12,
    "num_attention_heads": 2,
    "joint_attention_dim": 16,
    "caption_projection_dim": 24,
    "pooled_projection_dim": 8,
    "pos_embed_max_size": 12,
}


def build(**options: Any) -> Callable[[], Any]:
    """Makes a model."""
    return lambda: shake(SD3Transformer2DModel(**{**CONFIG, **options}))


def call(size: Size, batch: int, dtype: torch.dtype) -> dict[str, Any]:
    """The forward's arguments."""
    return {
        "hidden_states": randn(batch, 4, *size, dtype=dtype),
        "timestep": torch.full((batch,), 500),
        "encoder_hidden_states": randn(batch, 5, 16, dtype=dtype, seed=1),
        "pooled_projections": randn(batch, 8, dtype=dtype, seed=2),
    }


CASES: tuple[Case, ...] = (
    Case("sd3", "SD3Family", build(), call, (16, 24), (8, 8)),
    Case("sd3.5", "SD3Family", build(dual_attention_layers=(0, 1), qk_norm="rms_norm"), call, (16, 16), (8, 8)),
)
