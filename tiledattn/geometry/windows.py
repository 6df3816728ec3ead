"""Blend weights of a tile, per axis: shapes, and their normaliser.

A window is a product of one 1-D shape per axis, strictly positive inside the tile, so the sum of all tiles' windows at
a canvas position is a product too, and two or three small tables replace a count map.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from .axis import Axis, axis_origins
from .layout import TileLayout

WINDOWS = ("uniform", "hann", "linear", "gaussian")


def window_weights(kind: str, tile: int, overlap: int) -> NDArray[np.float64]:
    """The 1-D window of a tile along one axis, [tile] in float64, strictly positive.

    With x = (r + 1/2) / tile in (0, 1) for position r:

    - "uniform": 1 (plain averaging, as MultiDiffusion does);
    - "hann": sin^2 over a ramp as long as the overlap at either end, 1 between;
    - "linear": a straight ramp as long as the overlap at either end, 1 between;
    - "gaussian": exp(-(x - 1/2)^2 / (2 * 0.1^2)) + 1e-5 over the whole tile (Mixture of Diffusers, Jimenez 2023).

    Raises:
        ValueError: an unknown `kind`, naming the known ones; a tile below 1, or an overlap outside it.
    """
    if tile < 1 or not 0 <= overlap < tile:
        raise ValueError(f"tile, overlap: got {tile} and {overlap}; a tile is at least 1, its overlap 0 to {tile - 1}")
    place = np.arange(tile, dtype=np.float64)
    if kind == "uniform":
        return np.ones(tile)
    if kind == "gaussian":
        return np.asarray(np.exp(-(((place + 0.5) / tile - 0.5) ** 2) / (2 * 0.1**2)) + 1e-5)
    if kind not in WINDOWS:
        raise ValueError(f"window: got {kind!r}; known are {', '.join(WINDOWS)}, or one 1-D tensor per axis")
    nearer_end = np.minimum(place, place[::-1]) + 0.5
    rise = np.minimum(nearer_end / overlap, 1.0) if overlap else np.ones(tile)
    return np.asarray(np.sin(rise * (np.pi / 2)) ** 2 if kind == "hann" else rise)


def normalize_axis(axis: Axis, weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weights of every tile along an axis, [tiles, tile], divided by what all tiles sum to at each position.

    First by the largest there, so that no sum overflows or vanishes.
    """
    origins = np.asarray(axis_origins(axis), dtype=np.int64)
    places = (origins[:, None] + np.arange(axis.tile)) % axis.length
    largest, total = np.zeros(axis.length), np.zeros(axis.length)
    np.maximum.at(largest, places, np.broadcast_to(weights, places.shape))
    shares = weights / largest[places]
    np.add.at(total, places, shares)
    normalized: NDArray[np.float64] = shares / total[places]
    return normalized


@lru_cache(maxsize=256)
def normalized_windows(layout: TileLayout, kind: str) -> tuple[NDArray[np.float64], ...]:
    """Per axis, the blend weights of every tile, [tiles on the axis, tile], that sum to 1 at each canvas position.

    The weight of a tile at a position is the product over the axes.
    """
    tables = []
    for axis in layout.axes:
        table = normalize_axis(axis, window_weights(kind, axis.tile, axis.overlap))
        table.setflags(write=False)
        tables.append(table)
    return tuple(tables)
