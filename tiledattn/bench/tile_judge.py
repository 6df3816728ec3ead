"""What blending, extraction and padding give, by the reference on one axis at a time.

The reference goes position by position, which takes minutes for a case's tiles. Where tiles lie and who owns a position
is decided on every axis alone, so it is asked there, with numbered positions, and the answers are applied axis by axis.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

import tiledattn as ta


def extracted(canvas: Tensor, layout: ta.TileLayout) -> Tensor:
    """[B, C, *size] -> [T, B, C, *tile]."""
    for axis in range(len(layout.size)):
        canvas = canvas.index_select(2 + axis, positions(layout, axis).flatten().to(canvas.device))
    return _apart(canvas, layout)


def blended(tiles: Tensor, layout: ta.TileLayout) -> Tensor:
    """[T, B, C, *tile] -> [B, C, *size]: the mean of the tiles that cover a position, in the tiles' precision."""
    total = _together(tiles, layout)
    count = torch.ones((), dtype=tiles.dtype, device=tiles.device)
    for axis, length in enumerate(layout.size):
        where = positions(layout, axis).flatten().to(tiles.device)
        shape = list(total.shape)
        shape[2 + axis] = length
        total = total.new_zeros(shape).index_add_(2 + axis, where, total)
        count = count[..., None] * torch.bincount(where, minlength=length).to(tiles.dtype)
    return total / count


def padded(tiles: Tensor, layout: ta.TileLayout, pad: int) -> Tensor:
    """[T, B, C, *tile] -> [T, B, C, *tile + 2 * pad]: rings from the positions' owners, zeros outside the canvas."""
    whole, axes = _together(tiles, layout), len(layout.size)
    for axis in range(axes):
        zeros_first = [0] * (2 * axes)
        zeros_first[2 * (axes - 1 - axis)] = 1
        where = _sources(layout, axis, pad).flatten().to(tiles.device)
        whole = F.pad(whole, zeros_first).index_select(2 + axis, where)
    return _apart(whole, layout)


def positions(layout: ta.TileLayout, axis: int) -> Tensor:
    """Canvas positions of the tiles of one axis, [tiles, tile]."""
    numbers = torch.arange(layout.size[axis], dtype=torch.float64)[None, None]
    return ta.extract_tiles(numbers, _alone(layout, axis), backend="reference")[:, 0, 0].long()


def _sources(layout: ta.TileLayout, axis: int, pad: int) -> Tensor:
    """Of all positions of all tiles of one axis, counted from 1, those in the padded tiles; 0 outside the canvas."""
    alone = _alone(layout, axis)
    numbers = torch.arange(1, alone.num_tiles * alone.tile_positions + 1, dtype=torch.float64)
    tiles = numbers.view(alone.num_tiles, 1, 1, -1)
    return ta.pad_tiles(tiles, alone, pad, backend="reference")[:, 0, 0].long()


def _alone(layout: ta.TileLayout, axis: int) -> ta.TileLayout:
    return ta.TileLayout(layout.size[axis], layout.tile[axis], layout.overlap[axis], layout.wrap[axis])


def _together(tiles: Tensor, layout: ta.TileLayout) -> Tensor:
    """[T, B, C, *tile] -> [B, C, *grid x tile]: tiles beside each other, overlaps several times."""
    axes = len(layout.size)
    split = tiles.view(*layout.grid, *tiles.shape[1:])
    order = [axes, axes + 1, *(number for axis in range(axes) for number in (axis, axes + 2 + axis))]
    split = split.permute(order)
    for axis in range(axes):
        split = split.flatten(2 + axis, 3 + axis)
    return split


def _apart(whole: Tensor, layout: ta.TileLayout) -> Tensor:
    """The inverse of `_together`, for tiles of any length."""
    axes = len(layout.size)
    for axis in reversed(range(axes)):
        shape = whole.shape
        whole = whole.reshape(*shape[: 2 + axis], layout.grid[axis], -1, *shape[3 + axis :])
    order = [*(2 + 2 * axis for axis in range(axes)), 0, 1, *(3 + 2 * axis for axis in range(axes))]
    return whole.permute(order).flatten(0, axes - 1).contiguous()
