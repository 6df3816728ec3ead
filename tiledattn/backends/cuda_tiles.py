"""Cutting, blending and padding tiles by the CUDA kernels: their tables, made once per layout and device."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..geometry import TileLayout
from ..geometry.axis import Axis, axis_origins, axis_ring
from ..geometry.cover import axis_cover, axis_ring_table, axis_run
from .tables import cached

_MOST = 8  # elements that one access moves

Pad = tuple[tuple[int, int], ...]


class PlaceTables(NamedTuple):
    """For each axis of a layout, where the positions of a result come from.

    An entry is a tile's number on the axis and a position inside it, tile -1 where there is none: int32
    [tiles on the axis, positions, 2] for results that are tiles, [positions, covering tiles, 2] for a canvas.
    `unit` is a number of positions along the last axis, a power of two of at most 8: aligned runs of it lie next to one
    another in every source.
    """

    places: tuple[Tensor, ...]
    unit: int


def _entries(tile: NDArray[np.int32], local: NDArray[np.int32], device: torch.device) -> Tensor:
    return torch.from_numpy(np.stack([tile, local], axis=-1)).to(device)


def ring_unit(axis: Axis, before: int, after: int) -> int:
    """The largest power of two, at most 8, that divides all ends of runs of a padded tile, in it and in the sources."""
    ends = [axis.tile, before + axis.tile + after]
    for segments in axis_ring(axis, before, after):
        for segment in segments:
            ends += [before + segment.offset, segment.start, segment.length]
    return math.gcd(_MOST, *ends)


@cached(256)
def extract_tables(layout: TileLayout, device: torch.device) -> PlaceTables:
    """Places of the tiles' positions on the canvas, which counts as one tile: [tiles on the axis, tile, 2]."""
    tables = []
    for axis in layout.axes:
        places = (np.asarray(axis_origins(axis))[:, None] + np.arange(axis.tile)) % axis.length
        tables.append(_entries(np.zeros(places.shape, np.int32), places.astype(np.int32), device))
    return PlaceTables(tuple(tables), axis_run(layout.axes[-1], _MOST))


@cached(256)
def blend_tables(layout: TileLayout, device: torch.device) -> PlaceTables:
    """The tiles that cover each position of the canvas, ascending: [size, covers, 2]."""
    covers = [axis_cover(axis) for axis in layout.axes]
    tables = tuple(_entries(cover.tile, cover.local, device) for cover in covers)
    return PlaceTables(tables, axis_run(layout.axes[-1], _MOST))


@cached(256)
def pad_tables(layout: TileLayout, pad: Pad, device: torch.device) -> PlaceTables:
    """Places of the padded tiles' positions in the tiles: [tiles on the axis, before + tile + after, 2]."""
    rings = [axis_ring_table(axis, *ends) for axis, ends in zip(layout.axes, pad, strict=True)]
    tables = tuple(_entries(ring.source, ring.local, device) for ring in rings)
    return PlaceTables(tables, ring_unit(layout.axes[-1], *pad[-1]))


def extract_tiles(canvas: Tensor, *, layout: TileLayout, out: Tensor | None = None) -> Tensor:
    """Cuts [B, C, *size] (any strides) into [T, B, C, *tile] (contiguous), in one launch."""
    if out is None:
        out = canvas.new_empty((layout.num_tiles, *canvas.shape[:2], *layout.tile))
    places, unit = extract_tables(layout, canvas.device)
    torch.ops.tiledattn.extract_tiles_cuda.default(canvas, places, unit, out, layout.as_ints())
    return out


def blend_tiles(tiles: Tensor, *, layout: TileLayout, weights: tuple[Tensor, ...], out: Tensor | None = None) -> Tensor:
    """Blends [T, B, C, *tile] (any strides) into [B, C, *size] (contiguous), in one launch.

    Args:
        tiles: the tile batch.
        layout: how the canvas is cut.
        weights: per axis the normalised weights of every tile, [tiles on the axis, tile], contiguous, float32
            (float64 for float64).
        out: where the result goes, None for new memory.

    Every position is written once; it is accumulated in the weights' precision, tiles in ascending order.
    """
    if out is None:
        out = tiles.new_empty((*tiles.shape[1:3], *layout.size))
    covers, unit = blend_tables(layout, tiles.device)
    torch.ops.tiledattn.blend_tiles_cuda.default(tiles, weights, covers, unit, out, layout.as_ints())
    return out


def pad_tiles(tiles: Tensor, *, layout: TileLayout, pad: Pad) -> Tensor:
    """Adds a ring from the owners, (before, after) positions per axis, zeros outside the canvas, in one launch."""
    padded = (before + w + after for w, (before, after) in zip(layout.tile, pad, strict=True))
    out = tiles.new_empty((*tiles.shape[:3], *padded))
    places, unit = pad_tables(layout, tuple((before, after) for before, after in pad), tiles.device)
    flat = [p for ends in pad for p in ends]
    torch.ops.tiledattn.pad_tiles_cuda.default(tiles, places, unit, out, layout.as_ints(), flat)
    return out
