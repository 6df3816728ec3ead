"""Extents of tiles in the user's units, axis by axis, and in positions of the canvas."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Literal

from ..geometry.numbers import is_whole

Extent = int | Sequence[int]


@dataclass(frozen=True)
class AxisUnit:
    """How one axis of the canvas is counted.

    Attributes:
        name: "frames", "height" or "width".
        unit: what the user counts in: "pixel", "frame" or "latent".
        scale: the user's units per position.
        granularity: what lengths must be multiples of, in positions.
        first: how many units the first position stands for: 1 for the frames of causal video VAEs (4k + 1 frames make
            k + 1 latents), else `scale`.
    """

    name: str
    unit: str
    scale: int
    granularity: int
    first: int

    def length(self, label: str, value: int) -> int:
        """Positions of a tile or canvas of `value` units.

        Raises:
            ValueError: naming the nearest lengths that work.
        """
        if self.first == self.scale:
            check_multiple(label, value, self.granularity * self.scale, self.unit, 1)
            return value // self.scale
        positions, rest = divmod(value - self.first, self.scale)
        if rest == 0 and (positions + 1) % self.granularity == 0:
            return positions + 1
        step = self.granularity * self.scale
        least = self.units(self.granularity)
        below = least + max(0, value - least) // step * step
        near = [below] if value < least else [below, below + step]
        nearest = f"nearest are {near[0]} and {near[1]}" if len(near) == 2 else f"nearest is {near[0]}"
        raise ValueError(
            f"{label}: got {value} {self.unit}s; it must be {least} or a multiple of {step} more here; the {nearest}"
        )

    def units(self, positions: int) -> int:
        """The user's units that `positions` from the canvas's beginning stand for."""
        return self.first + (positions - 1) * self.scale


def read_tile(tile: Extent | None, axes: tuple[AxisUnit, ...], native: tuple[int, ...]) -> tuple[int, ...]:
    """The tile in positions; axes that `tile` doesn't speak of are of native length.

    An int or a pair speaks of height and width.
    """
    values: list[int | None] = [None] * len(axes) if tile is None else _spread("tile", tile, axes, 1)
    out = []
    for axis, value, whole in zip(axes, values, native, strict=True):
        if value is None:
            out.append(max(axis.granularity, whole // axis.granularity * axis.granularity))
        else:
            out.append(axis.length(f"tile {axis.name}", value))
    return tuple(out)


def read_overlap(overlap: Extent, axes: tuple[AxisUnit, ...], tile: tuple[int, ...]) -> tuple[int, ...]:
    """The overlap in positions; 0 on axes that `overlap` doesn't speak of."""
    out = []
    for axis, value, width in zip(axes, _spread("overlap", overlap, axes, 0), tile, strict=True):
        if value is None:
            out.append(0)
            continue
        label, whole = f"overlap {axis.name}", axis.units(width)
        if value >= whole:
            raise ValueError(f"{label}: got {value} {axis.unit}s; it must be below the tile's {whole}")
        check_multiple(label, value, axis.granularity * axis.scale, axis.unit, 0)
        out.append(value // axis.scale)
    return tuple(out)


def read_halo(
    halo: Extent | str | None, axes: tuple[AxisUnit, ...], tile: tuple[int, ...], part: int
) -> tuple[int, ...] | Literal["all"]:
    """The halo in positions; tile / `part` where `halo` doesn't speak of an axis, unless it is 0 elsewhere."""
    shares = tuple(max(1, length // part) for length in tile)
    if halo is None:
        return shares
    if isinstance(halo, str):
        if halo != "all":
            raise ValueError(f'halo: got {halo!r}; expected an int, {_names(axes)} or "all"')
        return "all"
    values = _spread("halo", halo, axes, 0)
    out = []
    for axis, value, share in zip(axes, values, shares, strict=True):
        if value is None:
            out.append(share if any(values) else 0)
        else:
            check_multiple(f"halo {axis.name}", value, axis.scale, axis.unit, 0)
            out.append(value // axis.scale)
    return tuple(out)


def read_wrap(wrap: object, axes: tuple[AxisUnit, ...]) -> tuple[bool, ...]:
    """Which axes are periodic; a bool or a pair speaks of height and width."""
    values = [wrap, wrap] if isinstance(wrap, bool) else wrap
    names = _names(axes)
    if not isinstance(values, Sequence) or isinstance(values, str) or not all(isinstance(v, bool) for v in values):
        raise TypeError(f"wrap: got {wrap!r}; expected True, False or one of them per axis {names}")
    if len(values) not in (2, len(axes)):
        raise ValueError(f"wrap: got {len(values)} values {tuple(values)}; expected a bool or {names}")
    return (False,) * (len(axes) - len(values)) + tuple(values)


def check_multiple(name: str, value: int, multiple: int, unit: str, least: int) -> None:
    """Raises ValueError naming the nearest multiples, `least` times `multiple` at least."""
    if value % multiple == 0 and value >= least * multiple:
        return
    below = value // multiple * multiple
    near = [v for v in (below, below + multiple) if v >= least * multiple]
    nearest = f"nearest are {near[0]} and {near[1]}" if len(near) == 2 else f"nearest is {near[0]}"
    raise ValueError(f"{name}: got {value} {unit}s; it must be a multiple of {multiple} here; the {nearest}")


def _names(axes: tuple[AxisUnit, ...]) -> str:
    whole = f"({', '.join(axis.name for axis in axes)})"
    return whole if len(axes) == 2 else f"(height, width) or {whole}"


def _spread(name: str, value: object, axes: tuple[AxisUnit, ...], least: int) -> list[int | None]:
    """One value per axis; None on axes that `value` doesn't speak of."""
    values = [value, value] if isinstance(value, Integral) else value
    unit = axes[-1].unit
    if not isinstance(values, Sequence) or isinstance(values, str):
        raise TypeError(f"{name}: got {value!r} ({type(value).__name__}); expected an int in {unit}s or {_names(axes)}")
    if len(values) not in (2, len(axes)):
        raise ValueError(f"{name}: got {len(values)} values {tuple(values)}; expected an int or {_names(axes)}")
    for axis, item in zip(axes[-len(values) :], values, strict=True):
        if not is_whole(item):
            raise TypeError(f"{name}: got {item!r} ({type(item).__name__}); expected a whole number of {axis.unit}s")
        if item < least:
            raise ValueError(f"{name}: got {item}; it must be at least {least}")
    return [None] * (len(axes) - len(values)) + [int(item) for item in values]
