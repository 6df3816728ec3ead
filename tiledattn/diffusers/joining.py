"""Tiles that share no position may stay joined: the model runs on the canvas, and its attention alone goes by tiles.

With convolution rings and norms of the canvas, everything but attention computes the same on the canvas as on its
tiles, to rounding, and without copying a ring or a border. So nothing is cut but the tokens of self-attention.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..geometry import TileLayout
from .frame import Frame
from .padding import padding_of, pair

MOST_ELEMENTS = 2**31  # of one picture's features: more are too many for convolutions of 32-bit offsets


def may_be_joined(layout: TileLayout, widest: int) -> bool:
    """Whether several tiles cover the canvas once, and `widest` channels of it are few enough for one picture."""
    evenly = all(size % tile == 0 for size, tile in zip(layout.size, layout.tile, strict=True))
    alone = not any(layout.overlap) and evenly
    return alone and layout.num_tiles > 1 and math.prod(layout.size) * widest < MOST_ELEMENTS


def split_tokens(tokens: Tensor, layout: TileLayout) -> Tensor:
    """[B, H*W, C] of a canvas -> [T*B, h*w, C], the tile index slow."""
    (rows, columns), (height, width) = layout.grid, layout.tile
    grid = tokens.reshape(tokens.shape[0], rows, height, columns, width, tokens.shape[2])
    return grid.permute(1, 3, 0, 2, 4, 5).reshape(-1, height * width, tokens.shape[2])


def join_tokens(tiles: Tensor, layout: TileLayout) -> Tensor:
    """The inverse of `split_tokens`."""
    (rows, columns), (height, width) = layout.grid, layout.tile
    grid = tiles.reshape(rows, columns, -1, height, width, tiles.shape[2])
    batch = grid.shape[2]
    return grid.permute(2, 0, 3, 1, 4, 5).reshape(batch, -1, tiles.shape[2])


class RoundMode(TorchFunctionMode):
    """Zero padding of the canvas goes round on its periodic axes, in convolutions and in `F.pad`.

    Args:
        frame: the forward pass, of joined tiles.
    """

    def __init__(self, frame: Frame) -> None:
        super().__init__()
        self.frame = frame

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Sends convolutions and paddings to their handlers."""
        kwargs = {} if kwargs is None else kwargs
        if not self.frame.paused and func is F.conv2d:
            return self._conv2d(*args, **kwargs)
        if not self.frame.paused and func is F.pad:
            return self._pad(*args, **kwargs)
        return func(*args, **kwargs)

    def _conv2d(
        self,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] | str = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
    ) -> Tensor:
        before, after = padding_of(weight, padding, pair(dilation))
        if any(before) or any(after):
            input = self._padded(input, before, after)
        return F.conv2d(input, weight, bias, stride, 0, dilation, groups)

    def _pad(self, input: Tensor, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> Tensor:
        zeros = mode == "constant" and (value is None or value == 0)
        if input.ndim != 4 or len(pad) != 4 or not zeros or min(pad) < 0 or not self._is_level(input):
            return F.pad(input, pad, mode, value)
        return self._padded(input, [pad[2], pad[0]], [pad[3], pad[1]])

    def _is_level(self, input: Tensor) -> bool:
        (rows, columns), (height, width) = self.frame.layout.grid, input.shape[2:]
        fits = height % rows == 0 and width % columns == 0
        return fits and self.frame.factor(height // rows, width // columns) is not None

    def _padded(self, input: Tensor, before: list[int], after: list[int]) -> Tensor:
        """`before` and `after` more rows and columns, from the other end on a periodic axis, else zeros."""
        for axis, (first, last, wrap) in enumerate(zip(before, after, self.frame.layout.wrap, strict=True)):
            if first or last:
                width = (first, last) if axis else (0, 0, first, last)
                if wrap:
                    input = F.pad(input, width if axis == 0 else (*width, 0, 0), mode="circular")
                else:
                    input = F.pad(input, width)
        return input
