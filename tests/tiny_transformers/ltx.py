"""Tiny LTX-Video."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import LTXVideoTransformer3DModel
from tiny_diffusers import shake

from .case import Case, Size, randn


def make_ltx(heads: int = 2) -> Callable[[], Any]:
    """A model of two layers; a smaller theta keeps the model's own rounding of its angles small."""

    def build() -> Any:
        model = LTXVideoTransformer3DModel(
            in_channels=4,
            out_channels=4,
            num_attention_heads=heads,
            attention_head_dim=16,
            cross_attention_dim=16 * heads,
            num_layers=2,
            caption_channels=16,
        )
        model.rope.theta = 100.0
        return shake(model)

    return build


def packed(size: Size, batch: int, dtype: torch.dtype) -> dict[str, Any]:
    """A canvas of 4 channels as packed tokens, and its shape."""
    frames, height, width = size
    tokens = randn(batch, 4, *size, dtype=dtype).flatten(2).transpose(1, 2)
    return {"hidden_states": tokens, "num_frames": frames, "height": height, "width": width}


def _call(size: Size, batch: int, dtype: torch.dtype) -> dict[str, Any]:
    mask = torch.ones(batch, 6)
    mask[-1, 4:] = 0
    return {
        **packed(size, batch, dtype),
        "encoder_hidden_states": randn(batch, 6, 16, dtype=dtype, seed=1),
        "timestep": torch.full((batch,), 500.0),
        "encoder_attention_mask": mask,
        "rope_interpolation_scale": (8 / 25, 256, 256),
    }


def _image_to_video(size: Size, batch: int, dtype: torch.dtype) -> dict[str, Any]:
    tokens = size[0] * size[1] * size[2]
    given = torch.arange(tokens) < size[1] * size[2]
    return {**_call(size, batch, dtype), "timestep": torch.full((batch, 1), 500.0) * ~given}


CASES: tuple[Case, ...] = (
    Case("ltx", "LTXVideoFamily", make_ltx(), _call, (5, 6, 8), (3, 4, 4)),
    Case("ltx-i2v", "LTXVideoFamily", make_ltx(3), _image_to_video, (5, 4, 6), (3, 4, 3)),
)
