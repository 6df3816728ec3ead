"""The figures of one setting from its pictures, JSON-ready."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from ...geometry import TileLayout
from ...metrics import (
    Interval,
    interval,
    ratio_interval,
    seam_gradients,
    tone_differences,
    wrap_gradients,
)
from ...metrics.arrays import log_ratio
from ...metrics.intervals import student_t
from ...metrics.lines import Where
from . import patches
from .painting import Painted

Pair = Callable[[Painted], tuple[Any, Any]]

# What is 1.0 where nothing shows, and what is 0.
RATIOS = ("seam_contrast", "latent_seam_contrast", "tone_step", "wrap_score", "patch_ratio", "spectrum")
DISTANCES = ("untiled_distance", "patch_distance", "patch_distance_inside")
LEVELS = ("repetition",)
MEASURES = (*RATIOS, *DISTANCES, *LEVELS)
# What decides whether a setting counts as seamless: edges and tones; and, where there are photographs, structure too.
DECIDING = ("seam_contrast", "tone_step")
STRUCTURE = (*DECIDING, "patch_ratio")
SEAMLESS, UNDECIDED, SEAM = VERDICTS = ("seamless", "not separated", "seam")
BOUNDS = (0.8, 1.25)  # ratios between them count as equal to 1
LEAST_SEEDS = 16  # pictures a prompt, below which nothing is judged


def measure(
    painted: Sequence[Painted], untiled: Sequence[Painted] | None, photographs: Sequence[Sequence[Any]]
) -> dict[str, Any]:
    """All measures of a setting; intervals pool seeds within prompts and average over prompts.

    Args:
        painted: its pictures, one item a prompt.
        untiled: those of the untiled run, or None where there is none.
        photographs: for each prompt the photographs to compare with, [C, H, W]; none where there are none.

    Returns:
        "measures": of `MEASURES`, each {"value", "low", "high", "count"} or None; "disagreement": per step, or None;
        "judged": of `STRUCTURE`, the ratio to the untiled run of the same seed on the same lines, where there is none
        to 1.0 (JSON-ready, or None); "seamless": the `verdict` on those of `DECIDING`; "seamless_patches": of all.
    """
    found: dict[str, Interval | None] = {
        "seam_contrast": _pooled(painted, _seams),
        "latent_seam_contrast": latent_contrast(painted),
        "tone_step": _pooled(painted, _tones),
        "wrap_score": _pooled(painted, lambda one: wrap_gradients(one.pictures, one.layout, one.period)),
        "spectrum": together([patches.spectrum(one.pictures, one.layout, one.period, where(one)) for one in painted]),
        "repetition": interval_of_means([patches.repetition(one.pictures, one.layout.tile[1] // 2) for one in painted]),
    }
    if untiled is not None and painted[0].setting.kind != "untiled":
        pairs = zip(painted, untiled, strict=True)
        found["untiled_distance"] = interval_of_means([interval(distances(one, other)) for one, other in pairs])
    if all(photographs):
        compared = _compared(painted, photographs)
        for name, key in (("patch_ratio", "ratio"), ("patch_distance", "seam"), ("patch_distance_inside", "inside")):
            found[name] = together([each[key] for each in compared])
    judged: dict[str, Interval | None] = {name: found.get(name) for name in STRUCTURE}
    if untiled is not None:
        judged = against(painted, untiled, photographs)
    least = min(len(one.pictures) for one in painted)
    return {
        "measures": {name: plain(found.get(name)) for name in MEASURES},
        "disagreement": _disagreement(painted),
        "judged": {name: plain(judged[name]) for name in STRUCTURE},
        "seamless": verdict([judged[name] for name in DECIDING], least),
        "seamless_patches": verdict([judged[name] for name in STRUCTURE], least),
    }


def distances(painted: Painted, untiled: Painted) -> Any:
    """Per seed: RMS difference to the untiled picture over that picture's standard deviation.

    0 is the same picture; unrelated pictures of one look have about 1.41.
    """
    difference = np.square(painted.pictures.astype(np.float64) - untiled.pictures).mean(axis=(1, 2, 3))
    return np.sqrt(difference / untiled.pictures.astype(np.float64).var(axis=(1, 2, 3)))


def latent_contrast(painted: Sequence[Painted]) -> Interval | None:
    """Seam contrast of the last latents; None where there are none, or no control line inside the tiles."""
    if any(one.latents is None for one in painted):
        return None

    def gradients(one: Painted) -> tuple[Any, Any]:
        size, tile, overlap = (
            tuple(n // one.pixels for n in lengths)
            for lengths in (one.layout.size, one.layout.tile, one.layout.overlap)
        )
        layout = TileLayout(size, tile, overlap, one.layout.wrap)
        return seam_gradients(one.latents, layout, one.period // one.pixels, axis=1, where=where(one))

    try:
        return _pooled(painted, gradients)
    except ValueError:  # tiles so narrow that no line of the seams' phase lies inside
        return None


def verdict(found: Sequence[Interval | None], seeds: int) -> str | None:
    """What ratios say together; 1.0 is seamless.

    "seam" where one interval holds neither 1 nor lies inside `BOUNDS`, "seamless" where all lie inside `BOUNDS`,
    whole, and "not separated" otherwise: no seam was found, and none was ruled out. None where an interval can't be
    had, or there are fewer than `LEAST_SEEDS` seeds.
    """
    each = []
    for one in found:
        if seeds < LEAST_SEEDS or one is None or math.isnan(one.low):
            return None
        inside = BOUNDS[0] <= one.low and one.high <= BOUNDS[1]
        each.append(SEAMLESS if inside else UNDECIDED if 1.0 in one else SEAM)
    return max(each, key=VERDICTS.index)


def against(
    painted: Sequence[Painted], untiled: Sequence[Painted], photographs: Sequence[Sequence[Any]]
) -> dict[str, Interval | None]:
    """Of `STRUCTURE` the ratio to the untiled run of the same seed, on the same lines.

    For edges and tones it is the geometric mean over seeds of the ratio of two pictures' values, with Student's
    interval on the logarithms; patches are statistics of all pictures, whose ratio has its interval by a jackknife
    that leaves out a seed in both.
    """
    others = [replace(one, pictures=other.pictures) for one, other in zip(painted, untiled, strict=True)]
    found: dict[str, Interval | None] = dict.fromkeys(STRUCTURE)
    for name, pair in (("seam_contrast", _seams), ("tone_step", _tones)):
        parts = [
            interval(log_ratio(*pair(one)) - log_ratio(*pair(other)))
            for one, other in zip(painted, others, strict=True)
        ]
        found[name] = together([_exp(part) for part in parts])
    if all(photographs):
        found["patch_ratio"] = together(
            [
                patches.patch_ratio_to(one.pictures, other.pictures, one.layout, one.period, truth, where(one))
                for one, other, truth in zip(painted, others, photographs, strict=True)
            ]
        )
    return found


def _exp(logs: Interval) -> Interval:
    value, low, high = (math.exp(one) for one in (logs.value, logs.low, logs.high))
    return replace(logs, value=value, low=low, high=high)


def interval_of_means(parts: Sequence[Interval]) -> Interval:
    """The mean of independent means, with its interval."""
    return _combined(parts, lambda x: x, lambda x: x)


def plain(found: Interval | None) -> dict[str, Any] | None:
    """JSON-ready; bounds that are not finite are None."""
    if found is None:
        return None
    bounds = {name: one if math.isfinite(one) else None for name, one in (("low", found.low), ("high", found.high))}
    return {"value": found.value, **bounds, "count": found.count}


def where(one: Painted) -> Where:
    """Where seams are: a uniform window jumps where tiles begin and end, others where the deepest tile changes."""
    return "border" if one.setting.overlap and one.setting.window == "uniform" else "owner"


def _seams(one: Painted) -> tuple[Any, Any]:
    return seam_gradients(one.pictures, one.layout, one.period, axis=1, where=where(one))


def _tones(one: Painted) -> tuple[Any, Any]:
    return tone_differences(one.pictures, one.layout, axis=1)


def _pooled(painted: Sequence[Painted], pair: Pair) -> Interval:
    pairs = [pair(one) for one in painted]
    groups = np.concatenate([np.full(len(one.pictures), index) for index, one in enumerate(painted)])
    tops, bottoms = (np.concatenate(side) for side in zip(*pairs, strict=True))
    return ratio_interval(tops, bottoms, groups)


def _compared(painted: Sequence[Painted], photographs: Sequence[Sequence[Any]]) -> list[dict[str, Interval]]:
    return [
        patches.patch_distance(one.pictures, one.layout, one.period, truth, where(one))
        for one, truth in zip(painted, photographs, strict=True)
    ]


def _disagreement(painted: Sequence[Painted]) -> list[float] | None:
    curves = [one.disagreement for one in painted if one.disagreement]
    return np.sqrt(np.mean(np.square(curves), axis=0)).tolist() if curves else None


def together(parts: Sequence[Interval]) -> Interval:
    """The geometric mean of independent ratios, with its interval."""
    return _combined(parts, math.log, math.exp)


def _combined(parts: Sequence[Interval], to: Callable[[float], float], back: Callable[[float], float]) -> Interval:
    if len(parts) == 1:
        return parts[0]
    freedom = sum(one.count - 1 for one in parts)
    variance = sum(
        ((to(one.high) - to(one.value)) / student_t(one.confidence, one.count - 1)) ** 2 if one.count > 1 else math.nan
        for one in parts
    )
    centre = float(np.mean([to(one.value) for one in parts]))
    apart = student_t(parts[0].confidence, freedom) * math.sqrt(variance) / len(parts)
    return Interval(back(centre), back(centre - apart), back(centre + apart), sum(one.count for one in parts))
