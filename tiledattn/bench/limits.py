"""What the machine can do at best, measured once per run: square matrix products and copies.

They take the place of a data sheet: no case's rate is compared with a number that this machine did not reach.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from .timing import Clock, CpuClock, CudaClock, Times, last_level_cache, measure
from .variants import products
from .ways import DTYPES, Call, random

PRODUCT_SIZE = {"cpu": 2048, "cuda": 8192}
COPY_BYTES = {"cpu": 256 << 20, "cuda": 1 << 30}
CACHES = 4  # a copy that leaves the caches is so many times as large as they are
SAMPLE_SECONDS = 1.0


def measured(device: torch.device, dtypes: Sequence[str], seconds: float = SAMPLE_SECONDS) -> list[dict[str, Any]]:
    """The entries of `limits` in a run's JSON: a matrix product per dtype, copies; each is sampled for `seconds`.

    Products are square, in the precision of the dtype's cases ("tf32": float32 multiplied as tfloat32); a product that
    a device does not offer is left out. Copies go into memory that is in use already; the first one is much larger
    than the caches, on a CPU a second one stays inside them. A copied byte counts twice: read and written.
    """
    found = [entry for dtype in dict.fromkeys(dtypes) if (entry := _product(device, dtype, seconds)) is not None]
    sizes = {"": COPY_BYTES[device.type]}
    cache = last_level_cache() if device.type == "cpu" else None
    if cache is not None:
        sizes = {"": max(COPY_BYTES["cpu"], CACHES * cache), ", in the caches": cache // 8}
    return found + [_copy(device, size, note, seconds) for note, size in sizes.items()]


def _product(device: torch.device, dtype: str, seconds: float) -> dict[str, Any] | None:
    size = PRODUCT_SIZE[device.type]
    try:
        with products(dtype), torch.no_grad():
            a, b = random((2, size, size), device, DTYPES[dtype], 0).unbind(0)
            times = _times(device, lambda: a @ b, a.nbytes + b.nbytes, seconds)
    except RuntimeError:  # the device has no such product, or no memory for it
        return None
    return _entry("matrix product", dtype, "TFLOP/s", 2.0 * size**3 / 1e12, times, f"{size}^3")


def _copy(device: torch.device, size: int, note: str, seconds: float) -> dict[str, Any]:
    source = torch.zeros(size // 4, dtype=torch.float32, device=device)
    target = torch.zeros_like(source)
    times = _times(device, lambda: target.copy_(source), 2 * size, seconds)
    mebibytes = f"{size / 2**20:.3g} MiB"
    return _entry("copy", "float32", "GB/s", 2 * size / 1e9, times, mebibytes + note)


def _times(device: torch.device, call: Call, size: int, seconds: float) -> Times:
    clock: Clock = CpuClock() if device.type == "cpu" else CudaClock(device, size)
    call()
    return measure(clock, {"limit": [call]}, seconds)["limit"]


def _entry(name: str, dtype: str, unit: str, amount: float, times: Times, what: str) -> dict[str, Any]:
    return {
        "name": name,
        "dtype": dtype,
        "unit": unit,
        "rate": amount / times.median,
        "spread": times.spread,
        "samples": times.samples,
        "what": what,
    }


def lacking(limits: Sequence[dict[str, Any]], dtypes: Sequence[str]) -> list[str]:
    """The dtypes whose matrix product is not among limits that were measured before."""
    known = {entry["dtype"] for entry in limits if entry["name"] == "matrix product"}
    return [dtype for dtype in dict.fromkeys(dtypes) if dtype not in known]
