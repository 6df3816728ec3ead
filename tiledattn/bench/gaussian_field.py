"""What blending alone loses, without any learning error: `python -m tiledattn.bench.gaussian_field --out FOLDER`.

Samples Gaussian random fields with their best denoiser, tile by tile, and compares the covariance across seams with the
truth. All figures are exact (see `gaussian_law`). Before any is written, three things are checked: white noise, whose
positions know nothing of each other, loses nothing by tiles; one tile as large as the canvas is the untiled run;
canvases drawn at random have the covariance that was computed.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import tiledattn as ta
from tiledattn.files import whole_file
from tiledattn.geometry import WINDOWS

from . import gaussian_law
from .gaussian_law import Field, Floats, Setting

FORMAT = 1
WHITE = Field("white", 0.0)
FIELDS = (Field("fine", 1 / 8), Field("coarse", 1.0), Field("periodic", 2.0, 1 / 2))
# Positions; a canvas that every step divides, and one of 3 tiles or a little more.
TILE, CANVAS, TILE_2D, CANVAS_2D = 32, 672, 8, 24
OVERLAPS = (0.0, 0.125, 0.25, 0.5, 0.75)
HALOS = (0.0625, 0.125, 0.25, 0.5, 1.0)
SAMPLER_STEPS = 50
NUMBERS = ("computed", "seen", "beside", "loss", "worst", "least_variance", "divergence", "distance")


def setting_of(axes: int, overlap: float = 0.0, halo: float = 0.0, **more: Any) -> Setting:
    """The setting of a canvas with 1 or 2 axes; overlap and halo as fractions of the tile."""
    tile, least = (TILE, CANVAS) if axes == 1 else (TILE_2D, CANVAS_2D)
    step = tile - round(overlap * tile)
    size = -(-least // step) * step
    layout = ta.TileLayout((size,) * axes, (tile,) * axes, (tile - step,) * axes, (True,) * axes)
    return Setting(layout, halo=round(halo * tile), **more)


def plan() -> Iterator[tuple[Field, Setting, bool]]:
    """Everything that is computed: field, setting, and whether it is the untiled run."""
    for field in FIELDS:
        yield field, setting_of(1), True
        yield field, setting_of(1), False
        for overlap in OVERLAPS[1:]:
            for window in WINDOWS:
                yield field, setting_of(1, overlap, window=window), False
        for halo in HALOS:
            yield field, setting_of(1, halo=halo), False
    coarse = FIELDS[1]
    yield coarse, setting_of(2), True
    for overlap in OVERLAPS:
        yield coarse, setting_of(2, overlap), False
    for halo in HALOS[1:]:
        yield coarse, setting_of(2, halo=halo), False
    for sampler in ("ddim", "ancestral"):
        more: dict[str, Any] = {"sampler": sampler, "steps": SAMPLER_STEPS}
        yield coarse, setting_of(1, **more), True
        for overlap in OVERLAPS:
            yield coarse, setting_of(1, overlap, **more), False
        yield coarse, setting_of(1, halo=0.25, **more), False


def measure(field: Field, setting: Setting, whole: bool = False) -> dict[str, Any]:
    """One result, JSON-ready: the setting, and what `NUMBERS` names.

    "computed" and "seen" are the positions that tiles answer for and those that they take in, per canvas position.
    "beside" and "loss" are relative losses of covariance between positions with a seam between them: of the two beside
    it, and of all lags k up to half a tile, 1 - sum_k S_k C_k / sum_k C_k^2 with S the sampled and C the true
    covariance (0 where they agree, 1 where the sides know nothing of each other). "worst" is the largest "loss" of any
    line, seam or not. "least_variance" is the smallest variance of any position (the truth is 1); "divergence" and
    "distance" are those of `gaussian_law.distances`. "seam" is S_k, "true" C_k; "variance" that of the positions of
    the cell that follows a seam (1 axis only).
    """
    layout, tile = setting.layout, setting.layout.tile[0]
    covariance = field.covariance(layout.size, tile)
    truth = gaussian_law.true_rows(covariance, setting)
    rows = gaussian_law.untiled(covariance, setting) if whole else gaussian_law.law(covariance, setting)
    lags = range(1, tile // 2 + 1)
    line = gaussian_law.seam(setting)
    found, true = (gaussian_law.pairs(r, setting, line, lags) for r in (rows, truth))
    lines = range(line, line + setting.step[-1])
    worst = max(_loss(gaussian_law.pairs(rows, setting, place, lags), true) for place in lines)
    variance = rows[np.arange(len(rows)), setting.cell.numpy()]
    divergence, distance = gaussian_law.distances(rows, truth, setting)
    numbers = {
        "computed": 1.0 if whole else setting.computed,
        "seen": 1.0 if whole else setting.seen,
        "beside": 1 - found[0] / true[0] if abs(true[0]) > 1e-9 else 0.0,
        "loss": _loss(found, true),
        "worst": worst,
        "least_variance": variance.min(),
        "divergence": divergence,
        "distance": distance,
    }
    return {
        "field": field.name,
        "axes": len(layout.size),
        "method": "untiled" if whole else "halo" if setting.halo else "blended" if any(layout.overlap) else "alone",
        "overlap": 0.0 if whole else layout.overlap[0] / tile,
        "window": setting.window,
        "halo": setting.halo / tile,
        "sampler": setting.sampler,
        "steps": setting.steps,
        **{name: round(float(value), 6) for name, value in numbers.items()},
        "seam": _rounded(found),
        "true": _rounded(true),
        "variance": _rounded(np.roll(variance, -line)) if len(layout.size) == 1 else [],
    }


def _rounded(values: Floats) -> list[float]:
    return [round(float(value), 6) for value in values]


def _loss(found: Floats, true: Floats) -> float:
    return float(1 - found @ true / (true @ true)) if true.any() else 0.0


def problems() -> list[str]:
    """What is wrong with the tiling path or the calculation, one line each; empty where all is well."""
    found = []
    for overlap in OVERLAPS:
        for window in WINDOWS:
            setting = setting_of(1, overlap, window=window, steps=12)
            white = WHITE.covariance(setting.layout.size, TILE)
            expected = gaussian_law.untiled(white, setting)
            error = np.abs(gaussian_law.law(white, setting) - expected).max()
            if not error < 1e-9:
                found.append(f"white noise changes by {error:.1e}, overlap {overlap:.1%}, window {window}; it must not")
    small = Setting(ta.TileLayout(24, 24, 0, True), steps=30)
    covariance = FIELDS[1].covariance((24,), 8)
    error = np.abs(gaussian_law.law(covariance, small) - gaussian_law.untiled(covariance, small)).max()
    if not error < 1e-9:
        found.append(f"one tile as large as the canvas differs from the untiled run by {error:.1e}")
    score = worst_score(Setting(ta.TileLayout(24, 8, 2, True), halo=1, sampler="ancestral", steps=30))
    if not score < 6:
        found.append(f"canvases drawn at random are {score:.1f} standard errors away from the covariance computed")
    return found


def worst_score(setting: Setting, count: int = 4000) -> float:
    """The largest difference between the computed and a sampled covariance of the coarse field, in standard errors."""
    covariance = FIELDS[1].covariance(setting.layout.size, setting.layout.tile[0])
    rows = gaussian_law.law(covariance, setting)
    canvases = gaussian_law.draw(covariance, setting, count).reshape(count, -1)
    sampled = canvases[:, setting.cell.numpy()].T @ canvases / count
    variance = np.diag(rows[:, setting.cell.numpy()])
    error = np.sqrt((rows**2 + variance[:, None] * np.resize(variance, rows.shape[1])) / count)
    return float((np.abs(sampled - rows) / error).max())


def validate(data: Any) -> dict[str, Any]:
    """The data, if it is a run of this command.

    Raises:
        ValueError: it is not, and where.
    """
    if not isinstance(data, dict) or data.get("format") != FORMAT or not data.get("results"):
        raise ValueError(f"no results of format {FORMAT}")
    for index, result in enumerate(data["results"]):
        wrong = [name for name in NUMBERS if not isinstance(result.get(name), float) or not np.isfinite(result[name])]
        lists = [name for name in ("seam", "true", "variance") if not isinstance(result.get(name), list)]
        if wrong or lists or result.get("method") not in ("untiled", "alone", "blended", "halo"):
            raise ValueError(f"results[{index}]: missing or no number: {', '.join(wrong + lists) or 'method'}")
    return data


def as_text(data: dict[str, Any]) -> str:
    """The JSON, one result a line."""
    head = {name: value for name, value in data.items() if name != "results"}
    lines = ",\n".join(json.dumps(result) for result in data["results"])
    return json.dumps(head, indent=1)[:-2] + ',\n "results": [\n' + lines + "\n]}\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; 0, or 1 where a check failed and nothing was written."""
    parser = argparse.ArgumentParser(prog="python -m tiledattn.bench.gaussian_field", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/gaussian-field"), help="folder for JSON and picture")
    folder = parser.parse_args(arguments).out
    began = time.monotonic()
    wrong = problems()
    for line in wrong:
        print(f"gaussian_field: {line}", file=sys.stderr)
    if wrong:
        print("gaussian_field: nothing was written", file=sys.stderr)
        return 1
    todo = list(plan())
    results = []
    for done, (field, setting, whole) in enumerate(todo, 1):
        results.append(measure(field, setting, whole))
        if sys.stderr.isatty():
            print(f"\r{done} of {len(todo)} settings", end="", file=sys.stderr, flush=True)
    print(f"\n{len(todo)} settings in {time.monotonic() - began:.0f} s", file=sys.stderr)
    data = validate({"format": FORMAT, "command": "python -m tiledattn.bench.gaussian_field", "results": results})
    with whole_file(folder / "gaussian-field.json") as path:
        path.write_text(as_text(data))
    from . import gaussian_report

    print(gaussian_report.tables(data))
    try:
        gaussian_report.picture(data, folder / "gaussian-field.png")
    except ImportError as error:
        print(f"gaussian_field: no picture: {error}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
