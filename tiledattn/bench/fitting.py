"""The exponent of a power law and how well measurements settle it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

RESAMPLES = 2000
# Quantiles 0.975 of Student's t for 1, 2, 3 ... degrees of freedom; beyond, the normal one is within 4%.
_T = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
)
_T_NORMAL = 1.960


class Exponent(NamedTuple):
    """The slope of log y over log x, and a 95% interval that holds it."""

    value: float
    low: float
    high: float


def fit(xs: Sequence[float], samples: ArrayLike, seed: int = 0) -> Exponent:
    """The exponent p of y = c * x^p by least squares on logarithms, with an interval.

    The interval is the wider, on each side, of two: Student's t with the residuals of the medians about the line, which
    knows how far they are from a power law (from 3 points on), and a bootstrap over rounds, which knows their noise
    (from 2 rounds on). Rounds are drawn whole, since what disturbs one sample of a round disturbs its others as well.

    Args:
        xs: sizes, two different ones or more, positive.
        samples: y, [rounds, points] or [points], positive.
        seed: of the bootstrap.

    Raises:
        ValueError: too few sizes, or a value that is not positive.
    """
    sizes, values = np.asarray(xs, dtype=np.float64), np.atleast_2d(np.asarray(samples, dtype=np.float64))
    if len(np.unique(sizes)) < 2:
        raise ValueError(f"xs: got {list(xs)}; a slope needs two different sizes or more")
    if values.shape[1:] != sizes.shape:
        raise ValueError(f"samples: got shape {values.shape}; expected [rounds, {len(sizes)}]")
    if not (np.all(sizes > 0) and np.all(values > 0)):
        raise ValueError("xs, samples: a logarithm needs positive values")
    x = np.log(sizes) - np.log(sizes).mean()
    medians = np.log(np.median(values, axis=0))
    value = float(_slopes(x, medians))
    lows, highs = [value], [value]
    if len(sizes) > 2:
        residuals = medians - medians.mean() - value * x
        free = len(sizes) - 2
        error = float(np.sqrt(residuals @ residuals / free / (x @ x)))
        reach = error * (_T[free - 1] if free <= len(_T) else _T_NORMAL)
        lows.append(value - reach)
        highs.append(value + reach)
    if len(values) > 1:
        drawn = np.random.default_rng(seed).integers(len(values), size=(RESAMPLES, len(values)))
        slopes = _slopes(x, np.log(np.median(values[drawn], axis=1)))
        lows.append(float(np.quantile(slopes, 0.025)))
        highs.append(float(np.quantile(slopes, 0.975)))
    return Exponent(value, min(lows), max(highs))


def _slopes(x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of y, [..., points], over centred x."""
    slopes: NDArray[np.float64] = np.asarray(y @ x / (x @ x))
    return slopes
