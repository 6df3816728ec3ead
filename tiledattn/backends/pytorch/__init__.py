"""The PyTorch backend: any device and dtype that torch has, forward and backward."""

from __future__ import annotations

import torch

from .attention import cross_tile_attention, cross_tile_attention_backward
from .norms import group_norm_tiles
from .tiles import blend_tiles, extract_tiles, fold_rings, pad_tiles, sum_tiles, weigh_tiles

__all__ = [
    "DTYPES",
    "NAME",
    "PROVEN_ON",
    "RUNS_ON",
    "blend_tiles",
    "cross_tile_attention",
    "cross_tile_attention_backward",
    "extract_tiles",
    "fold_rings",
    "group_norm_tiles",
    "pad_tiles",
    "probe",
    "rejects",
    "sum_tiles",
    "weigh_tiles",
]

NAME = "torch"
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
RUNS_ON = "every device that torch has"
PROVEN_ON = ("x86-64 CPU, 2026-11-20",)


def probe() -> str | None:
    """None: it runs wherever torch does."""
    return None


def rejects(op: str, device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    """None: it takes every call."""
    return None
