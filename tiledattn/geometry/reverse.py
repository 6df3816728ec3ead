"""ReversedPlan: which tiles see a tile's tokens in their halo, as integers; what sums over queries go by.

A plan lists, for every tile, the tokens that it borrows; here every tile that lends finds its borrowers. Tiles that
lend alike form a class, so that tables do not grow with the canvas.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .axis import Axis, axis_reach
from .plan import MAX_TABLE_ENTRIES, AttentionPlan


class ReverseTable(NamedTuple):
    """All classes' cells: those of class c are cells[cell_starts[c] : cell_starts[c + 1]].

    A row of `cells` is (first_token, tokens, first_borrower, borrowers): two ranges, of the arrays `tokens` (canvas
    tokens of the lender, ascending within a cell) and `borrowers` (tile deltas borrower - lender, ascending).
    """

    cell_starts: NDArray[np.int64]  # [classes + 1]
    cells: NDArray[np.int64]  # [n, 4]
    tokens: NDArray[np.int32]
    borrowers: NDArray[np.int32]


class _Lent(NamedTuple):
    """A box of positions that the tile `delta` further on sees."""

    delta: int
    start: tuple[int, ...]
    shape: tuple[int, ...]


class _Cell(NamedTuple):
    """Tokens that exactly the same others see."""

    tokens: NDArray[np.int64]
    borrowers: NDArray[np.int64]


_Cells = tuple[_Cell, ...]


@dataclass(frozen=True)
class ReversedPlan:
    """The borrowers of every lender of a plan; build it with `reversed_plan`, which caches.

    Lenders are the tiles of the plan's pool: the layout's T tiles, then the plan's virtual ones. A *cell* of a lender
    is a set of its canvas tokens that exactly the same other tiles see in their halo; a lender's cells partition its
    tokens, and those that nobody sees are a cell without borrowers.

    Attributes:
        plan: the plan that is reversed.
    """

    plan: AttentionPlan

    @cached_property
    def _found(self) -> tuple[NDArray[np.int32], tuple[_Cells, ...]]:
        """The class of every lender, and the cells of every class."""
        return _from_boxes(self.plan) if self.plan.virtual else _from_axes(self.plan)

    @property
    def class_of_lender(self) -> NDArray[np.int32]:
        """The class of every tile of the pool, int32 [T + len(plan.virtual)]."""
        return self._found[0]

    @cached_property
    def table(self) -> ReverseTable:
        """The cells of all classes.

        Raises:
            ValueError: the table would be larger than 2^28 entries (1 GiB).
        """
        cells = [cell for found in self._found[1] for cell in found]
        sizes = np.asarray([[len(cell.tokens), len(cell.borrowers)] for cell in cells], dtype=np.int64)
        ends = np.cumsum(sizes, axis=0)
        _check_entries(self.plan, int(ends[-1].sum()))
        ranges = np.stack([ends - sizes, sizes], axis=2).reshape(-1, 4)
        counts = [len(found) for found in self._found[1]]
        return ReverseTable(
            np.concatenate(([0], np.cumsum(counts, dtype=np.int64))),
            ranges,
            np.concatenate([cell.tokens for cell in cells]).astype(np.int32),
            np.concatenate([cell.borrowers for cell in cells]).astype(np.int32),
        )


def _check_entries(plan: AttentionPlan, entries: int) -> None:
    if entries > MAX_TABLE_ENTRIES:
        raise ValueError(
            f"halo: a reach of {plan.halo} over {plan.layout.num_tiles} tiles needs a reversed table of {entries:,} "
            f"entries, more than {MAX_TABLE_ENTRIES:,}; use a smaller halo or larger tiles"
        )


def _from_axes(plan: AttentionPlan) -> tuple[NDArray[np.int32], tuple[_Cells, ...]]:
    """Cells as products of the axes' own: a token's borrowers are those of its places, axis by axis."""
    layout = plan.layout
    per_axis = [_axis_cells(axis, halo) for axis, halo in zip(layout.axes, plan.halo, strict=True)]
    grids = np.meshgrid(*(of_tile for of_tile, _ in per_axis), indexing="ij")
    patterns = [found for _, found in per_axis]
    flat = np.ravel_multi_index([g.ravel() for g in grids], [len(found) for found in patterns])
    classes = tuple(
        _in_order(_product(cells, layout.tile, layout.grid) for cells in itertools.product(*chosen))
        for chosen in itertools.product(*patterns)
    )
    return flat.astype(np.int32), classes


def _axis_cells(axis: Axis, halo: int) -> tuple[NDArray[np.int64], tuple[_Cells, ...]]:
    """Per tile on the axis the number of its cells, and the distinct ones; a tile counts as a borrower of itself."""
    reach = axis_reach(axis, halo)
    lent: list[list[_Lent]] = [[] for _ in reach]
    for index, segments in enumerate(reach):
        for s in segments:
            lent[s.source].append(_Lent(index - s.source, (s.start,), (s.length,)))
    of_tile, distinct = _numbered(lent)
    return of_tile, tuple(_cells(boxes, (axis.tile,)) for boxes in distinct)


def _product(cells: _Cells, tile: tuple[int, ...], grid: tuple[int, ...]) -> _Cell:
    """The cell of an N-axis tile from one cell per axis, the tile itself no longer among the borrowers."""
    tokens, borrowers = np.zeros(1, dtype=np.int64), np.zeros(1, dtype=np.int64)
    for cell, width, count in zip(cells, tile, grid, strict=True):
        tokens = (tokens[:, None] * width + cell.tokens).ravel()
        borrowers = (borrowers[:, None] * count + cell.borrowers).ravel()
    return _Cell(tokens, np.sort(borrowers[borrowers != 0]))


def _from_boxes(plan: AttentionPlan) -> tuple[NDArray[np.int32], tuple[_Cells, ...]]:
    """Cells of any plan, from the boxes that every tile borrows."""
    lent: list[list[_Lent]] = [[] for _ in range(plan.layout.num_tiles + len(plan.virtual))]
    for number, members in enumerate(plan.classes):
        boxes = [_Lent(-box.tile_delta, box.start, box.shape) for box in plan.rectangles(number)]
        for t in members.tolist():
            for box in boxes:
                lent[t - box.delta].append(box)
    of_tile, distinct = _numbered(lent)
    return of_tile.astype(np.int32), tuple(_cells(boxes, plan.layout.tile) for boxes in distinct)


def _numbered(lent: list[list[_Lent]]) -> tuple[NDArray[np.int64], tuple[tuple[_Lent, ...], ...]]:
    """The number of each lender's boxes, and the distinct sets of boxes."""
    numbers: dict[tuple[_Lent, ...], int] = {}
    of_tile = [numbers.setdefault(tuple(sorted(boxes)), len(numbers)) for boxes in lent]
    return np.asarray(of_tile, dtype=np.int64), tuple(numbers)


def _cells(boxes: tuple[_Lent, ...], tile: tuple[int, ...]) -> _Cells:
    """The cells of a tile that lends `boxes`."""
    if not boxes:
        return (_Cell(np.arange(math.prod(tile), dtype=np.int64), np.zeros(0, dtype=np.int64)),)
    deltas = sorted({box.delta for box in boxes})
    # places between two cuts have the same borrowers
    cuts = [
        np.unique([0, width, *(b.start[axis] for b in boxes), *(b.start[axis] + b.shape[axis] for b in boxes)])
        for axis, width in enumerate(tile)
    ]
    sees = np.zeros((len(deltas), *(len(c) - 1 for c in cuts)), dtype=np.bool_)
    for box in boxes:
        ends = zip(cuts, box.start, box.shape, strict=True)
        inside = [slice(int(np.searchsorted(c, a)), int(np.searchsorted(c, a + n))) for c, a, n in ends]
        sees[deltas.index(box.delta)][tuple(inside)] = True
    patterns, numbers = np.unique(sees.reshape(len(deltas), -1), axis=1, return_inverse=True)
    labels = numbers.reshape(sees.shape[1:])
    for axis, c in enumerate(cuts):
        labels = np.repeat(labels, np.diff(c), axis=axis)
    order = np.argsort(labels.ravel(), kind="stable").astype(np.int64)
    tokens = np.split(order, np.cumsum(np.bincount(labels.ravel()))[:-1])
    found = np.asarray(deltas, dtype=np.int64)
    return _in_order(_Cell(part, found[patterns[:, number]]) for number, part in enumerate(tokens))


def _in_order(cells: Iterable[_Cell]) -> _Cells:
    return tuple(sorted(cells, key=lambda cell: int(cell.tokens[0])))


@lru_cache(maxsize=256)
def reversed_plan(plan: AttentionPlan) -> ReversedPlan:
    """The borrowers of every lender of `plan`, cached by value."""
    return ReversedPlan(plan)
