"""A run beside an earlier one: what has become slower or faster."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from . import report
from .tables import Cell, Table, time_text
from .timing import WARM

Run = dict[str, Any]
Row = dict[str, Any]
Key = tuple[str, str, str, str]  # a case's operation, name and dtype, and a way

TOLD = ("date", "commit", "device_name")  # of two environments; of all else that they have a difference is a line
WARM_CHANGED = "2026-12-01"  # the first date of runs whose protocol "warm" has more than one untimed call
ERROR_OF_MEDIAN = 1.2533 / 1.349  # times the interquartile range over the root of the number of normal samples
SURE = 3.0  # standard errors


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

    A ratio is bold, and its row ends with "slower" or "faster", where the larger time exceeds the smaller by more than
    the joint uncertainty of both medians: the root of the sum of the squares of `uncertainty`. Cases whose work
    differs are named and not compared, ways that have lost their time are named too. Two runs on different devices are
    not compared; whatever else differs between their environments is a line. Where threads differ, no row is called
    slower or faster.
    """
    now, then = data["environment"], earlier["environment"]
    if now["device_name"] != then["device_name"]:
        return f"Not compared: the earlier run is of {then['device_name']!r}, this one of {now['device_name']!r}.\n"
    lines = [f"Against commit {then['commit']}, {then['date']}.", *_differences(now, then)]
    rows, other_work = _rows(data, earlier)
    named = [*other_work, *_lost(data, earlier)]
    if not rows:
        none = [] if other_work else ["The two runs have no case and way in common."]
        return "\n".join([*lines, *none, *named]) + "\n"
    cells = [[*map(Cell, row[:4]), Cell(row[4], bool(row[-1])), Cell(row[5])] for row in rows]
    found = Table("against", ["case", "way", "then", "now", "now / then", ""], cells, [])
    slower, faster = (sum(row[-1] == word for row in rows) for word in ("slower", "faster"))
    end = f"{slower} of {len(rows)} are slower and {faster} faster, beyond the joint uncertainty of both medians. "
    end += "That is of samples within a run; whole runs differ too, by what else the machine does."
    if now.get("threads") != then.get("threads"):
        end = "Threads differ: no verdicts."
    return "\n".join([*lines, "", *report.lines_of(found), "", end, *named]) + "\n"


def uncertainty(row: Row) -> float:
    """Half the interval of a row's median, over that median: `SURE` standard errors, by the interquartile range.

    Infinite for a single sample. It says nothing of what all samples of a run share, such as a busy host. With n - 1
    for n, since the range of few samples comes out too small: equal times are then told apart in at most one row of
    twenty, from 20 samples on in one of a hundred.
    """
    samples = row["samples"]
    return SURE * ERROR_OF_MEDIAN * float(row["spread"]) / math.sqrt(samples - 1) if samples > 1 else math.inf


def _differences(now: Run, then: Run) -> list[str]:
    """A line for each field that the two environments don't share, and for what changed under the same name."""
    lines = []
    for name in dict.fromkeys([*now, *then]):
        a, b = then.get(name), now.get(name)
        if name in TOLD or a == b:
            continue
        if isinstance(a, dict) and isinstance(b, dict):
            parts = [key for key in dict.fromkeys([*a, *b]) if a.get(key) != b.get(key)]
            told = "; ".join(f"{key} {_text(a.get(key))} then, {_text(b.get(key))} now" for key in parts)
        else:
            told = f"{_text(a)} then, {_text(b)} now"
        lines.append(f"Mind that {name} differs: {told}.")
    if now.get("protocol") == then.get("protocol") == WARM:
        old = [run["date"] < WARM_CHANGED for run in (then, now)]
        if old[0] != old[1]:
            lines.append(
                f'Mind that "{WARM}" means one untimed call before a sample in runs dated before {WARM_CHANGED}, and '
                f"as many as the sample has since: the {'earlier run' if old[0] else 'run of now'} is of before, and "
                "what fits into the caches can look faster or slower by that alone."
            )
    return lines


def _text(value: Any) -> str:
    return "none" if value is None else str(value)


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


def _rows(data: Run, earlier: Run) -> tuple[list[tuple[str, ...]], list[str]]:
    """The cells of what has a time in both runs, and a line for each case, or limit in it, whose work differs."""
    known = {key: (case, row) for case in earlier["cases"] for key, row in _timed(case).items()}
    found: list[tuple[str, ...]] = []
    other_work: dict[str, str] = {}
    comparable = data["environment"].get("threads") == earlier["environment"].get("threads")
    for case in data["cases"]:
        for key, row in _timed(case).items():
            if key not in known:
                continue
            case_then, then = known[key]
            label = "/".join(key[:3])
            for name, a, b in ((label, case_then, case), (f"{label}, {key[3]}", then, row)):
                if a.get("amount") != b.get("amount"):
                    amounts = f"{_amount(a)} then, {_amount(b)} now"
                    other_work[name] = f"Not compared, since the amount of work differs: {name}: {amounts}."
                    break
            else:
                verdict = _verdict(row, then) if comparable else ""
                times = (time_text(then["seconds"]), time_text(row["seconds"]))
                found.append((label, key[3], *times, f"{row['seconds'] / then['seconds']:.2f}", verdict))
    return found, list(other_work.values())


def _amount(holder: Row) -> str:
    return f"{holder['amount']:.10g}" if "amount" in holder else "the case's"


def _verdict(now: Row, then: Row) -> str:
    ratio = now["seconds"] / then["seconds"]
    if max(ratio, 1 / ratio) - 1 <= math.hypot(uncertainty(now), uncertainty(then)):
        return ""
    return "slower" if ratio > 1 else "faster"


def _timed(case: Row) -> dict[Key, Row]:
    return {(*_label(case), row["way"]): row for row in case["rows"] if "seconds" in row}


def _label(case: Row) -> tuple[str, str, str]:
    return case["operation"], case["case"], case["dtype"]
