"""Jitter: a grid of tiles that lies elsewhere at every step, so that no seam stays in one place."""

from __future__ import annotations

import random
from functools import lru_cache

from ..geometry import TileLayout
from .view import Place

_GOLDEN = (5**0.5 - 1) / 2  # its multiples, modulo 1, spread most evenly however many there are


@lru_cache(maxsize=256)
def jittered(layout: TileLayout, granularity: tuple[int, ...], seed: int, step: int) -> tuple[TileLayout, Place]:
    """A layout shifted by what a seed and a step say, the same for both calls of guidance and for all models.

    Height and width are shifted, each by a multiple of its granularity below one step (tile - overlap) of the layout.
    A periodic axis is turned, its layout being the same. Another axis gets as many positions in front as brings the
    grid there, so mostly one tile more; it stays as it is with one tile. Steps follow a sequence that spreads shifts
    evenly: any few steps in a row have their seams far apart.

    Args:
        layout: the layout that isn't shifted.
        granularity: what shifts must be multiples of, per axis.
        seed: where the sequence begins.
        step: the denoising step.

    Returns:
        The layout, and where it lies on the canvas.
    """
    rng = random.Random(seed)
    size, offset = list(layout.size), [0] * len(layout.size)
    for axis in (-2, -1):
        begin, unit = rng.random(), granularity[axis]
        choices = layout.step[axis] // unit
        if choices < 2 or (layout.grid[axis] == 1 and not layout.wrap[axis]):
            continue
        shift = unit * int((begin + step * _GOLDEN) % 1.0 * choices)
        if layout.wrap[axis]:
            offset[axis] = shift
        else:
            size[axis] += shift
            offset[axis] = -shift
    shifted = TileLayout(size, layout.tile, layout.overlap, layout.wrap)
    return shifted, Place(layout.size, tuple(offset), layout.wrap)
