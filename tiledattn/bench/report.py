"""What a run of the benchmark leaves: its JSON, checked, and the tables that are made from it."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

FORMAT = 1
KINDS = ("ours", "peer", "bound", "limit")
SCALES = {"TFLOP/s": 1e12, "GB/s": 1e9}

_ENVIRONMENT = {"date": str, "commit": str, "device": str, "device_name": str, "python": str, "torch": str}
_CASE = {"operation": str, "case": str, "dtype": str, "unit": str, "amount": float, "rows": list}
_ROW = {"way": str, "kind": str}
_TIMED = {"seconds": float, "spread": float, "samples": int}


def validate(data: Any) -> dict[str, Any]:
    """The data of a run, as it was given.

    Raises:
        ValueError: it does not have the form of one; the message says where and what was expected.
    """
    _fields("", data, {"format": int, "environment": dict, "cases": list})
    if data["format"] != FORMAT:
        raise ValueError(f"format: got {data['format']}; expected {FORMAT}")
    _fields("environment.", data["environment"], _ENVIRONMENT)
    for number, case in enumerate(data["cases"]):
        place = f"cases[{number}]."
        _fields(place, case, _CASE)
        if case["unit"] and case["unit"] not in SCALES:
            raise ValueError(f"{place}unit: got {case['unit']!r}; expected one of {', '.join(SCALES)} or ''")
        for index, row in enumerate(case["rows"]):
            _check_row(f"{place}rows[{index}].", row)
    return data


def _check_row(place: str, row: Any) -> None:
    _fields(place, row, _ROW)
    if row["kind"] not in KINDS:
        raise ValueError(f"{place}kind: got {row['kind']!r}; expected one of {', '.join(KINDS)}")
    outcomes = [name for name in ("seconds", "skipped", "failed") if name in row]
    if len(outcomes) != 1:
        raise ValueError(f"{place[:-1]}: has {outcomes}; expected exactly one of seconds, skipped, failed")
    if outcomes == ["seconds"]:
        _fields(place, row, _TIMED)
        if not (row["seconds"] > 0 and math.isfinite(row["seconds"])):
            raise ValueError(f"{place}seconds: got {row['seconds']}; expected a positive time")
        if row["kind"] != "limit":
            _fields(place, row, {"error": float, "allowed": float})
            if not row["error"] <= row["allowed"]:
                raise ValueError(f"{place}error: {row['error']} is over {row['allowed']}, yet there is a time")


def _fields(place: str, value: Any, expected: dict[str, type]) -> None:
    if not isinstance(value, dict):
        raise ValueError(f"{place or 'the run'}: got {type(value).__name__}; expected an object")
    for name, kind in expected.items():
        if name not in value:
            raise ValueError(f"{place}{name}: missing; expected {kind.__name__}")
        allowed = (int, float) if kind is float else kind
        if not isinstance(value[name], allowed) or isinstance(value[name], bool):
            raise ValueError(f"{place}{name}: got {type(value[name]).__name__}; expected {kind.__name__}")


def tables(data: dict[str, Any]) -> str:
    """The run as Markdown: per operation a row for every case and dtype, ours first, then each peer as a ratio."""
    about = data["environment"]
    versions = [f"torch {about['torch']}"] + [
        f"{name} {about[name]}"
        for name in ("triton", "cuda", "driver")
        if about["device"] == "cuda" and about.get(name)
    ]
    if about["device"] == "cpu" and about.get("threads"):
        versions.append(f"{about['threads']} threads")
    lines = [f"{about['device_name']}; {', '.join(versions)}; commit {about['commit']}, {about['date']}.", ""]
    for operation in dict.fromkeys(case["operation"] for case in data["cases"]):
        lines += [*_table(operation, [case for case in data["cases"] if case["operation"] == operation]), ""]
    return "\n".join(lines).rstrip() + "\n"


def _table(operation: str, cases: list[dict[str, Any]]) -> list[str]:
    others = _unique(row["way"] for case in cases for row in case["rows"] if row["kind"] != "limit")
    firsts = {id(case): _first(case) for case in cases}
    # a column that is nobody's ratio, because it is always the one compared with, is left out
    others = [way for way in others if any(_ratio(case, firsts[id(case)], way) not in ("", "wrong") for case in cases)]
    unit = cases[0]["unit"]
    limits = " / ".join(_unique(row["way"] for case in cases for row in case["rows"] if row["kind"] == "limit"))
    head = [operation, "dtype", "ours", "time", *([unit, f"of {limits}"] if unit else []), *others]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for case in cases:
        first = firsts[id(case)]
        if first is None:
            cells = ["none", "", *(["", ""] if unit else [])]
        else:
            cells = [f"`{first['way']}`", f"{_time(first['seconds'])} ± {first['spread']:.0%}"]
            cells += [_rate(case, first), _of_limit(case, first)] if unit else []
        cells += [_ratio(case, first, way) for way in others]
        lines.append("| " + " | ".join([case["case"], case["dtype"], *cells]) + " |")
    notes = _notes(cases)
    return [*lines, *([""] if notes else []), *notes]


def _unique(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))


def _first(case: dict[str, Any]) -> dict[str, Any] | None:
    """Ours that "auto" takes: the first of those with a time."""
    return next((row for row in case["rows"] if row["kind"] == "ours" and "seconds" in row), None)


def _time(seconds: float) -> str:
    for factor, name in ((1.0, "s"), (1e3, "ms")):
        if seconds * factor >= 1:
            return f"{seconds * factor:.3g} {name}"
    return f"{seconds * 1e6:.3g} µs"


def _rate(case: dict[str, Any], row: dict[str, Any]) -> str:
    return f"{case['amount'] / row['seconds'] / SCALES[case['unit']]:.3g}"


def _of_limit(case: dict[str, Any], row: dict[str, Any]) -> str:
    limit = next((r for r in case["rows"] if r["kind"] == "limit" and "seconds" in r), None)
    if limit is None:
        return ""
    of_limit = limit.get("amount", case["amount"]) / limit["seconds"]
    return f"{case['amount'] / row['seconds'] / of_limit:.0%}"


def _ratio(case: dict[str, Any], first: dict[str, Any] | None, way: str) -> str:
    row = next((r for r in case["rows"] if r["way"] == way), None)
    if row is None or row is first:
        return ""
    if "seconds" not in row:
        return "wrong" if "failed" in row else "–"
    return f"{row['seconds'] / first['seconds']:.3g}" if first else _time(row["seconds"])


def _notes(cases: list[dict[str, Any]]) -> list[str]:
    """Why cells hold no figure: every reason once, with the ways that it is about."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for case in cases:
        for row in case["rows"]:
            for outcome in ("skipped", "failed"):
                if outcome in row:
                    place = f"{row['way']} ({case['case']}, {case['dtype']})"
                    reasons.setdefault((outcome, row[outcome]), []).append(place)
    words = {"skipped": "no figure", "failed": "**wrong, hence no figure**"}
    return [
        f"- {words[outcome]}: {'; '.join(_unique(of))}: {why.rstrip('.')}." for (outcome, why), of in reasons.items()
    ]
