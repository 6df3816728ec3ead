"""Convolutions whose rings come from the neighbours: rings first, or their part added to the border's outputs.

A convolution is linear, so that tiles can be convolved with zeros around them and what the rings add, a strip along
each side, comes on top. Tiles of a U-Net's levels, 2x2 of them, without overlap.
"""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from support import relative_error
from torch import Tensor

import tiledattn as ta

CASES = {  # channels in and out, positions along a side of a tile
    "SD1.5 level 0": (320, 320, 64),
    "SD1.5 level 1": (640, 640, 32),
    "SD1.5 level 2": (1280, 1280, 16),
    "SD1.5 middle": (1280, 1280, 8),
    "SDXL level 0": (320, 320, 128),
    "SDXL level 1": (640, 640, 64),
    "SDXL level 2": (1280, 1280, 32),
    "latents in": (4, 320, 64),
    "latents out": (320, 4, 64),
}


def add_rings(tiles: Tensor, layout: ta.TileLayout) -> Tensor:
    return ta.pad_tiles(tiles.unflatten(0, (layout.num_tiles, -1)), layout, 1).flatten(0, 1)


def rings_first(tiles: Tensor, weight: Tensor, layout: ta.TileLayout) -> Tensor:
    return F.conv2d(add_rings(tiles, layout), weight)


def zeros_around(tiles: Tensor, weight: Tensor) -> Tensor:
    return F.conv2d(tiles, weight, padding=1)


def shifted(x: Tensor, axis: int, by: int) -> Tensor:
    """What the neighbour before (by 1) or after (by -1) has, zeros where there is none."""
    moved = x.roll(by, axis)
    moved.select(axis, 0 if by > 0 else -1).zero_()
    return moved


def perimeter_added(tiles: Tensor, weight: Tensor, layout: ta.TileLayout) -> Tensor:
    """Zeros around, and then four strips; those above and below have the corners."""
    grid = tiles.unflatten(0, (*layout.grid, -1))
    out = zeros_around(tiles, weight)
    for side, by, edge in ((0, 1, -1), (-1, -1, 0)):
        row, column = (shifted(grid.select(d, edge), a, by) for d, a in ((3 + 1, 0), (3 + 2, 1)))
        left, right = shifted(row[..., -1:], 1, 1), shifted(row[..., :1], 1, -1)
        row = torch.cat((left, row, right), -1).flatten(0, 2).unsqueeze(2)
        out.select(2, side).add_(F.conv2d(row, weight[:, :, side].unsqueeze(2)).squeeze(2))
        column = column.flatten(0, 2).unsqueeze(3)
        out.select(3, side).add_(F.conv2d(column, weight[..., side].unsqueeze(3), padding=(1, 0)).squeeze(3))
    return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("way", ["rings first", "perimeter added", "zeros around (no rings)", "rings alone"])
def test_convolution_with_rings(benchmark, way, case, dtype):
    channels, outputs, side = CASES[case]
    layout, random = ta.TileLayout((2 * side, 2 * side), side), torch.Generator().manual_seed(0)
    tiles = torch.randn(layout.num_tiles, channels, side, side, generator=random).to(dtype)
    weight = (torch.randn(outputs, channels, 3, 3, generator=random) / (9 * channels) ** 0.5).to(dtype)
    ways = {
        "rings first": partial(rings_first, tiles, weight, layout),
        "perimeter added": partial(perimeter_added, tiles, weight, layout),
        "zeros around (no rings)": partial(zeros_around, tiles, weight),
        "rings alone": partial(add_rings, tiles, layout),
    }
    assert relative_error(ways["perimeter added"](), ways["rings first"]()) <= 4 * torch.finfo(dtype).eps
    benchmark.group = f"convolution 3x3, {case}, {dtype}"
    benchmark.pedantic(ways[way], rounds=5, warmup_rounds=1)
