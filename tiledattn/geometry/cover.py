"""One axis of a layout seen from the result: which tiles hold a position, where a padded tile's come from.

Kernels that write every result once read these tables; everything on an N-axis canvas is a product of them.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .axis import Axis, axis_origins, axis_ring


class AxisCover(NamedTuple):
    """The tiles that cover each position of an axis, ascending, padded with -1 to the most there are."""

    tile: NDArray[np.int32]  # [length, covers]
    local: NDArray[np.int32]  # [length, covers], the position inside that tile


class AxisRing(NamedTuple):
    """Where each position of a padded tile comes from, -1 outside a canvas that is not periodic."""

    source: NDArray[np.int32]  # [tiles, before + tile + after]
    local: NDArray[np.int32]  # [tiles, before + tile + after], the position inside the source tile


@lru_cache(maxsize=256)
def axis_cover(axis: Axis) -> AxisCover:
    """The covering tiles of every position of an axis and the position's place in each."""
    origins = np.asarray(axis_origins(axis), dtype=np.int64)
    places = (origins[:, None] + np.arange(axis.tile)) % axis.length  # [tiles, tile]
    tiles = np.broadcast_to(np.arange(len(origins))[:, None], places.shape)
    locals_ = np.broadcast_to(np.arange(axis.tile), places.shape)
    order = np.argsort(places, axis=None, kind="stable")  # by position, then by tile
    counts = np.bincount(places.ravel(), minlength=axis.length)
    rows = np.repeat(np.arange(axis.length), counts)
    ranks = np.arange(order.size) - np.repeat(np.cumsum(counts) - counts, counts)
    shape = (axis.length, int(counts.max()))
    tile, local = np.full(shape, -1, dtype=np.int32), np.full(shape, -1, dtype=np.int32)
    tile[rows, ranks] = tiles.ravel()[order]
    local[rows, ranks] = locals_.ravel()[order]
    tile.setflags(write=False)
    local.setflags(write=False)
    return AxisCover(tile, local)


@lru_cache(maxsize=256)
def axis_ring_table(axis: Axis, before: int, after: int) -> AxisRing:
    """`axis_ring` position by position: for every tile the source tile and the place in it."""
    shape = (len(axis_origins(axis)), before + axis.tile + after)
    source, local = np.full(shape, -1, dtype=np.int32), np.full(shape, -1, dtype=np.int32)
    for index, segments in enumerate(axis_ring(axis, before, after)):
        for segment in segments:
            first = before + segment.offset
            source[index, first : first + segment.length] = segment.source
            local[index, first : first + segment.length] = np.arange(segment.start, segment.start + segment.length)
    source.setflags(write=False)
    local.setflags(write=False)
    return AxisRing(source, local)


@lru_cache(maxsize=1024)
def axis_run(axis: Axis, limit: int) -> int:
    """The largest divisor of `limit` (a power of two) whose aligned runs of positions never cross a tile end.

    Positions k * run .. k * run + run - 1 lie next to one another in every tile that covers any of them.
    """
    return math.gcd(limit, axis.length, axis.tile, *axis_origins(axis))
