"""The native library: fused C++ kernels for the CPU, loaded once; nothing is compiled at import or later."""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .native_attention import cross_tile_attention as cross_tile_attention

if TYPE_CHECKING:
    from ..geometry import TileLayout

NAME = "cpu"
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
RUNS_ON = "CPUs, where the native library was built"
PROVEN_ON = ("x86-64 CPU with AVX-512 and bfloat16, 2026-11-20",)
OPS = ("cross_tile_attention", "extract_tiles", "blend_tiles", "pad_tiles")

INTERFACE = 1  # of the operators' schemas; the library says which one it was built with

_FOLDER = Path(__file__).resolve().parent.parent

NO_EXT_VARIABLE = "TILEDATTN_NO_EXT"  # 1: as if there were no library, at build time and at run time
LIBRARY_VARIABLE = "TILEDATTN_LIBRARY"  # another library than the package's own, such as one with sanitizers


def build_report() -> dict[str, object]:
    """What the build wrote down: `reason` why there is no library, or compiler, instruction sets and CUDA version."""
    try:
        found: dict[str, object] = json.loads((_FOLDER / "_build.json").read_text())
    except (OSError, ValueError):
        return {"reason": "it was not built; run `pip install .` or `make setup` in the source tree"}
    return found


@cache
def _load() -> str | None:
    """Loads the library; None, or why it can't be used."""
    if os.environ.get(NO_EXT_VARIABLE) == "1":
        return f"switched off by {NO_EXT_VARIABLE}=1"
    library = Path(os.environ.get(LIBRARY_VARIABLE) or _FOLDER / "_C.abi3.so")
    if not library.is_file():
        return f"no native library: {build_report().get('reason') or f'{library} is missing'}"
    try:
        torch.ops.load_library(library)  # type: ignore[no-untyped-call]
        interface = torch.ops.tiledattn.native_interface()
    except (OSError, AttributeError, RuntimeError) as problem:
        return f"the native library can't be loaded: {problem}"
    if interface != INTERFACE:
        return "the native library was built from other sources than these; run `pip install .` or `make build` again"
    return None


def probe() -> str | None:
    """None where the library was built and loads, else the reason why not."""
    return _load()


def rejects(op: str, device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    """None where a call of operation `op` is taken, else the reason why not; `head_dim` is 0 for ops without one."""
    if op not in OPS:
        return f"{op} is not offered by the cpu backend"
    if device.type != "cpu":
        return f"{op}: tensors on {device}; the cpu backend needs them on the CPU"
    if dtype not in DTYPES:
        return f"{op}: {dtype} is not supported, only float16, bfloat16, float32 and float64"
    if op == "cross_tile_attention" and dtype == torch.float64:
        return f"{op}: {dtype} is not supported, only float16, bfloat16 and float32"
    return None


def describe() -> dict[str, object]:
    """For `tiledattn doctor`: what the build wrote down, and the instruction set in use or why there is none."""
    reason = _load()
    report = {**build_report(), "reason": reason}
    if reason is None:
        report["instruction_set"] = instruction_set()
        report["cuda_reason"] = torch.ops.tiledattn.native_cuda_reason() or None
    return report


def instruction_set(name: str = "") -> str:
    """The instruction set that kernels use; a name ("auto", "portable", "avx2", ...) chooses another."""
    chosen: str = torch.ops.tiledattn.native_instruction_set(name)
    return chosen


def extract_tiles(canvas: Tensor, *, layout: TileLayout) -> Tensor:
    """Cuts [B, C, *size] (any strides) into [T, B, C, *tile] (contiguous): one pass, each row copied once."""
    out = canvas.new_empty((layout.num_tiles, *canvas.shape[:2], *layout.tile))
    torch.ops.tiledattn.extract_tiles_cpu(canvas, out, layout.as_ints())
    return out


def blend_tiles(tiles: Tensor, *, layout: TileLayout, weights: tuple[Tensor, ...]) -> Tensor:
    """Blends [T, B, C, *tile] (any strides) into [B, C, *size] (contiguous), each position written once.

    Args:
        tiles: the tile batch.
        layout: how the canvas is cut.
        weights: per axis the normalised weights of every tile, [tiles on the axis, tile], contiguous, float32
            (float64 for float64).

    Every position is accumulated in the weights' precision, tiles in ascending order.
    """
    out = tiles.new_empty((*tiles.shape[1:3], *layout.size))
    torch.ops.tiledattn.blend_tiles_cpu(tiles, weights, out, layout.as_ints())
    return out


def pad_tiles(tiles: Tensor, *, layout: TileLayout, pad: tuple[tuple[int, int], ...]) -> Tensor:
    """Adds a ring from the owners, (before, after) positions per axis, zeros outside the canvas, in one pass."""
    padded = (before + w + after for w, (before, after) in zip(layout.tile, pad, strict=True))
    out = tiles.new_empty((*tiles.shape[:3], *padded))
    torch.ops.tiledattn.pad_tiles_cpu(tiles, out, layout.as_ints(), [p for ends in pad for p in ends])
    return out
