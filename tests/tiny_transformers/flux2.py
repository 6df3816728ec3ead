"""Tiny Flux.2, with and without a reference image."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import Flux2Transformer2DModel
from tiny_diffusers import shake
from torch import Tensor

from .case import Case, Size, randn


def flux2(**options: Any) -> Callable[[], Any]:
    """Two blocks of each kind; 16 channels a token."""
    config = {
        "in_channels": 16,
        "num_layers": 2,
        "num_single_layers": 2,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": 16,
        "timestep_guidance_channels": 16,
        "axes_dims_rope": (4, 4, 4, 4),
        "mlp_ratio": 2.0,
    }
    return lambda: shake(Flux2Transformer2DModel(**{**config, **options}))


def image_ids(size: Size, image: int = 0) -> Tensor:
    """(image, row, column, word) of the tokens of an image, [1, S, 4]."""
    axes = (torch.tensor([image]), torch.arange(size[0]), torch.arange(size[1]), torch.arange(1))
    return torch.cartesian_prod(*axes)[None]


def flux2_call(size: Size, batch: int, dtype: torch.dtype) -> dict[str, Any]:
    """A text-to-image call, as Flux2Pipeline makes it."""
    words = torch.cartesian_prod(torch.arange(1), torch.arange(1), torch.arange(1), torch.arange(6))
    return {
        "hidden_states": randn(batch, size[0] * size[1], 16, dtype=dtype),
        "timestep": torch.full((batch,), 0.5, dtype=dtype),
        "encoder_hidden_states": randn(batch, 6, 16, dtype=dtype, seed=1),
        "img_ids": image_ids(size).expand(batch, -1, -1),
        "txt_ids": words.expand(batch, -1, -1),
        "guidance": torch.full((batch,), 4.0),
    }


def reference_call(size: Size, batch: int, dtype: torch.dtype) -> dict[str, Any]:
    """A call with two reference images as large as the canvas."""
    call = flux2_call(size, batch, dtype)
    references = randn(batch, 2 * size[0] * size[1], 16, dtype=dtype, seed=3)
    call["hidden_states"] = torch.cat([call["hidden_states"], references], 1)
    ids = [call["img_ids"], *(image_ids(size, image).expand(batch, -1, -1) for image in (10, 20))]
    call["img_ids"] = torch.cat(ids, 1)
    return call


CASES: tuple[Case, ...] = (
    Case("flux2", "Flux2Family", flux2(), flux2_call, (6, 8), (3, 4)),
    Case("flux2-references", "Flux2Family", flux2(), reference_call, (6, 8), (3, 4)),
)
