"""Estimates with confidence intervals over pictures (seeds, prompts)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .arrays import finite, log_ratio


@dataclass(frozen=True)
class Interval:
    """An estimate and its confidence interval: `low` <= true value <= `high` with probability `confidence`.

    `low` and `high` are NaN where there are too few values to estimate the spread from; `high` is infinite where the
    values leave it open. `x in interval` tests whether x lies within, ends included.
    """

    value: float
    low: float
    high: float
    count: int
    confidence: float = 0.95

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high

    def __str__(self) -> str:
        if math.isnan(self.low):
            return f"{self.value:.2f}"
        return f"{self.value:.2f} ({self.low:.2f} to {self.high:.2f})"


def interval(values: ArrayLike, confidence: float = 0.95) -> Interval:
    """Mean of independent values (one per seed, say) with Student's t-interval: mean +- t * s / sqrt(n).

    Raises:
        TypeError: values or a confidence that are not real numbers.
        ValueError: no value, a value that is not finite, or a confidence outside (0, 1).
    """
    data = finite("values", values).ravel()
    _check_confidence(confidence)
    if data.size == 0:
        raise ValueError("values: got none; an interval needs at least one value")
    spread = float(data.std(ddof=1)) / math.sqrt(data.size) if data.size > 1 else math.nan
    reach, mean = student_t(confidence, data.size - 1) * spread, float(data.mean())
    return Interval(mean, mean - reach, mean + reach, int(data.size), confidence)


def ratio_interval(
    numerators: ArrayLike,
    denominators: ArrayLike,
    groups: ArrayLike | None = None,
    confidence: float = 0.95,
) -> Interval:
    """A pooled ratio with its interval, for measures that are a ratio of two means per picture.

    Per group (one per prompt, say; default all in one) the ratio is sum(numerators) / sum(denominators),
    which, unlike a mean of ratios, is not pulled up by a picture with a small denominator. The value is the
    geometric mean over groups. The interval is Student's on the logarithm, its variance by the jackknife that
    leaves out one picture at a time within its group, with (pictures - groups) degrees of freedom. A group of one
    picture tells nothing about its spread: the bounds are then NaN.

    Args:
        numerators: one per picture, e.g. the first result of `seam_gradients`.
        denominators: one per picture, e.g. the second.
        groups: one label per picture; numbers (not NaN) or strings.
        confidence: probability that the interval holds the true value.

    Raises:
        TypeError: values or a confidence that are not real numbers, labels of different types.
        ValueError: different numbers of values, none, negative or not finite ones, NaN labels, or a bad confidence.
    """
    top, bottom = finite("numerators", numerators).ravel(), finite("denominators", denominators).ravel()
    _check_confidence(confidence)
    labels = np.zeros(top.size, dtype=np.int64) if groups is None else np.asarray(groups).ravel()
    names = _names(labels)
    if not top.size == bottom.size == labels.size or top.size == 0:
        raise ValueError(
            f"numerators, denominators, groups: got {top.size}, {bottom.size} and {labels.size} values; "
            "expected the same number of each, at least one"
        )
    if (top < 0).any() or (bottom < 0).any():
        raise ValueError("numerators, denominators: got negative values; means of |difference| are at least 0")
    logs, variance = [], 0.0
    for name in names:
        a, b = top[labels == name], bottom[labels == name]
        logs.append(log_ratio(a.sum(), b.sum()))
        left_out = log_ratio(a.sum() - a, b.sum() - b)
        share = (a.size - 1) / a.size if a.size > 1 else math.nan
        variance += share * float(((left_out - left_out.mean()) ** 2).sum())
    spread, centre = math.sqrt(variance) / names.size, float(np.mean(logs))
    reach = student_t(confidence, top.size - names.size) * spread
    with np.errstate(over="ignore"):
        value, low, high = np.exp([centre, centre - reach, centre + reach]).tolist()
    return Interval(value, low, high, int(top.size), confidence)


def student_t(confidence: float, freedom: int) -> float:
    """Two-sided quantile of Student's t, P(|T| <= t) = confidence; NaN below one degree of freedom."""
    if freedom < 1:
        return math.nan
    low, high = 0.0, 1.0
    while _coverage(high, freedom) < confidence:
        high *= 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if _coverage(middle, freedom) < confidence else (low, middle)
    return high


def _coverage(t: float, freedom: int) -> float:
    """P(|T| <= t) for whole degrees of freedom (Abramowitz and Stegun 26.7.3 and 26.7.4)."""
    angle = math.atan(t / math.sqrt(freedom))
    cosine = math.cos(angle)
    odd = freedom % 2
    term, total = (cosine if odd else 1.0), 0.0
    for k in range(1, freedom // 2 + 1):
        total += term
        term *= cosine * cosine * ((2 * k) / (2 * k + 1) if odd else (2 * k - 1) / (2 * k))
    total *= math.sin(angle)
    return (angle + total) * 2 / math.pi if odd else total


def _names(labels: NDArray[Any]) -> NDArray[Any]:
    """The different labels of the groups."""
    try:
        names = np.unique(labels)
    except TypeError as error:
        raise TypeError("groups: got labels of different types; expected all numbers or all strings") from error
    if (names != names).any():
        raise ValueError("groups: got a label that is NaN, which is equal to no other")
    return names


def _check_confidence(confidence: object) -> None:
    if isinstance(confidence, bool) or not isinstance(confidence, Real):
        raise TypeError(f"confidence: got {confidence!r} ({type(confidence).__name__}); expected a number")
    if not 0 < float(confidence) < 1:
        raise ValueError(f"confidence: got {confidence!r}; expected a number between 0 and 1")
