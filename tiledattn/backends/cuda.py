"""CUDA C++ kernels of the native library, for NVIDIA GPUs: one launch an operation, nothing compiled at run time."""

from __future__ import annotations

from functools import cache

import torch

from . import native_library
from .cuda_attention import MAX_HEAD_DIM
from .cuda_attention import cross_tile_attention as cross_tile_attention
from .cuda_tiles import blend_tiles as blend_tiles
from .cuda_tiles import extract_tiles as extract_tiles
from .cuda_tiles import pad_tiles as pad_tiles

NAME = "cuda"
MIN_CAPABILITY = (8, 0)
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
RUNS_ON = "NVIDIA GPUs of compute capability 8.0 and newer, where the native library was built with CUDA"
PROVEN_ON: tuple[str, ...] = ()
OPS = ("cross_tile_attention", "extract_tiles", "blend_tiles", "pad_tiles")


@cache
def _library_reason() -> str | None:
    """Why the library has no CUDA kernels that torch could call, or None."""
    reason = native_library.load()
    if reason is not None:
        return reason
    if torch.ops.tiledattn.native_cuda_version() == 0:
        why = native_library.build_report().get("cuda_reason")
        return f"the native library has no CUDA kernels: {why or 'built without CUDA'}"
    if torch.version.cuda is None:
        return f"torch {torch.__version__} was built without CUDA"
    return None


def probe() -> str | None:
    """None where the library was built with CUDA and torch sees a CUDA device, else the reason why not."""
    reason = _library_reason()
    if reason is None and not torch.cuda.is_available():
        return "no CUDA device"
    return reason


class _OutOfMemoryError(RuntimeError):
    """The device has no room for the library's code now; the message says so. Not remembered."""


@cache
def _device_reason(index: int) -> str | None:
    """Why no kernel of the library runs on a device, or None."""
    capability = torch.cuda.get_device_capability(index)
    if capability < MIN_CAPABILITY:
        return f"compute capability {capability[0]}.{capability[1]} of cuda:{index} is below 8.0"
    with torch.cuda.device(index):
        problem: str = torch.ops.tiledattn.native_cuda_reason()
    if "out of memory" in problem:
        raise _OutOfMemoryError(f"cuda:{index}: {problem}")
    if problem:
        built = ", ".join(map(str, native_library.build_report().get("cuda_architectures", [])))  # type: ignore[call-overload]
        return f"cuda:{index} (compute capability {capability[0]}.{capability[1]}, built for {built}): {problem}"
    return None


def rejects(op: str, device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    """None where a call of operation `op` is taken, else the reason why not; `head_dim` is 0 for ops without one."""
    if op not in OPS:
        return f"{op} is not offered by the cuda backend"
    if device.type != "cuda":
        return f"{op}: tensors on {device}; the cuda backend needs a CUDA device"
    if dtype not in DTYPES:
        return f"{op}: {dtype} is not supported, only float16, bfloat16, float32 and float64"
    if op == "cross_tile_attention":
        if dtype not in MAX_HEAD_DIM:
            return f"{op}: {dtype} is not supported, only float16, bfloat16 and float32"
        if head_dim > MAX_HEAD_DIM[dtype]:
            return f"{op}: head dim {head_dim} is above {MAX_HEAD_DIM[dtype]}"
        if dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision in ("ieee", "none"):
            return f"{op}: float32 is multiplied as tfloat32, which torch.backends.cuda.matmul.fp32_precision forbids"
    try:
        reason = _device_reason(torch.cuda.current_device() if device.index is None else device.index)
    except _OutOfMemoryError as now:
        reason = str(now)
    return None if reason is None else f"{op}: {reason}"
