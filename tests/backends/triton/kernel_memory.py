"""Memory that is awkward on purpose, for the case files."""

import math

import numpy as np
import pytest
import torch


def address_space(elements, device):
    """A float16 buffer of several GiB; on a CPU nearly all of it is never touched and costs nothing."""
    try:
        if device.type == "cpu":
            return torch.from_numpy(np.empty(elements, dtype=np.float16))
        return torch.zeros(elements, dtype=torch.float16, device=device)
    except (MemoryError, RuntimeError):
        pytest.skip(f"no address space of {elements >> 29} GiB")


def amid_nan(x, margin=64):
    """A contiguous copy of `x` with NaN in memory before and behind it."""
    buffer = torch.full((x.numel() + 2 * margin,), math.nan, dtype=x.dtype, device=x.device)
    return buffer[margin : margin + x.numel()].view(x.shape).copy_(x)
