"""One axis of a layout: where its tiles lie, who owns a position, and what a tile sees beyond its ends.

Everything on an N-axis canvas is a product of these per-axis facts.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Axis:
    """One axis: `length` positions cut into tiles of `tile` positions with `overlap` shared ones."""

    length: int
    tile: int
    overlap: int
    wrap: bool


class Segment(NamedTuple):
    """A run of positions that all come from one tile of the axis.

    `source` is the tile that lends them, `start` the first position inside that tile, `length` how many there are,
    and `offset` the place of the first one relative to the borrowing tile's own origin (negative: before it).
    """

    source: int
    start: int
    length: int
    offset: int


@lru_cache(maxsize=1024)
def axis_origins(axis: Axis) -> tuple[int, ...]:
    """Origins of the tiles along an axis, ascending.

    Not periodic: multiples of the step while a whole tile fits, then one more that ends at the canvas's end.
    Periodic: ceil(length / step) tiles spread evenly on the grid that length, tile and overlap share.
    """
    length, tile, step = axis.length, axis.tile, axis.tile - axis.overlap
    if tile == length:
        return (0,)
    if axis.wrap:
        count = -(-length // step)
        unit = math.gcd(length, tile, axis.overlap)
        return tuple(unit * ((i * (length // unit)) // count) for i in range(count))
    origins = list(range(0, length - tile + 1, step))
    if origins[-1] + tile < length:
        origins.append(length - tile)
    return tuple(origins)


@lru_cache(maxsize=256)
def axis_owners(axis: Axis) -> NDArray[np.int64]:
    """The tile in which each position of the axis lies deepest (ties: the lower index), as an array [length].

    Depth is the distance to the tile's nearer end. For a position outside some tile this is its owner, since that
    tile does not contain it.
    """
    owner = np.zeros(axis.length, dtype=np.int64)
    best = np.full(axis.length, -1, dtype=np.int64)
    depth = np.minimum(np.arange(axis.tile), np.arange(axis.tile)[::-1])
    for index, origin in enumerate(axis_origins(axis)):
        places = (origin + np.arange(axis.tile)) % axis.length
        deeper = depth > best[places]
        owner[places[deeper]] = index
        best[places[deeper]] = depth[deeper]
    owner.setflags(write=False)
    return owner


@lru_cache(maxsize=1024)
def axis_reach(axis: Axis, halo: int) -> tuple[tuple[Segment, ...], ...]:
    """For each tile, what it sees on this axis: its own interval and up to `halo` positions beyond each end.

    Every position comes once. On a periodic axis with too little room for both sides, each position is seen the
    short way round. Segments are in order of their offset; the tile's own interval is one of them.
    """
    room = axis.length - axis.tile
    reach = []
    for index, origin in enumerate(axis_origins(axis)):
        if axis.wrap:
            before = min(halo, room // 2)
            after = min(halo, room - room // 2)
        else:
            before = min(halo, origin)
            after = min(halo, room - origin)
        reach.append(_segments(axis, index, -before, axis.tile + after))
    return tuple(reach)


@lru_cache(maxsize=1024)
def axis_ring(axis: Axis, before: int, after: int) -> tuple[tuple[Segment, ...], ...]:
    """For each tile, where the positions from `before` ahead of it to `after` behind it come from.

    Positions outside a canvas that is not periodic are left out. On a periodic axis positions repeat as often as the
    ring goes round.
    """
    room = axis.length - axis.tile
    ring = []
    for index, origin in enumerate(axis_origins(axis)):
        first = -before if axis.wrap else -min(before, origin)
        last = axis.tile + (after if axis.wrap else min(after, room - origin))
        ring.append(_segments(axis, index, first, last))
    return tuple(ring)


def _segments(axis: Axis, index: int, first: int, last: int) -> tuple[Segment, ...]:
    """Run-length code of the sources of offsets [first, last) around tile `index`."""
    origins = np.asarray(axis_origins(axis), dtype=np.int64)
    offsets = np.arange(first, last, dtype=np.int64)
    places = (origins[index] + offsets) % axis.length
    own = (places - origins[index]) % axis.length < axis.tile
    source = np.where(own, index, axis_owners(axis)[places])
    start = (places - origins[source]) % axis.length
    inside = (offsets >= 0) & (offsets < axis.tile)
    breaks = (np.diff(source) != 0) | (np.diff(start) != 1) | (np.diff(inside.astype(np.int8)) != 0)
    cuts = np.concatenate(([0], np.flatnonzero(breaks) + 1, [len(offsets)]))
    return tuple(
        Segment(int(source[a]), int(start[a]), int(b - a), int(offsets[a])) for a, b in itertools.pairwise(cuts)
    )


@lru_cache(maxsize=256)
def axis_owned(axis: Axis) -> NDArray[np.bool_]:
    """Which positions of each tile the tile itself owns, as an array [tiles, tile]: each canvas position once."""
    origins = np.asarray(axis_origins(axis), dtype=np.int64)
    places = (origins[:, None] + np.arange(axis.tile)) % axis.length
    owned: NDArray[np.bool_] = axis_owners(axis)[places] == np.arange(len(origins))[:, None]
    owned.setflags(write=False)
    return owned


@lru_cache(maxsize=256)
def axis_nearness(axis: Axis) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """For each tile the tiles near it, [tiles, K], and how near, [tiles, K]: max(0, 1 - distance / (2 * tile)).

    The distance is that of the origins, the short way round on a periodic axis. Rows with fewer than K near tiles are
    filled up with the tile itself and 0.
    """
    origins = np.asarray(axis_origins(axis), dtype=np.int64)
    rows = []
    for index, origin in enumerate(origins):
        apart = np.abs(origins - origin)
        if axis.wrap:
            apart = np.minimum(apart, axis.length - apart)
        near = np.flatnonzero(apart < 2 * axis.tile)
        rows.append((index, near, 1.0 - apart[near] / (2.0 * axis.tile)))
    most = max(len(near) for _, near, _ in rows)
    places = np.repeat(np.arange(len(origins), dtype=np.int64)[:, None], most, 1)
    weights = np.zeros((len(origins), most))
    for index, near, weight in rows:
        places[index, : len(near)], weights[index, : len(near)] = near, weight
    return places, weights
