"""Tiles that are coupled in everything may stay joined: the model runs on the canvas, attention alone goes by tiles.

With convolution rings and norms of the canvas, everything but attention computes the same on the canvas as on its
tiles, to rounding, and without copying a ring or a border. So nothing is cut but the tokens of self-attention. Tiles
that overlap agree until they first attend; what they attend to differs, so their outputs are blended right there, and
everything else goes on computing each position once.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..geometry import TileLayout
from ..ops import blend_tiles, extract_tiles
from .borders import check_zeros, padding_of, pair, refusal
from .frame import Frame
from .view import resampled

_logger = logging.getLogger("tiledattn")

MOST_ELEMENTS = 2**31  # of one picture's features: more are too many for convolutions of 32-bit offsets


def may_be_joined(layout: TileLayout, widest: int) -> bool:
    """Whether there are several tiles, and `widest` channels of their canvas are few enough for one picture."""
    return layout.num_tiles > 1 and math.prod(layout.size) * widest < MOST_ELEMENTS


@cache
def log_blending(model: str, reason: str) -> None:
    """Says once that tiles which overlap are cut, and why: pictures differ from those of joined ones."""
    _logger.info("%s: tiles that overlap are blended as predictions, not behind attention: %s", model, reason)


def covers_once(layout: TileLayout) -> bool:
    """Whether no two tiles share a position."""
    return layout.num_tiles * layout.tile_positions == math.prod(layout.size)


def split_tokens(tokens: Tensor, layout: TileLayout, backend: str = "auto") -> Tensor:
    """[B, H*W, C] of a canvas -> [T*B, h*w, C], the tile index slow."""
    (rows, columns), (height, width) = layout.grid, layout.tile
    if not covers_once(layout):
        canvas = tokens.reshape(tokens.shape[0], 1, *layout.size, tokens.shape[2])
        tiles = extract_tiles(canvas, _with_channels(layout, tokens.shape[2]), backend=backend)
        return tiles.reshape(-1, height * width, tokens.shape[2])
    grid = tokens.reshape(tokens.shape[0], rows, height, columns, width, tokens.shape[2])
    return grid.permute(1, 3, 0, 2, 4, 5).reshape(-1, height * width, tokens.shape[2])


def join_tokens(
    tiles: Tensor, layout: TileLayout, window: str | tuple[Tensor, ...] = "hann", backend: str = "auto"
) -> Tensor:
    """The inverse of `split_tokens`; tokens that tiles share are blended.

    A window of tensors is a tile's at any resolution: its weights are averaged, or repeated.
    """
    (rows, columns), (height, width) = layout.grid, layout.tile
    if not covers_once(layout):
        channels = tiles.shape[2]
        if not isinstance(window, str):
            weights = (resampled(weights, length) for weights, length in zip(window, layout.tile, strict=True))
            window = (*weights, torch.ones(channels, device=tiles.device))
        grid = tiles.reshape(layout.num_tiles, -1, 1, height, width, channels)
        return blend_tiles(grid, _with_channels(layout, channels), window, backend=backend).flatten(2, 3).squeeze(1)
    grid = tiles.reshape(rows, columns, -1, height, width, tiles.shape[2])
    batch = grid.shape[2]
    return grid.permute(2, 0, 3, 1, 4, 5).reshape(batch, -1, tiles.shape[2])


def _with_channels(layout: TileLayout, channels: int) -> TileLayout:
    """The layout of a canvas [H, W, C]: every tile has all channels, which lie next to one another in memory."""
    return TileLayout((*layout.size, channels), (*layout.tile, channels), (*layout.overlap, 0), (*layout.wrap, False))


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
        return input.ndim == 4 and self.frame.factor(*input.shape[2:]) is not None

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
