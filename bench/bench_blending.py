"""Blending and extraction against the loops that people use, and against a plain copy of the same bytes."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from support import BACKENDS, relative_error
from torch import Tensor

import tiledattn as ta

CASES = {
    "64 tiles of 16x128x128": (ta.TileLayout((800, 800), 128, 32), 16),
    "121 tiles of 4x64x64 (SD latents)": (ta.TileLayout((384, 384), 64, 32), 4),
}


def multidiffusion(tiles: Tensor, layout: ta.TileLayout) -> Tensor:
    """The value-and-count loop of MultiDiffusion's pipelines, with uniform weights."""
    value = torch.zeros(*tiles.shape[1:3], *layout.size)
    count = torch.zeros_like(value)
    height, width = layout.tile
    for tile, (y, x) in zip(tiles, layout.origins, strict=True):
        value[:, :, y : y + height, x : x + width] += tile
        count[:, :, y : y + height, x : x + width] += 1
    return torch.where(count > 0, value / count, value)


def fold(tiles: Tensor, layout: ta.TileLayout) -> Tensor:
    """The same by `F.fold`."""
    count, batch = tiles.shape[:2]
    columns = tiles.permute(1, 2, 3, 4, 0).reshape(batch, -1, count)
    ones = torch.ones(1, layout.tile_positions, count)
    total = F.fold(columns, layout.size, layout.tile, stride=layout.step)
    return total / F.fold(ones, layout.size, layout.tile, stride=layout.step)


OURS = [f"tiledattn, {name}" for name in BACKENDS]
COPY = "copy of the same bytes"


def same_bytes(tiles: Tensor, layout: ta.TileLayout) -> Tensor:
    """A tensor whose copy reads and writes together as many bytes as blending reads and writes."""
    canvas = tiles[0, :, :, :1, :1].numel() * layout.size[0] * layout.size[1]
    return torch.randn((tiles.numel() + canvas) // 2)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("way", [*OURS, "MultiDiffusion loop", "F.fold", COPY])
def test_blending(benchmark, way, case):
    layout, channels = CASES[case]
    tiles = torch.randn(layout.num_tiles, 1, channels, *layout.tile, generator=torch.Generator().manual_seed(0))
    ways = {
        **{f"tiledattn, {b}": partial(ta.blend_tiles, tiles, layout, "uniform", backend=b) for b in BACKENDS},
        "MultiDiffusion loop": lambda: multidiffusion(tiles, layout),
        "F.fold": lambda: fold(tiles, layout),
    }
    exact = multidiffusion(tiles.double(), layout)
    assert relative_error(ways.get(way, ways[OURS[0]])(), exact) < 1e-6
    benchmark.group = f"blending, {case}"
    benchmark.pedantic(ways.get(way, same_bytes(tiles, layout).clone), rounds=9, warmup_rounds=1)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("way", [*OURS, "slices + stack", COPY])
def test_extraction(benchmark, way, case):
    layout, channels = CASES[case]
    canvas = torch.randn(1, channels, *layout.size, generator=torch.Generator().manual_seed(0))
    height, width = layout.tile

    def slices() -> Tensor:
        return torch.stack([canvas[:, :, y : y + height, x : x + width] for y, x in layout.origins])

    tiles = slices()
    ways = {
        **{f"tiledattn, {b}": partial(ta.extract_tiles, canvas, layout, backend=b) for b in BACKENDS},
        "slices + stack": slices,
    }
    assert torch.equal(ways.get(way, ways[OURS[0]])(), tiles)
    benchmark.group = f"extraction, {case}"
    benchmark.pedantic(ways.get(way, same_bytes(tiles, layout).clone), rounds=9, warmup_rounds=1)
