"""Tone step: do the tiles' means jump at the seams?"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..geometry import TileLayout
from .arrays import Floats, axes_of, log_ratio, pictures_of
from .lines import cell_lengths, no_seam, seam_lines


def tone_differences(pictures: Any, layout: TileLayout, *, axis: int | None = None) -> tuple[Floats, Floats]:
    """Mean |difference of half-cell means| across the seams, and inside the cells over the same distance.

    With d half the shortest cell of an axis, a line p has the difference between the means of positions
    [p, p + d) and [p - d, p), each taken within a cell of the other axes. Its absolute value is averaged over
    channels and cells, then over the lines: the seam lines for the first result, the cells' middles for the
    second. For pictures in [0, 1], 255 times a result is in grey levels.

    Args:
        pictures: ``[..., C, *size]``.
        layout: the layout in pixels.
        axis: one axis of the layout; default all that have seams.

    Returns:
        Two arrays of the leading shape.

    Raises:
        TypeError: pictures that are not an array or tensor of real numbers.
        ValueError: a shape that does not end in the layout's size, no values or values that are not finite, no seam
            at all, or cells of a single position.
    """
    data = pictures_of(pictures, layout)
    across: list[Floats] = []
    inside: list[Floats] = []
    for index in axes_of(layout, axis):
        lines = seam_lines(layout, index)
        if not lines:
            continue
        lengths = cell_lengths(layout, index)
        half = min(lengths) // 2
        if half < 1:
            raise ValueError(f"layout: {layout} has cells of one position on axis {index}; nothing is inside")
        starts = lines if layout.wrap[index] else (0, *lines)
        rows = _cell_rows(data, layout, index)
        across += [_step_at(rows, p, half) for p in lines]
        inside += [_step_at(rows, p + n // 2, half) for p, n in zip(starts, lengths, strict=True)]
    if not across:
        raise no_seam(layout)
    return np.mean(across, axis=0), np.mean(inside, axis=0)


def tone_step(pictures: Any, layout: TileLayout, *, axis: int | None = None) -> Floats:
    """Difference of tile means across a seam / the same distance inside tiles: 1.0 is seamless, above it
    tones jump.

    Where a picture's statistics don't depend on the place, both are means of one random variable. Arguments,
    shapes and errors as in `tone_differences`, whose two results it divides, 1e-9 added to each. One picture
    has few tiles, hence a noisy value: give `tone_differences` of several to `ratio_interval`.
    """
    step: Floats = np.exp(log_ratio(*tone_differences(pictures, layout, axis=axis)))
    return step


def _cell_rows(data: Floats, layout: TileLayout, axis: int) -> Floats:
    """Means over the cells of all other axes, [..., C, cells of the other axes, L]."""
    axes = len(layout.size)
    for other in range(axes):
        if other == axis:
            continue
        seams = seam_lines(layout, other)
        first = seams[0] if layout.wrap[other] else 0
        starts = [p - first for p in seams] if layout.wrap[other] else [0, *seams]
        rolled = np.roll(data, -first, axis=other - axes)
        lengths = np.diff([*starts, layout.size[other]])
        sums = np.add.reduceat(rolled, starts, axis=other - axes)
        data = sums / lengths.reshape([-1] + [1] * (axes - 1 - other))
    moved = np.moveaxis(data, axis - axes, -1)
    return moved.reshape(*moved.shape[:-axes], -1, layout.size[axis])


def _step_at(rows: Floats, line: int, half: int) -> Floats:
    """|mean of `half` positions after the line - mean of as many before it|, averaged over cells."""
    window = rows[..., (np.arange(-half, half) + line) % rows.shape[-1]]
    difference = window[..., half:].mean(axis=-1) - window[..., :half].mean(axis=-1)
    step: Floats = np.abs(difference).mean(axis=(-1, -2))
    return step
