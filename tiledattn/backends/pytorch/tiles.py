"""Extracting, blending and padding tiles with strided copies: few torch calls, any device and dtype."""

from __future__ import annotations

import itertools
from functools import lru_cache

import torch
from torch import Tensor

from ...geometry import TileLayout
from ...geometry.axis import Axis, axis_ring


def _on_grid(tiles: Tensor, layout: TileLayout) -> Tensor:
    """[T, B, C, *tile] -> [*grid, B, C, *tile]."""
    return tiles.reshape(*layout.grid, *tiles.shape[1:])


def _even_runs(origins: tuple[int, ...]) -> list[tuple[int, int, int]]:
    """Origins as runs of one step: (first tile, number of tiles, step)."""
    runs, first = [], 0
    while first < len(origins):
        step = origins[first + 1] - origins[first] if first + 1 < len(origins) else 1
        last = first
        while last + 1 < len(origins) and origins[last + 1] - origins[last] == step:
            last += 1
        runs.append((first, last - first + 1, step))
        first = last + 1
    return runs


def extract_tiles(canvas: Tensor, *, layout: TileLayout, out: Tensor | None = None) -> Tensor:
    """[B, C, *size] -> [T, B, C, *tile]: one strided copy per run of evenly spaced tiles."""
    axes = len(layout.size)
    for d, (axis, origins) in enumerate(zip(layout.axes, layout.axis_origins, strict=True)):
        beyond = origins[-1] + axis.tile - axis.length
        if beyond > 0:
            canvas = torch.cat([canvas, canvas.narrow(2 + d, 0, beyond)], 2 + d)
    shape = (*layout.grid, *canvas.shape[:2], *layout.tile)
    found = canvas.new_empty(shape) if out is None else out.view(shape)
    order = (*range(2, 2 + axes), 0, 1, *range(2 + axes, 2 + 2 * axes))
    for runs in itertools.product(*(_even_runs(origins) for origins in layout.axis_origins)):
        view = canvas
        for d, (first, count, step) in enumerate(runs):
            width, origin = layout.tile[d], layout.axis_origins[d][first]
            view = view.narrow(2 + d, origin, (count - 1) * step + width).unfold(2 + d, width, step)
        found[tuple(slice(first, first + count) for first, count, _ in runs)] = view.permute(order)
    return found.flatten(0, axes - 1) if out is None else out


def blend_tiles(tiles: Tensor, *, layout: TileLayout, weights: tuple[Tensor, ...], out: Tensor | None = None) -> Tensor:
    """[T, B, C, *tile] -> [B, C, *size], weights per axis [tiles on the axis, tile], summing to 1 everywhere."""
    found = _add_up(tiles, layout, weights)
    return found.to(tiles.dtype) if out is None else out.copy_(found)


def sum_tiles(tiles: Tensor, *, layout: TileLayout) -> Tensor:
    """The transpose of `extract_tiles`: [T, B, C, *tile] -> [B, C, *size], overlaps added."""
    return _add_up(tiles, layout, None).to(tiles.dtype)


def weigh_tiles(tiles: Tensor, *, layout: TileLayout, weights: tuple[Tensor, ...]) -> Tensor:
    """Each tile times its blend weights."""
    axes = len(layout.size)
    x = _on_grid(tiles, layout)
    for d, table in enumerate(weights):
        shape = [1] * x.ndim
        shape[d], shape[axes + 2 + d] = table.shape
        x = x * table.view(shape)
    return x.flatten(0, axes - 1).to(tiles.dtype).contiguous()


def _add_up(tiles: Tensor, layout: TileLayout, weights: tuple[Tensor, ...] | None) -> Tensor:
    """Weighted overlap-add, one axis after the other from the last, in the order of the tiles."""
    dtype = torch.float64 if tiles.dtype == torch.float64 else torch.float32
    x = _on_grid(tiles, layout)
    for d in reversed(range(len(layout.size))):
        axis, origins = layout.axes[d], layout.axis_origins[d]
        dim = 2 * d + 2  # of the canvas axis, once the grid's dim d is gone
        shape = [*x.shape[:d], *x.shape[d + 1 :]]
        shape[dim] = axis.length
        canvas = x.new_zeros(shape, dtype=dtype)
        for i, origin in enumerate(origins):
            piece = x.select(d, i).to(dtype)
            fits = min(axis.tile, axis.length - origin)
            for start, length, place in ((0, fits, origin), (fits, axis.tile - fits, 0)):
                if length == 0:
                    continue
                part, target = piece.narrow(dim, start, length), canvas.narrow(dim, place, length)
                if weights is None:
                    target.add_(part)
                else:
                    spread = weights[d][i, start : start + length].view(-1, *(1,) * (part.ndim - dim - 1))
                    target.addcmul_(part, spread)
        x = canvas
    return x


def pad_tiles(tiles: Tensor, *, layout: TileLayout, pad: tuple[tuple[int, int], ...]) -> Tensor:
    """[T, B, C, *tile] -> [T, B, C, *(before + tile + after)]: one axis after the other, a few copies each."""
    x = _on_grid(tiles, layout)
    for d, (axis, (before, after)) in enumerate(zip(layout.axes, pad, strict=True)):
        if before or after:
            x = _pad_axis(x, d, axis, before, after)
    x = x.flatten(0, len(layout.grid) - 1)
    return x.clone(memory_format=torch.contiguous_format) if not any(map(any, pad)) else x


def _pad_axis(x: Tensor, d: int, axis: Axis, before: int, after: int) -> Tensor:
    dim = x.ndim // 2 + 1 + d
    shape = list(x.shape)
    shape[dim] += before + after
    out = x.new_zeros(shape)
    for (delta, start, length, offset), first, last in _ring_copies(axis, before, after):
        target = out.narrow(d, first, last - first).narrow(dim, before + offset, length)
        target.copy_(x.narrow(d, first + delta, last - first).narrow(dim, start, length))
    return out


def fold_rings(padded: Tensor, *, layout: TileLayout, pad: tuple[tuple[int, int], ...]) -> Tensor:
    """The transpose of `pad_tiles`: rings are added to where they came from, in float32 or float64."""
    dtype = torch.float64 if padded.dtype == torch.float64 else torch.float32
    x = _on_grid(padded, layout)
    for d in reversed(range(len(pad))):
        before, after = pad[d]
        dim = x.ndim // 2 + 1 + d
        shape = list(x.shape)
        shape[dim] -= before + after
        out = x.new_zeros(shape, dtype=dtype)
        for (delta, start, length, offset), first, last in _ring_copies(layout.axes[d], before, after):
            part = x.narrow(d, first, last - first).narrow(dim, before + offset, length)
            out.narrow(d, first + delta, last - first).narrow(dim, start, length).add_(part)
        x = out
    return x.flatten(0, len(layout.grid) - 1).to(padded.dtype)


@lru_cache(maxsize=1024)
def _ring_copies(axis: Axis, before: int, after: int) -> list[tuple[tuple[int, int, int, int], int, int]]:
    """`axis_ring` as ((source - tile, start, length, offset), first tile, last tile + 1), alike neighbours together."""
    runs: list[tuple[tuple[int, int, int, int], int, int]] = []
    latest: dict[tuple[int, int, int, int], int] = {}
    for tile, segments in enumerate(axis_ring(axis, before, after)):
        for s in segments:
            key = (s.source - tile, s.start, s.length, s.offset)
            number = latest.get(key)
            if number is not None and runs[number][2] == tile:
                runs[number] = (key, runs[number][1], tile + 1)
            else:
                latest[key] = len(runs)
                runs.append((key, tile, tile + 1))
    return runs
