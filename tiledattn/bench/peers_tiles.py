"""Blending, cutting and padding tiles without tiledattn: the loops that people use, and plain copies."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

import tiledattn as ta

from .ways import NotOfferedError


def multidiffusion(tiles: Tensor, layout: ta.TileLayout, out: Tensor | None = None) -> Callable[[], Tensor]:
    """The value-and-count loop of MultiDiffusion's pipelines, with uniform weights, ready to be called.

    As in diffusers' panorama pipeline value and count are made once, before all steps, and zeroed in every step; the
    average goes to new memory, or to `out`.
    """
    value = tiles.new_empty(*tiles.shape[1:3], *layout.size)
    count = torch.empty_like(value)
    height, width = layout.tile

    def step() -> Tensor:
        count.zero_()
        value.zero_()
        for tile, (y, x) in zip(tiles, layout.origins, strict=True):
            value[:, :, y : y + height, x : x + width] += tile
            count[:, :, y : y + height, x : x + width] += 1
        return torch.where(count > 0, value / count, value, out=out)

    return step


def fold(tiles: Tensor, layout: ta.TileLayout) -> Tensor:
    """The same by `F.fold`.

    Raises:
        NotOfferedError: tiles that are not evenly spaced, since `F.fold` has one step per axis.
    """
    _check_even(layout, "F.fold")
    count, batch = tiles.shape[:2]
    columns = tiles.permute(1, 2, 3, 4, 0).reshape(batch, -1, count)
    ones = tiles.new_ones(1, layout.tile_positions, count)
    total = F.fold(columns, layout.size, layout.tile, stride=layout.step)
    return total / F.fold(ones, layout.size, layout.tile, stride=layout.step)


def slices(canvas: Tensor, layout: ta.TileLayout, out: Tensor | None = None) -> Tensor:
    """Slicing by hand, to new memory or to `out`."""
    height, width = layout.tile
    return torch.stack([canvas[:, :, y : y + height, x : x + width] for y, x in layout.origins], out=out)


def unfold(canvas: Tensor, layout: ta.TileLayout, out: Tensor | None = None) -> Tensor:
    """Windows of `Tensor.unfold`, copied next to each other, to new memory or to `out`.

    Raises:
        NotOfferedError: tiles that are not evenly spaced, as in `fold`.
    """
    _check_even(layout, "unfold")
    windows = canvas
    for axis, (width, step) in enumerate(zip(layout.tile, layout.step, strict=True)):
        windows = windows.unfold(2 + axis, width, step)
    windows = windows.permute(2, 3, 0, 1, 4, 5)
    if out is None:
        return windows.contiguous().flatten(0, 1)
    out.view(windows.shape).copy_(windows)
    return out


def _check_even(layout: ta.TileLayout, name: str) -> None:
    for origins, step in zip(layout.axis_origins, layout.step, strict=True):
        if origins != tuple(range(0, len(origins) * step, step)):
            raise NotOfferedError(f"{name} has one step; here the last tiles lie nearer to their neighbours")


def pad_by_canvas(tiles: Tensor, layout: ta.TileLayout, pad: int) -> Tensor:
    """Tiles without overlap put together, padded with zeros, and cut again with their rings."""
    rows, columns = layout.grid
    height, width = layout.tile
    grid = tiles.view(rows, columns, *tiles.shape[1:])
    canvas = grid.permute(2, 3, 0, 4, 1, 5).flatten(4, 5).flatten(2, 3)
    canvas = F.pad(canvas, (pad,) * 4)
    return torch.stack([canvas[:, :, y : y + height + 2 * pad, x : x + width + 2 * pad] for y, x in layout.origins])


def same_bytes(amount: float, like: Tensor) -> Tensor:
    """A tensor whose copy reads and writes together `amount` bytes."""
    return torch.ones(int(amount) // 2 // like.element_size(), dtype=like.dtype, device=like.device)
