"""What every launcher needs: the device to launch on, offset widths, and alignment units."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable

import torch
from torch import Tensor

INT32_MAX = 2**31 - 1


def on_device(tensor: Tensor) -> contextlib.AbstractContextManager[object]:
    """A context in which kernels are launched on the tensor's device."""
    if tensor.device.type == "cuda":
        return torch.cuda.device(tensor.device)
    if tensor.device.type == "xpu":
        return torch.xpu.device(tensor.device)
    return contextlib.nullcontext()


def needs_wide_offsets(*tensors: Tensor) -> bool:
    """Whether an element offset of any of the tensors passes 2^31 - 1."""
    return any(
        sum((size - 1) * stride for size, stride in zip(t.shape, t.stride(), strict=True)) > INT32_MAX
        for t in tensors
        if t.numel()
    )


def shared_unit(limit: int, values: Iterable[int]) -> int:
    """The largest divisor of `limit` that divides all values (memory strides, sizes); zeros are divided by all."""
    return math.gcd(limit, *values)
