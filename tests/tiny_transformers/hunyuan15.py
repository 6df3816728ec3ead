"""Tiny HunyuanVideo 1.5."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import HunyuanVideo15Transformer3DModel
from tiny_diffusers import shake

from .case import Case, Size, randn


def _build() -> Any:
    return shake(
        HunyuanVideo15Transformer3DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=2,
            attention_head_dim=12,
            num_layers=2,
            num_refiner_layers=1,
            mlp_ratio=2.0,
            text_embed_dim=16,
            text_embed_2_dim=8,
            image_embed_dim=8,
            rope_axes_dim=(4, 4, 4),
        )
    )


def _call(size: Size, batch: int, dtype: torch.dtype) -> dict[str, Any]:
    mask, mask_2 = torch.ones(batch, 6, dtype=torch.long), torch.ones(batch, 3, dtype=torch.long)
    mask[-1, 4:] = 0
    mask_2[0, 2:] = 0
    return {
        "hidden_states": randn(batch, 4, *size, dtype=dtype),
        "timestep": torch.full((batch,), 500.0, dtype=dtype),
        "encoder_hidden_states": randn(batch, 6, 16, dtype=dtype, seed=1),
        "encoder_attention_mask": mask,
        "encoder_hidden_states_2": randn(batch, 3, 8, dtype=dtype, seed=2),
        "encoder_attention_mask_2": mask_2,
        "image_embeds": randn(batch, 2, 8, dtype=dtype, seed=3),
    }


CASES: tuple[Case, ...] = (Case("hunyuan15", "HunyuanVideo15Family", _build, _call, (5, 4, 6), (3, 4, 3)),)
