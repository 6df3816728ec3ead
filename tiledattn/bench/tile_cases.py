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

Function = Callable[[Tensor, ta.TileLayout], Tensor]


@dataclass(frozen=True)
class TileCase(Case):
    """Operation "blending", "extraction" or "padding", uniform weights, no wrap.

    Attributes:
        layout: tiles, in the positions that are moved (latents or pixels).
        channels: C.
        pad: positions of a ring, for padding.
    """

    layout: ta.TileLayout
    channels: int
    pad: int = 0

    unit = "GB/s"

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
            *(Way(name, "peer", partial(self._call, function)) for name, function in self._peers().items()),
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

    def _peers(self) -> dict[str, Function]:
        if self.operation == "blending":
            return {
                "TileMerger": peers_optional.toolbelt_blending,
                "MONAI": peers_optional.monai_blending,
                "F.fold": peers.fold,
            }
        if self.operation == "extraction":
            return {"slices + stack": peers.slices}
        return {"canvas, zeros, slices": partial(peers.pad_by_canvas, pad=self.pad)}

    def _call(self, function: Function, inputs: Inputs) -> Call:
        return lambda: function(inputs[0], self.layout)

    def _loop(self, inputs: Inputs) -> Call:
        return peers.multidiffusion(inputs[0], self.layout)

    def _copy(self, inputs: Inputs) -> Call:
        """Into new memory, as every way here makes its result; the run's own copy goes into memory in use."""
        return peers.same_bytes(self.amount(inputs[0].dtype), inputs[0]).clone


def _same(found: Tensor, right: Tensor) -> bool:
    return found.dtype == right.dtype and torch.equal(found, right)


_LARGE, _LATENTS = ta.TileLayout((800, 800), 128, 32), ta.TileLayout((384, 384), 64, 32)
_LEVEL, _PICTURE = ta.TileLayout((256, 256), 64, 0), ta.TileLayout((2176, 2176), 512, 96)
_DTYPES = {"cpu": ("float32",), "cuda": ("float32", "bfloat16")}

CASES: list[Case] = [
    *(TileCase(o, "64 tiles of 16x128x128", _DTYPES, _LARGE, 16, quick=True) for o in ("blending", "extraction")),
    *(TileCase(o, "121 tiles of 4x64x64", _DTYPES, _LATENTS, 4, quick=True) for o in ("blending", "extraction")),
    *(TileCase(o, "25 tiles of 64x512x512", {"cuda": ("bfloat16",)}, _PICTURE, 64) for o in ("blending", "extraction")),
    TileCase("padding", "16 tiles of 320x64x64, ring 1", _DTYPES, _LEVEL, 320, 1),
]
