"""Kernels that cut, blend and pad tiles: every result is written once, gathered from where it comes from.

Canvases and tiles have three axes z, y, x here (missing leading ones are of size 1). Along x, positions go in runs of
RUN that lie next to one another in memory; x counts runs, and memory strides are in units of RUN elements. A program
serves BLOCK runs of ROWS rows, a row being one batch entry and channel.
"""

# the kernel language has no types that mypy could check
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

from __future__ import annotations

import triton
import triton.language as tl

# integers whose values must not lead to a compilation each
SIZES = ["rows", "channels", *(f"{kind}_{axis}" for kind in ("size", "tile", "grid") for axis in "zyx")]
STRIDES = [f"stride_{axis}" for axis in "tbczyx"]


@triton.jit
def _program(runs, rows, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """This program's runs [BLOCK], its rows [ROWS], and the slowest part of its number."""
    pid = tl.program_id(0)
    run_blocks = tl.cdiv(runs, BLOCK)
    row_blocks = tl.cdiv(rows, ROWS)
    run = pid % run_blocks * BLOCK + tl.arange(0, BLOCK)
    row = pid // run_blocks % row_blocks * ROWS + tl.arange(0, ROWS)
    return run, row, pid // run_blocks // row_blocks


@triton.jit
def _elements(row_offsets, run_offsets, RUN: tl.constexpr):
    """Memory offsets [ROWS, BLOCK, RUN] from offsets in units of RUN elements."""
    return (row_offsets[:, None] + run_offsets[None, :])[:, :, None] * RUN + tl.arange(0, RUN)[None, None, :]


@triton.jit
def _scaled(index, stride, WIDE: tl.constexpr):
    return index.to(tl.int64) * stride if WIDE else index * stride


@triton.jit
def _row_offsets(row, channels, stride_b, stride_c, WIDE: tl.constexpr):
    return _scaled(row // channels, stride_b, WIDE) + _scaled(row % channels, stride_c, WIDE)


@triton.jit(do_not_specialize=SIZES + STRIDES)
def extract_tiles_fwd_kernel(
    canvas_ptr,
    out_ptr,  # [T, rows, tile_z, tile_y, tile_x, RUN]
    origin_z_ptr,  # int32 [grid_z]
    origin_y_ptr,
    origin_x_ptr,
    stride_b,
    stride_c,
    stride_z,
    stride_y,
    stride_x,
    rows,
    channels,
    size_z,
    size_y,
    size_x,
    tile_z,
    tile_y,
    tile_x,
    grid_y,
    grid_x,
    RUN: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Each program copies a part of one tile."""
    runs = tile_z * tile_y * tile_x
    run, row, t = _program(runs, rows, ROWS, BLOCK)
    z = tl.load(origin_z_ptr + t // grid_x // grid_y) + run // tile_x // tile_y
    y = tl.load(origin_y_ptr + t // grid_x % grid_y) + run // tile_x % tile_y
    x = tl.load(origin_x_ptr + t % grid_x) + run % tile_x
    z = tl.where(z >= size_z, z - size_z, z)
    y = tl.where(y >= size_y, y - size_y, y)
    x = tl.where(x >= size_x, x - size_x, x)
    source = _scaled(z, stride_z, WIDE) + _scaled(y, stride_y, WIDE) + _scaled(x, stride_x, WIDE)
    offsets = _elements(_row_offsets(row, channels, stride_b, stride_c, WIDE), source, RUN)
    inside = ((row < rows)[:, None] & (run < runs)[None, :])[:, :, None]
    values = tl.load(canvas_ptr + offsets, mask=inside)
    out_ptr += t.to(tl.int64) * rows * runs * RUN
    tl.store(out_ptr + _elements(_scaled(row, runs, WIDE), run, RUN), values, mask=inside)


@triton.jit
def _blend_x(
    acc,
    tiles_ptr,
    row_offsets,
    line_offsets,
    line_tile,
    line_weight,
    inside,
    tile_ptr,
    local_ptr,
    weight_ptr,
    entry,
    tile_x,
    stride_t,
    stride_x,
    RUN: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Adds one covering tile of each run; `line_*` is what the axes z and y have settled."""
    tx = tl.load(tile_ptr + entry)
    lx = tl.load(local_ptr + entry)
    covered = tx >= 0
    lanes = tl.arange(0, RUN)[None, :]
    weight = tl.load(weight_ptr + ((tx * tile_x + lx) * RUN)[:, None] + lanes, mask=covered[:, None], other=0.0)
    source = line_offsets + _scaled(line_tile + tx, stride_t, WIDE) + _scaled(lx, stride_x, WIDE)
    mask = inside & covered[None, :, None]
    values = tl.load(tiles_ptr + _elements(row_offsets, source, RUN), mask=mask, other=0.0).to(tl.float32)
    return acc + values * (line_weight[:, None] * weight)[None, :, :]


@triton.jit(do_not_specialize=SIZES + STRIDES)
def blend_tiles_fwd_kernel(
    tiles_ptr,
    out_ptr,  # [rows, size_z, size_y, size_x, RUN]
    tile_z_ptr,  # int32 [size_z, COVERS_Z], -1 where a position has fewer tiles
    tile_y_ptr,
    tile_x_ptr,
    local_z_ptr,  # the same, the place inside the tile
    local_y_ptr,
    local_x_ptr,
    weight_z_ptr,  # float32 [grid_z, tile_z]
    weight_y_ptr,
    weight_x_ptr,  # float32 [grid_x, tile_x, RUN]
    stride_t,
    stride_b,
    stride_c,
    stride_z,
    stride_y,
    stride_x,
    rows,
    channels,
    size_z,
    size_y,
    size_x,
    tile_z,
    tile_y,
    tile_x,
    grid_y,
    grid_x,
    COVERS_Z: tl.constexpr,
    COVERS_Y: tl.constexpr,
    COVERS_X: tl.constexpr,
    RUN: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Each program writes a part of the canvas, tiles in ascending order."""
    runs = size_z * size_y * size_x
    run, row, _ = _program(runs, rows, ROWS, BLOCK)
    run_inside = run < runs
    z = tl.minimum(run // size_x // size_y, size_z - 1)
    y, x = run // size_x % size_y, run % size_x
    row_offsets = _row_offsets(row, channels, stride_b, stride_c, WIDE)
    row_inside = row < rows
    acc = tl.zeros([ROWS, BLOCK, RUN], dtype=tl.float32)
    for term_z in range(COVERS_Z):
        tz = tl.load(tile_z_ptr + z * COVERS_Z + term_z)
        lz = tl.load(local_z_ptr + z * COVERS_Z + term_z)
        weight_z = tl.load(weight_z_ptr + tz * tile_z + lz, mask=tz >= 0, other=0.0)
        for term_y in range(COVERS_Y):
            ty = tl.load(tile_y_ptr + y * COVERS_Y + term_y)
            ly = tl.load(local_y_ptr + y * COVERS_Y + term_y)
            weight = weight_z * tl.load(weight_y_ptr + ty * tile_y + ly, mask=ty >= 0, other=0.0)
            inside = row_inside[:, None] & (run_inside & (tz >= 0) & (ty >= 0))[None, :]
            line = _scaled(lz, stride_z, WIDE) + _scaled(ly, stride_y, WIDE)
            tile = (tz * grid_y + ty) * grid_x
            if COVERS_X <= 4:
                for term_x in tl.static_range(COVERS_X):
                    acc = _blend_x(
                        acc, tiles_ptr, row_offsets, line, tile, weight, inside[:, :, None],
                        tile_x_ptr, local_x_ptr, weight_x_ptr, x * COVERS_X + term_x, tile_x, stride_t, stride_x,
                        RUN, WIDE,
                    )  # fmt: skip
            else:
                for term_x in range(COVERS_X):
                    acc = _blend_x(
                        acc, tiles_ptr, row_offsets, line, tile, weight, inside[:, :, None],
                        tile_x_ptr, local_x_ptr, weight_x_ptr, x * COVERS_X + term_x, tile_x, stride_t, stride_x,
                        RUN, WIDE,
                    )  # fmt: skip
    offsets = _elements(_scaled(row, runs, WIDE), run, RUN)
    inside = (row_inside[:, None] & run_inside[None, :])[:, :, None]
    tl.store(out_ptr + offsets, acc.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=SIZES + STRIDES)
def pad_tiles_fwd_kernel(
    tiles_ptr,
    out_ptr,  # [T, rows, size_z, size_y, size_x], the padded sizes
    tile_z_ptr,  # int32 [grid_z, size_z], -1 outside the canvas
    tile_y_ptr,
    tile_x_ptr,
    local_z_ptr,  # the same, the place inside the tile
    local_y_ptr,
    local_x_ptr,
    stride_t,
    stride_b,
    stride_c,
    stride_z,
    stride_y,
    stride_x,
    rows,
    channels,
    size_z,
    size_y,
    size_x,
    grid_y,
    grid_x,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    WIDE: tl.constexpr,
):
    """Each program writes a part of one padded tile."""
    positions = size_z * size_y * size_x
    position, row, t = _program(positions, rows, ROWS, BLOCK)
    inside = position < positions
    z = t // grid_x // grid_y * size_z + position // size_x // size_y
    y = t // grid_x % grid_y * size_y + position // size_x % size_y
    x = t % grid_x * size_x + position % size_x
    tz, lz = tl.load(tile_z_ptr + z, mask=inside, other=-1), tl.load(local_z_ptr + z, mask=inside, other=0)
    ty, ly = tl.load(tile_y_ptr + y), tl.load(local_y_ptr + y)
    tx, lx = tl.load(tile_x_ptr + x), tl.load(local_x_ptr + x)
    known = (tz >= 0) & (ty >= 0) & (tx >= 0)
    source = _scaled((tz * grid_y + ty) * grid_x + tx, stride_t, WIDE)
    source += _scaled(lz, stride_z, WIDE) + _scaled(ly, stride_y, WIDE) + _scaled(lx, stride_x, WIDE)
    offsets = _elements(_row_offsets(row, channels, stride_b, stride_c, WIDE), source, 1)
    row_inside = (row < rows)[:, None]
    values = tl.load(tiles_ptr + offsets, mask=(row_inside & known[None, :])[:, :, None], other=0.0)
    out_ptr += t.to(tl.int64) * rows * positions
    target = _elements(_scaled(row, positions, WIDE), position, 1)
    tl.store(out_ptr + target, values, mask=(row_inside & inside[None, :])[:, :, None])
