"""Tiny HunyuanVideo."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import HunyuanVideoTransformer3DModel
from tiny_diffusers import shake

from .case import Case, Size, randn


def make_hunyuan(**options: Any) -> Callable[[], Any]:
    """A model with a layer of either kind."""
    config: dict[str, Any] = {
        "in_channels": 4,
        "out_channels": 4,
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "num_layers": 1,
        "num_single_layers": 1,
        "num_refiner_layers": 1,
        "mlp_ratio": 2.0,
        "text_embed_dim": 16,
        "pooled_projection_dim": 8,
        "rope_axes_dim": (4, 4, 4),
    }
    return lambda: shake(HunyuanVideoTransformer3DModel(**{**config, **options}))


def _call(size: Size, batch: int, dtype: torch.dtype) -> dict[str, Any]:
    mask = torch.ones(batch, 6, dtype=torch.long)
    mask[-1, 4:] = 0
    return {
        "hidden_states": randn(batch, 4, *size, dtype=dtype),
        "timestep": torch.full((batch,), 500.0),
        "encoder_hidden_states": randn(batch, 6, 16, dtype=dtype, seed=1),
        "encoder_attention_mask": mask,
        "pooled_projections": randn(batch, 8, dtype=dtype, seed=2),
        "guidance": torch.full((batch,), 6000.0),
    }


CASES: tuple[Case, ...] = (
    Case("hunyuan", "HunyuanVideoFamily", make_hunyuan(), _call, (5, 8, 12), (3, 4, 8)),
    Case(
        "hunyuan-replace",
        "HunyuanVideoFamily",
        make_hunyuan(image_condition_type="token_replace"),
        _call,
        (4, 4, 8),
        (2, 4, 4),
    ),
)
