"""Judges attention: every row of every tile, batch entry and head.

Up to `MOST_EXACT_SCORES` scores all rows are compared with float64. Beyond, some rows of every tile, batch entry and
head are, and all rows are compared with plain PyTorch in float32, whose own error on the former is allowed for.

Who sees what is asked of the reference, or written here from a peer's own definition; never of a plan.
"""

from __future__ import annotations

import itertools
import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

import tiledattn as ta
from tiledattn.backends import reference

from . import peers
from .peers_optional import neighbourhoods
from .ways import Inputs, Verdict, Way, budget, budget_by_rows, nearest, relative_error, worst_row

MOST_EXACT_SCORES = {"cpu": 2e8, "cuda": 2e10}  # over heads and batch; seconds
JUDGED_ROWS = {"cpu": 24, "cuda": 128}  # of every tile, batch entry and head, where there are more
JUDGED_CANVAS_ROWS = 4  # where each sees the whole canvas
MOST_SCORES = {"cpu": 1 << 21, "cuda": 1 << 27}  # of one step of a judge: on a CPU they should stay in the caches

NO_HALO, WHOLE_CANVAS, NATTEN = "SDPA, no halo", "whole canvas, as in MAD", "NATTEN, a stride of one tile"
GATHERED_BEFORE = "gathered before"  # how the names of ways end whose gather isn't timed
MEANINGS = {WHOLE_CANVAS: "canvas", NATTEN: "neighbourhood"}
"""What ways of kind "bound" do, by name; any other has no halo, but those that gather before the call."""


class AttentionJudge:
    """Knows the exact result of what each way computes.

    Meanings: "halo", own tile and halo, and prefix; "tile", without the halo; "canvas", the canvas to which tiles are
    averaged; "neighbourhood", NATTEN's windows.
    """

    def __init__(
        self,
        layout: ta.TileLayout,
        halo: tuple[int, ...],
        inputs: Inputs,
        yardstick: torch.dtype | None = None,
        prefix: int = 0,
    ) -> None:
        self._layout, self._halo, self._prefix, self._inputs = layout, halo, prefix, inputs
        self._plainly = tuple(x.to(yardstick or x.dtype) for x in inputs)
        device, tokens = inputs[0].device, prefix + layout.tile_positions
        self._every = torch.arange(tokens, device=device)
        some = torch.randperm(tokens, generator=torch.Generator().manual_seed(1))[: JUDGED_ROWS[device.type]]
        self._some = torch.tensor(sorted({*some.tolist(), 0, prefix, tokens - 1}), device=device)
        self._keys: dict[str, list[Tensor]] = {}
        self._results: dict[tuple[str, str], Tensor] = {}

    def rows(self, meaning: str) -> Tensor:
        """The places in the sequence that are compared with float64."""
        tiles, batch, tokens, heads, _ = self._inputs[0].shape
        on_canvas = meaning == "canvas"
        keys = tiles * math.prod(self._layout.size) if on_canvas else sum(len(x) for x in self._keys_of(meaning))
        if batch * heads * tokens * keys <= MOST_EXACT_SCORES[self._every.device.type]:
            return self._every
        return self._some[:: -(-len(self._some) // JUDGED_CANVAS_ROWS)] if on_canvas else self._some

    def result(self, meaning: str, precision: str) -> Tensor:
        """The right rows [T, B, H, R, D].

        Args:
            meaning: see above.
            precision: "float64"; "plain", by plain PyTorch in the inputs' precision or the yardstick's, in the inputs'
                dtype; or "float32", by plain PyTorch in float32, every row.
        """
        if (meaning, precision) not in self._results:
            rows = self._every if precision == "float32" else self.rows(meaning)
            inputs = tuple(x.float() for x in self._inputs) if precision == "float32" else self._inputs
            inputs = self._plainly if precision == "plain" else inputs
            make = self._of_canvas if meaning == "canvas" else partial(self._of_tiles, meaning)
            found = make(inputs, rows, precision == "float64")
            self._results[meaning, precision] = found.to(self._inputs[0].dtype) if precision == "plain" else found
        return self._results[meaning, precision]

    def verdict(self, found: Tensor, way: Way) -> Verdict:
        """Of every row, all together and the worst; another dtype than the inputs', a NaN or infinity fail."""
        whole = way.kind != "bound" or way.name.endswith(GATHERED_BEFORE)
        meaning = "halo" if whole else MEANINGS.get(way.name, "tile")
        if meaning == "neighbourhood":  # its users hold the canvas
            found = peers.cut(found, self._layout)
        of_inputs = self._inputs[0]
        if found.shape != of_inputs.shape or found.dtype != of_inputs.dtype or not bool(found.isfinite().all()):
            return Verdict(float("inf"), 0.0)
        rows, by_head = self.rows(meaning), found.transpose(2, 3)
        plain, exact = self.result(meaning, "plain"), self.result(meaning, "float64")
        judged = budget_by_rows(by_head[..., rows, :], plain, exact)
        if len(rows) == len(self._every):
            return judged
        near = self.result(meaning, "float32")
        return nearest(judged, *near_enough(by_head, near, near[..., rows, :], plain, exact))

    def _of_tiles(self, meaning: str, inputs: Inputs, rows: Tensor, exact: bool) -> Tensor:
        own = int((rows < self._prefix).sum())
        found = []
        for tile, (sequence, seen) in enumerate(zip(self._keys_of("tile"), self._keys_of(meaning), strict=True)):
            parts = [(rows[:own], sequence), (rows[own:], seen)]
            q, k, v = inputs[0][tile], inputs[1], inputs[2]
            made = [_attend(q[:, at], _listed(k, x), _listed(v, x), exact) for at, x in parts if len(at)]
            found.append(torch.cat(made, 2))
        return torch.stack(found)

    def _keys_of(self, meaning: str) -> list[Tensor]:
        """What the canvas queries of each tile see, (tile, token) pairs [M, 2]."""
        if meaning not in self._keys:
            found = []
            for tile in range(self._layout.num_tiles):
                sequence = [(tile, n) for n in range(len(self._every))]
                found.append(self._at(sequence if meaning == "tile" else self._seen(meaning, tile, sequence)))
            self._keys[meaning] = found
        return self._keys[meaning]

    def _at(self, keys: list[tuple[int, int]]) -> Tensor:
        return torch.tensor(keys, dtype=torch.long, device=self._every.device)

    def _seen(self, meaning: str, tile: int, sequence: list[tuple[int, int]]) -> list[tuple[int, int]]:
        if meaning == "halo":
            tiles, tokens = halo_of(self._layout, self._halo, tile)
            return sequence + [(u, self._prefix + n) for u, n in zip(tiles, tokens, strict=True)]
        bounds = neighbourhoods(self._layout, self._halo)[tile]
        seen = []
        for position in itertools.product(*(range(*bound) for bound in bounds)):
            index = [p // w for p, w in zip(position, self._layout.tile, strict=True)]
            place = [p % w for p, w in zip(position, self._layout.tile, strict=True)]
            seen.append((_row_major(index, self._layout.grid), _row_major(place, self._layout.tile)))
        return seen

    def _of_canvas(self, inputs: Inputs, rows: Tensor, exact: bool) -> Tensor:
        axes = len(self._layout.size)
        q, k, v = (peers.merged(x.double() if exact else x, self._layout) for x in inputs)
        queries = peers.cut(q, self._layout)[:, :, rows]
        tiles, batch, count, heads, dim = queries.shape
        out = _attend(queries.transpose(0, 1).flatten(1, 2), k.flatten(1, axes), v.flatten(1, axes), exact)
        return out.view(batch, heads, tiles, count, dim).permute(2, 0, 1, 3, 4)


def near_enough(found: Tensor, near: Tensor, near_rows: Tensor, plain: Tensor, exact: Tensor) -> list[Verdict]:
    """Whether a result is as near to `near`, of which `near_rows` could be compared, as one within its budget would be.

    Who errs by at most the budget, and `near` by so much, differ by at most the sum.
    """
    return [
        Verdict(error(found, near), budget(plain, plain, exact, error).allowed + error(near_rows, exact))
        for error in (relative_error, worst_row)
    ]


def _listed(x: Tensor, keys: Tensor) -> Tensor:
    """[B, M, H, D] of (tile, token) pairs [M, 2]."""
    return x[keys[:, 0], :, keys[:, 1]].transpose(0, 1)


def _attend(q: Tensor, k: Tensor, v: Tensor, exact: bool) -> Tensor:
    """Rows q [B, R, H, D] over k and v [B, M, H, D]; [B, H, R, D]."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    if not exact:
        return F.scaled_dot_product_attention(q, k.contiguous(), v.contiguous())
    out = torch.empty(q.shape, dtype=torch.float64, device=q.device)
    for entry, head in itertools.product(range(q.shape[0]), range(q.shape[1])):
        of_keys, of_values = k[entry, head].double(), v[entry, head].double()
        for at in steps(q.shape[2], len(of_keys), q.device):
            scores = q[entry, head, at].double() * q.shape[-1] ** -0.5 @ of_keys.T
            out[entry, head, at] = scores.softmax(-1) @ of_values
    return out


def steps(queries: int, keys: int, device: torch.device) -> list[slice]:
    """Queries in groups with so many scores that they can be held."""
    step = max(1, MOST_SCORES[device.type] // keys)
    return [slice(first, first + step) for first in range(0, queries, step)]


def _row_major(index: list[int], shape: tuple[int, ...]) -> int:
    number = 0
    for i, n in zip(index, shape, strict=True):
        number = number * n + i
    return number


def halo_of(layout: ta.TileLayout, halo: tuple[int, ...], tile: int) -> tuple[list[int], list[int]]:
    """Tiles and tokens of a tile's halo, by the definition."""
    axes, tiles = reference._tiles(layout)
    number = {index: t for t, index in enumerate(tiles)}
    found = list(reference._outside(axes, tiles[tile], halo))
    return [number[u] for u, _ in found], [reference._row_major(place, layout.tile) for _, place in found]


def rows_by_definition(layout: ta.TileLayout, halo: tuple[int, ...], device: torch.device) -> Tensor:
    """As `peers.gathered_rows` without a prefix, asked of the reference and not of a plan."""
    tokens = layout.tile_positions
    lists = []
    for tile in range(layout.num_tiles):
        tiles, places = (torch.tensor(x, dtype=torch.long) for x in halo_of(layout, halo, tile))
        lists.append(torch.cat([torch.arange(tokens) + tile * tokens, tiles * tokens + places]))
    return torch.stack(lists).to(device)
