"""Convolutions of every kind, and what they are on a canvas that goes round."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor


def wrapping(function: Callable[[Tensor], Tensor], margin: int) -> Callable[[Tensor], Tensor]:
    """`function` on a canvas that goes on round the wrapped x axis."""

    def run(canvas: Tensor) -> Tensor:
        out = function(F.pad(canvas, (margin, margin, 0, 0), mode="circular"))
        crop = margin * out.shape[-1] // (canvas.shape[-1] + 2 * margin)
        return out[..., crop:-crop]

    return run


CONVOLUTIONS: dict[str, dict[str, Any]] = {
    "3x3": {"kernel_size": 3, "padding": 1},
    "5x5": {"kernel_size": 5, "padding": 2},
    "3x1": {"kernel_size": (3, 1), "padding": (1, 0)},
    "dilated": {"kernel_size": 3, "padding": 2, "dilation": 2},
    "grouped": {"kernel_size": 3, "padding": 1, "groups": 4},
    "strided": {"kernel_size": 3, "padding": 1, "stride": 2},
    "same": {"kernel_size": 3, "padding": "same"},
    "same, even kernel": {"kernel_size": 4, "padding": "same"},
    "patches": {"kernel_size": 2, "stride": 2},
}
