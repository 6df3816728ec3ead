"""One axis of a layout: where its tiles lie, who owns a position, and what a tile sees beyond its ends.

Everything on an N-axis canvas is a product of these per-axis facts.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

MAX_SEGMENTS = 1 << 23


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


def axis_count(axis: Axis) -> int:
    """The number of tiles along an axis, without listing them."""
    if axis.tile == axis.length:
        return 1
    step = axis.tile - axis.overlap
    return -(-axis.length // step) if axis.wrap else 1 - (axis.tile - axis.length) // step


@lru_cache(maxsize=1024)
def axis_origins(axis: Axis) -> tuple[int, ...]:
    """Origins of the tiles along an axis, ascending.

    Not periodic: multiples of the step while a whole tile fits, then one more that ends at the canvas's end.
    Periodic: ceil(length / step) tiles spread evenly on the grid that length, tile and overlap share.
    """
    length, tile, count = axis.length, axis.tile, axis_count(axis)
    if axis.wrap:
        unit = math.gcd(length, tile, axis.overlap)
        return tuple(unit * ((i * (length // unit)) // count) for i in range(count))
    return tuple(min(i * (tile - axis.overlap), length - tile) for i in range(count))


def _owner_runs(axis: Axis) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Runs of positions with the same owner, once round the axis: where they start, then where the last ends; owners.

    A position lies deepest in the tile whose middle is nearest, so that runs change halfway between two middles. On a
    periodic axis the first run starts where the last tile's ends, which may be before position 0.
    """
    origins = np.asarray(axis_origins(axis), dtype=np.int64)
    bounds = np.concatenate(([0], (origins[:-1] + origins[1:] + axis.tile + 1) // 2, [axis.length]))
    if axis.wrap and len(origins) > 1:
        bounds[0] = (origins[-1] + axis.tile - axis.length) // 2  # no + 1: halfway is tile 0's, the lower index
        bounds[-1] = bounds[0] + axis.length
    owners = np.flatnonzero(np.diff(bounds)).astype(np.int64)
    return np.append(bounds[owners], bounds[-1]), owners


@lru_cache(maxsize=256)
def axis_owners(axis: Axis) -> NDArray[np.int64]:
    """The tile in which each position of the axis lies deepest (ties: the lower index), as an array [length].

    Depth is the distance to the tile's nearer end. For a position outside some tile this is its owner, since that
    tile does not contain it.
    """
    bounds, owners = _owner_runs(axis)
    owner = np.roll(np.repeat(owners, np.diff(bounds)), int(bounds[0]))
    owner.setflags(write=False)
    return owner


class AxisReach:
    """For each tile, what it sees on an axis: its own interval and up to `halo` positions beyond each end, as segments.

    Every position comes once. On a periodic axis with too little room for both sides, each position is seen the
    short way round. Segments are in order of their offset; the tile's own interval is one of them. They are listed
    for as many tiles at once as one asks for, `counts` of them for every tile.

    Raises:
        ValueError: more than 2^23 segments over all tiles.
    """

    counts: NDArray[np.int64]

    def __init__(self, axis: Axis, halo: int) -> None:
        self.axis = axis
        self.origins = np.asarray(axis_origins(axis), dtype=np.int64)
        room = axis.length - axis.tile
        before = min(halo, room // 2) if axis.wrap else np.minimum(halo, self.origins)
        after = min(halo, room - room // 2) if axis.wrap else np.minimum(halo, room - self.origins)
        bounds, owners = _owner_runs(axis)
        if axis.wrap:
            first = bounds[:-1]
            bounds = np.concatenate((first - axis.length, first, bounds + axis.length))
            owners = np.tile(owners, 3)
        self._bounds, self._owners = bounds, owners
        self._ends = np.stack((self.origins - before, self.origins + axis.tile + after), axis=1)
        runs_before = self._runs(self._ends[:, 0], self.origins)
        runs_after = self._runs(self.origins + axis.tile, self._ends[:, 1])
        self._first = np.stack((runs_before[0], runs_after[0]), axis=1)
        self._before = runs_before[1]
        self.counts = runs_before[1] + 1 + runs_after[1]
        total = int(self.counts.sum())
        if total > MAX_SEGMENTS:
            raise ValueError(
                f"halo: a reach of {halo} over {len(self.origins)} tiles of an axis is {total:,} segments, more than "
                f"{MAX_SEGMENTS:,}; use a smaller halo or larger tiles"
            )

    def _runs(self, begin: NDArray[np.int64], end: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The first run of owners in [begin, end), and how many there are."""
        first = np.searchsorted(self._bounds, begin, side="right") - 1
        last = np.searchsorted(self._bounds, end, side="left")
        return first, np.where(end > begin, last - first, 0)

    def segments(self, begin: int, end: int) -> NDArray[np.int64]:
        """The segments of tiles [begin, end), a row of `Segment`'s numbers each."""
        counts = self.counts[begin:end]
        tile = np.repeat(np.arange(begin, end, dtype=np.int64), counts)
        number = ranges(np.zeros_like(counts), counts)
        later = number - self._before[tile]  # 0: the tile's own interval
        run = np.where(later < 0, self._first[tile, 0] + number, self._first[tile, 1] + later - 1)
        run[later == 0] = 0
        origin = self.origins[tile]
        near = np.where(later < 0, self._ends[tile, 0], origin + self.axis.tile)
        far = np.where(later < 0, origin, self._ends[tile, 1])
        first = np.where(later == 0, origin, np.maximum(self._bounds[run], near))
        last = np.where(later == 0, near, np.minimum(self._bounds[run + 1], far))
        source = np.where(later == 0, tile, self._owners[run])
        start = (first - self.origins[source]) % self.axis.length
        return np.stack((source, start, last - first, first - origin), axis=1)

    def patterns(self, at_once: int) -> tuple[NDArray[np.int64], tuple[NDArray[np.int64], ...]]:
        """The number of every tile's pattern, and the distinct patterns: segments with sources relative to the tile.

        Besides the patterns it takes memory for about `at_once` segments.
        """
        numbers: dict[bytes, int] = {}
        of_tile = []
        for begin, end in batches(self.counts, at_once):
            counts, segments = self.counts[begin:end], self.segments(begin, end)
            segments[:, 0] -= np.repeat(np.arange(begin, end), counts)
            found, row = segments.tobytes(), segments.itemsize * segments.shape[1]
            for last, size in zip((np.cumsum(counts) * row).tolist(), (counts * row).tolist(), strict=True):
                of_tile.append(numbers.setdefault(found[last - size : last], len(numbers)))
        patterns = tuple(np.frombuffer(key, dtype=np.int64).reshape(-1, 4) for key in numbers)
        return np.asarray(of_tile, dtype=np.int64), patterns

    def with_turns(self) -> list[NDArray[np.int64]]:
        """For each tile its segments, with the turns of the axis that lead to them as a fifth column."""
        rows = self.segments(0, len(self.counts))
        source, start, _, offset = rows.T
        turns = (offset + np.repeat(self.origins, self.counts) - self.origins[source] - start) // self.axis.length
        return np.split(np.column_stack((rows, turns)), np.cumsum(self.counts)[:-1])


def axis_reach(axis: Axis, halo: int) -> tuple[tuple[Segment, ...], ...]:
    """For each tile the segments of `AxisReach`."""
    reach = AxisReach(axis, halo)
    rows = map(Segment._make, reach.segments(0, len(reach.counts)).tolist())
    return tuple(tuple(itertools.islice(rows, count)) for count in reach.counts.tolist())


def batches(sizes: NDArray[np.int64], most: int) -> Iterator[tuple[int, int]]:
    """Ranges [begin, end) one after another that cover `sizes`: each adds up to at most `most`, or is a single one."""
    ends = np.cumsum(sizes)
    begin, done = 0, 0
    while begin < len(ends):
        end = max(begin + 1, int(np.searchsorted(ends, done + most, side="right")))
        yield begin, end
        begin, done = end, int(ends[end - 1])


def ranges(starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """The numbers start .. start + length, range after range."""
    ends = np.cumsum(lengths)
    return np.arange(ends[-1], dtype=np.int64) + np.repeat(starts - ends + lengths, lengths)


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
