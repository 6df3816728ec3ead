"""Peak memory that a call takes beyond its inputs and its result."""

from __future__ import annotations

import ctypes
import gc
import mmap
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

LEAST_NOISE_BYTES = 1 << 20  # pages that the process touches for itself meanwhile
_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"  # man 5 proc: the peak resident set becomes the present one


def extra_bytes(call: Callable[[], Any], device: torch.device | str = "cpu", result_is_new: bool = True) -> int | None:
    """Bytes that a call takes at its peak beyond what was there before and the tensors that it returns.

    `result_is_new` is False where these were there before.

    Call it once before: what a library keeps from its first call on (scratch memory of oneDNN, plans) is not counted.
    On a CUDA device it is what torch's allocator hands out. On Linux it is the peak of the process's resident memory,
    C++ scratch included, which is right to about a mebibyte, on machines of many cores to several (`noise_bytes`):
    less is 0. Nothing else may allocate in the process meanwhile.

    Returns:
        Bytes, or None where it is unknown: on another system, or where the peak can't be reset.
    """
    device = torch.device(device)
    if device.type == "cuda":
        return _on_cuda(call, device, result_is_new)
    return _on_linux(call, result_is_new) if device.type == "cpu" else None


def noise_bytes() -> int:
    """How far the kernel's count of resident pages may be off.

    Since Linux 6.2 each core counts for itself, and its part is added when it has come to a batch of pages: 32, or
    twice the cores.
    """
    batch = max(32, 2 * (os.cpu_count() or 1))
    return max(LEAST_NOISE_BYTES, torch.get_num_threads() * batch * mmap.PAGESIZE)


def result_bytes(result: Any) -> int:
    """Bytes of the tensors in a result (a tensor, or nested lists, tuples and dicts), shared storage once."""
    storages = {(x.device, x.untyped_storage().data_ptr()): x.untyped_storage().nbytes() for x in _tensors(result)}
    return sum(storages.values())


def _tensors(result: Any) -> Iterable[Tensor]:
    if isinstance(result, Tensor):
        yield result
    elif isinstance(result, dict | list | tuple):
        for part in result.values() if isinstance(result, dict) else result:
            yield from _tensors(part)


def _on_cuda(call: Callable[[], Any], device: torch.device, result_is_new: bool) -> int:
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    result = call()
    torch.cuda.synchronize(device)
    new = result_bytes(result) if result_is_new else 0
    return max(0, torch.cuda.max_memory_allocated(device) - before - new)


def _on_linux(call: Callable[[], Any], result_is_new: bool) -> int | None:
    gc.collect()
    _give_back_freed()
    try:
        _RESET.write_text(_RESET_PEAK)
        before = _status_bytes("VmRSS")
        if _status_bytes("VmHWM") > before + noise_bytes():
            return None
        result = call()
        peak = _status_bytes("VmHWM")
    except (OSError, LookupError):
        return None
    extra = peak - before - (result_bytes(result) if result_is_new else 0)
    return extra if extra >= noise_bytes() else 0


def _give_back_freed() -> None:
    """Freed memory that the allocator keeps would be taken again without the peak rising."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError):  # another C library than glibc
        return


def _status_bytes(name: str) -> int:
    found = re.search(rf"^{name}:\s*(\d+) kB$", _STATUS.read_text(), re.MULTILINE)
    if found is None:
        raise LookupError(name)
    return int(found[1]) * 1024
