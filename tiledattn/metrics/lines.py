"""Where the seams of a layout lie, and which lines to compare them with."""

from __future__ import annotations

import itertools
from typing import Literal

import numpy as np

from ..geometry import TileLayout
from ..geometry.axis import axis_origins, axis_owners
from ..geometry.numbers import is_whole
from .arrays import axis_of

Where = Literal["owner", "border"]


def seam_lines(layout: TileLayout, axis: int, where: Where = "owner") -> tuple[int, ...]:
    """The seam lines of an axis, ascending; line p stands between positions p - 1 and p (modulo the length).

    Args:
        layout: the layout, in the pictures' unit (pixels).
        axis: which axis of the layout; negative values count from the last.
        where: "owner" puts one line where the tile changes in which a position lies deepest (the tiles'
            borders at overlap 0, else the middle of the overlap); "border" puts lines at both ends of every
            tile, where a uniform window has its jumps.

    Line 0 is among them only on a periodic axis.

    Raises:
        ValueError: an axis that the layout lacks, or an unknown `where`.
    """
    line = layout.axes[axis_of(layout, axis)]
    if where == "owner":
        owners = axis_owners(line)
        places = np.flatnonzero(owners != np.roll(owners, 1))
        found = set(places.tolist()) | ({0} if line.wrap and places.size == 0 else set())
    elif where == "border":
        origins = np.asarray(axis_origins(line))
        found = set(np.concatenate((origins, (origins + line.tile) % line.length)).tolist())
    else:
        raise ValueError(f'where: got {where!r}; expected "owner" or "border"')
    return tuple(sorted(int(p) for p in found if line.wrap or p != 0))


def control_lines(layout: TileLayout, axis: int, line: int, period: int = 1, where: Where = "owner") -> tuple[int, ...]:
    """Lines of the same orientation and phase as a seam line that lie well inside the cells.

    They are the lines p with p = line (mod `period`) that are at least a quarter of the axis's shortest cell
    away from every seam line and, unless the axis is periodic, from the canvas's ends.

    Args:
        layout: the layout, in pixels.
        axis: which axis of the layout.
        line: the seam line to compare with.
        period: the grid on which the model itself leaves marks: pixels per latent, or per position of the
            UNet's coarsest level. Seam and control lines of one phase carry the same marks, which so cancel.
        where: as in `seam_lines`.

    Raises:
        ValueError: a period below 1 or so long that no line is left, or cells of one position only.
    """
    check_period(period)
    index = axis_of(layout, axis)
    length, periodic = layout.size[index], layout.wrap[index]
    cells = cell_lengths(layout, index, where)
    if max(cells) < 2:
        raise ValueError(f"layout: {layout} has cells of one position on axis {index}; no line lies inside them")
    clearance = max(1, min(cells) // 4)
    barriers = seam_lines(layout, index, where)
    if not periodic:
        barriers = (0, *barriers, length)
    candidates = np.arange(line % period, length, period)
    apart = np.abs(candidates[:, None] - np.asarray(barriers)[None, :])
    if periodic:
        apart = np.minimum(apart, length - apart)
    kept = candidates[(apart >= clearance).all(axis=1)]
    if kept.size == 0:
        raise ValueError(
            f"period: got {period}; no line on axis {index} has seam line {line}'s phase "
            f"and is {clearance} away from every seam; use a shorter period"
        )
    return tuple(int(p) for p in kept)


def cell_lengths(layout: TileLayout, axis: int, where: Where = "owner") -> tuple[int, ...]:
    """Lengths of the cells between the seam lines, and the ends of an axis that is not periodic."""
    length, seams = layout.size[axis], seam_lines(layout, axis, where)
    if layout.wrap[axis]:
        ends = (*seams, seams[0] + length)
    else:
        ends = (0, *seams, length)
    return tuple(b - a for a, b in itertools.pairwise(ends))


def check_period(period: int) -> None:
    """Raises the ValueError of a period that is no int of at least 1."""
    if not is_whole(period) or period < 1:
        raise ValueError(f"period: got {period!r}; expected an int of at least 1")


def no_seam(layout: TileLayout) -> ValueError:
    """The error for a layout without a seam."""
    return ValueError(f"layout: {layout} has no seam; it needs two tiles on an axis, or a periodic one")
