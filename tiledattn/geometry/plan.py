"""AttentionPlan: which tokens of which tiles a tile's queries see beyond their own, as integers.

Most tiles see the same pattern: the plan holds one table per *class* of tiles (tiles whose neighbours lie alike), so
that its memory does not grow with the canvas. Tables are relative to the tile: entry e of tile t names flat token
`t * N + e`, where N is the number of canvas tokens of a tile and flat token `u * N + n` is token n of tile u.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from numbers import Integral
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .axis import AxisReach, batches, ranges
from .layout import TileLayout
from .numbers import is_whole

Halo = int | Sequence[int] | Literal["all"]

MAX_TABLE_ENTRIES = 1 << 28
MAX_BOXES = 1 << 22
_AT_ONCE = 1 << 16  # rows that intermediate arrays hold, about


class Rectangle(NamedTuple):
    """A box of halo tokens that one tile lends: tile `t + tile_delta`, positions start .. start + shape.

    The lending tile may be a virtual one (see `UnwrappedPlan`). `offset` is the place of the box's first position
    relative to the borrowing tile's origin, the short way round.
    """

    tile_delta: int
    start: tuple[int, ...]
    shape: tuple[int, ...]
    offset: tuple[int, ...]


class Boxes(NamedTuple):
    """Rectangles as arrays, a row each."""

    tile_delta: NDArray[np.int64]  # [n]
    start: NDArray[np.int64]  # [n, axes], as the others
    shape: NDArray[np.int64]
    offset: NDArray[np.int64]


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
    if not isinstance(values, Sequence) or isinstance(values, (bytes, bytearray)):
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


def _product(parts: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Every choice of one row per axis, [choices, axes, columns], the last axis fastest."""
    chosen = np.indices([len(part) for part in parts]).reshape(len(parts), -1)
    return np.stack([part[rows] for part, rows in zip(parts, chosen, strict=True)], axis=1)


def _boxes(tile_delta: NDArray[np.int64], chosen: NDArray[np.int64], others: NDArray[np.bool_]) -> Boxes:
    """Boxes from one segment per axis each, those that are `others`."""
    start, shape, offset = np.moveaxis(chosen[others, :, 1:4], 2, 0).copy()
    return Boxes(tile_delta[others], start, shape, offset)


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
    def _axis_patterns(self) -> tuple[tuple[NDArray[np.int64], tuple[NDArray[np.int64], ...]], ...]:
        """Per axis: the pattern number of every tile, and the distinct patterns."""
        return tuple(AxisReach(*ends).patterns(_AT_ONCE) for ends in zip(self.layout.axes, self.halo, strict=True))

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

    def boxes(self, class_index: int) -> Boxes:
        """The halo of a class as boxes, own tile left out."""
        numbers = np.unravel_index(class_index, self._patterns_per_axis)
        chosen = _product(
            [patterns[int(number)] for number, (_, patterns) in zip(numbers, self._axis_patterns, strict=True)]
        )
        own = (chosen[:, :, 0] == 0) & (chosen[:, :, 3] == 0)
        return _boxes(chosen[:, :, 0] @ self._strides, chosen, ~own.all(axis=1))

    @property
    def _strides(self) -> NDArray[np.int64]:
        """How far apart in number tiles are that are neighbours on an axis."""
        grid = self.layout.grid
        return np.asarray([math.prod(grid[axis + 1 :]) for axis in range(len(grid))], dtype=np.int64)

    def rectangles(self, class_index: int) -> tuple[Rectangle, ...]:
        """`boxes` one by one."""
        delta, *others = (x.tolist() for x in self.boxes(class_index))
        return tuple(Rectangle(d, *map(tuple, rest)) for d, *rest in zip(delta, *others, strict=True))

    def halo_length(self, class_index: int) -> int:
        """Number of halo tokens of a tile of the class."""
        numbers = np.unravel_index(class_index, self._patterns_per_axis)
        seen = math.prod(
            int(patterns[int(number)][:, 2].sum())
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

    def class_runs(self, class_index: int) -> NDArray[np.int64]:
        """A class's halo as runs of consecutive relative flat tokens [n, 2], of (start, length), none across two tiles.

        A run is a row of a box's last axis, or several axes at once where the later ones are whole. Runs are in the
        order of `boxes`.
        """
        boxes, tile = self.boxes(class_index), self.layout.tile
        joined = _joined(boxes.shape, tile)
        rows, lengths = np.where(joined, 1, boxes.shape), np.where(joined, boxes.shape, 1).prod(axis=1)
        counts = rows.prod(axis=1)
        first = boxes.tile_delta * self.layout.tile_positions
        runs = np.empty((int(counts.sum()), 2), dtype=np.int64)
        place = 0
        for begin, end in batches(counts, _AT_ONCE):
            part, number = slice(begin, end), np.repeat(np.arange(begin, end), counts[begin:end])
            found = runs[place : place + len(number)]
            found[:, 0] = first[number] + _local_tokens(boxes.start[part], rows[part], tile)
            found[:, 1] = lengths[number]
            place += len(number)
        return runs

    @cached_property
    def num_boxes(self) -> int:
        """The number of boxes of all classes, known before any is listed."""
        # a class is one pattern per axis, and so a sum over classes is a product of sums over an axis's patterns
        return math.prod(sum(map(len, patterns)) for _, patterns in self._axis_patterns) - self.num_classes

    @cached_property
    def num_runs(self) -> int:
        """The number of runs of all classes, known before any is listed."""
        # a box's runs are its rows on the axes before the last one on which it isn't whole
        total, whole_later = 0, 1
        lengths = [np.concatenate([p[:, 2] for p in patterns]) for _, patterns in self._axis_patterns]
        for axis in reversed(range(len(lengths))):
            whole = int((lengths[axis] == self.layout.tile[axis]).sum())
            ending = len(lengths[axis]) - whole if axis else len(lengths[axis])
            total += math.prod(int(x.sum()) for x in lengths[:axis]) * ending * whole_later
            whole_later *= whole
        return total - self.num_classes  # own tiles are one run each

    def class_table(self, class_index: int) -> NDArray[np.int64]:
        """Relative flat tokens of a class's halo, [halo_length], in the order of `boxes`."""
        runs = self.class_runs(class_index)
        table = np.empty(int(runs[:, 1].sum()), dtype=np.int64)
        place = 0
        for begin, end in batches(runs[:, 1], _AT_ONCE):
            found = ranges(*runs[begin:end].T)
            table[place : place + len(found)] = found
            place += len(found)
        return table

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
        self.check_size("an index table", entries, "entries", MAX_TABLE_ENTRIES)

    def check_size(self, what: str, count: int, unit: str, most: int) -> None:
        """Raises the ValueError that says what to do where the plan needs a thing of more than `most` units."""
        if count > most:
            raise ValueError(
                f"halo: a reach of {self.halo} over {self.layout.num_tiles} tiles needs {what} of {count:,} {unit}, "
                f"more than {most:,}; use a smaller halo or larger tiles"
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
    def _unrolled(self) -> tuple[NDArray[np.int32], tuple[Boxes, ...], tuple[Virtual, ...]]:
        """The class of every tile, the boxes of every class, and the virtual tiles."""
        plain, grid = AttentionPlan(self.layout, self.halo), self.layout.grid
        reaches = [AxisReach(*ends) for ends in zip(self.layout.axes, self.halo, strict=True)]
        seen = [reach.with_turns() for reach in reaches]
        crosses = np.zeros(grid, dtype=np.bool_)
        for axis, parts in enumerate(seen):
            turned = np.asarray([bool(part[:, 4].any()) for part in parts])
            crosses |= turned.reshape([-1 if a == axis else 1 for a in range(crosses.ndim)])
        lengths = np.asarray(plain.halo_lengths, dtype=np.int64)[plain.class_of_tile]
        self._check_entries(int(lengths[crosses.ravel()].sum()))
        # classes are numbered in the order of their first tiles
        keys = np.where(crosses.ravel(), ~np.arange(self.layout.num_tiles), plain.class_of_tile)
        _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
        order = np.argsort(first)
        class_of_tile = np.argsort(order)[inverse].astype(np.int32)
        places = np.unravel_index(first[order], grid)
        counts = np.prod([reach.counts[i] for reach, i in zip(reaches, places, strict=True)], axis=0) - 1
        self.check_size("a list", int(counts.sum()), "boxes", MAX_BOXES)
        virtual: dict[Virtual, int] = {}
        boxes = tuple(
            self._class_boxes(t, [parts[i] for parts, i in zip(seen, place, strict=True)], virtual)
            for t, place in zip(first[order].tolist(), np.stack(places, axis=1).tolist(), strict=True)
        )
        return class_of_tile, boxes, tuple(virtual)

    def _class_boxes(self, t: int, parts: Sequence[NDArray[np.int64]], virtual: dict[Virtual, int]) -> Boxes:
        """The halo of tile t as boxes; virtual tiles met for the first time are added to `virtual`."""
        chosen = _product(parts)
        lender, turns = chosen[:, :, 0] @ self._strides, chosen[:, :, 4]
        away = turns.any(axis=1)
        names = map(Virtual, lender[away].tolist(), map(tuple, turns[away].tolist()))
        tiles = self.layout.num_tiles
        lender[away] = [tiles + virtual.setdefault(name, len(virtual)) for name in names]
        return _boxes(lender - t, chosen, lender != t)

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

    def boxes(self, class_index: int) -> Boxes:
        """The halo of a class as boxes, own tile left out."""
        return self._unrolled[1][class_index]

    def halo_length(self, class_index: int) -> int:
        """Number of halo tokens of a tile of the class."""
        return int(self.boxes(class_index).shape.prod(axis=1).sum())

    @cached_property
    def num_boxes(self) -> int:
        """The number of boxes of all classes."""
        return sum(len(boxes.tile_delta) for boxes in self._unrolled[1])

    @cached_property
    def num_runs(self) -> int:
        """The number of runs of all classes."""
        shapes = (boxes.shape for boxes in self._unrolled[1])
        return sum(int(np.where(_joined(x, self.layout.tile), 1, x).prod(axis=1).sum()) for x in shapes)


def _joined(shape: NDArray[np.int64], tile: tuple[int, ...]) -> NDArray[np.bool_]:
    """Which axes of boxes [n, axes] are in one run of tokens: the last, and others where all later ones are whole."""
    joined = np.ones(shape.shape, dtype=np.bool_)
    for axis in reversed(range(len(tile) - 1)):
        joined[:, axis] = joined[:, axis + 1] & (shape[:, axis + 1] == tile[axis + 1])
    return joined


def _local_tokens(start: NDArray[np.int64], shape: NDArray[np.int64], tile: tuple[int, ...]) -> NDArray[np.int64]:
    """Row-major token numbers inside their tiles of the places of boxes [n, axes], box after box."""
    sizes = shape.prod(axis=1)
    box, place = np.repeat(np.arange(len(sizes)), sizes), ranges(np.zeros_like(sizes), sizes)
    tokens = np.zeros(len(box), dtype=np.int64)
    for axis in reversed(range(len(tile))):
        place, inside = np.divmod(place, shape[box, axis])
        tokens += (start[box, axis] + inside) * math.prod(tile[axis + 1 :])
    return tokens


def attention_plan(layout: TileLayout, halo: Halo, unwrapped: bool = False) -> AttentionPlan:
    """The plan of a layout (in tokens) and a halo per axis (see `normalize_halo`), cached by value.

    With `unwrapped`, tiles seen across a wrap are virtual ones (`UnwrappedPlan`); without such tiles it is the plain
    plan.

    Raises:
        TypeError, ValueError: a halo that `normalize_halo` refuses.
    """
    return _plan(layout, halo if type(halo) is tuple else normalize_halo(layout, halo), unwrapped)


@lru_cache(maxsize=256)
def _plan(layout: TileLayout, halo: tuple[int, ...], unwrapped: bool) -> AttentionPlan:
    halo = normalize_halo(layout, halo)
    if unwrapped and any(layout.wrap):
        plan = UnwrappedPlan(layout, halo)
        if plan.virtual:
            return plan
    return AttentionPlan(layout, halo)
