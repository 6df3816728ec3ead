"""AttentionPlan: which tokens of which tiles a tile's queries see beyond their own, as integers.

Most tiles see the same pattern: the plan holds one table per *class* of tiles (tiles whose neighbours lie alike), so
that its memory does not grow with the canvas. Tables are relative to the tile: entry e of tile t names flat token
`t * N + e`, where N is the number of canvas tokens of a tile and flat token `u * N + n` is token n of tile u.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from numbers import Integral
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .axis import Segment, axis_origins, axis_reach
from .layout import TileLayout
from .numbers import is_whole

Halo = int | Sequence[int] | Literal["all"]

MAX_TABLE_ENTRIES = 1 << 28


class Rectangle(NamedTuple):
    """A box of halo tokens that one tile lends: tile `t + tile_delta`, positions start .. start + shape.

    The lending tile may be a virtual one (see `UnwrappedPlan`). `offset` is the place of the box's first position
    relative to the borrowing tile's origin, the short way round.
    """

    tile_delta: int
    start: tuple[int, ...]
    shape: tuple[int, ...]
    offset: tuple[int, ...]


class Virtual(NamedTuple):
    """A copy of tile `tile` as seen across a wrap: displaced by `turns[axis]` times the length of each axis."""

    tile: int
    turns: tuple[int, ...]


def normalize_halo(layout: TileLayout, halo: Halo) -> tuple[int, ...]:
    """`halo` as one int per axis: "all" is the whole canvas, an int goes for every axis.

    Raises:
        TypeError: not an int, a sequence of ints or "all".
        ValueError: a negative value, a string other than "all", or the wrong number of axes.
    """
    if type(halo) is int and halo >= 0:
        return tuple(min(halo, length) for length in layout.size)
    axes = len(layout.size)
    if isinstance(halo, str):
        if halo != "all":
            raise ValueError(f'halo: got {halo!r}; expected an int, one int per axis, or "all"')
        return layout.size
    values = (halo,) * axes if isinstance(halo, Integral) else halo
    if not isinstance(values, Sequence):
        raise TypeError(f'halo: got {halo!r} ({type(halo).__name__}); expected an int, one int per axis, or "all"')
    if len(values) != axes:
        raise ValueError(f"halo: got {len(values)} values {tuple(values)}; the canvas has {axes} axes")
    checked: list[int] = []
    for axis, value in enumerate(values):
        if not is_whole(value):
            raise TypeError(f"halo: axis {axis} is {value!r} ({type(value).__name__}); expected an int")
        if value < 0:
            raise ValueError(f"halo: axis {axis} is {value}; it must be at least 0")
        checked.append(int(value))
    return tuple(min(v, length) for v, length in zip(checked, layout.size, strict=True))


def _relative(index: int, segments: tuple[Segment, ...]) -> tuple[Segment, ...]:
    return tuple(s._replace(source=s.source - index) for s in segments)


@dataclass(frozen=True)
class AttentionPlan:
    """The halo of every tile of a layout; build it with `attention_plan`, which caches.

    Attributes:
        layout: the layout, in tokens.
        halo: reach beyond a tile's ends per axis, in tokens.
    """

    layout: TileLayout
    halo: tuple[int, ...]

    @property
    def virtual(self) -> tuple[Virtual, ...]:
        """The virtual tiles T, T + 1, ... that the tables name besides the layout's: none here."""
        return ()

    @cached_property
    def _axis_patterns(self) -> tuple[tuple[NDArray[np.int64], tuple[tuple[Segment, ...], ...]], ...]:
        """Per axis: the pattern number of every tile, and the distinct patterns with relative sources."""
        result = []
        for axis, halo in zip(self.layout.axes, self.halo, strict=True):
            numbers: dict[tuple[Segment, ...], int] = {}
            of_tile = [
                numbers.setdefault(_relative(i, segments), len(numbers))
                for i, segments in enumerate(axis_reach(axis, halo))
            ]
            result.append((np.asarray(of_tile, dtype=np.int64), tuple(numbers)))
        return tuple(result)

    @cached_property
    def _patterns_per_axis(self) -> tuple[int, ...]:
        return tuple(len(patterns) for _, patterns in self._axis_patterns)

    @cached_property
    def num_classes(self) -> int:
        """How many distinct patterns of neighbours there are."""
        return math.prod(self._patterns_per_axis)

    @cached_property
    def class_of_tile(self) -> NDArray[np.int32]:
        """The class of every tile, int32 [T]."""
        grids = np.meshgrid(*(of_tile for of_tile, _ in self._axis_patterns), indexing="ij")
        flat = np.ravel_multi_index([g.ravel() for g in grids], self._patterns_per_axis)
        return flat.astype(np.int32)

    @cached_property
    def classes(self) -> tuple[NDArray[np.int64], ...]:
        """The tiles of each class, ascending; every tile is in one class."""
        order = np.argsort(self.class_of_tile, kind="stable").astype(np.int64)
        counts = np.bincount(self.class_of_tile, minlength=self.num_classes)
        return tuple(np.split(order, np.cumsum(counts)[:-1]))

    def rectangles(self, class_index: int) -> tuple[Rectangle, ...]:
        """The halo of a class as boxes, own tile left out."""
        numbers = np.unravel_index(class_index, self._patterns_per_axis)
        per_axis = [patterns[int(number)] for number, (_, patterns) in zip(numbers, self._axis_patterns, strict=True)]
        grid = self.layout.grid
        strides = [math.prod(grid[axis + 1 :]) for axis in range(len(grid))]
        boxes = []
        for box in itertools.product(*per_axis):
            delta = sum(s.source * stride for s, stride in zip(box, strides, strict=True))
            if all(s.source == 0 and s.offset == 0 for s in box):
                continue
            boxes.append(
                Rectangle(
                    delta,
                    tuple(s.start for s in box),
                    tuple(s.length for s in box),
                    tuple(s.offset for s in box),
                )
            )
        return tuple(boxes)

    def halo_length(self, class_index: int) -> int:
        """Number of halo tokens of a tile of the class."""
        numbers = np.unravel_index(class_index, self._patterns_per_axis)
        seen = math.prod(
            sum(s.length for s in patterns[int(number)])
            for number, (_, patterns) in zip(numbers, self._axis_patterns, strict=True)
        )
        return seen - self.layout.tile_positions

    @cached_property
    def halo_lengths(self) -> tuple[int, ...]:
        """`halo_length` of every class."""
        return tuple(self.halo_length(c) for c in range(self.num_classes))

    @cached_property
    def groups(self) -> tuple[tuple[int, NDArray[np.int64]], ...]:
        """Tiles that see equally many tokens, ascending, with the number of their halo tokens."""
        seen = np.asarray(self.halo_lengths, dtype=np.int64)[self.class_of_tile]
        return tuple((int(length), np.flatnonzero(seen == length)) for length in np.unique(seen))

    def class_table(self, class_index: int) -> NDArray[np.int64]:
        """Relative flat tokens of a class's halo, [halo_length], in the order of `rectangles`."""
        tile = self.layout.tile
        tables = [
            (box.tile_delta * self.layout.tile_positions + _local_tokens(box, tile))
            for box in self.rectangles(class_index)
        ]
        return np.concatenate(tables) if tables else np.zeros(0, dtype=np.int64)

    @cached_property
    def table(self) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
        """All classes' tables: `starts` int64 [classes + 1] and `index` int32 [starts[-1]].

        The halo of tile t is `t * N + index[starts[c] : starts[c + 1]]` with c = class_of_tile[t].

        Raises:
            ValueError: the tables would be larger than 2^28 entries (1 GiB), or tokens do not fit in int32.
        """
        starts = np.concatenate(([0], np.cumsum(self.halo_lengths, dtype=np.int64)))
        self._check_entries(int(starts[-1]))
        tiles = self.layout.num_tiles + len(self.virtual)
        if tiles * self.layout.tile_positions > np.iinfo(np.int32).max:
            raise ValueError(
                f"layout: {tiles} tiles of {self.layout.tile_positions} tokens pass 2^31 - 1 tokens; split the canvas"
            )
        index = np.concatenate([self.class_table(c) for c in range(self.num_classes)]).astype(np.int32)
        return starts, index

    def _check_entries(self, entries: int) -> None:
        if entries > MAX_TABLE_ENTRIES:
            raise ValueError(
                f"halo: a reach of {self.halo} over {self.layout.num_tiles} tiles needs an index table of "
                f"{entries:,} entries, more than {MAX_TABLE_ENTRIES:,}; use a smaller halo or larger tiles"
            )

    @property
    def num_pairs(self) -> int:
        """Query-key pairs of canvas tokens over all tiles, the work of one head and batch entry."""
        n = self.layout.tile_positions
        counts = np.bincount(self.class_of_tile, minlength=self.num_classes)
        return sum(int(count) * n * (n + m) for count, m in zip(counts, self.halo_lengths, strict=True))


@dataclass(frozen=True)
class UnwrappedPlan(AttentionPlan):
    """The same halo where a tile seen across a wrap counts as another tile: a virtual one, at its displaced place.

    A pool for it has T + len(virtual) tiles: the layout's, then `virtual`. Every rectangle's offset is then

        origin(lender) + turns * size + start - origin(borrower),

    the short way round: a position lies on the side of the borrower's nearer end, behind it where both are as near.
    Tiles whose halo crosses a wrap are classes of their own, since virtual tiles are named absolutely.
    """

    @cached_property
    def _crossings(self) -> tuple[tuple[tuple[tuple[Segment, int], ...], ...], ...]:
        """Per axis and tile on it: the segments it sees, with the turns of the axis that lead to them."""
        found = []
        for axis, halo in zip(self.layout.axes, self.halo, strict=True):
            origins = axis_origins(axis)
            found.append(
                tuple(
                    tuple((s, (s.offset + origin - origins[s.source] - s.start) // axis.length) for s in segments)
                    for origin, segments in zip(origins, axis_reach(axis, halo), strict=True)
                )
            )
        return tuple(found)

    @cached_property
    def _unrolled(self) -> tuple[NDArray[np.int32], tuple[tuple[Rectangle, ...], ...], tuple[Virtual, ...]]:
        """The class of every tile, the rectangles of every class, and the virtual tiles."""
        plain = AttentionPlan(self.layout, self.halo)
        crosses = np.zeros(self.layout.grid, dtype=np.bool_)
        for axis, tiles in enumerate(self._crossings):
            turned = np.asarray([any(turn for _, turn in seen) for seen in tiles])
            crosses |= turned.reshape([-1 if a == axis else 1 for a in range(crosses.ndim)])
        lengths = np.asarray(plain.halo_lengths, dtype=np.int64)[plain.class_of_tile]
        self._check_entries(int(lengths[crosses.ravel()].sum()))
        numbers: dict[int, int] = {}
        virtual: dict[Virtual, int] = {}
        boxes: list[tuple[Rectangle, ...]] = []
        class_of_tile = np.zeros(self.layout.num_tiles, dtype=np.int32)
        for t, seen in enumerate(itertools.product(*self._crossings)):
            key = ~t if crosses.flat[t] else int(plain.class_of_tile[t])
            if key not in numbers:
                numbers[key] = len(boxes)
                boxes.append(self._boxes(t, seen, virtual))
            class_of_tile[t] = numbers[key]
        return class_of_tile, tuple(boxes), tuple(virtual)

    def _boxes(
        self, t: int, seen: tuple[tuple[tuple[Segment, int], ...], ...], virtual: dict[Virtual, int]
    ) -> tuple[Rectangle, ...]:
        """The halo of tile t as boxes; virtual tiles met for the first time are added to `virtual`."""
        boxes: list[Rectangle] = []
        for box in itertools.product(*seen):
            segments, turns = zip(*box, strict=True)
            lender = int(np.ravel_multi_index([s.source for s in segments], self.layout.grid))
            if lender == t:
                continue
            if any(turns):
                lender = self.layout.num_tiles + virtual.setdefault(Virtual(lender, turns), len(virtual))
            start, shape, offset = (tuple(getattr(s, name) for s in segments) for name in ("start", "length", "offset"))
            boxes.append(Rectangle(lender - t, start, shape, offset))
        return tuple(boxes)

    @property
    def virtual(self) -> tuple[Virtual, ...]:
        """The virtual tiles T, T + 1, ... that the tables name besides the layout's."""
        return self._unrolled[2]

    @cached_property
    def num_classes(self) -> int:
        """How many distinct patterns of neighbours there are."""
        return len(self._unrolled[1])

    @cached_property
    def class_of_tile(self) -> NDArray[np.int32]:
        """The class of every tile, int32 [T]."""
        return self._unrolled[0]

    def rectangles(self, class_index: int) -> tuple[Rectangle, ...]:
        """The halo of a class as boxes, own tile left out."""
        return self._unrolled[1][class_index]

    def halo_length(self, class_index: int) -> int:
        """Number of halo tokens of a tile of the class."""
        return sum(math.prod(box.shape) for box in self.rectangles(class_index))


def _local_tokens(box: Rectangle, tile: tuple[int, ...]) -> NDArray[np.int64]:
    """Row-major token numbers of a box inside its tile."""
    ranges = [np.arange(a, a + n, dtype=np.int64) for a, n in zip(box.start, box.shape, strict=True)]
    grids = np.meshgrid(*ranges, indexing="ij")
    flat = np.zeros(box.shape, dtype=np.int64)
    for grid, width in zip(grids, tile, strict=True):
        flat = flat * width + grid
    return flat.ravel()


@lru_cache(maxsize=256)
def attention_plan(layout: TileLayout, halo: Halo, unwrapped: bool = False) -> AttentionPlan:
    """The plan of a layout (in tokens) and a halo per axis (see `normalize_halo`), cached by value.

    With `unwrapped`, tiles seen across a wrap are virtual ones (`UnwrappedPlan`); without such tiles it is the plain
    plan.

    Raises:
        TypeError, ValueError: a halo that `normalize_halo` refuses.
    """
    halo = normalize_halo(layout, halo)
    if unwrapped and any(layout.wrap):
        plan = UnwrappedPlan(layout, halo)
        if plan.virtual:
            return plan
    return AttentionPlan(layout, halo)
