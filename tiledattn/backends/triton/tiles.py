"""Launchers of the kernels that cut, blend and pad tiles."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from ...geometry import TileLayout
from ...geometry.axis import Axis, axis_origins
from ...geometry.cover import axis_cover, axis_ring_table, axis_run
from ..tables import cached
from .launch import needs_wide_offsets, on_device, shared_unit
from .tiles_kernel import blend_tiles_fwd_kernel, extract_tiles_fwd_kernel, pad_tiles_fwd_kernel

ELEMENTS = 1024  # of a row, in one program
MAX_ROWS = 4  # of a program: table look-ups are shared by rows

_UNIT_AXIS = Axis(1, 1, 0, False)


class _Tables(NamedTuple):
    """Per axis z, y, x: tile numbers and places inside the tile, int32."""

    tile: tuple[Tensor, ...]
    local: tuple[Tensor, ...]

    @property
    def widths(self) -> tuple[int, ...]:
        """Length of the tables' last dimension per axis."""
        return tuple(table.shape[-1] for table in self.tile)


def _axes(layout: TileLayout) -> tuple[Axis, ...]:
    """The layout's axes, missing leading ones as a single position."""
    return (_UNIT_AXIS,) * (3 - len(layout.size)) + layout.axes


def _three(values: tuple[int, ...], missing: int) -> tuple[int, ...]:
    return (missing,) * (3 - len(values)) + tuple(values)


@cached(256)
def _origin_tables(layout: TileLayout, run: int, device: torch.device) -> tuple[Tensor, ...]:
    runs = (1, 1, run)
    return tuple(
        torch.tensor([origin // unit for origin in axis_origins(axis)], dtype=torch.int32, device=device)
        for axis, unit in zip(_axes(layout), runs, strict=True)
    )


@cached(256)
def _cover_tables(layout: TileLayout, run: int, device: torch.device) -> _Tables:
    """`axis_cover` of each axis; along x, of the first position of each run, in runs."""
    covers = [axis_cover(axis) for axis in _axes(layout)]
    units = (1, 1, run)
    return _Tables(
        tuple(torch.tensor(c.tile[::unit], device=device) for c, unit in zip(covers, units, strict=True)),
        tuple(torch.tensor(c.local[::unit] // unit, device=device) for c, unit in zip(covers, units, strict=True)),
    )


@cached(256)
def _ring_tables(layout: TileLayout, pad: tuple[tuple[int, int], ...], device: torch.device) -> _Tables:
    pads = ((0, 0),) * (3 - len(pad)) + pad
    rings = [axis_ring_table(axis, *ends) for axis, ends in zip(_axes(layout), pads, strict=True)]
    return _Tables(
        tuple(torch.tensor(ring.source, device=device) for ring in rings),
        tuple(torch.tensor(ring.local, device=device) for ring in rings),
    )


@cached(256)
def _unit_weights(device: torch.device) -> Tensor:
    return torch.tensor([1.0], device=device)  # copied there and waited for, so that any stream may read it


def _strides(tensor: Tensor, lead: int) -> list[int]:
    """Memory strides, `lead` leading dimensions and then z, y, x; 0 where there is one entry only."""
    strides = [0 if size == 1 else stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True)]
    return strides[:lead] + [0] * (3 + lead - tensor.dim()) + strides[lead:]


def _run_length(layout: TileLayout, tensor: Tensor, strides: list[int]) -> int:
    """Positions along the last axis that can be moved together: adjacent in memory, and in every tile."""
    if strides[-1] != 1:
        return 1
    return shared_unit(axis_run(layout.axes[-1], 16 // tensor.element_size()), strides[:-1])


def _in_runs(strides: list[int], run: int) -> list[int]:
    return strides if run == 1 else [stride // run for stride in strides[:-1]] + [1]


def _blocks(rows: int, runs: int, run: int) -> tuple[int, int, int]:
    """Rows and runs of a program, and the number of programs for one tile or canvas."""
    height = min(MAX_ROWS, triton.next_power_of_2(rows))
    width = min(ELEMENTS // run, max(16, triton.next_power_of_2(runs)))
    return height, width, triton.cdiv(rows, height) * triton.cdiv(runs, width)


def extract_tiles_fwd(
    canvas: Tensor, layout: TileLayout, wide_offsets: bool | None = None, out: Tensor | None = None
) -> Tensor:
    """Cuts [B, C, *size] into [T, B, C, *tile]; `wide_offsets` forces or forbids 64-bit memory offsets."""
    B, C = canvas.shape[:2]
    if out is None:
        out = torch.empty((layout.num_tiles, B, C, *layout.tile), dtype=canvas.dtype, device=canvas.device)
    if out.numel() == 0:
        return out
    strides = _strides(canvas, 2)
    run = _run_length(layout, canvas, strides)
    sizes, tile = _three(layout.size, 1), _three(layout.tile, 1)
    height, width, programs = _blocks(B * C, layout.tile_positions // run, run)
    wide = needs_wide_offsets(canvas, out) if wide_offsets is None else wide_offsets
    with on_device(canvas):
        extract_tiles_fwd_kernel[(programs * layout.num_tiles,)](
            canvas, out, *_origin_tables(layout, run, canvas.device), *_in_runs(strides, run), B * C, C,
            *sizes[:2], sizes[2] // run, *tile[:2], tile[2] // run, *_three(layout.grid, 1)[1:],
            RUN=run, ROWS=height, BLOCK=width, WIDE=wide,
        )  # fmt: skip
    return out


def blend_tiles_fwd(
    tiles: Tensor,
    layout: TileLayout,
    weights: tuple[Tensor, ...],
    wide_offsets: bool | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """Blends [T, B, C, *tile] into [B, C, *size]; `wide_offsets` forces or forbids 64-bit memory offsets."""
    B, C = tiles.shape[1:3]
    if out is None:
        out = torch.empty((B, C, *layout.size), dtype=tiles.dtype, device=tiles.device)
    if out.numel() == 0:
        return out
    strides = _strides(tiles, 3)
    run = _run_length(layout, tiles, strides)
    sizes, tile = _three(layout.size, 1), _three(layout.tile, 1)
    tables = _cover_tables(layout, run, tiles.device)
    windows = [_unit_weights(tiles.device)] * (3 - len(weights)) + [w.float().contiguous() for w in weights]
    height, width, programs = _blocks(B * C, math.prod(layout.size) // run, run)
    wide = needs_wide_offsets(tiles, out) if wide_offsets is None else wide_offsets
    with on_device(tiles):
        blend_tiles_fwd_kernel[(programs,)](
            tiles, out, *tables.tile, *tables.local, *windows, *_in_runs(strides, run), B * C, C,
            *sizes[:2], sizes[2] // run, *tile[:2], tile[2] // run, *_three(layout.grid, 1)[1:], *tables.widths,
            RUN=run, ROWS=height, BLOCK=width, WIDE=wide,
        )  # fmt: skip
    return out


def pad_tiles_fwd(
    tiles: Tensor, layout: TileLayout, pad: tuple[tuple[int, int], ...], wide_offsets: bool | None = None
) -> Tensor:
    """Adds a ring to [T, B, C, *tile]; `wide_offsets` forces or forbids 64-bit memory offsets."""
    B, C = tiles.shape[1:3]
    padded = tuple(before + w + after for w, (before, after) in zip(layout.tile, pad, strict=True))
    out = torch.empty((layout.num_tiles, B, C, *padded), dtype=tiles.dtype, device=tiles.device)
    if out.numel() == 0:
        return out
    tables = _ring_tables(layout, tuple((before, after) for before, after in pad), tiles.device)
    height, width, programs = _blocks(B * C, math.prod(padded), 1)
    wide = needs_wide_offsets(tiles, out) if wide_offsets is None else wide_offsets
    with on_device(tiles):
        pad_tiles_fwd_kernel[(programs * layout.num_tiles,)](
            tiles, out, *tables.tile, *tables.local, *_strides(tiles, 3), B * C, C,
            *tables.widths, *_three(layout.grid, 1)[1:],
            ROWS=height, BLOCK=width, WIDE=wide,
        )  # fmt: skip
    return out
