"""The JSON of a quality run: what it holds, and checks on it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from .measures import LEAST_SEEDS, MEASURES, SEAM, SEAMLESS, STRUCTURE, VERDICTS
from .settings import KINDS

FORMAT = 2
_MODEL = {
    "model": str,
    "canvas": list,
    "tile": list,
    "steps": int,
    "arguments": dict,
    "seeds": int,
    "prompts": list,
    "commits": list,
    "judged_against": str,
    "levels": dict,
    "notes": list,
    "rows": list,
}
_ROW = {
    "key": str,
    "name": str,
    "kind": str,
    "overlap": int,
    "halo": (int, str),
    "rings": bool,
    "norm": str,
    "window": str,
    "schedule": str,
    "tiles": int,
    "computed": (int, float),
    "measures": dict,
    "judged": dict,
}


def validate(data: Any) -> dict[str, Any]:
    """The data of a quality run, checked.

    Returns:
        `data`: {"format": 2, "command", "environment", "models": [...]}. A model has what was painted ("model",
        "canvas" and "tile" (height, width) in pixels, "steps", "arguments" of the pipeline, "seeds" per prompt,
        "prompts", "commits" that painted), "judged_against" ("untiled" or "1.0"), "levels" (name to number: what
        photographs and untiled runs have), "notes" (what could not be measured) and "rows". A row has a `Setting`'s
        fields, key and name, "tiles", "computed" (positions computed per canvas position), "time" ({"seconds",
        "ratio", "low", "high", "rounds"} of a denoising step of a picture), "learned" (FID, ... by name), and what
        `measures.measure` returns.

    Raises:
        ValueError: what is missing or wrong, and where.
    """
    _fields("run", data, {"format": int, "command": str, "environment": dict, "models": list})
    if data["format"] != FORMAT:
        raise ValueError(f"run: format: got {data['format']}; expected {FORMAT}")
    if not isinstance(data["environment"].get("date"), str):
        raise ValueError("run: environment: has no date")
    for model in data["models"]:
        _fields("model", model, _MODEL)
        if not model["rows"]:
            raise ValueError(f"{model['model']}: rows: got none")
        for row in model["rows"]:
            where = f"{model['model']}: {row.get('key') if isinstance(row, dict) else row}"
            _row(where, row)
            if model["seeds"] < LEAST_SEEDS and (row.get("seamless") or row.get("seamless_patches")):
                raise ValueError(
                    f"{where}: seamless: got a verdict by {model['seeds']} seeds; {LEAST_SEEDS} are needed"
                )
    return dict(data)


def _row(where: str, row: Any) -> None:
    _fields(where, row, _ROW)
    if row["kind"] not in KINDS:
        raise ValueError(f"{where}: kind: got {row['kind']!r}; known are {', '.join(KINDS)}")
    if set(row["measures"]) != set(MEASURES):
        raise ValueError(f"{where}: measures: got {sorted(row['measures'])}; expected {sorted(MEASURES)}")
    if set(row["judged"]) != set(STRUCTURE):
        raise ValueError(f"{where}: judged: got {sorted(row['judged'])}; expected {sorted(STRUCTURE)}")
    for name, found in [*row["measures"].items(), *row["judged"].items()]:
        if found is not None:
            _interval(f"{where}: {name}", found)
    time = row.get("time")
    if time is not None:
        _fields(f"{where}: time", time, {"seconds": float, "ratio": float, "rounds": int})
    for name in ("seamless", "seamless_patches"):
        if row.get(name) not in (None, *VERDICTS):
            raise ValueError(f"{where}: {name}: got {row[name]!r}")
    for step in row.get("disagreement") or []:
        if not isinstance(step, float) or not math.isfinite(step):
            raise ValueError(f"{where}: disagreement: got {step!r}")


def _interval(where: str, found: Any) -> None:
    _fields(where, found, {"value": (int, float), "count": int})
    if not math.isfinite(found["value"]):
        raise ValueError(f"{where}: value: got {found['value']}")
    low, high = found.get("low"), found.get("high")
    if low is not None and high is not None and not low <= found["value"] <= high:
        raise ValueError(f"{where}: got {found['value']} outside of {low} to {high}")


def _fields(where: str, found: Any, kinds: Mapping[str, Any]) -> None:
    if not isinstance(found, dict):
        raise ValueError(f"{where}: got {type(found).__name__}; expected an object")
    for name, kind in kinds.items():
        if name not in found:
            raise ValueError(f"{where}: {name} is missing")
        value = found[name]
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise ValueError(f"{where}: {name}: got {value!r}")


def smallest_overlaps(rows: Sequence[Mapping[str, Any]], verdict: str = "seamless") -> list[dict[str, Any]]:
    """For each way of tiling, over the overlaps it was tried at, the smallest that is seamless, or shows no seam.

    Args:
        rows: of one model.
        verdict: "seamless" or "seamless_patches".

    Returns:
        One item per way that differs in more than its overlap: "name", "tried" (overlaps in pixels), "seamless" and
        "no_seam" (the smallest overlap at which the verdict is "seamless", or is not "seam"; each None where there is
        none, else {"overlap", "computed", "time" (ratio, or None), "failing" (larger overlaps at which it is not)}).
    """
    groups: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: int(row["overlap"])):
        if row["kind"] in ("untiled", "alone"):
            continue
        way = (row["kind"], row["halo"], row["rings"], row["norm"], row["schedule"])
        if row["overlap"]:
            window = f"{row['window']}{_behind(row)}"
            groups.setdefault((*way, window), list(groups.get((*way, ""), []))).append(row)
        else:
            groups.setdefault((*way, ""), []).append(row)
    alone = [row for row in rows if row["kind"] == "alone"]
    found: list[dict[str, Any]] = []
    for way, members in groups.items():
        if not way[-1] and any(other[:-1] == way[:-1] for other in groups if other[-1]):
            continue  # the same way with an overlap has it too
        tried = [*alone, *members] if way[0] == "blended" else members
        found.append(
            {
                "order": KINDS.index(way[0]),
                "name": way_name(members[-1]),
                "tried": [row["overlap"] for row in tried],
                "seamless": _first(tried, [row[verdict] == SEAMLESS for row in tried]),
                "no_seam": _first(tried, [row[verdict] not in (None, SEAM) for row in tried]),
            }
        )
    return sorted(found, key=lambda one: one.pop("order"))


def _first(rows: Sequence[Mapping[str, Any]], good: Sequence[bool]) -> dict[str, Any] | None:
    """The first good row and the later ones that are not."""
    if not any(good):
        return None
    place = good.index(True)
    best, time = rows[place], rows[place].get("time")
    failing = [row["overlap"] for row, well in zip(rows[place:], good[place:], strict=True) if not well]
    return {
        "overlap": best["overlap"],
        "computed": best["computed"],
        "time": None if time is None else time["ratio"],
        "failing": failing,
    }


def way_name(row: Mapping[str, Any]) -> str:
    """A row's name without its overlap: "blended (hann)", "coupled, halo 8 px, blended behind attention"."""
    if row["kind"] == "blended":
        return f"blended ({row['window']})"
    behind = _behind(row)
    overlap = f", overlap {row['overlap']} px ({row['window']}{behind})"
    return str(row["name"]).replace(overlap, f", blended{behind}" if behind else "")


def _behind(row: Mapping[str, Any]) -> str:
    """Where a row's tiles are blended, if not as predictions; rows of earlier runs don't say."""
    return " behind attention" if row.get("blend") == "attention" else ""


def separated(rows: Sequence[Mapping[str, Any]], name: str, target: float) -> str | None:
    """The key of the row that is best in a measure, if its interval meets no other row's; else None.

    Args:
        rows: of one model; the untiled run does not take part.
        name: the measure.
        target: 1.0 where ratios are best, 0.0 where distances are.
    """
    taking = [row for row in rows if row["kind"] != "untiled" and row["measures"][name] is not None]
    if len(taking) < 2 or any(row["measures"][name]["low"] is None for row in taking):
        return None

    def off(row: Mapping[str, Any]) -> float:
        value = float(row["measures"][name]["value"])
        return abs(math.log(value / target)) if target else value

    best, *others = sorted(taking, key=off)
    own = best["measures"][name]
    apart = all(
        row["measures"][name]["low"] > own["high"] or row["measures"][name]["high"] < own["low"] for row in others
    )
    return str(best["key"]) if apart else None
