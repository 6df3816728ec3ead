"""Fused C++ kernels for the CPU, from the native library."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from . import native_library
from .native_attention import cross_tile_attention as cross_tile_attention
from .native_attention_backward import cross_tile_attention_backward as cross_tile_attention_backward
from .native_library import describe as describe
from .native_library import instruction_set as instruction_set

if TYPE_CHECKING:
    from ..geometry import TileLayout

NAME = "cpu"
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
RUNS_ON = "CPUs, where the native library was built"
PROVEN_ON = (
    "x86-64 CPU with AVX-512 and bfloat16, 2026-11-20",
    "x86-64 CPU with AVX2, 2026-11-30",
    "x86-64 CPU with AMX, 2026-11-30",
)
OPS = (
    "cross_tile_attention",
    "cross_tile_attention_backward",
    "extract_tiles",
    "blend_tiles",
    "pad_tiles",
    "group_norm_tiles",
)


def probe() -> str | None:
    """None where the library was built and loads, else the reason why not."""
    return native_library.load()


def rejects(op: str, device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    """None where a call of operation `op` is taken, else the reason why not; `head_dim` is 0 for ops without one."""
    if op not in OPS:
        return f"{op} is not offered by the cpu backend"
    if device.type != "cpu":
        return f"{op}: tensors on {device}; the cpu backend needs them on the CPU"
    if dtype not in DTYPES:
        return f"{op}: {dtype} is not supported, only float16, bfloat16, float32 and float64"
    if op.startswith("cross_tile_attention") and dtype == torch.float64:
        return f"{op}: {dtype} is not supported, only float16, bfloat16 and float32"
    return None


def extract_tiles(canvas: Tensor, *, layout: TileLayout, out: Tensor | None = None) -> Tensor:
    """Cuts [B, C, *size] (any strides) into [T, B, C, *tile] (contiguous): one pass, each row copied once."""
    if out is None:
        out = canvas.new_empty((layout.num_tiles, *canvas.shape[:2], *layout.tile))
    torch.ops.tiledattn.extract_tiles_cpu.default(canvas, out, layout.as_ints())
    return out


def blend_tiles(tiles: Tensor, *, layout: TileLayout, weights: tuple[Tensor, ...], out: Tensor | None = None) -> Tensor:
    """Blends [T, B, C, *tile] (any strides) into [B, C, *size] (contiguous), each position written once.

    Args:
        tiles: the tile batch.
        layout: how the canvas is cut.
        weights: per axis the normalised weights of every tile, [tiles on the axis, tile], contiguous, float32
            (float64 for float64).
        out: where the result goes, None for new memory.

    Every position is accumulated in the weights' precision, tiles in ascending order.
    """
    if out is None:
        out = tiles.new_empty((*tiles.shape[1:3], *layout.size))
    torch.ops.tiledattn.blend_tiles_cpu.default(tiles, weights, out, layout.as_ints())
    return out


def pad_tiles(tiles: Tensor, *, layout: TileLayout, pad: tuple[tuple[int, int], ...]) -> Tensor:
    """Adds a ring from the owners, (before, after) positions per axis, zeros outside the canvas, in one pass."""
    padded = (before + w + after for w, (before, after) in zip(layout.tile, pad, strict=True))
    out = tiles.new_empty((*tiles.shape[:3], *padded))
    torch.ops.tiledattn.pad_tiles_cpu.default(tiles, out, layout.as_ints(), [p for ends in pad for p in ends])
    return out


def group_norm_tiles(
    tiles: Tensor,
    *,
    layout: TileLayout,
    num_groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    scope: str,
) -> Tensor:
    """Normalises [T, B, C, *tile] (any strides) into contiguous memory: tiles are read twice and written once.

    Sums are float32 (float64 for float64) over a few thousand numbers, about their mean, and double beyond. Scope
    "tile" is PyTorch's own group norm.
    """
    if scope == "tile" or tiles.numel() == 0:
        batch = tiles.contiguous().flatten(0, 1)
        return torch.group_norm(batch, num_groups, weight, bias, eps).view(tiles.shape)
    out = torch.empty_like(tiles, memory_format=torch.contiguous_format)
    weight, bias = (None if p is None else p.contiguous() for p in (weight, bias))
    ints, neighbours = layout.as_ints(), scope == "neighbours"
    torch.ops.tiledattn.group_norm_tiles_cpu.default(tiles, weight, bias, out, ints, num_groups, eps, neighbours)
    return out
