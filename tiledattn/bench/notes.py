"""The notes under the tables of a run: why figures are missing, what they say of the targets."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

NOT_COMPARED = "not compared"
TARGET = 1.05  # the largest exponent of time and memory against canvas area that tiledattn aims at

Data = dict[str, Any]


class Note(NamedTuple):
    """A line under a table; `strong` comes first, in bold."""

    text: str
    strong: str = ""


def without_figures(cases: list[Data]) -> list[Note]:
    """Why cells hold no figure: every reason once, with the ways that it is about."""
    reasons: dict[tuple[str, str], dict[str, list[str]]] = {}
    for case in cases:
        for row in case["rows"]:
            for outcome in ("skipped", "failed"):
                if outcome in row:
                    ways = reasons.setdefault((outcome, row[outcome]), {})
                    ways.setdefault(row["way"], []).append(f"{case['case']}, {case['dtype']}")
    notes = []
    for (outcome, why), ways in reasons.items():
        named = "; ".join(f"{way} ({places(found, len(cases))})" for way, found in ways.items())
        text = f": {named}: {why.rstrip('.')}."
        notes.append(Note(f"no figure{text}") if outcome == "skipped" else Note(text, "wrong, hence no figure"))
    return notes


def not_compared(cases: list[Data]) -> list[Note]:
    """Which times stand without a check of the result."""
    ways: dict[str, list[str]] = {}
    for case in cases:
        for row in case["rows"]:
            if "seconds" in row and row["kind"] != "limit" and row["error"] is None:
                ways.setdefault(row["way"], []).append(f"{case['case']}, {case['dtype']}")
    named = "; ".join(f"{way} ({places(found, len(cases))})" for way, found in ways.items())
    return [Note(f": the results of {named}.", NOT_COMPARED)] if named else []


def verdicts(data: Data) -> list[Note]:
    """Per entry against canvas area whether the exponents of time and memory are at most `TARGET`.

    "reached" where the whole interval is at most that, "missed" where it is above, else "not settled".
    """
    notes = []
    for entry in data["scaling"]:
        if entry["against"] != "canvas area":
            continue
        found = [(name, entry.get(f"{name}_exponent")) for name in ("time", "memory")]
        told = [f"{name} {exponent_text(value)} {_verdict(value)}" for name, value in found if value is not None]
        about = f"{entry['operation']}, {entry['dtype']}"
        notes.append(Note(f"exponents of at most {TARGET} against canvas area, {about}: {'; '.join(told)}."))
    return notes


def _verdict(exponent: Sequence[float]) -> str:
    _, low, high = exponent
    return "reached" if high <= TARGET else "missed" if low > TARGET else "not settled"


def elsewhere(data: Data) -> list[Note]:
    """What was otherwise when entries were measured than it says at the top of the run."""
    about: dict[str, list[str]] = {}
    for entry in data["scaling"]:
        shared = [name for name in entry["environment"] if name in data["environment"]]
        pairs = [(name, data["environment"][name], entry["environment"][name]) for name in shared]
        texts = [
            name if isinstance(now, (dict, list)) else f"{name} {now} instead of {then}"
            for name, then, now in pairs
            if then != now
        ]
        if texts:
            about.setdefault(", ".join(texts), []).append(f"{entry['operation']}/{entry['against']}/{entry['dtype']}")
    return [
        Note(f"measured otherwise than the cases: {places(found, len(data['scaling']), 'sweeps')}: {text}.")
        for text, found in about.items()
    ]


def exponent_text(value: Sequence[float] | None) -> str:
    """An exponent and its interval, "1.01 (0.99 to 1.03)"."""
    return "" if value is None else f"{value[0]:.2f} ({value[1]:.2f} to {value[2]:.2f})"


def places(found: list[str], of: int, what: str = "cases") -> str:
    """Names, or how many there are where a list would be long."""
    named = unique(found)
    if len(named) == of > 1:
        return f"all {what}"
    return "; ".join(named) if len(named) <= 2 else f"{len(named)} {what}"


def unique(names: Iterable[Any]) -> list[Any]:
    """Each once, in the order in which they come first."""
    return list(dict.fromkeys(names))
