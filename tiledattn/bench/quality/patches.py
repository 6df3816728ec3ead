"""Statistics of patches: against photographs, across against along the seams, and against one another.

Pictures are [S, C, H, W], one a seed, with seams across x, which may be periodic. Patches *on* a seam are centred on a
seam line, patches *inside* on its control lines (`tiledattn.metrics`), so both carry the model's own marks of that
phase. Intervals are Student's on the logarithm, the variance by the jackknife over pictures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...geometry import TileLayout
from ...metrics import Interval, control_lines, interval, seam_lines
from ...metrics.intervals import student_t
from ...metrics.lines import Where

Floats = NDArray[np.float64]

PATCH = 8
BLOCK = 16
DIRECTIONS = 128
QUANTILES = 64
_LUMA = np.array([0.299, 0.587, 0.114])


def jackknife(statistic: Callable[[Any], float], count: int, confidence: float = 0.95) -> Interval:
    """A positive statistic of pictures with its interval.

    Args:
        statistic: of an array of picture numbers.
        count: how many pictures there are; of a single one the bounds are NaN.
        confidence: probability that the interval holds the true value.
    """
    everything = np.arange(count)
    centre = math.log(statistic(everything))
    if count < 2:
        return Interval(math.exp(centre), math.nan, math.nan, count, confidence)
    left_out = np.array([math.log(statistic(np.delete(everything, one))) for one in range(count)])
    spread = math.sqrt((count - 1) / count * float(((left_out - left_out.mean()) ** 2).sum()))
    apart = student_t(confidence, count - 1) * spread
    return Interval(math.exp(centre), math.exp(centre - apart), math.exp(centre + apart), count, confidence)


def windows_at(pictures: Any, lines: Sequence[int], side: int, step: int) -> Floats:
    """Square windows centred on lines of the x axis, round its ends, [S, windows, C, side, side]; rows `step` apart."""
    data = np.asarray(pictures, dtype=np.float64)
    columns = (np.asarray(lines)[:, None] + np.arange(-(side // 2), side - side // 2)) % data.shape[-1]
    rows = np.arange(0, data.shape[-2] - side + 1, step)[:, None] + np.arange(side)
    cut = data[:, :, rows][..., columns]  # [S, C, windows down, side, lines, side]
    windows: Floats = cut.transpose(0, 2, 4, 1, 3, 5).reshape(len(data), -1, data.shape[1], side, side)
    return windows


def lines_of(layout: TileLayout, period: int, where: Where = "owner") -> tuple[list[int], list[int]]:
    """The seam lines across x, and as many control lines: for each seam line that nearest to the middle of the cell.

    The cell is the one behind the seam; the last ends where the canvas does, or on a periodic axis at the first seam.

    `where` as in `tiledattn.metrics.seam_lines`.
    """
    seams = list(seam_lines(layout, 1, where))
    inside = []
    for place, line in enumerate(seams):
        end = layout.size[1] + seams[0] if layout.wrap[1] else layout.size[1]
        following = seams[place + 1] if place + 1 < len(seams) else end
        middle = (line + following) / 2 % layout.size[1]
        lines = control_lines(layout, 1, line, period, where)
        inside.append(min(lines, key=lambda one: _apart(one, middle, layout.size[1])))
    return seams, inside


def patch_distance(
    pictures: Any, layout: TileLayout, period: int, photographs: Sequence[Any], where: Where = "owner"
) -> dict[str, Interval]:
    """Sliced Wasserstein distance of patches to those of photographs: {"seam", "inside", "ratio"}.

    Patches are 8 x 8 pixels, less their mean colour. They are projected to random directions; on each the squared
    distance between the sorted values (the quantiles) of both sets is averaged, and the root of the mean over
    directions is the distance (Rabin et al. 2011; for judging pictures Karras et al. 2018). "seam" and "inside" take
    equally many patches, so that what their ratio, 1.0 where seams look like the inside, owes to their number cancels.

    Args:
        pictures: [S, C, H, W] in [0, 1].
        layout: in pixels.
        period: as in `tiledattn.metrics.control_lines`.
        photographs: [C, H, W] each, in [0, 1].
        where: as in `tiledattn.metrics.seam_lines`.
    """
    on, off = _distances(pictures, layout, period, photographs, where)
    count = len(pictures)
    return {
        "seam": jackknife(on, count),
        "inside": jackknife(off, count),
        "ratio": jackknife(lambda some: on(some) / off(some), count),
    }


def patch_ratio_to(
    pictures: Any, others: Any, layout: TileLayout, period: int, photographs: Sequence[Any], where: Where = "owner"
) -> Interval:
    """`patch_distance`'s "ratio" of pictures over that of others with the same noise, on the same lines.

    The jackknife leaves out a picture and its other together. Arguments as there.
    """
    return patch_ratio_over((pictures, layout, where), (others, layout, where), period, photographs)


def patch_ratio_over(
    some: tuple[Any, TileLayout, Where],
    others: tuple[Any, TileLayout, Where],
    period: int,
    photographs: Sequence[Any],
) -> Interval:
    """The same of pictures that have seams elsewhere than the others: each is (pictures, layout, where)."""
    (on, off), (other_on, other_off) = (
        _distances(pictures, layout, period, photographs, where) for pictures, layout, where in (some, others)
    )
    return jackknife(lambda one: on(one) / off(one) * other_off(one) / other_on(one), len(some[0]))


def _distances(
    pictures: Any, layout: TileLayout, period: int, photographs: Sequence[Any], where: Where
) -> tuple[Callable[[Any], float], Callable[[Any], float]]:
    """The distance to photographs on seams and inside, each of an array of picture numbers."""
    rng = np.random.default_rng(0)
    seams, inside = lines_of(layout, period, where)
    directions = rng.standard_normal((np.shape(pictures)[1] * PATCH * PATCH, DIRECTIONS))
    directions /= np.linalg.norm(directions, axis=0)
    truth = _quantiles(np.concatenate([_anywhere(one, rng) for one in photographs]) @ directions)
    seam, other = (
        _flat(windows_at(pictures, lines, PATCH, 2)) @ directions for lines in (seams, inside)
    )  # [S, patches, directions]

    def distance(values: Floats) -> Callable[[Any], float]:
        known: dict[tuple[int, ...], float] = {}  # ratios ask for the same sets again

        def of(some: Any) -> float:
            if tuple(some) not in known:
                apart = _quantiles(values[some].reshape(-1, DIRECTIONS)) - truth
                known[tuple(some)] = math.sqrt(float((apart**2).mean()) + 1e-18)
            return known[tuple(some)]

        return of

    return distance(seam), distance(other)


def spectrum(pictures: Any, layout: TileLayout, period: int, where: Where = "owner") -> Interval:
    """Power across over power along the seams, on the seams, relative to the same inside the tiles; 1.0 is seamless.

    Of the power spectrum of 16 x 16 blocks of luminance (less their mean, under a Hann taper) the power of
    frequencies nearer to the x axis is variation across the seams, nearer to the y axis along them. An edge adds to
    the first alone, a blur takes from both but more from the first.
    """
    on, off = (_wedges(windows_at(pictures, lines, BLOCK, BLOCK // 2)) for lines in lines_of(layout, period, where))

    def ratio(some: Any) -> float:
        (across, along), (other_across, other_along) = on[some].sum(axis=0), off[some].sum(axis=0)
        return float((across / along) / (other_across / other_along))

    return jackknife(ratio, len(on))


def across_along(pictures: Any) -> float:
    """Power of x frequencies over power of y frequencies anywhere in pictures [S, C, H, W], as in `spectrum`."""
    columns = range(BLOCK // 2, np.shape(pictures)[-1] - BLOCK // 2 + 1, BLOCK)
    across, along = _wedges(windows_at(pictures, columns, BLOCK, BLOCK // 2)).sum(axis=0)
    return float(across / along)


def photograph_spectrum(photographs: Sequence[Any]) -> float:
    """The same of photographs [C, H, W], the mean of their logarithms."""
    return math.exp(float(np.mean([math.log(across_along(one[None])) for one in photographs])))


def repetition(pictures: Any, apart: int) -> Interval:
    """How alike the most similar far patches are: mean over 16 x 16 patches of the largest correlation with another.

    Patches of luminance, less their mean and of norm 1, at every eighth position are compared with all at every second
    whose distance along the periodic x axis is at least `apart` pixels. 1.0: every patch has a copy. Regular materials
    (a wall) are far above 0 by themselves; compare with the untiled run.
    """
    values = []
    for picture in np.asarray(pictures, dtype=np.float64):
        luma = (_LUMA @ picture.reshape(3, -1)).reshape(1, 1, *picture.shape[1:])
        width = picture.shape[2]
        columns = np.arange(0, width, 2)
        found = _unit(windows_at(luma, list(columns), BLOCK, 2)[0, :, 0])
        down = found.shape[0] // len(columns)
        candidates = found.reshape(down, len(columns), -1)
        queries = candidates[::4, ::4]
        likeness = np.einsum("abk,cdk->abcd", queries, candidates, optimize=True)
        away = np.abs(columns[::4, None] - columns)
        likeness[:, np.minimum(away, width - away)[:, None, :].repeat(down, axis=1) < apart] = -1.0
        values.append(float(likeness.max(axis=(2, 3)).mean()))
    return interval(values)


def _apart(line: float, other: float, length: int) -> float:
    away = abs(line - other) % length
    return min(away, length - away)


def _anywhere(photograph: Any, rng: np.random.Generator, count: int = 4096) -> Floats:
    """Patches at random places, half of them mirrored as in training."""
    data = np.asarray(photograph, dtype=np.float64)
    rows = rng.integers(0, data.shape[1] - PATCH + 1, count)
    columns = rng.integers(0, data.shape[2] - PATCH + 1, count)
    cut = np.lib.stride_tricks.sliding_window_view(data, (PATCH, PATCH), axis=(1, 2))[:, rows, columns]
    patches = cut.transpose(1, 0, 2, 3).copy()
    patches[: count // 2] = patches[: count // 2, ..., ::-1]
    return _flat(patches)


def _flat(patches: Floats) -> Floats:
    """Patches [..., C, h, w] less their mean colour, [..., C * h * w]."""
    level: Floats = patches - patches.mean(axis=(-2, -1), keepdims=True)
    return level.reshape(*patches.shape[:-3], -1)


def _quantiles(values: Floats) -> Floats:
    """Quantiles of every column, [QUANTILES, columns]."""
    ordered = np.sort(np.ascontiguousarray(values.T), axis=1)  # rows in memory's order sort many times faster
    places = (np.arange(QUANTILES) + 0.5) / QUANTILES * (ordered.shape[1] - 1)
    below = np.floor(places).astype(np.int64)
    above, share = np.minimum(below + 1, ordered.shape[1] - 1), places - below
    found: Floats = (ordered[:, below] * (1 - share) + ordered[:, above] * share).T
    return found


def _wedges(blocks: Floats) -> Floats:
    """Power nearer to the x axis and nearer to the y axis, [S, 2], of blocks [S, blocks, C, side, side]."""
    side = blocks.shape[-1]
    luma = np.einsum("c,sbcyx->sbyx", _LUMA, blocks)
    line = np.hanning(side + 2)[1:-1]
    taper = line[:, None] * line
    level = luma - (luma * taper).sum(axis=(-2, -1), keepdims=True) / taper.sum()
    power = np.abs(np.fft.fft2(level * taper)) ** 2
    frequency = np.abs(np.fft.fftfreq(side))
    y, x = frequency[:, None], frequency[None, :]
    wedges: Floats = np.stack([power[..., x > y].sum(axis=(1, 2)), power[..., x < y].sum(axis=(1, 2))], axis=-1)
    return wedges


def _unit(blocks: Floats) -> Floats:
    """Blocks [N, side, side] less their mean, of norm 1, flat; flat blocks become 0."""
    flat = blocks.reshape(len(blocks), -1)
    flat = flat - flat.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(flat, axis=1, keepdims=True)
    unit: Floats = np.where(norms > 1e-9, flat / np.maximum(norms, 1e-9), 0.0)
    return unit
