"""Tiny Wan."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import WanTransformer3DModel
from tiny_diffusers import shake

from .case import Case, Size, randn


def _wan(**options: Any) -> Callable[[], Any]:
    config = {
        "patch_size": (1, 2, 2),
        "num_attention_heads": 2,
        "attention_head_dim": 16,  # more channels for time than for height and width
        "in_channels": 4,
        "out_channels": 4,
        "text_dim": 16,
        "freq_dim": 16,
        "ffn_dim": 32,
        "num_layers": 2,
        "cross_attn_norm": True,
        "qk_norm": "rms_norm_across_heads",
        "rope_max_seq_len": 32,
    }
    return lambda: shake(WanTransformer3DModel(**{**config, **options}))


def _wan_call(size: Size, batch: int, dtype: torch.dtype) -> dict[str, Any]:
    return {
        "hidden_states": randn(batch, 4, *size, dtype=dtype),
        "timestep": torch.full((batch,), 500),
        "encoder_hidden_states": randn(batch, 6, 16, dtype=dtype, seed=1),
    }


def _wan_token_timesteps(size: Size, batch: int, dtype: torch.dtype) -> dict[str, Any]:
    tokens = size[0] * size[1] * size[2] // 4
    steps = torch.arange(tokens).remainder(7).mul(100).expand(batch, tokens)
    return {**_wan_call(size, batch, dtype), "timestep": steps}


CASES: tuple[Case, ...] = (
    Case("wan", "WanFamily", _wan(), _wan_call, (5, 12, 16), (3, 8, 8)),
    Case("wan-5b", "WanFamily", _wan(), _wan_token_timesteps, (3, 8, 12), (3, 4, 4)),
)
