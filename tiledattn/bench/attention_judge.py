"""Judges attention: sampled rows of every tile, batch entry and head against float64.

Who sees what is asked of the reference, or written here from a peer's own definition; never of a plan.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor

import tiledattn as ta
from tiledattn.backends import reference

from . import peers
from .peers_optional import neighbourhoods
from .ways import Inputs, Verdict, Way, budget

JUDGED_ROWS = {"cpu": 24, "cuda": 128}  # of every tile, batch entry and head
JUDGED_CANVAS_ROWS = 4  # where each sees the whole canvas
MOST_SCORES = 1 << 27  # of one step of a judge, 1 GiB in float64

NO_HALO, WHOLE_CANVAS, NATTEN = "SDPA, no halo", "whole canvas, as in MAD", "NATTEN, a stride of one tile"
MEANINGS = {WHOLE_CANVAS: "canvas", NATTEN: "neighbourhood"}
"""What ways of kind "bound" do, by name; any other has no halo."""


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
        some = torch.randperm(tokens, generator=torch.Generator().manual_seed(1))[: JUDGED_ROWS[device.type]]
        self._rows = torch.tensor(sorted({*some.tolist(), 0, prefix, tokens - 1}), device=device)
        self._results: dict[str, tuple[Tensor, Tensor]] = {}

    def rows(self, meaning: str) -> Tensor:
        """The places in the sequence that are looked at."""
        return self._rows[:: -(-len(self._rows) // JUDGED_CANVAS_ROWS)] if meaning == "canvas" else self._rows

    def result(self, meaning: str, exact: bool) -> Tensor:
        """The right rows [T, B, H, R, D]: in float64, or as plain PyTorch has them in the inputs' precision."""
        if meaning not in self._results:
            self._results[meaning] = self._of_canvas() if meaning == "canvas" else self._of_tiles(meaning)
        return self._results[meaning][exact]

    def verdict(self, found: Tensor, way: Way) -> Verdict:
        """Of the sampled rows; a NaN or infinity anywhere fails."""
        meaning = MEANINGS.get(way.name, "tile") if way.kind == "bound" else "halo"
        if meaning == "neighbourhood":  # its users hold the canvas
            found = peers.cut(found, self._layout)
        if found.shape != self._inputs[0].shape or not bool(found.isfinite().all()):
            return Verdict(float("inf"), 0.0)
        rows = found[:, :, self.rows(meaning)].transpose(2, 3)
        return budget(rows, self.result(meaning, False), self.result(meaning, True))

    def _of_tiles(self, meaning: str) -> tuple[Tensor, Tensor]:
        """Plain and exact."""
        own = int((self._rows < self._prefix).sum())
        found: tuple[list[Tensor], list[Tensor]] = ([], [])
        for tile in range(self._layout.num_tiles):
            sequence = [(tile, n) for n in range(self._inputs[0].shape[2])]
            seen = sequence if meaning == "tile" else self._seen(meaning, tile, sequence)
            parts = [(self._rows[:own], self._at(sequence))] if own else []
            parts.append((self._rows[own:], self._at(seen)))
            for exact, inputs in enumerate((self._plainly, self._inputs)):
                q, k, v = inputs[0][tile], inputs[1], inputs[2]
                rows = [_attend(q[:, at], _listed(k, keys), _listed(v, keys), exact == 1) for at, keys in parts]
                found[exact].append(torch.cat(rows, 2))
        return torch.stack(found[0]), torch.stack(found[1])

    def _at(self, keys: list[tuple[int, int]]) -> Tensor:
        return torch.tensor(keys, dtype=torch.long, device=self._rows.device)

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

    def _of_canvas(self) -> tuple[Tensor, Tensor]:
        """Plain and exact."""
        exactly = tuple(x.double() for x in self._inputs)
        return self._canvas_rows(self._plainly, False), self._canvas_rows(exactly, True)

    def _canvas_rows(self, inputs: Inputs, exact: bool) -> Tensor:
        axes = len(self._layout.size)
        q, k, v = (peers.merged(x, self._layout) for x in inputs)
        queries = peers.cut(q, self._layout)[:, :, self.rows("canvas")]
        tiles, batch, rows, heads, dim = queries.shape
        out = _attend(queries.transpose(0, 1).flatten(1, 2), k.flatten(1, axes), v.flatten(1, axes), exact)
        return out.view(batch, heads, tiles, rows, dim).permute(2, 0, 1, 3, 4)


def _listed(x: Tensor, keys: Tensor) -> Tensor:
    """[B, M, H, D] of (tile, token) pairs [M, 2]."""
    return x[keys[:, 0], :, keys[:, 1]].transpose(0, 1)


def _attend(q: Tensor, k: Tensor, v: Tensor, exact: bool) -> Tensor:
    """Rows q [B, R, H, D] over k and v [B, M, H, D]; [B, H, R, D]."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    if not exact:
        return F.scaled_dot_product_attention(q, k.contiguous(), v.contiguous())
    step = max(1, MOST_SCORES // (q.shape[0] * q.shape[2] * k.shape[2]))
    parts = []
    for first in range(0, q.shape[1], step):
        qs, ks, vs = (x[:, first : first + step] for x in (q, k, v))
        weights = (qs.double() @ ks.double().transpose(2, 3) * q.shape[-1] ** -0.5).softmax(-1)
        parts.append(weights @ vs.double())
    return torch.cat(parts, 1)


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
