"""Couplings: convolutions and group norms of a model see the neighbours of each tile.

A `TorchFunctionMode` is active around the model's forward and nowhere else. It sees every call of `F.conv2d` and
friends, whoever makes it (LoRA adapters, quantised layers), so no module is patched and nothing needs restoring.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ..geometry import TileLayout
from ..ops import blend_tiles, group_norm_tiles, pad_tiles
from .borders import check_zeros, padding_of, pair, refusal
from .frame import Frame, split_tiles


class CouplingMode(TorchFunctionMode):
    """Gives padded convolutions their ring from the owners, and group norms their scope.

    Args:
        frame: the forward pass.
        rings: whether padding comes from the neighbours; False leaves convolutions alone.
        norm: scope of group norms, "tile" (left alone), "neighbours" or "canvas"; with the latter, means over all
            positions of a tile become the canvas's, too.

    Raises (inside, from the model's calls):
        NotImplementedError: a function that mixes positions in a way that can't be coupled.
        ValueError: a tensor that is no level of the layout.
    """

    def __init__(self, frame: Frame, rings: bool, norm: str) -> None:
        super().__init__()
        self.frame = frame
        self.rings = rings
        self.norm = norm

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Sends convolutions, paddings and norms to their handlers, and refuses what mixes positions otherwise."""
        kwargs = {} if kwargs is None else kwargs
        if self.frame.paused:
            return func(*args, **kwargs)
        if func is F.group_norm:
            return func(*args, **kwargs) if self.norm == "tile" else self._group_norm(*args, **kwargs)
        if self.norm == "canvas" and (func is torch.mean or func is Tensor.mean):
            return self._mean(*args, **kwargs)
        if self.rings:
            if func is F.conv2d:
                return self._conv2d(*args, **kwargs)
            if func is F.pad:
                return self._pad(*args, **kwargs)
            reason = refusal(func, args, kwargs)
            if reason is not None and self._may_be_tiles(*args, **kwargs):
                raise NotImplementedError(f"conv_halo: {reason}; use conv_halo=False, or disable_tiling")
        return func(*args, **kwargs)

    def _may_be_tiles(self, input: Tensor, *args: Any, **kwargs: Any) -> bool:
        """Whether a function's input can be features of all tiles; IP-Adapter's masks [1, T*B, h, w] can't."""
        rows = self.frame.layout.num_tiles * self.frame.batch
        of_tiles = input.shape[0] == rows if rows else input.shape[0] % self.frame.layout.num_tiles == 0
        return of_tiles and input.shape[1] > 1

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
            input = self._ring(input, before, after, pair(stride))
            padding = 0
        return F.conv2d(input, weight, bias, stride, padding, dilation, groups)

    def _pad(self, input: Tensor, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> Tensor:
        on_canvas = input.ndim == 4 and any(pad[:4]) and input.shape[0] % self.frame.layout.num_tiles == 0
        if not on_canvas or self.frame.factor(input.shape[2], input.shape[3]) is None:
            return F.pad(input, pad, mode, value)
        check_zeros(input, pad, mode, value)
        return self._ring(input, [pad[2], pad[0]], [pad[3], pad[1]], [1, 1])

    def _ring(self, input: Tensor, before: list[int], after: list[int], stride: list[int]) -> Tensor:
        """[T*B, C, h, w] with `before` and `after` more rows and columns (per axis) from the owners."""
        layout = self._level(input, "a padded convolution")
        if any(
            v % s for values in (layout.size, layout.tile, layout.overlap) for v, s in zip(values, stride, strict=True)
        ):
            raise ValueError(f"conv_halo: stride {tuple(stride)} does not divide the level's layout {layout}")
        width = [max(pair) for pair in zip(before, after, strict=True)]
        with self.frame.pause():
            tiles = pad_tiles(split_tiles(input, layout), layout, tuple(width), backend=self.frame.backend)
        padded = tiles.flatten(0, 1)
        for axis, (ring, first, last) in enumerate(zip(width, before, after, strict=True)):
            if (first, last) != (ring, ring):
                length = padded.shape[2 + axis] - (ring - first) - (ring - last)
                padded = padded.narrow(2 + axis, ring - first, length)
        return padded

    def _group_norm(
        self,
        input: Tensor,
        num_groups: int,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        eps: float = 1e-5,
    ) -> Tensor:
        layout = self._level(input, "a group norm")
        dtype = input.dtype
        if torch.is_autocast_enabled(input.device.type):
            dtype = torch.float32
        with self.frame.pause():
            wide = dtype if weight is None else torch.promote_types(dtype, weight.dtype)
            tiles = input.reshape(layout.num_tiles, -1, input.shape[1], *layout.tile).to(wide)
            weight, bias = (None if p is None else p.to(wide) for p in (weight, bias))
            out = group_norm_tiles(
                tiles, layout, num_groups, weight, bias, eps, scope=self.norm, backend=self.frame.norm_backend
            )
        return out.reshape(input.shape).to(dtype)

    def _mean(self, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The mean of all positions of a level is the canvas's, each position counted once; other means pass."""
        dim = args[0] if args else kwargs.get("dim")
        dims = {d % input.ndim for d in ((dim,) if isinstance(dim, int) else dim or ())}
        tiles = self.frame.layout.num_tiles
        on_canvas = input.ndim == 4 and dims == {2, 3} and input.shape[0] % tiles == 0
        if not on_canvas or self.frame.factor(input.shape[2], input.shape[3]) is None:
            return torch.mean(input, *args, **kwargs)
        layout = self._level(input, "a mean")
        with self.frame.pause():
            canvas = blend_tiles(split_tiles(input, layout), layout, "uniform", backend=self.frame.backend)
        mean = torch.mean(canvas, *args, **kwargs)
        return mean.repeat(tiles, *(1,) * (mean.ndim - 1))

    def _level(self, input: Tensor, what: str) -> TileLayout:
        """The layout of the level that `input` ([T*B, C, h, w] or [T*B, C, N]) lies on."""
        factor = None
        if input.ndim == 4:
            factor = self.frame.factor(input.shape[2], input.shape[3])
        elif input.ndim == 3 and what == "a group norm":
            factor = self.frame.token_factor(input.shape[2])
        layout = self.frame.layout
        if factor is None or input.shape[0] % layout.num_tiles:
            raise ValueError(
                f"{what} got a tensor {tuple(input.shape)}, which is no level of {layout.num_tiles} tiles of "
                f"{layout.tile}; use conv_halo=False and norm='tile', or disable_tiling"
            )
        return layout.scaled(factor)
