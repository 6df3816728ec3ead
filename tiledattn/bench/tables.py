"""The tables of a run, as cells that Markdown and HTML are made from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

from .notes import (
    NOT_COMPARED,
    Data,
    Note,
    elsewhere,
    exponent_text,
    not_compared,
    places,
    unique,
    verdicts,
    without_figures,
)

SCALES = {"TFLOP/s": 1e12, "GB/s": 1e9}
LIMIT_OF = {"TFLOP/s": "matrix product", "GB/s": "copy"}
KIND_NAMES = {"bound": "other work"}  # where a kind is shown by another word
ROUGH_SPREAD = 0.2  # a limit that is spread more widely is hardly one

Fraction = Callable[[Data, Data], float | None]  # of a case and a row


class Cell(NamedTuple):
    """One cell: `text`, bold if `strong` and monospace if `code`, and what follows it plainly."""

    text: str
    strong: bool = False
    code: bool = False
    rest: str = ""


class Table(NamedTuple):
    """Heading cells, rows of as many cells, notes; `title` says what it is about."""

    title: str
    head: list[str]
    rows: list[list[Cell]]
    notes: list[Note]


def about(data: Data) -> list[tuple[str, str]]:
    """What identifies the run, as pairs of a name and a text that says it by itself."""
    environment = data["environment"]
    found = [("device", environment["device_name"]), ("torch", f"torch {environment['torch']}")]
    if environment["device"] == "cuda":
        names = [name for name in ("triton", "cuda", "driver") if environment.get(name)]
        found += [(name, f"{name} {environment[name]}") for name in names]
    elif environment.get("threads"):
        count = environment["threads"]
        found.append(("threads", f"{count} thread{'' if count == 1 else 's'}"))
    if environment.get("protocol"):
        found.append(("protocol", f'protocol "{environment["protocol"]}"'))
    return [*found, ("commit", f"commit {environment['commit']}, {environment['date']}")]


def commands(data: Data) -> list[str]:
    """What to type to have the run again: the suite's command, then those that made the scaling."""
    return unique(text for text in (data["command"], *(entry.get("command") for entry in data["scaling"])) if text)


def all_tables(data: Data) -> list[Table]:
    """Limits, one table for every operation, scaling; those that would be empty are left out."""
    found = [limits_table(data), *operation_tables(data), scaling_table(data)]
    return [table for table in found if table.rows]


def limits_table(data: Data) -> Table:
    """What torch reaches on the machine; fractions are of these rates."""
    rows = [
        [
            Cell(f"torch's {limit['name']}"),
            Cell(limit["dtype"]),
            Cell(f"{limit['rate']:.3g} {limit['unit']}", rest=f" ± {limit['spread']:.0%}"),
            Cell(limit["what"]),
        ]
        for limit in data["limits"]
    ]
    head = ["limit", "dtype", "rate", "measured with"]
    return Table("What torch reaches on this machine", head, rows, [*_rough_limits(data), *_strange_limits(data)])


def _rough_limits(data: Data) -> list[Note]:
    """Which rates are too widely spread for what is a fraction of them to be more than rough."""
    named = "; ".join(
        f"torch's {limit['name']}, {limit['dtype']}, {limit['what']}"
        for limit in data["limits"]
        if limit["spread"] > ROUGH_SPREAD
    )
    text = f"spread by more than {ROUGH_SPREAD:.0%}: {named}: fractions of such a rate are rough."
    return [Note(text)] if named else []


def _strange_limits(data: Data) -> list[Note]:
    rates = [limit["rate"] for limit in data["limits"] if limit["name"] == "copy"]
    if len(rates) < 2 or rates[1] >= rates[0]:
        return []
    return [
        Note(
            "A copy inside the caches was slower than one of much more than they hold: the cores were not this run's "
            "alone, and its figures are worth little."
        )
    ]


def operations(data: Data) -> dict[str, list[Data]]:
    """The cases by operation, in the order in which they come."""
    found: dict[str, list[Data]] = {}
    for case in data["cases"]:
        found.setdefault(case["operation"], []).append(case)
    return found


def operation_tables(data: Data) -> list[Table]:
    """Per operation a row for every case and dtype: ours, other ways as ratios to it, other work by its time."""
    return [_operation_table(data, name, cases) for name, cases in operations(data).items()]


def _operation_table(data: Data, operation: str, cases: list[Data]) -> Table:
    firsts = [first_of_ours(case) for case in cases]
    pairs = list(zip(cases, firsts, strict=True))
    others = _other_ways(cases, ("ours", "peer"))
    # a column without a ratio is left out: notes tell why there is none, or it is always the one compared with
    empty = ("", "–", "wrong")
    others = [other for other in others if any(_ratio(*pair, other).text not in empty for pair in pairs)]
    work = [way for way in _other_ways(cases, ("bound",)) if any(_timed(case, way) for case in cases)]
    unit = cases[0]["unit"]
    # a matrix product taken in turns with the case is the same limit once more, a copy of the same bytes is not
    beside = unit == "GB/s" or any(limit_for(data, case) is None for case in cases)
    fractions: list[tuple[str, Fraction]] = [(f"of torch's {LIMIT_OF[unit]}", partial(of_limit, data))] if unit else []
    fractions += [(f"of {way}", partial(_of_way, way)) for way in _other_ways(cases, ("limit",)) if unit and beside]
    columns: list[tuple[str, Any]] = [
        ("time", _time_cell),
        ("extra memory", _memory_cell),
        *([(unit, _rate_cell)] if unit else []),
        *((name, partial(_percent_cell, fraction)) for name, fraction in fractions),
    ]
    blank: list[list[Cell]] = [[] for _ in cases]
    filled: list[str] = []
    for name, cell in columns:
        cells = [Cell("") if first is None else cell(case, first) for case, first in pairs]
        if name == "time" or any(cell.text for cell in cells):
            filled.append(name)
            for row, cell in zip(blank, cells, strict=True):
                row.append(cell)
    rows = [
        [
            Cell(case["case"]),
            Cell(case["dtype"]),
            Cell("none") if first is None else Cell(first["way"], code=True),
            *row,
            *(_ratio(case, first, way) for way in others),
            *(_work_cell(case, way) for way in work),
        ]
        for (case, first), row in zip(pairs, blank, strict=True)
    ]
    head = [operation, "dtype", "ours", *filled, *others, *(f"{way} ({KIND_NAMES['bound']}, time)" for way in work)]
    notes = [*without_figures(cases), *not_compared(cases), *_above_limits(pairs, fractions)]
    return Table(operation, head, rows, notes)


def ways_table(data: Data, operation: str) -> Table:
    """Every way of an operation's cases with all that is known of it; other work has no rate, its amount is unknown."""
    cases = operations(data)[operation]
    unit = cases[0]["unit"]
    head = ["case", "dtype", "way", "kind", "time", "samples", "extra memory", "error / allowed"]
    head += [unit, f"of torch's {LIMIT_OF[unit]}"] if unit else []
    rows = []
    for case in cases:
        best = winner(case)
        for row in case["rows"]:
            kind = KIND_NAMES.get(row["kind"], row["kind"])
            cells = [Cell(case["case"]), Cell(case["dtype"]), Cell(row["way"]), Cell(kind)]
            if "seconds" not in row:
                cells += [Cell("wrong" if "failed" in row else "no figure"), *[Cell("")] * (len(head) - 5)]
            else:
                time = Cell(time_text(row["seconds"]), row is best, rest=f" ± {row['spread']:.0%}")
                cells += [time, Cell(str(row["samples"])), _memory_cell(case, row), Cell(_error_text(row))]
                cells += [_rate_cell(case, row), _percent_cell(partial(of_limit, data), case, row)] if unit else []
            rows.append(cells)
    return Table(f"{operation}: all ways", head, rows, [])


def scaling_table(data: Data) -> Table:
    """Fitted exponents with their intervals."""
    rows = []
    for entry in data["scaling"]:
        points = entry["points"]
        ends = f"{points[0]['x']:g} to {points[-1]['x']:g} {entry['unit']}"
        fitted = f", fitted from {entry['fit_from']:g}" if (entry.get("fit_from") or 0) > points[0]["x"] else ""
        times = " to ".join(time_text(points[end]["seconds"]) for end in (0, -1))
        work = entry.get("work_exponent")
        cells = [entry["operation"], entry["against"], entry["dtype"], ends + fitted, times]
        cells += [exponent_text(entry["time_exponent"]), exponent_text(entry.get("memory_exponent"))]
        rows.append([Cell(text) for text in (*cells, "" if work is None else f"{work:.3f}")])
    head = [
        "scaling of",
        "against",
        "dtype",
        "points",
        "time",
        "time exponent",
        "memory exponent",
        "of its work",
    ]
    notes = [Note(text) for text in unique(entry["note"] for entry in data["scaling"] if entry.get("note"))]
    return Table("Scaling", head, rows, [*verdicts(data), *notes, *elsewhere(data)])


def first_of_ours(case: Data) -> Data | None:
    """Ours that "auto" takes: the first of those with a time."""
    return next((row for row in case["rows"] if row["kind"] == "ours" and "seconds" in row), None)


def winner(case: Data) -> Data | None:
    """The fastest of the ways that give the case's result, ours or not; ours only if its result was compared.

    None where no peer has a time: ours would win against nobody, also where other work beside it is faster.
    """
    rows = [row for row in case["rows"] if row["kind"] in ("ours", "peer") and "seconds" in row]
    if all(row["kind"] == "ours" for row in rows):
        return None
    rows = [row for row in rows if row["kind"] == "peer" or row["error"] is not None]
    return min(rows, key=lambda row: float(row["seconds"]), default=None)


def limit_for(data: Data, case: Data) -> float | None:
    """What torch reaches in a case's kind of work, in operations or bytes a second, or None.

    The fastest matrix product in the case's dtype, or the first copy that was measured.
    """
    name = LIMIT_OF.get(case["unit"])
    known = [limit for limit in data["limits"] if limit["name"] == name]
    known = known[:1] if name == "copy" else [limit for limit in known if limit["dtype"] == case["dtype"]]
    return max((float(limit["rate"]) * SCALES[limit["unit"]] for limit in known), default=None)


def rate(case: Data, row: Data) -> float | None:
    """Useful operations or bytes a second; None for other work, whose amount is not the case's."""
    if row["kind"] == "bound" or not case["unit"]:
        return None
    return float(row.get("amount", case["amount"]) / row["seconds"])


def of_limit(data: Data, case: Data, row: Data) -> float | None:
    """The useful rate of a row over the machine's limit; None where one of them is unknown."""
    limit, reached = limit_for(data, case), rate(case, row)
    return None if limit is None or reached is None else reached / limit


def time_text(seconds: float) -> str:
    """Three digits and a unit."""
    for factor, name in ((1.0, "s"), (1e3, "ms")):
        if seconds * factor >= 1:
            return f"{seconds * factor:.3g} {name}"
    return f"{seconds * 1e6:.3g} µs"


def bytes_text(count: int | None) -> str:
    """Three digits and a unit of powers of ten; an empty text for None."""
    if count is None:
        return ""
    for factor, name in ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= factor:
            return f"{count / factor:.3g} {name}"
    return f"{count} B" if count else "0"


def _time_cell(case: Data, row: Data) -> Cell:
    return Cell(time_text(row["seconds"]), row is winner(case), rest=f" ± {row['spread']:.0%}")


def _memory_cell(case: Data, row: Data) -> Cell:
    return Cell(bytes_text(row.get("extra_bytes")))


def _rate_cell(case: Data, row: Data) -> Cell:
    reached = rate(case, row)
    return Cell("" if reached is None else f"{reached / SCALES[case['unit']]:.3g}")


def _percent_cell(fraction: Fraction, case: Data, row: Data) -> Cell:
    value = fraction(case, row)
    return Cell("" if value is None else f"{value:.0%}")


def _of_way(way: str, case: Data, row: Data) -> float | None:
    """A row's rate over that of a limit that was measured in turns with the case."""
    limit, reached = _timed(case, way), rate(case, row)
    at_best = None if limit is None else rate(case, limit)
    return None if at_best is None or reached is None else reached / at_best


def _timed(case: Data, way: str) -> Data | None:
    return next((row for row in case["rows"] if row["way"] == way and "seconds" in row), None)


def _work_cell(case: Data, way: str) -> Cell:
    """The time of other work; never bold, never a ratio: it doesn't give the case's result."""
    row = next((row for row in case["rows"] if row["way"] == way), None)
    if row is None:
        return Cell("")
    return Cell(time_text(row["seconds"]) if "seconds" in row else "wrong" if "failed" in row else "–")


def _error_text(row: Data) -> str:
    if "error" not in row:
        return ""
    return NOT_COMPARED if row["error"] is None else f"{row['error']:.1e} / {row['allowed']:.1e}"


def _other_ways(cases: list[Data], kinds: Sequence[str]) -> list[str]:
    return unique(row["way"] for case in cases for row in case["rows"] if row["kind"] in kinds)


def _ratio(case: Data, first: Data | None, way: str) -> Cell:
    """A way's time over ours; its time alone where ours has none."""
    row = next((r for r in case["rows"] if r["way"] == way), None)
    if row is None or row is first or row["kind"] == "bound":
        return Cell("")
    if "seconds" not in row:
        return Cell("wrong" if "failed" in row else "–")
    text = f"{row['seconds'] / first['seconds']:.3g}" if first else time_text(row["seconds"])
    return Cell(text, row is winner(case))


def _above_limits(pairs: list[tuple[Data, Data | None]], fractions: list[tuple[str, Fraction]]) -> list[Note]:
    """Where a fraction of a limit is above 100%, and what that says."""
    notes = []
    for name, fraction in fractions:
        found = [
            f"{case['case']}, {case['dtype']}"
            for case, first in pairs
            if first is not None and (fraction(case, first) or 0) >= 1.005
        ]
        if found:
            notes.append(
                Note(
                    f"above 100% {name} ({places(found, len(pairs))}): the case ran at a higher rate than what it is "
                    "compared with, which is a measurement and no bound of the machine."
                )
            )
    return notes
