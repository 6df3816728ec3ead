"""What torch's arithmetic and copies reach on a machine, and the work that a byte allows.

After Williams, Waterman and Patterson, "Roofline: an insightful visual performance model for multicore architectures",
Communications of the ACM 52 (4), 2009.
"""

from __future__ import annotations

from typing import NamedTuple

from .notes import Data
from .tables import LIMIT_OF, SCALES, first_of_ours, winner


class Roof(NamedTuple):
    """What torch reaches on a machine in one dtype: operations a second, bytes a second."""

    dtype: str
    operations: float
    bytes: float

    def at(self, intensity: float) -> float:
        """Operations a second that are within reach of work with so many operations per byte."""
        return min(self.operations, intensity * self.bytes)


class Point(NamedTuple):
    """A way's place: operations per byte that must move at least, and useful operations a second."""

    operation: str
    case: str
    dtype: str
    way: str
    kind: str
    intensity: float
    rate: float


def roofs(data: Data) -> list[Roof]:
    """One for every dtype whose matrix product was measured, the fastest of them, if a copy was; the first copy."""
    rates: dict[str, list[tuple[str, float]]] = {"matrix product": [], "copy": []}
    for limit in data["limits"]:
        if limit["name"] in rates:
            rates[limit["name"]].append((limit["dtype"], limit["rate"] * SCALES[limit["unit"]]))
    if not rates["copy"]:
        return []
    _, copy = rates["copy"][0]
    dtypes = dict.fromkeys(dtype for dtype, _ in rates["matrix product"])
    return [Roof(dtype, max(rate for of, rate in rates["matrix product"] if of == dtype), copy) for dtype in dtypes]


def points(data: Data) -> list[Point]:
    """Ours and, where a peer is the fastest, that peer, of every case whose work is arithmetic with known bytes."""
    found = []
    for case in data["cases"]:
        if LIMIT_OF.get(case["unit"]) != "matrix product" or case["least_bytes"] <= 0:
            continue
        ours, best = first_of_ours(case), winner(case)
        rows = [row for row in (ours, best if best is not None and best["kind"] == "peer" else None) if row is not None]
        for row in rows:
            place = (case["operation"], case["case"], case["dtype"], row["way"], row["kind"])
            found.append(Point(*place, case["amount"] / case["least_bytes"], case["amount"] / row["seconds"]))
    return found
