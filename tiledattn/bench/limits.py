"""What torch makes of the machine at best, measured once per run: square matrix products and copies.

They take the place of a data sheet: no case's rate is compared with a number that this machine did not reach. A product
is the fastest of those that torch has ways to call (on one CPU oneDNN's was three times as fast as `a @ b`). It is no
bound: a kernel that uses the machine better than torch's products do is above it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .timing import Clock, CpuClock, CudaClock, Times, last_level_cache, measure
from .variants import products
from .ways import DTYPES, Call, random

PRODUCT_SIZE = {"cpu": 2048, "cuda": 8192}
COPY_BYTES = {"cpu": 256 << 20, "cuda": 1 << 30}
CACHES = 4  # a copy that leaves the caches is so many times as large as they are
SAMPLE_SECONDS = 1.0


def measured(device: torch.device, dtypes: Sequence[str], seconds: float = SAMPLE_SECONDS) -> list[dict[str, Any]]:
    """The entries of `limits` in a run's JSON: copies, and a matrix product per dtype; each is sampled for `seconds`.

    Products are square, in the precision of the dtype's cases ("tf32": float32 multiplied as tfloat32); a product that
    a device does not offer is left out. Copies go into memory that is in use already; the first one is much larger
    than the caches, on a CPU a second one stays inside them. A copied byte counts twice: read and written.
    """
    return products_of(device, dtypes, seconds) + copies(device, seconds)


def products_of(device: torch.device, dtypes: Sequence[str], seconds: float = SAMPLE_SECONDS) -> list[dict[str, Any]]:
    """A matrix product per dtype, without those that the device does not offer."""
    return [entry for dtype in dict.fromkeys(dtypes) if (entry := _product(device, dtype, seconds)) is not None]


def copies(device: torch.device, seconds: float = SAMPLE_SECONDS) -> list[dict[str, Any]]:
    """A copy of much more than the caches hold, on a CPU also one inside them."""
    sizes = {"": COPY_BYTES[device.type]}
    cache = last_level_cache() if device.type == "cpu" else None
    if cache is not None:
        sizes = {"": max(COPY_BYTES["cpu"], CACHES * cache), ", in the caches": cache // 8}
    return [_copy(device, size, note, seconds) for note, size in sizes.items()]


def _product(device: torch.device, dtype: str, seconds: float) -> dict[str, Any] | None:
    size = PRODUCT_SIZE[device.type]
    try:
        with products(dtype), torch.no_grad():
            a, b = random((2, size, size), device, DTYPES[dtype], 0).unbind(0)
            tried = {name: spent for name, call in _calls(a, b).items() if (spent := _tried(device, call)) is not None}
            if not tried:
                return None
            best = min(tried, key=lambda name: tried[name])
            times = _times(device, _calls(a, b)[best], a.nbytes + b.nbytes, seconds)
    except RuntimeError:  # the device has no such product, or no memory for it
        return None
    return _entry("matrix product", dtype, "TFLOP/s", 2.0 * size**3 / 1e12, times, f"{size}^3, {best}")


def _calls(a: Tensor, b: Tensor) -> dict[str, Call]:
    """The ways in which torch multiplies two matrices; not every one works in every dtype."""
    out, weight = torch.empty_like(a), b.t().contiguous()
    found: dict[str, Call] = {
        "a @ b": lambda: a @ b,
        "torch.mm into a buffer": lambda: torch.mm(a, b, out=out),
        "F.linear": lambda: F.linear(a, weight),
    }
    onednn: Any = torch.backends.mkldnn  # its functions have no types
    if a.device.type == "cpu" and onednn.is_available():
        blocked: list[Tensor] = []

        def linear() -> Tensor:
            if not blocked:
                blocked.extend(x.to_mkldnn() for x in (a, weight))
            return F.linear(*blocked)

        found["F.linear of oneDNN's tensors"] = linear
    return found


def _tried(device: torch.device, call: Call) -> float | None:
    """Seconds of a warm call, or None where it is not offered."""
    try:
        call()
        _wait(device)
        began = time.perf_counter()
        call()
        _wait(device)
    except RuntimeError:
        return None
    return time.perf_counter() - began


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


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


def add_lacking(data: dict[str, Any], device: torch.device, dtypes: Sequence[str]) -> None:
    """Measures what the `limits` of a run lack for cases in these dtypes and puts it there.

    Dtypes that the device has no product in are noted in `no_product`, so that a run that goes on does not try again.
    """
    found: list[dict[str, Any]] = data["limits"]
    known = {entry["dtype"] for entry in found if entry["name"] == "matrix product"} | set(data["no_product"])
    wanted = [dtype for dtype in dict.fromkeys(dtypes) if dtype not in known]
    made = products_of(device, wanted)
    missing = [dtype for dtype in wanted if dtype not in {entry["dtype"] for entry in made}]
    if not any(entry["name"] == "copy" for entry in found):
        made += copies(device)
    found[:] = sorted([*found, *made], key=lambda entry: entry["name"] == "copy")
    data["no_product"] += missing
