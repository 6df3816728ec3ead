"""The native library: fused C++ kernels for the CPU, loaded once; nothing is compiled at import or later."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from ..geometry import TileLayout

NAME = "cpu"
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
RUNS_ON = "x86-64 and ARM CPUs, where the native library was built"
PROVEN_ON = ("x86-64 CPU with AVX-512 and bfloat16, 2026-11-20",)
OPS: tuple[str, ...] = ()

INTERFACE = 1  # of the operators' schemas; the library says which one it was built with

_FOLDER = Path(__file__).resolve().parent.parent


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
    library = _FOLDER / "_C.abi3.so"
    if not library.is_file():
        return f"no native library: {build_report()['reason']}"
    try:
        torch.ops.load_library(library)
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
    return None


def instruction_set(name: str = "") -> str:
    """The instruction set that kernels use; a name ("auto", "portable", "avx2", ...) chooses another."""
    chosen: str = torch.ops.tiledattn.native_instruction_set(name)
    return chosen
