"""A run beside an earlier one: what has become slower."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from . import report
from .tables import Cell, Table, time_text

Run = dict[str, Any]
Row = dict[str, Any]

SAME = ("cpu_model", "threads", "cores", "protocol", "torch", "library")  # what two runs should share beside the device


def read(path: Path) -> Run:
    """An earlier run's JSON.

    Raises:
        ValueError: there is no such file, or it is no run; the message names it.
    """
    try:
        return dict(report.validate(json.loads(path.read_text())))
    except OSError as error:
        raise ValueError(f"can't read {str(path)!r}: {error.strerror or error}") from error
    except ValueError as error:
        raise ValueError(f"{str(path)!r}: {error}") from error


def table(data: Run, earlier: Run) -> str:
    """Markdown: the time of every way that both runs have, now and then, and their ratio.

    A ratio is bold, and its row ends with "slower", where it is above 1 by more than the joint spread: the root of the
    sum of the squares of both interquartile ranges, each over its median. Ways that have lost their time are named. Two
    runs on different devices are not compared; where the CPU, threads, protocol or torch differ, a line says so.
    Where threads differ, no row is called slower.
    """
    now, then = data["environment"], earlier["environment"]
    if now["device_name"] != then["device_name"]:
        return f"Not compared: the earlier run is of {then['device_name']!r}, this one of {now['device_name']!r}.\n"
    lines = [f"Against commit {then['commit']}, {then['date']}."]
    for name in SAME:
        if now.get(name) != then.get(name):
            lines.append(f"Mind that {name} differs: {then.get(name)} then, {now.get(name)} now.")
    rows, lost = _rows(data, earlier), _lost(data, earlier)
    if not rows:
        return "\n".join([*lines, "The two runs have no case and way in common.", *lost]) + "\n"
    slower = sum(row[-1] == "slower" for row in rows)
    cells = [[*map(Cell, row[:4]), Cell(row[4], row[-1] == "slower"), Cell(row[5])] for row in rows]
    found = Table("against", ["case", "way", "then", "now", "now / then", ""], cells, [])
    end = f"{slower} of {len(rows)} are slower beyond the joint spread."
    if now.get("threads") != then.get("threads"):
        end = "Threads differ: no verdicts."
    return "\n".join([*lines, "", *report.lines_of(found), "", end, *lost]) + "\n"


def _lost(data: Run, earlier: Run) -> list[str]:
    """A line for each way of a case of both runs that had a time then and has none now, with the reason."""
    now = {(*_label(case), row["way"]): row for case in data["cases"] for row in case["rows"]}
    cases = {_label(case) for case in data["cases"]}
    return [
        f"No time any more: {'/'.join(key[:3])}, {key[3]}: {_reason(now.get(key))}."
        for case in earlier["cases"]
        for key in _timed(case)
        if key[:3] in cases and "seconds" not in now.get(key, {})
    ]


def _reason(row: Row | None) -> str:
    return "it was not run" if row is None else str(row.get("failed") or row["skipped"]).rstrip(".")


def _rows(data: Run, earlier: Run) -> list[tuple[str, ...]]:
    known = {key: row for case in earlier["cases"] for key, row in _timed(case).items()}
    found: list[tuple[str, ...]] = []
    comparable = data["environment"].get("threads") == earlier["environment"].get("threads")
    for case in data["cases"]:
        for key, row in _timed(case).items():
            if key in known:
                then = known[key]
                ratio = row["seconds"] / then["seconds"]
                slower = comparable and ratio - 1 > math.hypot(row["spread"], then["spread"])
                times = (time_text(then["seconds"]), time_text(row["seconds"]))
                found.append(("/".join(key[:3]), key[3], *times, f"{ratio:.2f}", "slower" if slower else ""))
    return found


def _timed(case: Row) -> dict[tuple[str, str, str, str], Row]:
    return {(*_label(case), row["way"]): row for row in case["rows"] if "seconds" in row}


def _label(case: Row) -> tuple[str, str, str]:
    return case["operation"], case["case"], case["dtype"]
