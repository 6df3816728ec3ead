"""Overlap disagreement: how far neighbouring tiles' predictions are apart before they are blended."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np

from ..geometry import TileLayout
from ..geometry.axis import Axis, axis_origins
from .arrays import check_filled, numbers


def overlap_disagreement(tiles: Any, layout: TileLayout) -> float:
    """RMS difference of neighbouring tiles' predictions where they overlap, before blending.

    sqrt(mean((a - b)^2)) over all pairs of tiles that are adjacent along an axis (round the end of a periodic
    one), all positions that both contain, the batch and the channels. Tiles that agree have 0; independent
    predictions of standard deviation s have s * sqrt(2). One call per denoising step gives the curve over
    steps.

    Args:
        tiles: ``[T, B, C, *tile]``, tensor or array, as the model predicts them.
        layout: their layout in the tiles' own unit (latents).

    Returns:
        The RMS, or NaN for a layout in which no tiles overlap.

    Raises:
        TypeError: tiles that are not an array or tensor of real numbers.
        ValueError: a shape other than the layout's, no values, or values that are not finite.
    """
    if not isinstance(layout, TileLayout):
        raise TypeError(f"layout: got {type(layout).__name__}; expected a TileLayout")
    data = numbers("tiles", tiles)
    axes = len(layout.tile)
    if data.ndim != 3 + axes or data.shape[0] != layout.num_tiles or data.shape[3:] != layout.tile:
        expected = ", ".join(map(str, (layout.num_tiles, "B", "C", *layout.tile)))
        raise ValueError(f"tiles: got shape {data.shape}; expected [{expected}] for {layout}")
    check_filled("tiles", data)
    grid = data.reshape(*layout.grid, *data.shape[1:])
    total, count = 0.0, 0
    for index, line in enumerate(layout.axes):
        for first, second, shared in _adjacent(line):
            place = index - axes
            a = np.take(np.take(grid, first, axis=index), range(line.tile - shared, line.tile), axis=place)
            b = np.take(np.take(grid, second, axis=index), range(shared), axis=place)
            total += float(((a - b) ** 2).sum())
            count += a.size
    return math.sqrt(total / count) if count else math.nan


def _adjacent(line: Axis) -> list[tuple[int, int, int]]:
    """Pairs of tiles that follow each other on an axis, with how many positions they share (at least one)."""
    origins = axis_origins(line)
    pairs = list(itertools.pairwise(range(len(origins))))
    if line.wrap and len(origins) > 1:
        pairs.append((len(origins) - 1, 0))
    shared = [(a, b, line.tile - (origins[b] - origins[a]) % line.length) for a, b in pairs]
    return [(a, b, n) for a, b, n in shared if n > 0]
