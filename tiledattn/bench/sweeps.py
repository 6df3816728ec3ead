"""What is timed against the size of the work: canvas area, halo, tile, threads.

Canvases are periodic unless a name says otherwise. On a periodic canvas of 2 x 2 tiles or more every tile has the same
number of neighbours, so that work is in proportion to the area from there on. On one with borders the tiles at its edge
see less, the more so the smaller it is: there even the work grows faster than the area at first.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch

import tiledattn as ta
from tiledattn.geometry import attention_plan

from .attention_cases import AttentionCase
from .limits import CACHES
from .tile_cases import TileCase
from .timing import DEFAULT_CACHE_BYTES, last_level_cache
from .ways import DTYPES, Call, Case, Verdict, Way

GRIDS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32)
QUICK_GRIDS = (1, 2, 3, 4, 6, 8)
TILE_GRIDS = (1, 2, 3, 4, 6, 8, 10, 12, 16, 20, 24)
QUICK_TILE_GRIDS = (1, 2, 4, 6, 8, 10)
STEP_GRIDS = (2, 3, 4, 5, 6, 7, 8, 10, 12)
QUICK_STEP_GRIDS = (2, 3, 4, 5)
HALOS = (0, 2, 4, 8, 16, 24)
TILES = (8, 12, 16, 24, 32, 48)
HEADS, DIM = 4, 64


class Ready(NamedTuple):
    """A call, the bytes of its inputs, and how its result was judged."""

    call: Call
    input_bytes: int
    verdict: Verdict


@dataclass(frozen=True)
class Load:
    """One size: `make` builds its inputs, calls once and has the result judged.

    Attributes:
        x: the size.
        make: what makes it ready.
        work: what the call has to do, in proportion: pairs of queries and keys, or bytes; None where unknown.
        threads: CPU threads to do it with, None for as many as are set.
    """

    x: float
    make: Callable[[], Ready]
    work: float | None = None
    threads: int | None = None


@dataclass(frozen=True)
class Sweep:
    """Loads of one operation by size, ascending.

    Attributes:
        operation: what is done.
        against: "canvas area", "halo", "tile" or "threads".
        unit: what x counts.
        dtype: as in `ways.DTYPES`.
        loads: the sizes.
        fit_from: the least x that the exponents are fitted to.
        note: what to know about the figures.
        result_is_new: whether every call makes its result's memory anew.
    """

    operation: str
    against: str
    unit: str
    dtype: str
    loads: tuple[Load, ...]
    fit_from: float = 0.0
    note: str = ""
    result_is_new: bool = True

    @property
    def name(self) -> str:
        """As `--sweep` matches it: "attention/canvas area/float32"."""
        return f"{self.operation}/{self.against}/{self.dtype}"


def all_sweeps(device: torch.device, dtype: str, quick: bool) -> list[Sweep]:
    """All that can be timed on a device; nothing is computed yet."""
    grids, tile_grids = (QUICK_GRIDS, QUICK_TILE_GRIDS) if quick else (GRIDS, TILE_GRIDS)
    found = [
        attention_area(device, dtype, grids, wrap=True),
        attention_area(device, dtype, grids, wrap=False),
        tiles_area("blending", device, dtype, tile_grids),
        tiles_area("extraction", device, dtype, tile_grids),
        attention_halo(device, dtype, HALOS[: 5 if quick else None]),
        attention_tile(device, dtype, TILES[: 5 if quick else None]),
    ]
    if device.type == "cpu":
        found += threads_sweeps(device, dtype)
    if dtype == "float32":
        from .step_sweeps import step_area

        step_grids = QUICK_STEP_GRIDS if quick else STEP_GRIDS
        found += [step_area(name, device, step_grids) for name in ("UNet", "DiT")]
    return found


def attention_area(device: torch.device, dtype: str, grids: tuple[int, ...], wrap: bool) -> Sweep:
    """Cross-tile attention of n x n tiles of 16x16 tokens, halo 4."""

    def loads() -> Iterator[Load]:
        for n in grids:
            yield _attention(ta.TileLayout((16 * n,) * 2, 16, 0, wrap), 4, device, dtype, float(n * n))

    if wrap:
        return Sweep("attention", "canvas area", "tiles", dtype, tuple(loads()), fit_from=4.0)
    # from 8x8 on most tiles lie inside; a short list has too few sizes there
    fit_from = 64.0 if max(grids) >= 16 else 9.0
    note = (
        "With borders: tiles at the edge of the canvas see less, so that the work itself grows faster than the area, "
        f"the more so the smaller the canvas is (last column). Fitted from {fit_from:g} tiles on."
    )
    return Sweep("attention, with borders", "canvas area", "tiles", dtype, tuple(loads()), fit_from=fit_from, note=note)


def attention_halo(device: torch.device, dtype: str, halos: tuple[int, ...]) -> Sweep:
    """Cross-tile attention of 6 x 6 tiles of 16x16 tokens with halos of more and more tokens."""
    layout = ta.TileLayout((96, 96), 16, 0, True)
    loads = tuple(_attention(layout, halo, device, dtype, float((16 + 2 * halo) ** 2)) for halo in halos)
    note = f"Halos of {', '.join(map(str, halos))} tokens around tiles of 16x16; x counts the keys that a query sees."
    return Sweep("attention", "halo", "keys per query", dtype, loads, note=note)


def attention_tile(device: torch.device, dtype: str, tiles: tuple[int, ...]) -> Sweep:
    """Cross-tile attention of a canvas of 96x96 tokens in tiles of more and more tokens, a quarter of each as halo."""
    loads = tuple(
        _attention(ta.TileLayout((96, 96), width, 0, True), width // 4, device, dtype, float(width**2))
        for width in tiles
    )
    note = f"Tiles of {', '.join(map(str, tiles))} tokens a side on a canvas of 96x96, the halo a quarter of the tile."
    return Sweep("attention", "tile", "tokens per tile", dtype, loads, note=note)


def tiles_area(operation: str, device: torch.device, dtype: str, grids: tuple[int, ...]) -> Sweep:
    """Blending or extraction of n x n tiles of 16x128x128 that overlap by 32; the canvas has borders.

    Results go into memory that is kept, as in a loop of steps: the system's allocator gives results beyond 32 MB new
    memory at every call, which is a step in time and no power of the area.
    """

    def loads() -> Iterator[Load]:
        for n in grids:
            layout = ta.TileLayout((96 * n + 32,) * 2, 128, 32)
            yield _tiles(operation, layout, device, dtype, float(n * n))

    made = tuple(loads())
    cache = last_level_cache() or DEFAULT_CACHE_BYTES
    beyond = [load.x for load in made if (load.work or 0) > CACHES * cache]
    note = (
        f"Blending and extraction are fitted from where inputs and outputs are {CACHES} times as large as the caches: "
        "calls that find a part there take less time per byte. Results go into memory that is kept (`out=`)."
    )
    fit_from = beyond[0] if len(beyond) > 2 else made[-3:][0].x
    return Sweep(operation, "canvas area", "tiles", dtype, made, fit_from=fit_from, note=note, result_is_new=False)


def threads_sweeps(device: torch.device, dtype: str) -> list[Sweep]:
    """Attention of 8 x 8 tiles and blending of 64 tiles with 1, 2, 4 ... threads; none on a machine of one core."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    counts = [count for count in (1, 2, 4, 8, 16, 32, 64, 128) if count < cores] + [cores]
    if len(counts) < 2:
        return []
    canvas, tiles = ta.TileLayout((128, 128), 16, 0, True), ta.TileLayout((800, 800), 128, 32)
    return [
        Sweep(
            "attention",
            "threads",
            "threads",
            dtype,
            tuple(_attention(canvas, 4, device, dtype, float(n), n) for n in counts),
        ),
        Sweep(
            "blending",
            "threads",
            "threads",
            dtype,
            tuple(_tiles("blending", tiles, device, dtype, float(n), n) for n in counts),
        ),
    ]


def _attention(
    layout: ta.TileLayout, halo: int, device: torch.device, dtype: str, x: float, threads: int | None = None
) -> Load:
    case = AttentionCase("attention", "", {}, layout, (halo, halo), HEADS, DIM, 1)
    call = partial(ta.cross_tile_attention, layout=layout, halo=(halo, halo))
    work = float(attention_plan(layout, (halo, halo)).num_pairs)
    return Load(x, partial(_ready, case, partial(partial, call), device, dtype), None if threads else work, threads)


def _tiles(
    operation: str, layout: ta.TileLayout, device: torch.device, dtype: str, x: float, threads: int | None = None
) -> Load:
    case = TileCase(operation, "", {}, layout, 16, kept=True)

    def prepare(x: torch.Tensor) -> Call:
        out = case.result(x)
        if operation == "blending":
            return partial(ta.blend_tiles, x, layout, "uniform", out=out)
        return partial(ta.extract_tiles, x, layout, out=out)

    work = case.amount(DTYPES[dtype])
    return Load(x, partial(_ready, case, prepare, device, dtype), None if threads else work, threads)


def _ready(case: Case, prepare: Callable[..., Call], device: torch.device, dtype: str) -> Ready:
    """Inputs, the call on them with the backend that "auto" takes, and its verdict against float64."""
    inputs = case.inputs(device, DTYPES[dtype], 0)
    run = prepare(*inputs)
    verdict = case.judge(inputs)(run(), Way("auto", "ours", lambda _: run))
    return Ready(run, sum(x.nbytes for x in inputs), verdict)
