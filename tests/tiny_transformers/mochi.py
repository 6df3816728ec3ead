"""Tiny Mochi."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import MochiTransformer3DModel
from tiny_diffusers import shake

from .case import Case, Size, randn


def build_mochi() -> Any:
    """A model of two layers with learned frequencies; a smaller base area keeps their angles small."""
    model = shake(
        MochiTransformer3DModel(
            num_attention_heads=2,
            attention_head_dim=8,
            num_layers=2,
            pooled_projection_dim=16,
            in_channels=4,
            text_embed_dim=16,
            time_embed_dim=8,
            max_sequence_length=6,
        )
    )
    model.rope.target_area = 64
    return model


def call_mochi(size: Size, batch: int, dtype: torch.dtype) -> dict[str, Any]:
    """Rows with texts of unlike lengths."""
    mask = torch.ones(batch, 6, dtype=torch.bool)
    mask[-1, 4:] = False
    return {
        "hidden_states": randn(batch, 4, *size, dtype=dtype),
        "encoder_hidden_states": randn(batch, 6, 16, dtype=dtype, seed=1),
        "timestep": torch.full((batch,), 500.0),
        "encoder_attention_mask": mask,
    }


CASES: tuple[Case, ...] = (Case("mochi", "MochiFamily", build_mochi, call_mochi, (5, 8, 12), (3, 4, 8)),)
