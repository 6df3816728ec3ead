"""The tables of a run, as cells that Markdown and HTML are made from."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

SCALES = {"TFLOP/s": 1e12, "GB/s": 1e9}
LIMIT_OF = {"TFLOP/s": "matrix product", "GB/s": "copy"}

Data = dict[str, Any]


class Cell(NamedTuple):
    """One cell: `text`, bold if `strong` and monospace if `code`, and what follows it plainly."""

    text: str
    strong: bool = False
    code: bool = False
    rest: str = ""


class Note(NamedTuple):
    """A line under a table; `strong` comes first, in bold."""

    text: str
    strong: str = ""


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
    return _unique(text for text in (data["command"], *(entry.get("command") for entry in data["scaling"])) if text)


def all_tables(data: Data) -> list[Table]:
    """Limits, one table for every operation, scaling; those that would be empty are left out."""
    found = [limits_table(data), *operation_tables(data), scaling_table(data)]
    return [table for table in found if table.rows]


def limits_table(data: Data) -> Table:
    """What the machine does at best."""
    rows = [
        [
            Cell(limit["name"]),
            Cell(limit["dtype"]),
            Cell(f"{limit['rate']:.3g} {limit['unit']}", rest=f" ± {limit['spread']:.0%}"),
            Cell(limit["what"]),
        ]
        for limit in data["limits"]
    ]
    return Table("Limits of the machine", ["limit", "dtype", "rate", "measured with"], rows, [])


def operations(data: Data) -> dict[str, list[Data]]:
    """The cases by operation, in the order in which they come."""
    found: dict[str, list[Data]] = {}
    for case in data["cases"]:
        found.setdefault(case["operation"], []).append(case)
    return found


def operation_tables(data: Data) -> list[Table]:
    """Per operation a row for every case and dtype: ours, then each other way as a ratio to it."""
    return [_operation_table(data, name, cases) for name, cases in operations(data).items()]


def _operation_table(data: Data, operation: str, cases: list[Data]) -> Table:
    firsts = [first_of_ours(case) for case in cases]
    pairs = list(zip(cases, firsts, strict=True))
    others = _unique((row["way"], row["kind"]) for case in cases for row in case["rows"] if row["kind"] != "limit")
    # a column without a ratio is left out: notes tell why there is none, or it is always the one compared with
    empty = ("", "–", "wrong")
    others = [other for other in others if any(_ratio(*pair, other[0]).text not in empty for pair in pairs)]
    unit = cases[0]["unit"]
    # a matrix product taken in turns with the case is the same limit once more, a copy of the same bytes is not
    beside = unit == "GB/s" or any(limit_for(data, case) is None for case in cases)
    columns: list[tuple[str, Any]] = [
        ("time", _time_cell),
        ("extra memory", _memory_cell),
        *([(unit, _rate_cell)] if unit else []),
        *([(f"of the {LIMIT_OF[unit]}", lambda case, row: Cell(of_limit(data, case, row)))] if unit else []),
        *((f"of {way}", _of_way(way)) for way in _ways_of_kind(cases, "limit") if unit and beside),
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
            *(_ratio(case, first, way) for way, _ in others),
        ]
        for (case, first), row in zip(pairs, blank, strict=True)
    ]
    head = [operation, "dtype", "ours", *filled]
    head += [f"{way} (other work)" if kind == "bound" else way for way, kind in others]
    return Table(operation, head, rows, _notes(cases))


def ways_table(data: Data, operation: str) -> Table:
    """Every way of an operation's cases with all that is known of it."""
    cases = operations(data)[operation]
    unit = cases[0]["unit"]
    head = ["case", "dtype", "way", "kind", "time", "samples", "extra memory", "error / allowed"]
    head += [unit, f"of the {LIMIT_OF[unit]}"] if unit else []
    rows = []
    for case in cases:
        best = winner(case)
        for row in case["rows"]:
            cells = [Cell(case["case"]), Cell(case["dtype"]), Cell(row["way"]), Cell(row["kind"])]
            if "seconds" not in row:
                cells += [Cell("wrong" if "failed" in row else "no figure"), *[Cell("")] * (len(head) - 5)]
            else:
                error = f"{row['error']:.1e} / {row['allowed']:.1e}" if "error" in row else ""
                time = Cell(time_text(row["seconds"]), row is best, rest=f" ± {row['spread']:.0%}")
                cells += [time, Cell(str(row["samples"])), _memory_cell(case, row), Cell(error)]
                cells += [_rate_cell(case, row), Cell(of_limit(data, case, row))] if unit else []
            rows.append(cells)
    return Table(f"{operation}: all ways", head, rows, [])


def scaling_table(data: Data) -> Table:
    """Fitted exponents with their intervals."""
    rows = []
    for entry in data["scaling"]:
        points = entry["points"]
        ends = f"{points[0]['x']:g} to {points[-1]['x']:g} {entry['unit']}" if points else ""
        fitted = f", fitted from {entry['fit_from']:g}" if entry.get("fit_from", 0) > points[0]["x"] else ""
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
    notes = [Note(text) for text in _unique(entry["note"] for entry in data["scaling"] if entry.get("note"))]
    return Table("Scaling", head, rows, notes)


def exponent_text(value: Sequence[float] | None) -> str:
    """An exponent and its interval, "1.01 (0.99 to 1.03)"."""
    return "" if value is None else f"{value[0]:.2f} ({value[1]:.2f} to {value[2]:.2f})"


def first_of_ours(case: Data) -> Data | None:
    """Ours that "auto" takes: the first of those with a time."""
    return next((row for row in case["rows"] if row["kind"] == "ours" and "seconds" in row), None)


def winner(case: Data) -> Data | None:
    """The fastest of the ways that give the case's result, ours or not."""
    rows = [row for row in case["rows"] if row["kind"] in ("ours", "peer") and "seconds" in row]
    return min(rows, key=lambda row: float(row["seconds"]), default=None)


def limit_for(data: Data, case: Data) -> float | None:
    """What the machine does at best of a case's kind of work, in operations or bytes a second, or None.

    The matrix product in the case's dtype, or the first copy that was measured.
    """
    name = LIMIT_OF.get(case["unit"])
    for limit in data["limits"]:
        if limit["name"] == name and (name == "copy" or limit["dtype"] == case["dtype"]):
            return float(limit["rate"]) * SCALES[limit["unit"]]
    return None


def of_limit(data: Data, case: Data, row: Data) -> str:
    """The useful rate of a row over the machine's limit, or an empty text."""
    limit = limit_for(data, case)
    return "" if limit is None else f"{case['amount'] / row['seconds'] / limit:.0%}"


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
    return Cell(f"{case['amount'] / row['seconds'] / SCALES[case['unit']]:.3g}")


def _of_way(way: str) -> Any:
    """Cells with the rate over that of a limit that was measured in turns with the case."""

    def cell(case: Data, row: Data) -> Cell:
        limit = next((r for r in case["rows"] if r["way"] == way and "seconds" in r), None)
        if limit is None:
            return Cell("")
        rate = limit.get("amount", case["amount"]) / limit["seconds"]
        return Cell(f"{case['amount'] / row['seconds'] / rate:.0%}")

    return cell


def _ways_of_kind(cases: list[Data], kind: str) -> list[str]:
    return _unique(row["way"] for case in cases for row in case["rows"] if row["kind"] == kind)


def _unique(names: Iterable[Any]) -> list[Any]:
    return list(dict.fromkeys(names))


def _ratio(case: Data, first: Data | None, way: str) -> Cell:
    """A way's time over ours; its time alone where ours has none."""
    row = next((r for r in case["rows"] if r["way"] == way), None)
    if row is None or row is first:
        return Cell("")
    if "seconds" not in row:
        return Cell("wrong" if "failed" in row else "–")
    text = f"{row['seconds'] / first['seconds']:.3g}" if first else time_text(row["seconds"])
    return Cell(text, row is winner(case))


def _notes(cases: list[Data]) -> list[Note]:
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
        named = "; ".join(f"{way} ({_places(found, len(cases))})" for way, found in ways.items())
        text = f": {named}: {why.rstrip('.')}."
        notes.append(Note(f"no figure{text}") if outcome == "skipped" else Note(text, "wrong, hence no figure"))
    return notes


def _places(found: list[str], of: int) -> str:
    """Case and dtype, or how many there are where a list would be long."""
    unique = _unique(found)
    if len(unique) == of > 1:
        return "all cases"
    return "; ".join(unique) if len(unique) <= 2 else f"{len(unique)} cases"
