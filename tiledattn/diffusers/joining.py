"""Tiles that share no position may stay joined: the model runs on the canvas, and its attention alone goes by tiles.

With convolution rings and norms of the canvas, everything but attention computes the same on the canvas as on its
tiles, to rounding, and without copying a ring or a border. So nothing is cut but the tokens of self-attention.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..geometry import TileLayout
from .borders import check_zeros, padding_of, pair, refusal
from .frame import Frame

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

    Raises (inside, from the model's calls):
        NotImplementedError: a function that mixes positions otherwise, and would stop at the canvas's ends.
        ValueError: a padded convolution of what is no level of the canvas, or one that reaches round more than once.
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
        """Sends convolutions and paddings to their handlers, and refuses what mixes positions otherwise."""
        kwargs = {} if kwargs is None else kwargs
        if self.frame.paused:
            return func(*args, **kwargs)
        if func is F.conv2d:
            return self._conv2d(*args, **kwargs)
        if func is F.pad:
            return self._pad(*args, **kwargs)
        periodic = func is torch.fft.fftn or func is torch.fft.fft2
        reason = None if periodic else refusal(func, args, kwargs)
        if reason is not None and self._is_level(*args, **kwargs):
            raise NotImplementedError(f"conv_halo: {reason}; use conv_halo=False, or disable_tiling")
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
            if not self._is_level(input):
                raise ValueError(
                    f"a padded convolution got a tensor {tuple(input.shape)}, which is no level of the canvas "
                    f"{self.frame.layout.size}; use conv_halo=False, or disable_tiling"
                )
            input = self._padded(input, before, after)
            padding = 0
        return F.conv2d(input, weight, bias, stride, padding, dilation, groups)

    def _pad(self, input: Tensor, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> Tensor:
        if input.ndim != 4 or not any(pad[:4]) or not self._is_level(input):
            return F.pad(input, pad, mode, value)
        check_zeros(input, pad, mode, value)
        return self._padded(input, [pad[2], pad[0]], [pad[3], pad[1]])

    def _is_level(self, input: Tensor, *args: Any, **kwargs: Any) -> bool:
        """Whether a function's input lies on the canvas, at the resolution of a level."""
        if input.ndim != 4:
            return False
        (rows, columns), (height, width) = self.frame.layout.grid, input.shape[2:]
        fits = height % rows == 0 and width % columns == 0
        return fits and self.frame.factor(height // rows, width // columns) is not None

    def _padded(self, input: Tensor, before: list[int], after: list[int]) -> Tensor:
        """`before` and `after` more rows and columns, from the other end on a periodic axis, else zeros."""
        for axis, (first, last, wrap) in enumerate(zip(before, after, self.frame.layout.wrap, strict=True)):
            width = (first, last, 0, 0) if axis else (0, 0, first, last)
            length = input.shape[2 + axis]
            if wrap and max(first, last) > length:
                raise ValueError(f"padding: got {max(first, last)}; it must be at most the level's {length} positions")
            if first or last:
                input = F.pad(input, width, mode="circular") if wrap else F.pad(input, width)
        return input
