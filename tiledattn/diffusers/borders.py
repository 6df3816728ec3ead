"""What functions do at the borders of what they get: padding in positions, and what can't be coupled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def pair(value: int | Sequence[int]) -> list[int]:
    """One number per axis."""
    values = [value] if isinstance(value, int) else list(value)
    return values * 2 if len(values) == 1 else values


def padding_of(
    weight: Tensor, padding: int | Sequence[int] | str, dilation: Sequence[int]
) -> tuple[list[int], list[int]]:
    """Positions before and behind, per axis, that `F.conv2d` pads with for its argument `padding`."""
    if padding == "same":
        reach = [step * (size - 1) for step, size in zip(dilation, weight.shape[-2:], strict=True)]
        before = [total // 2 for total in reach]
        return before, [total - first for total, first in zip(reach, before, strict=True)]
    both = [0, 0] if isinstance(padding, str) else pair(padding)  # the other word is "valid"
    return both, both


def check_zeros(input: Tensor, pad: Sequence[int], mode: str, value: float | None) -> None:
    """Raises NotImplementedError for arguments of `F.pad` that are no zero padding of height and width."""
    zeros = mode == "constant" and (value is None or value == 0)
    if len(pad) != 4 or not zeros or min(pad) < 0:
        raise NotImplementedError(
            f"conv_halo: F.pad of {tuple(pad)} in mode {mode!r} on a tensor {tuple(input.shape)} can't be coupled; "
            "only zero padding of height and width can; use conv_halo=False, or disable_tiling"
        )


def refusal(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> str | None:
    """Why a function that mixes positions can't be coupled; None for the ones that don't mix."""
    if func is F.interpolate:
        mode = kwargs["mode"] if "mode" in kwargs else args[3] if len(args) > 3 else "nearest"
        return None if mode in ("nearest", "nearest-exact") else f"interpolation in mode {mode!r} mixes positions"
    if func is F.conv_transpose2d:
        return "a transposed convolution mixes positions"
    if func is F.avg_pool2d or func is F.max_pool2d:
        kernel = kwargs["kernel_size"] if "kernel_size" in kwargs else args[1]
        stride = kwargs["stride"] if "stride" in kwargs else args[2] if len(args) > 2 else None
        padding = kwargs["padding"] if "padding" in kwargs else args[3] if len(args) > 3 else 0
        same = stride is None or stride == () or pair(stride) == pair(kernel)
        return None if same and not any(pair(padding)) else "a pooling whose windows overlap mixes positions"
    if func is torch.fft.fftn or func is torch.fft.fft2:
        return "a Fourier transform (FreeU) mixes all positions: call disable_freeu()"
    return None
