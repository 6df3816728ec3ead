"""Blending, extraction and padding: cases, ways and their judges."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

import tiledattn as ta

from . import peers_optional, tile_judge
from . import peers_tiles as peers
from .ways import Call, Case, Inputs, Judge, Verdict, Way, budget_by_rows, our_backends, random

Function = Callable[..., Tensor]  # of the data and the layout


@dataclass(frozen=True)
class TileCase(Case):
    """Operation "blending", "extraction" or "padding", uniform weights, no wrap.

    Attributes:
        layout: tiles, in the positions that are moved (latents or pixels).
        channels: C.
        pad: positions of a ring, for padding.
        kept: results go into memory that is there before, as where a loop of steps keeps it: only ways that can do so.
    """

    layout: ta.TileLayout
    channels: int
    pad: int = 0
    kept: bool = False

    unit = "GB/s"

    @property
    def result_is_new(self) -> bool:
        """Unless it is kept."""
        return not self.kept

    def amount(self, dtype: torch.dtype) -> float:
        """Bytes read and written when every input and output element moves once."""
        canvas, tile = math.prod(self.layout.size), self.layout.tile_positions
        tiles = self.layout.num_tiles * tile
        padded = self.layout.num_tiles * math.prod(w + 2 * self.pad for w in self.layout.tile)
        positions = tiles + padded if self.operation == "padding" else tiles + canvas
        return float(positions * self.channels * torch.finfo(dtype).bits // 8)

    def least_bytes(self, dtype: torch.dtype) -> float:
        """The same: nothing but moving is done."""
        return self.amount(dtype)

    def inputs(self, device: torch.device, dtype: torch.dtype, seed: int) -> Inputs:
        """A canvas [1, C, *size] for extraction, else tiles [T, 1, C, *tile]."""
        canvas, tiles = (
            (1, self.channels, *self.layout.size),
            (self.layout.num_tiles, 1, self.channels, *self.layout.tile),
        )
        return (random(canvas if self.operation == "extraction" else tiles, device, dtype, seed),)

    def ways(self, device: torch.device, dtype: torch.dtype) -> list[Way]:
        """Ours, the loops that people use, a copy of as many bytes.

        What the MultiDiffusion loop allocates before its steps is in neither its time nor its extra memory.
        """
        loop = [Way("MultiDiffusion loop", "peer", self._loop)] if self.operation == "blending" else []
        return [
            *(Way(name, "ours", partial(self._call, self._ours(name))) for name in our_backends(device)),
            *loop,
            *(
                Way(name, "peer", partial(self._call, function))
                for name, (function, keeps) in self._peers().items()
                if keeps or not self.kept
            ),
            Way("a copy of the same bytes", "limit", self._copy),
        ]

    def judge(self, inputs: Inputs, yardstick: torch.dtype | None = None) -> Judge:
        """Every element by the reference (`tile_judge`): blending within a budget, the others bit by bit."""
        (x,) = inputs
        if self.operation == "blending":
            exact = tile_judge.blended(x.double(), self.layout)
            plain = tile_judge.blended(x.to(yardstick or x.dtype), self.layout).to(x.dtype)
            return lambda found, way: budget_by_rows(found, plain, exact)
        right = (
            tile_judge.extracted(x, self.layout)
            if self.operation == "extraction"
            else tile_judge.padded(x, self.layout, self.pad)
        )
        return lambda found, way: Verdict(0.0 if _same(found, right) else math.inf, 0.0)

    def _ours(self, backend: str) -> Function:
        if self.operation == "blending":
            return partial(ta.blend_tiles, window="uniform", backend=backend)
        if self.operation == "extraction":
            return partial(ta.extract_tiles, backend=backend)
        return partial(ta.pad_tiles, pad=self.pad, backend=backend)

    def _peers(self) -> dict[str, tuple[Function, bool]]:
        """Functions, and whether they take an `out`."""
        if self.operation == "blending":
            return {
                "TileMerger": (peers_optional.toolbelt_blending, False),
                "MONAI": (peers_optional.monai_blending, False),
                "F.fold": (peers.fold, False),
            }
        if self.operation == "extraction":
            return {"slices + stack": (peers.slices, True), "unfold": (peers.unfold, True)}
        return {"canvas, zeros, slices": (partial(peers.pad_by_canvas, pad=self.pad), False)}

    def _call(self, function: Function, inputs: Inputs) -> Call:
        if not self.kept:
            return lambda: function(inputs[0], self.layout)
        into = partial(function, out=self.result(inputs[0]))
        return lambda: into(inputs[0], self.layout)

    def result(self, x: Tensor) -> Tensor:
        """Memory in use, of a result's shape, without a right number in it."""
        count, batch = self.layout.num_tiles, x.shape[-2 - len(self.layout.size)]
        shape = (batch, self.channels, *self.layout.size)
        if self.operation != "blending":
            shape = (count, batch, self.channels, *(w + 2 * self.pad for w in self.layout.tile))
        return x.new_full(shape, math.nan)

    def _loop(self, inputs: Inputs) -> Call:
        return peers.multidiffusion(inputs[0], self.layout, self.result(inputs[0]) if self.kept else None)

    def _copy(self, inputs: Inputs) -> Call:
        """Into memory of the kind that the case's results go to; the run's own copy goes into memory in use."""
        source = peers.same_bytes(self.amount(inputs[0].dtype), inputs[0])
        if not self.kept:
            return source.clone
        target = torch.zeros_like(source)
        return lambda: target.copy_(source)


def _same(found: Tensor, right: Tensor) -> bool:
    return found.dtype == right.dtype and torch.equal(found, right)


_LARGE, _LATENTS = ta.TileLayout((800, 800), 128, 32), ta.TileLayout((384, 384), 64, 32)
_LEVEL, _PICTURE = ta.TileLayout((256, 256), 64, 0), ta.TileLayout((2176, 2176), 512, 96)
_DTYPES = {"cpu": ("float32",), "cuda": ("float32", "bfloat16")}

_MOVES = ("blending", "extraction")

CASES: list[Case] = [
    *(TileCase(o, "64 tiles of 16x128x128", _DTYPES, _LARGE, 16, quick=True) for o in _MOVES),
    *(TileCase(o, "64 tiles of 16x128x128, kept memory", _DTYPES, _LARGE, 16, 0, True, quick=True) for o in _MOVES),
    *(TileCase(o, "121 tiles of 4x64x64", _DTYPES, _LATENTS, 4, quick=True) for o in _MOVES),
    *(TileCase(o, "121 tiles of 4x64x64, kept memory", _DTYPES, _LATENTS, 4, 0, True, quick=True) for o in _MOVES),
    *(TileCase(o, "25 tiles of 64x512x512", {"cuda": ("bfloat16",)}, _PICTURE, 64) for o in _MOVES),
    TileCase("padding", "16 tiles of 320x64x64, ring 1", _DTYPES, _LEVEL, 320, 1),
]
