"""Tiny Qwen-Image, and its edit variants."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import QwenImageTransformer2DModel
from tiny_diffusers import shake

from .case import Case, Size, randn


def qwenimage(**options: Any) -> Callable[[], Any]:
    """Two blocks; 16 channels a token."""
    config = {
        "in_channels": 16,
        "out_channels": 4,
        "num_layers": 2,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 16,
        "axes_dims_rope": (4, 4, 8),
    }
    return lambda: shake(QwenImageTransformer2DModel(**{**config, **options}))


def qwenimage_call(size: Size, batch: int, dtype: torch.dtype) -> dict[str, Any]:
    """A text-to-image call whose prompts are padded; the first is a word shorter."""
    mask = torch.ones(batch, 6, dtype=torch.long)
    mask[0, 5] = 0
    return {
        "hidden_states": randn(batch, size[0] * size[1], 16, dtype=dtype),
        "timestep": torch.full((batch,), 0.5, dtype=dtype),
        "encoder_hidden_states": randn(batch, 6, 16, dtype=dtype, seed=1),
        "encoder_hidden_states_mask": mask,
        "img_shapes": [[(1, *size)]] * batch,
    }


def edit_call(size: Size, batch: int, dtype: torch.dtype) -> dict[str, Any]:
    """A call with a reference image as large as the canvas."""
    call = qwenimage_call(size, batch, dtype)
    reference = randn(batch, size[0] * size[1], 16, dtype=dtype, seed=3)
    call["hidden_states"] = torch.cat([call["hidden_states"], reference], 1)
    call["img_shapes"] = [[(1, *size), (1, *size)]] * batch
    return call


def _flagged(size: Size, batch: int, dtype: torch.dtype) -> dict[str, Any]:
    return {**qwenimage_call(size, batch, dtype), "additional_t_cond": torch.arange(batch)}


CASES: tuple[Case, ...] = (
    Case("qwenimage", "QwenImageFamily", qwenimage(), qwenimage_call, (6, 8), (3, 4)),
    Case("qwenimage-edit", "QwenImageFamily", qwenimage(), edit_call, (6, 8), (3, 4)),
    Case("qwenimage-edit-2511", "QwenImageFamily", qwenimage(zero_cond_t=True), edit_call, (6, 8), (3, 4)),
    Case("qwenimage-flag", "QwenImageFamily", qwenimage(use_additional_t_cond=True), _flagged, (4, 9), (4, 3)),
)
