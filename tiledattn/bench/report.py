"""What a run of the benchmark leaves: its JSON, checked, and the Markdown that is made from it.

Format 2. A run has

- `command`: what to type to have it again,
- `environment`: device, versions, commit and date; with cases also the `threads` of torch and the `protocol`,
- `limits`: what the machine does at best, each a `name` ("matrix product" in "TFLOP/s" or "copy" in "GB/s"), `dtype`,
  `rate` in that `unit`, `spread`, `samples` and `what` was measured; one at least where there are cases,
- `cases`: each with the useful work of one call (`amount`, floating-point operations or bytes), the bytes that must
  move at least (`least_bytes`, 0 where unknown), and one row or more, one for every way to do it,
- `scaling`: times and memory against the size of the work, with fitted exponents (`tiledattn.bench.scaling`), each
  entry with the `command` that made it and the `environment` that it was made in, since a run is filled later.

A row has a time (`seconds` of one call, the median; `spread`, the interquartile range over it; `samples`), with
`extra_bytes`, the peak memory beyond inputs and outputs or null, and with the `error` that was found and the one
`allowed`, both null where the result was not compared; or it says why it was `skipped`, or how its check `failed`.
Rows that failed never have a time. A "limit" has no error: nothing judges it. All numbers are finite. No two cases have
the same operation, name and dtype, no two rows of a case the same way.
"""

from __future__ import annotations

import json
import math
from collections.abc import Hashable, Iterable, Mapping
from itertools import pairwise
from typing import Any

from .notes import Data
from .tables import LIMIT_OF, Cell, Table, about, all_tables, commands

FORMAT = 2
KINDS = ("ours", "peer", "bound", "limit")
UNITS = ("TFLOP/s", "GB/s")
AGAINST = ("canvas area", "halo", "tile", "threads")

_RUN = {"format": int, "command": str, "environment": dict, "limits": list, "cases": list, "scaling": list}
_ENVIRONMENT = {"date": str, "commit": str, "device": str, "device_name": str, "python": str, "torch": str}
_THREADS: dict[str, type] = {"threads": int}
_TAKEN = _THREADS | {"protocol": str}  # what times of cases depend on; a run of scaling alone has no protocol
_LIMIT = {"name": str, "dtype": str, "unit": str, "rate": float, "spread": float, "samples": int, "what": str}
_CASE = {"operation": str, "case": str, "dtype": str, "unit": str, "amount": float, "least_bytes": float, "rows": list}
_ROW = {"way": str, "kind": str}
_TIMED = {"seconds": float, "spread": float, "samples": int}
_SCALING = {"operation": str, "against": str, "unit": str, "dtype": str, "points": list, "time_exponent": list}
_MADE = {"command": str, "environment": dict}
_POINT = {"x": float, "seconds": float, "spread": float}


def validate(data: Any) -> Data:
    """The data of a run, as it was given.

    Raises:
        ValueError: it does not have the form of one; the message says where and what was expected.
    """
    _fields("", data, {"format": int})
    run: Data = data
    if data["format"] != FORMAT:
        raise ValueError(f"format: got {data['format']}; expected {FORMAT}: measure again with this version")
    _fields("", data, _RUN)
    _fields("environment.", data["environment"], _ENVIRONMENT)
    for number, limit in enumerate(data["limits"]):
        _check_limit(f"limits[{number}].", limit)
    if data["cases"]:
        _fields("environment.", data["environment"], _TAKEN)
        if not data["limits"]:
            raise ValueError("limits: got none; expected one or more, since there are cases, whose rates are over them")
    for number, case in enumerate(data["cases"]):
        _check_case(f"cases[{number}].", case)
    _unique("cases", ((case["operation"], case["case"], case["dtype"]) for case in data["cases"]))
    _check_limits_of_cases(data["cases"])
    for number, entry in enumerate(data["scaling"]):
        _check_scaling(f"scaling[{number}].", entry)
    _unique("scaling", ((entry["operation"], entry["against"], entry["dtype"]) for entry in data["scaling"]))
    return run


def dumps(data: Data) -> str:
    """The run as the text of its JSON file.

    Raises:
        ValueError: it is no run (`validate`), or a number outside its form is not finite.
    """
    return json.dumps(validate(data), indent=1, allow_nan=False) + "\n"


def _check_limit(place: str, limit: Any) -> None:
    _fields(place, limit, _LIMIT)
    _one_of(f"{place}unit", limit["unit"], UNITS)
    _one_of(f"{place}name, in {limit['unit']}", limit["name"], (LIMIT_OF[limit["unit"]],))
    _positive(f"{place}rate", limit["rate"], "rate")
    _samples(place, limit)


def _check_case(place: str, case: Any) -> None:
    _fields(place, case, _CASE)
    _one_of(f"{place}unit", case["unit"], (*UNITS, ""))
    if case["unit"]:
        _positive(f"{place}amount", case["amount"], f"amount of work, since its unit is {case['unit']}")
    for name in ("amount", "least_bytes"):
        _not_negative(f"{place}{name}", case[name])
    if not case["rows"]:
        raise ValueError(f"{place}rows: got none; expected one or more")
    for index, row in enumerate(case["rows"]):
        _check_row(f"{place}rows[{index}].", row)
    _unique(f"{place}rows", (row["way"] for row in case["rows"]))


def _check_row(place: str, row: Any) -> None:
    _fields(place, row, _ROW)
    _one_of(f"{place}kind", row["kind"], KINDS)
    outcomes = [name for name in ("seconds", "skipped", "failed") if name in row]
    if len(outcomes) != 1:
        raise ValueError(f"{place[:-1]}: has {outcomes}; expected exactly one of seconds, skipped, failed")
    if outcomes != ["seconds"]:
        _fields(place, row, {outcomes[0]: str})
        return
    _fields(place, row, _TIMED)
    _positive(f"{place}seconds", row["seconds"], "time")
    _samples(place, row)
    _bytes_or_none(place, "extra_bytes", row)
    if "amount" in row:
        _fields(place, row, {"amount": float})
        _positive(f"{place}amount", row["amount"], "amount of work")
    _check_error(place, row)


def _check_error(place: str, row: Any) -> None:
    """An error within what is allowed, or two nulls; none for a limit."""
    if row["kind"] == "limit":
        if "error" in row or "allowed" in row:
            raise ValueError(f"{place}error: a limit has none, since nothing judges it")
        return
    if "error" in row and "allowed" in row and row["error"] is None and row["allowed"] is None:
        return
    _fields(place, row, {"error": float, "allowed": float})
    for name in ("error", "allowed"):
        _not_negative(f"{place}{name}", row[name])
    if not row["error"] <= row["allowed"]:
        raise ValueError(f"{place}error: {row['error']} is over {row['allowed']}, yet there is a time")


def _check_limits_of_cases(cases: list[Data]) -> None:
    """A way that is a limit in one case is one everywhere: it would not be judged elsewhere."""
    kinds: dict[str, set[str]] = {}
    for case in cases:
        for row in case["rows"]:
            kinds.setdefault(row["way"], set()).add(row["kind"])
    for way, found in kinds.items():
        if "limit" in found and len(found) > 1:
            raise ValueError(f"cases: {way!r} is of the kinds {', '.join(sorted(found))}; a limit is one in every case")


def _check_scaling(place: str, entry: Any) -> None:
    _fields(place, entry, _SCALING | _MADE)
    _fields(f"{place}environment.", entry["environment"], {**_ENVIRONMENT, **_THREADS})
    _one_of(f"{place}against", entry["against"], AGAINST)
    for index, point in enumerate(entry["points"]):
        at = f"{place}points[{index}]."
        _fields(at, point, _POINT)
        _positive(f"{at}x", point["x"], "size")
        _positive(f"{at}seconds", point["seconds"], "time")
        _not_negative(f"{at}spread", point["spread"])
        for name in ("extra_bytes", "memory_bytes"):
            _bytes_or_none(at, name, {name: None} | point)
    xs = [point["x"] for point in entry["points"]]
    if len(xs) < 2 or any(after <= before for before, after in pairwise(xs)):
        raise ValueError(f"{place}points: got sizes {xs}; expected two or more, ascending")
    if entry.get("fit_from") is not None:
        _fields(place, entry, {"fit_from": float})
    if sum(x >= (entry.get("fit_from") or 0) for x in xs) < 2:
        raise ValueError(f"{place}fit_from: got {entry['fit_from']}; expected two sizes or more from there on, of {xs}")
    _exponent(f"{place}time_exponent", entry["time_exponent"])
    if entry.get("memory_exponent") is not None:
        _exponent(f"{place}memory_exponent", entry["memory_exponent"])
    if entry.get("work_exponent") is not None:
        _fields(place, entry, {"work_exponent": float})
    if entry.get("note") is not None:
        _fields(place, entry, {"note": str})


def _exponent(place: str, value: Any) -> None:
    numbers = isinstance(value, list) and all(isinstance(x, (int, float)) and math.isfinite(x) for x in value)
    if not (numbers and len(value) == 3 and value[1] <= value[0] <= value[2]):
        raise ValueError(f"{place}: got {value!r}; expected [value, low, high] with low <= value <= high")


def _unique(place: str, keys: Iterable[Hashable]) -> None:
    seen = set()
    for key in keys:
        if key in seen:
            name = key if isinstance(key, str) else "/".join(map(str, key)) if isinstance(key, tuple) else key
            raise ValueError(f"{place}: {name!r} is there twice; expected each once")
        seen.add(key)


def _one_of(place: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        names = ", ".join(name or "''" for name in known)
        raise ValueError(f"{place}: got {value!r}; expected one of {names}")


def _positive(place: str, value: float, what: str) -> None:
    if not value > 0:
        raise ValueError(f"{place}: got {value}; expected a positive {what}")


def _not_negative(place: str, value: float) -> None:
    if value < 0:
        raise ValueError(f"{place}: got {value}; expected 0 or more")


def _samples(place: str, timed: Data) -> None:
    _not_negative(f"{place}spread", timed["spread"])
    _positive(f"{place}samples", timed["samples"], "number of samples")


def _bytes_or_none(place: str, name: str, holder: Data) -> None:
    if name not in holder:
        raise ValueError(f"{place}{name}: missing; expected bytes or null")
    value = holder[name]
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 0):
        raise ValueError(f"{place}{name}: got {value!r}; expected bytes, an int of at least 0, or null")


def _fields(place: str, value: Any, expected: Mapping[str, type]) -> None:
    """That an object has fields of these types; floats are finite."""
    if not isinstance(value, dict):
        raise ValueError(f"{place[:-1] or 'the run'}: got {type(value).__name__}; expected an object")
    for name, kind in expected.items():
        if name not in value:
            raise ValueError(f"{place}{name}: missing; expected {kind.__name__}")
        allowed = (int, float) if kind is float else kind
        if not isinstance(value[name], allowed) or isinstance(value[name], bool):
            raise ValueError(f"{place}{name}: got {type(value[name]).__name__}; expected {kind.__name__}")
        if kind is float and not math.isfinite(value[name]):
            raise ValueError(f"{place}{name}: got {value[name]}; expected a finite number")


def tables(data: Data) -> str:
    """The run as Markdown: device and versions, the command, the machine's limits, a table per operation, scaling."""
    lines = ["; ".join(text for _, text in about(data)) + ".", ""]
    if commands(data):
        lines += ["```bash", *commands(data), "```", ""]
    for table in all_tables(data):
        lines += [*lines_of(table), ""]
    return "\n".join(lines).rstrip() + "\n"


def lines_of(table: Table) -> list[str]:
    """A table as lines of Markdown, its notes after an empty one."""
    lines = [_line([Cell(text) for text in table.head]), "|" + "---|" * len(table.head)]
    lines += [_line(row) for row in table.rows]
    notes = [f"- {f'**{note.strong}**' if note.strong else ''}{_escape(note.text)}" for note in table.notes]
    return [*lines, *([""] if notes else []), *notes]


def _line(cells: list[Cell]) -> str:
    return "| " + " | ".join(_cell(cell) for cell in cells) + " |"


def _cell(cell: Cell) -> str:
    text = f"`{cell.text}`" if cell.code else _escape(cell.text)
    return (f"**{text}**" if cell.strong else text) + _escape(cell.rest)


def _escape(text: str) -> str:
    return text.replace("|", "\\|")
