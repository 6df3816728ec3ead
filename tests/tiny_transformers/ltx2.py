"""Tiny LTX-2."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import LTX2VideoTransformer3DModel
from tiny_diffusers import shake

from .case import Case, Size, randn
from .ltx import packed


def make_ltx2(**options: Any) -> Callable[[], Any]:
    """A model of two layers; a smaller theta keeps the model's own rounding of its angles small."""
    config: dict[str, Any] = {
        "in_channels": 4,
        "out_channels": 4,
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "cross_attention_dim": 32,
        "audio_in_channels": 4,
        "audio_out_channels": 4,
        "audio_num_attention_heads": 2,
        "audio_attention_head_dim": 8,
        "audio_cross_attention_dim": 16,
        "num_layers": 2,
        "caption_channels": 16,
        "rope_theta": 100.0,
    }
    return lambda: shake(LTX2VideoTransformer3DModel(**{**config, **options}))


def call_ltx2(size: Size, batch: int, dtype: torch.dtype) -> dict[str, Any]:
    """Video, sound and text; the first frame is given."""
    mask = torch.ones(batch, 6)
    mask[-1, 4:] = 0
    given = torch.arange(size[0] * size[1] * size[2]) < size[1] * size[2]
    step = torch.full((batch,), 500.0)
    return {
        **packed(size, batch, dtype),
        "audio_hidden_states": randn(batch, 7, 4, dtype=dtype, seed=3),
        "encoder_hidden_states": randn(batch, 6, 16, dtype=dtype, seed=1),
        "audio_encoder_hidden_states": randn(batch, 6, 16, dtype=dtype, seed=2),
        "timestep": step[:, None] * ~given,
        "audio_timestep": step,
        "sigma": step,
        "encoder_attention_mask": mask,
        "audio_encoder_attention_mask": mask,
        "fps": 24.0,
        "audio_num_frames": 7,
    }


CASES: tuple[Case, ...] = (
    Case("ltx2", "LTX2VideoFamily", make_ltx2(), call_ltx2, (5, 6, 8), (3, 4, 4)),
    Case(
        "ltx2-split",
        "LTX2VideoFamily",
        make_ltx2(rope_type="split", perturbed_attn=True, gated_attn=True, cross_attn_mod=True),
        call_ltx2,
        (3, 4, 8),
        (2, 4, 4),
    ),
)
