"""A quality run as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .measures import BOUNDS, LEAST_SEEDS, VERDICTS
from .results import separated, smallest_overlaps

# (measure, heading, target of the best, factor, digits)
_SEAMS = (
    ("seam_contrast", "seam contrast", 1.0, 1, 2),
    ("latent_seam_contrast", "in latents", 1.0, 1, 2),
    ("tone_step", "tone step", 1.0, 1, 2),
    ("wrap_score", "wrap score", 1.0, 1, 2),
)
_PATCHES = (
    ("untiled_distance", "distance to the untiled run", 0.0, 1, 3),
    ("patch_ratio", "patches, seam / inside", 1.0, 1, 2),
    ("patch_distance", "patches on seams, from photographs", 0.0, 255, 2),
    ("spectrum", "spectrum, across / along", 1.0, 1, 2),
    ("repetition", "repetition", None, 1, 2),
)
_JUDGED = (
    ("seam_contrast", "seam contrast", None, 1, 2),
    ("tone_step", "tone step", None, 1, 2),
    ("patch_ratio", "patches, seam / inside", None, 1, 2),
)


def tables(data: Mapping[str, Any]) -> str:
    """Per model: seams against compute, the smallest overlaps, and what patches say."""
    return "\n\n".join(_model(model) for model in data["models"]) + "\n"


def _model(model: Mapping[str, Any]) -> str:
    rows = model["rows"]
    height, width = model["canvas"]
    prompts = ", ".join(f'"{prompt}"' for prompt in model["prompts"])
    guidance = model["arguments"].get("guidance_scale")
    about = (
        f"{width}x{height} pixels, {width // model['tile'][1]} native tiles abreast, ends meet; {prompts}; "
        f"{model['seeds']} seeds, {model['steps']} steps{'' if guidance is None else f', guidance {guidance:g}'}."
    )
    commits = ", ".join(model["commits"])
    parts = [f"### {model['model']}", f"{about} Painted by commit {commits}.", _seam_table(rows), _patch_table(rows)]
    parts += [_verdicts(model), _judged_table(rows), _overlap_table(rows)]
    levels = ", ".join(f"{name} {value:.2f}" for name, value in model["levels"].items())
    if levels:
        parts.append(f"Power of variation across over along, for comparison: {levels}.")
    parts += [f"- {note}" for note in model["notes"]]
    return "\n\n".join(parts)


def _seam_table(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = []
    for row in rows:
        lines.append(
            [
                row["name"],
                f"{row['computed']:.2f}",
                _time(row),
                *_measured(row, rows, _SEAMS),
                _mean(row.get("disagreement")),
            ]
        )
    heads = ["method", "positions computed", "time", *(each[1] for each in _SEAMS), "disagreement"]
    return _table(heads, lines)


def _patch_table(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = [[row["name"], *_measured(row, rows, _PATCHES)] for row in rows]
    return _table(["method", *(each[1] for each in _PATCHES)], lines)


def _verdicts(model: Mapping[str, Any]) -> str:
    """What the next tables hold, and how the verdicts came out."""
    low, high = BOUNDS
    whom = "over the untiled run of the same seed, on the same lines" if model["judged_against"] == "untiled" else ""
    if model["seeds"] < LEAST_SEEDS:
        return f"Ratios {whom}. {model['seeds']} seeds are too few for verdicts; {LEAST_SEEDS} are needed."
    taking = [row for row in model["rows"] if row["kind"] != "untiled"]
    counts = [
        f"{what} {', '.join(f'{sum(row[name] == one for row in taking)} {one}' for one in VERDICTS)}"
        for name, what in (("seamless", "by edges and tones"), ("seamless_patches", "with patches too"))
        if any(row[name] for row in taking)
    ]
    return (
        f"Ratios {whom or 'to 1.0'}. Seamless: all 95% intervals lie inside {low:g}-{high:g}; seam: one lies neither "
        f"there nor holds 1; not separated: neither was shown. Of {len(taking)} methods {'; '.join(counts)}."
    )


def _judged_table(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = [
        [
            row["name"],
            *("" if row["judged"][one[0]] is None else _number(row["judged"][one[0]], *one[3:]) for one in _JUDGED),
            row["seamless"] or "",
            row["seamless_patches"] or "",
        ]
        for row in rows
        if row["kind"] != "untiled"
    ]
    return _table(["method", *(one[1] for one in _JUDGED), "by edges and tones", "with patches too"], lines)


def _overlap_table(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = []
    for edges, structure in zip(smallest_overlaps(rows), smallest_overlaps(rows, "seamless_patches"), strict=True):
        tried = ", ".join(map(str, edges["tried"]))
        cells = [_smallest(found[name]) for found in (edges, structure) for name in ("seamless", "no_seam")]
        lines.append([edges["name"], tried, *cells])
    heads = ["seamless from", "no seam found from", "seamless from, patches too", "no seam found from, patches too"]
    return _table(["method", "overlaps tried, px", *heads], lines)


def _smallest(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "none of them"
    failing = f", but not at {', '.join(map(str, found['failing']))}" if found["failing"] else ""
    return f"{found['overlap']} px ({found['computed']:.2f} positions){failing}"


def _measured(
    row: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], measures: Sequence[tuple[Any, ...]]
) -> list[str]:
    cells = []
    for name, _, target, factor, digits in measures:
        found = row["measures"][name]
        if found is None:
            cells.append("")
            continue
        text = _number(found, factor, digits)
        best = target is not None and separated(rows, name, target) == row["key"]
        cells.append(f"**{text}**" if best else text)
    return cells


def _number(found: Mapping[str, Any], factor: float, digits: int) -> str:
    value = f"{found['value'] * factor:.{digits}f}"
    if found["low"] is None or found["high"] is None:
        return value
    return f"{value} ({found['low'] * factor:.{digits}f}-{found['high'] * factor:.{digits}f})"


def _time(row: Mapping[str, Any]) -> str:
    time = row.get("time")
    if time is None:
        return ""
    if time["low"] is None or row["kind"] == "alone":
        return f"{time['ratio']:.2f}"
    return f"{time['ratio']:.2f} ({time['low']:.2f}-{time['high']:.2f})"


def _mean(steps: Sequence[float] | None) -> str:
    return "" if not steps else f"{sum(steps) / len(steps):.3f}"


def _table(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    out = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    out += [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join(out)
