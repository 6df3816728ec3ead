"""Tiny Z-Image."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import ZImageTransformer2DModel
from tiny_diffusers import shake

from .case import Case, Size, randn

CONFIG: dict[str, Any] = {
    "in_channels": 4,
    "dim": 32,
    "n_layers": 2,
    "n_refiner_layers": 1,
    "n_heads": 2,
    "n_kv_heads": 2,
    "cap_feat_dim": 16,
    "axes_dims": [4, 8, 4],
    "axes_lens": [128, 32, 32],
}


def build(**options: Any) -> Callable[[], Any]:
    """Makes a model."""
    return lambda: shake(ZImageTransformer2DModel(**{**CONFIG, **options}))


def call(size: Size, batch: int, dtype: torch.dtype) -> dict[str, Any]:
    """The forward's arguments: captions of several lengths."""
    return {
        "x": list(randn(batch, 4, 1, *size, dtype=dtype).unbind(0)),
        "t": torch.linspace(0.3, 0.5, batch, dtype=dtype),
        "cap_feats": [randn(7 + 30 * row, 16, dtype=dtype, seed=1 + row) for row in range(batch)],
    }


CASES: tuple[Case, ...] = (
    Case("zimage", "ZImageFamily", build(), call, (16, 24), (8, 16)),
    Case("zimage-padded", "ZImageFamily", build(), call, (12, 20), (8, 12)),
)
