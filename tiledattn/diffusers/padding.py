"""What a convolution's padding comes to, in positions."""

from __future__ import annotations

from collections.abc import Sequence

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
    both = [0, 0] if padding == "valid" else pair(padding)  # type: ignore[arg-type]
    return both, both
