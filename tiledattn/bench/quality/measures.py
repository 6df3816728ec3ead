"""The figures of one setting from its pictures, JSON-ready."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
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
from ...metrics.intervals import student_t
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
        "own_level": what the untiled run has of `STRUCTURE` on the same lines; "seamless": whether the interval of each
        of `DECIDING` holds 1.0 or that level (None where an interval can't be had); "seamless_patches": of `STRUCTURE`.
    """
    found: dict[str, Interval | None] = {
        "seam_contrast": _pooled(painted, _seams),
        "latent_seam_contrast": latent_contrast(painted),
        "tone_step": _pooled(painted, _tones),
        "wrap_score": _pooled(painted, lambda one: wrap_gradients(one.pictures, one.layout, one.period)),
        "spectrum": _together([patches.spectrum(one.pictures, one.layout, one.period) for one in painted]),
        "repetition": interval_of_means([patches.repetition(one.pictures, one.layout.tile[1] // 2) for one in painted]),
    }
    if untiled is not None and painted[0].setting.kind != "untiled":
        pairs = zip(painted, untiled, strict=True)
        found["untiled_distance"] = interval(np.concatenate([distances(one, other) for one, other in pairs]))
    if all(photographs):
        compared = _compared(painted, photographs)
        for name, key in (("patch_ratio", "ratio"), ("patch_distance", "seam"), ("patch_distance_inside", "inside")):
            found[name] = _together([each[key] for each in compared])
    own = _own_level(painted, untiled, photographs)
    return {
        "measures": {name: plain(found.get(name)) for name in MEASURES},
        "disagreement": _disagreement(painted),
        "own_level": own,
        "seamless": seamless({name: found[name] for name in DECIDING}, own),
        "seamless_patches": seamless({name: found.get(name) for name in STRUCTURE}, own),
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
        return seam_gradients(one.latents, layout, one.period // one.pixels, axis=1)

    try:
        return _pooled(painted, gradients)
    except ValueError:  # tiles so narrow that no line of the seams' phase lies inside
        return None


def seamless(found: dict[str, Interval | None], own: dict[str, float | None]) -> bool | None:
    """Whether every interval holds 1.0 or the untiled run's own level; None where one has no bounds."""
    verdicts = []
    for name, one in found.items():
        if one is None or math.isnan(one.low):
            return None
        level = own.get(name)
        verdicts.append(1.0 in one or (level is not None and level in one))
    return all(verdicts)


def interval_of_means(parts: Sequence[Interval]) -> Interval:
    """The mean of independent means, with its interval."""
    return _combined(parts, lambda x: x, lambda x: x)


def plain(found: Interval | None) -> dict[str, Any] | None:
    """JSON-ready; bounds that are not finite are None."""
    if found is None:
        return None
    bounds = {name: one if math.isfinite(one) else None for name, one in (("low", found.low), ("high", found.high))}
    return {"value": found.value, **bounds, "count": found.count}


def _seams(one: Painted) -> tuple[Any, Any]:
    # A uniform window jumps where tiles begin and end, any other where the deepest tile changes.
    border = bool(one.setting.overlap) and one.setting.window == "uniform"
    return seam_gradients(one.pictures, one.layout, one.period, axis=1, where="border" if border else "owner")


def _tones(one: Painted) -> tuple[Any, Any]:
    return tone_differences(one.pictures, one.layout, axis=1)


def _pooled(painted: Sequence[Painted], pair: Pair) -> Interval:
    pairs = [pair(one) for one in painted]
    groups = np.concatenate([np.full(len(one.pictures), index) for index, one in enumerate(painted)])
    tops, bottoms = (np.concatenate(side) for side in zip(*pairs, strict=True))
    return ratio_interval(tops, bottoms, groups)


def _compared(painted: Sequence[Painted], photographs: Sequence[Sequence[Any]]) -> list[dict[str, Interval]]:
    return [
        patches.patch_distance(one.pictures, one.layout, one.period, truth)
        for one, truth in zip(painted, photographs, strict=True)
    ]


def _own_level(
    painted: Sequence[Painted], untiled: Sequence[Painted] | None, photographs: Sequence[Sequence[Any]]
) -> dict[str, float | None]:
    """What the untiled pictures have of `STRUCTURE` on this setting's seam lines."""
    if untiled is None:
        return dict.fromkeys(STRUCTURE)
    shown = [
        Painted(one.setting, one.layout, one.period, one.pixels, other.pictures, None, ())
        for one, other in zip(painted, untiled, strict=True)
    ]
    ratio = _together([each["ratio"] for each in _compared(shown, photographs)]).value if all(photographs) else None
    return {
        "seam_contrast": _pooled(shown, _seams).value,
        "tone_step": _pooled(shown, _tones).value,
        "patch_ratio": ratio,
    }


def _disagreement(painted: Sequence[Painted]) -> list[float] | None:
    curves = [one.disagreement for one in painted if one.disagreement]
    return np.sqrt(np.mean(np.square(curves), axis=0)).tolist() if curves else None


def _together(parts: Sequence[Interval]) -> Interval:
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
