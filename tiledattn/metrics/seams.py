"""Seam contrast and wrap score: gradients on seams against gradients elsewhere."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..geometry import TileLayout
from .arrays import CHANNELS_FIRST, Floats, axes_of, axis_of, check_layout, log_ratio, numbers, pictures_of
from .lines import Where, check_period, control_lines, no_seam, seam_lines


def seam_gradients(
    pictures: Any,
    layout: TileLayout,
    period: int = 1,
    *,
    axis: int | None = None,
    where: Where = "owner",
) -> tuple[Floats, Floats]:
    """Mean |gradient| across the seam lines, and across their control lines.

    The gradient across line p is x[p] - x[p - 1]; its absolute value is averaged over channels and along the
    line, then over the seam lines of all axes (of one if `axis` is given). The second result averages, over
    the same seam lines, the mean over each one's `control_lines`.

    Args:
        pictures: ``[..., C, *size]``.
        layout: the layout in pixels.
        period: as in `control_lines`.
        axis: one axis of the layout; default all that have seams.
        where: as in `seam_lines`.

    Returns:
        Two arrays of the leading shape.

    Raises:
        TypeError: pictures that are not an array or tensor of real numbers.
        ValueError: a shape that does not end in the layout's size, no values or values that are not finite, no seam
            at all, or no control line.
    """
    check_period(period)
    data = pictures_of(pictures, layout)
    seam: list[Floats] = []
    control: list[Floats] = []
    for index in axes_of(layout, axis):
        lines = seam_lines(layout, index, where)
        if not lines:
            continue
        profile = _line_gradients(data, layout, index)
        phases: dict[int, Floats] = {}
        for p in lines:
            if p % period not in phases:
                chosen = list(control_lines(layout, index, p, period, where))
                phases[p % period] = profile[..., chosen].mean(axis=-1)
            seam.append(profile[..., p])
            control.append(phases[p % period])
    if not seam:
        raise no_seam(layout)
    return np.mean(seam, axis=0), np.mean(control, axis=0)


def seam_contrast(
    pictures: Any,
    layout: TileLayout,
    period: int = 1,
    *,
    axis: int | None = None,
    where: Where = "owner",
) -> Floats:
    """Mean |gradient| on the seam lines / mean |gradient| on control lines of the same orientation and phase.

    1.0 is seamless; above it there is an edge, below it a blur, as averaging in an overlap leaves. Arguments,
    shapes and errors as in `seam_gradients`, whose two results it divides, 1e-9 added to each so that a blank
    picture has 1.0. One picture has few seams, hence a noisy value: paint several seeds and give
    `seam_gradients` of them to `ratio_interval`.
    """
    contrast: Floats = np.exp(log_ratio(*seam_gradients(pictures, layout, period, axis=axis, where=where)))
    return contrast


def wrap_gradients(
    pictures: Any, layout: TileLayout | None = None, period: int = 1, *, axis: int = -1
) -> tuple[Floats, Floats]:
    """Mean |gradient| across the line where an axis's two ends meet, x[0] - x[L - 1], and across control
    lines.

    Args:
        pictures: ``[..., C, *size]``; without a layout, ``[..., C, H, W]``.
        layout: the layout in pixels, for control lines away from its seams; without it, away from the ends.
        period: as in `control_lines`; the control lines are multiples of it.
        axis: the periodic axis of the layout; without one, -1 for x and -2 for y.

    Returns:
        Two arrays of the leading shape.

    Raises:
        TypeError: as `seam_gradients`.
        ValueError: as `seam_gradients`, and an axis that the pictures don't have or that is one position long.
    """
    if layout is None:
        shape = numbers("pictures", pictures).shape
        if len(shape) < 3 or 0 in shape:
            raise ValueError(f"pictures: got shape {tuple(shape)}; expected [..., C, H, W], none of them 0")
        if shape[-1] in (3, 4) and shape[-3] not in (1, 3, 4):
            raise ValueError(f"pictures: got shape {tuple(shape)}; expected [..., C, H, W]; {CHANNELS_FIRST}")
        layout = TileLayout(shape[-2:], shape[-2:], 0, True)
    check_layout(layout)
    index = axis_of(layout, axis)
    if layout.size[index] == 1:
        raise ValueError(f"axis: got {axis}, which is one position long; nothing lies between its ends")
    profile = _line_gradients(pictures_of(pictures, layout), layout, index)
    lines, length = control_lines(layout, index, 0, period), layout.size[index]
    clear = [p for p in lines if min(p, length - p) >= layout.tile[index] // 4]
    return profile[..., 0], profile[..., clear or list(lines)].mean(axis=-1)


def wrap_score(pictures: Any, layout: TileLayout | None = None, period: int = 1, *, axis: int = -1) -> Floats:
    """Seam contrast of the line where the wrapped ends meet: at 1.0 the last column continues into the first.

    Arguments, shapes and errors as in `wrap_gradients`, whose two results it divides, 1e-9 added to each. One
    picture has a single such line, hence a noisy value: paint several seeds and give `wrap_gradients` of them to
    `ratio_interval`.
    """
    score: Floats = np.exp(log_ratio(*wrap_gradients(pictures, layout, period, axis=axis)))
    return score


def _line_gradients(data: Floats, layout: TileLayout, axis: int) -> Floats:
    """Mean |x[p] - x[p - 1]| over everything but the leading axes and the line's place p, [..., L]."""
    place = axis - len(layout.size)
    steps = np.abs(data - np.roll(data, 1, axis=place))
    others = tuple(a for a in range(-len(layout.size) - 1, 0) if a != place)
    mean: Floats = steps.mean(axis=others)
    return mean
