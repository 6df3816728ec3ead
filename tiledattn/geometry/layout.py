"""TileLayout: how a canvas is cut into tiles."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from numbers import Integral
from typing import TYPE_CHECKING

from .axis import Axis, axis_count, axis_origins
from .numbers import is_whole

if TYPE_CHECKING:
    import os

MAX_AXIS_TILES = 1 << 20

Ints = int | Sequence[int]
Bools = bool | Sequence[bool]


@dataclass(frozen=True)
class TileLayout:
    """A canvas of `size` positions cut into tiles of one shape.

    Args:
        size: canvas shape, 1 axis (frames), 2 (height, width) or 3 (frames, height, width); an int means 1 axis.
        tile: tile shape, an int for the same on every axis.
        overlap: positions that adjacent tiles share (not a fraction), an int or one per axis; below `tile`.
        wrap: which axes are periodic, a bool or one per axis.

    The unit is whatever the caller counts in: pixels, latents or tokens. With step = tile - overlap, an axis of length
    L that is not periodic has origins 0, step, 2*step, ... while a tile fits, and one more at L - tile if positions
    are left. A periodic axis has ceil(L / step) tiles spread evenly; the last continues into the first. Tile indices
    are row-major over `grid`.

    Layouts are immutable, hashable and hold ints only.

    Raises:
        TypeError: a value that is not an int (bool and float are refused) or not a bool for `wrap`.
        ValueError: wrong number of axes, a size below 1, a tile larger than the canvas, an overlap not below the tile,
            or more than 2^20 tiles on an axis.

    Examples:
        >>> layout = TileLayout(size=(512, 1024), tile=(128, 128), overlap=(0, 16), wrap=(False, True))
        >>> layout.grid, layout.num_tiles, layout.origins[1]
        ((4, 10), 40, (0, 96))
    """

    size: tuple[int, ...]
    tile: tuple[int, ...]
    overlap: tuple[int, ...] = (0,)
    wrap: tuple[bool, ...] = (False,)
    grid: tuple[int, ...] = field(init=False, compare=False, repr=False)
    num_tiles: int = field(init=False, compare=False, repr=False)

    def __init__(self, size: Ints, tile: Ints, overlap: Ints = 0, wrap: Bools = False) -> None:
        sizes = _int_tuple("size", size, 1 if isinstance(size, Integral) else None)
        if not 1 <= len(sizes) <= 3:
            raise ValueError(f"size: got {len(sizes)} axes {sizes}; a canvas has 1 (frames), 2 (height, width) or 3")
        n = len(sizes)
        tiles = _int_tuple("tile", tile, n)
        overlaps = _int_tuple("overlap", overlap, n)
        wraps = _bool_tuple("wrap", wrap, n)
        for axis, (length, width, shared) in enumerate(zip(sizes, tiles, overlaps, strict=True)):
            if length < 1:
                raise ValueError(f"size: axis {axis} is {length}; it must be at least 1")
            if not 1 <= width <= length:
                raise ValueError(f"tile: axis {axis} is {width}; it must be between 1 and the canvas's {length}")
            if not 0 <= shared < width:
                raise ValueError(
                    f"overlap: axis {axis} is {shared}; it must be between 0 and {width - 1} (tile is {width})"
                )
            count = axis_count(Axis(length, width, shared, wraps[axis]))
            if count > MAX_AXIS_TILES:
                raise ValueError(
                    f"tile: axis {axis} would have {count:,} tiles (size {length}, tile {width}, overlap {shared}), "
                    f"more than {MAX_AXIS_TILES:,}; use larger tiles{' or a smaller overlap' if shared else ''}"
                )
        set_field = object.__setattr__
        set_field(self, "size", sizes)
        set_field(self, "tile", tiles)
        set_field(self, "overlap", overlaps)
        set_field(self, "wrap", wraps)
        set_field(self, "grid", tuple(map(axis_count, self.axes)))
        set_field(self, "num_tiles", math.prod(self.grid))

    @property
    def axes(self) -> tuple[Axis, ...]:
        """The layout axis by axis."""
        return tuple(Axis(*values) for values in zip(self.size, self.tile, self.overlap, self.wrap, strict=True))

    @property
    def step(self) -> tuple[int, ...]:
        """Distance between tile origins, tile - overlap, per axis."""
        return tuple(w - o for w, o in zip(self.tile, self.overlap, strict=True))

    @property
    def axis_origins(self) -> tuple[tuple[int, ...], ...]:
        """Origins along each axis on its own; `origins` is their product."""
        return tuple(axis_origins(axis) for axis in self.axes)

    @property
    def origins(self) -> tuple[tuple[int, ...], ...]:
        """Canvas coordinates of every tile's first position, row-major over `grid`."""
        return tuple(itertools.product(*self.axis_origins))

    @property
    def tile_positions(self) -> int:
        """Positions in one tile (N, the canvas tokens of a tile's sequence)."""
        return math.prod(self.tile)

    def scaled(self, factor: Ints) -> TileLayout:
        """The same layout in units `factor` times as large (an int, or one per axis).

        Divides size, tile and overlap exactly; origins are this layout's divided by `factor`.

        Raises:
            ValueError: a value that `factor` does not divide, naming it.
        """
        factors = _int_tuple("factor", factor, len(self.size))
        for axis, k in enumerate(factors):
            if k < 1:
                raise ValueError(f"factor: axis {axis} is {k}; it must be at least 1")
            for name, values in (("size", self.size), ("tile", self.tile), ("overlap", self.overlap)):
                if values[axis] % k:
                    below, above = values[axis] // k * k, (values[axis] // k + 1) * k
                    works = f"the nearest that work are {below} and {above}" if below else f"the least is {above}"
                    raise ValueError(
                        f"scaled({factor}): {name} on axis {axis} is {values[axis]}, which {k} does not divide; {works}"
                    )
        return _layout(
            tuple(v // k for v, k in zip(self.size, factors, strict=True)),
            tuple(v // k for v, k in zip(self.tile, factors, strict=True)),
            tuple(v // k for v, k in zip(self.overlap, factors, strict=True)),
            self.wrap,
        )

    def as_ints(self) -> list[int]:
        """The layout as one flat list of 4 ints an axis (what crosses an operator's schema); see `from_ints`."""
        return [*self.size, *self.tile, *self.overlap, *map(int, self.wrap)]

    @staticmethod
    def from_ints(values: Sequence[int]) -> TileLayout:
        """The layout that `as_ints` describes (cached by value)."""
        return _layout_from_ints(tuple(values))

    def plot(self, path: str | os.PathLike[str], halo: Ints | str = 0, tile: int | None = None) -> None:
        """Draws canvas, tiles, overlaps and one tile's halo with its owners to a picture file.

        Args:
            path: where to write; the ending chooses the format (.png, .svg, .pdf).
            halo: the reach to draw, as in `cross_tile_attention`.
            tile: which tile's halo to draw; default the one in the middle of the grid.

        Needs matplotlib (`pip install 'tiledattn[cli]'`). Canvases of 3 axes are drawn in their last two.
        """
        from ..plotting import plot_layout

        plot_layout(self, path, halo=halo, tile=tile)


@lru_cache(maxsize=1024)
def _layout(
    size: tuple[int, ...], tile: tuple[int, ...], overlap: tuple[int, ...], wrap: tuple[bool, ...]
) -> TileLayout:
    return TileLayout(size, tile, overlap, wrap)


@lru_cache(maxsize=1024)
def _layout_from_ints(values: tuple[int, ...]) -> TileLayout:
    n = len(values) // 4
    return TileLayout(values[:n], values[n : 2 * n], values[2 * n : 3 * n], [bool(v) for v in values[3 * n :]])


def _int_tuple(name: str, value: Ints, axes: int | None) -> tuple[int, ...]:
    """`value` as one int per axis; `axes` None takes the number of axes from the value itself."""
    values = (value,) * (axes or 1) if isinstance(value, Integral) else value
    if not isinstance(values, Sequence) or isinstance(values, (bytes, bytearray)):
        raise TypeError(f"{name}: got {value!r}; expected an int or a tuple of ints, one per axis")
    for axis, item in enumerate(values):
        if not is_whole(item):  # NumPy's integers are among these
            raise TypeError(f"{name}: axis {axis} is {item!r} ({type(item).__name__}); expected an int")
    if axes is not None and len(values) != axes:
        raise ValueError(f"{name}: got {len(values)} values {tuple(values)}; the canvas has {axes} axes")
    return tuple(map(int, values))


def _bool_tuple(name: str, value: Bools, axes: int) -> tuple[bool, ...]:
    values = (value,) * axes if isinstance(value, bool) else value
    if not isinstance(values, Sequence) or not all(isinstance(v, bool) for v in values):
        raise TypeError(f"{name}: got {value!r}; expected a bool or a tuple of bools, one per axis")
    if len(values) != axes:
        raise ValueError(f"{name}: got {len(values)} values {tuple(values)}; the canvas has {axes} axes")
    return tuple(values)
