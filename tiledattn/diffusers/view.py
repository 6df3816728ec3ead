"""CanvasView: cuts what lies on the canvas into tiles, at whatever resolution it lies there, and puts tiles back."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..geometry import TileLayout
from ..ops import blend_tiles, extract_tiles
from .frame import split_tiles


@dataclass(frozen=True)
class Place:
    """Where a layout's own canvas lies on the canvas that the denoiser is called with.

    Attributes:
        size: the denoiser's canvas, in positions.
        offset: where the layout's first position lies on it, per axis. On a periodic axis the layout continues round
            the canvas; on others it may begin before the canvas, by less than its size, and end beyond it.
        wrap: the canvas's periodic axes.
    """

    size: tuple[int, ...]
    offset: tuple[int, ...]
    wrap: tuple[bool, ...]


@dataclass(frozen=True)
class CanvasView:
    """The part of a canvas that one forward pass works on, and how it is cut.

    Attributes:
        layout: the layout, in positions of the canvas.
        backend: backend of the operations.
        place: where the layout lies; None: it covers the canvas that the denoiser is called with. What it covers
            outside that canvas is the canvas's mirror image, and what is predicted there is dropped; what it leaves
            uncovered is predicted as 0.
    """

    layout: TileLayout
    backend: str = "auto"
    place: Place | None = None

    @property
    def size(self) -> tuple[int, ...]:
        """The canvas that the denoiser is called with, in positions."""
        return self.layout.size if self.place is None else self.place.size

    @property
    def origins(self) -> tuple[tuple[int, ...], ...]:
        """Where tiles begin on that canvas; below 0 where they begin before it, and never on a periodic axis."""
        if self.place is None:
            return self.layout.origins
        axes = tuple(zip(self.place.offset, self.place.size, self.place.wrap, strict=True))
        return tuple(
            tuple((o + at) % full if wrap else o + at for o, (at, full, wrap) in zip(origin, axes, strict=True))
            for origin in self.layout.origins
        )

    def tiles(self, name: str, x: Tensor) -> Tensor:
        """Cuts a tensor that lies on the canvas.

        Args:
            name: what to call it in errors.
            x: [B, C, *size] of any dtype, on the canvas itself or so many times finer or coarser on each axis
                (control images in pixels, residuals of a deeper level).

        Returns:
            [T*B, C, *tile], the tile index slow.

        Raises:
            ValueError: a size that is no whole multiple or fraction of the canvas's.
        """
        floating = self._taken(name, x if x.is_floating_point() else x.double())
        tiles = extract_tiles(floating, self.level(name, tuple(floating.shape[2:])), backend=self.backend)
        return tiles.flatten(0, 1).to(x.dtype)

    def canvas(self, tiles: Tensor, window: str | tuple[Tensor, ...]) -> Tensor:
        """Blends tiles [T*B, C, *tile], at the canvas's or another resolution, to [B, C, *size].

        A window of tensors is the canvas's; at another resolution its weights are averaged, or repeated.
        """
        layout = self._scaled("tiles", tuple(tiles.shape[2:]), self.layout.tile)
        if not isinstance(window, str):
            window = tuple(resampled(weights, length) for weights, length in zip(window, layout.tile, strict=True))
        return self._put(blend_tiles(split_tiles(tiles, layout), layout, window, backend=self.backend))

    def level(self, name: str, size: tuple[int, ...]) -> TileLayout:
        """The layout at the resolution at which `layout.size` has `size` positions."""
        return self._scaled(name, size, self.layout.size)

    def _taken(self, name: str, x: Tensor) -> Tensor:
        """What the layout covers of a tensor on the canvas."""
        place = self.place
        if place is None:
            return x
        if x.ndim - 2 != len(place.size):
            raise ValueError(f"{name}: got {tuple(x.shape)}; the canvas has {len(place.size)} axes {place.size}")
        for axis, (full, offset, wrap) in enumerate(zip(place.size, place.offset, place.wrap, strict=True), 2):
            here = x.shape[axis]
            start, length = (_at(name, value, here, full) for value in (offset, self.layout.size[axis - 2]))
            if wrap:
                x = x.roll(-start, axis).narrow(axis, 0, length)
            elif 0 <= start <= here - length:
                x = x.narrow(axis, start, length)
            else:
                places = torch.arange(start, start + length, device=x.device) % (2 * here)
                x = x.index_select(axis, torch.minimum(places, 2 * here - 1 - places))
        return x

    def _put(self, x: Tensor) -> Tensor:
        """A blended prediction on the canvas, 0 where the layout covers nothing."""
        place = self.place
        if place is None:
            return x
        for axis, (full, offset, wrap) in enumerate(zip(place.size, place.offset, place.wrap, strict=True), 2):
            here, own = x.shape[axis], self.layout.size[axis - 2]
            start, length = (_at("prediction", value, here, own) for value in (offset, full))
            if not wrap:
                first, last = max(0, -start), min(here, length - start)
                x, start = x.narrow(axis, first, last - first), max(0, start)
            before = 0 if wrap else start
            x = _between_zeros(x, axis, before, length - before - x.shape[axis])
            x = x.roll(start, axis) if wrap else x
        return x

    def _scaled(self, name: str, size: tuple[int, ...], of: tuple[int, ...]) -> TileLayout:
        layout = self.layout
        if len(size) != len(of):
            raise ValueError(f"{name}: has {len(size)} axes {size}; the canvas has {len(of)}, of {of} positions")
        if layout.num_tiles == 1:
            return TileLayout(size, size, 0, layout.wrap)
        values: list[list[int]] = [[], [], []]
        for axis, (length, full) in enumerate(zip(size, of, strict=True)):
            for out, value in zip(values, (layout.size, layout.tile, layout.overlap), strict=True):
                if value[axis] * length % full:
                    raise ValueError(
                        f"{name}: axis {axis} has {length} positions where the canvas has {full}; tiles of "
                        f"{layout.tile} with overlap {layout.overlap} can't be cut at that resolution"
                    )
                out.append(value[axis] * length // full)
        if not any(a % b and b % a for a, b in zip(size, of, strict=True)):
            return TileLayout(values[0], values[1], values[2], layout.wrap)
        raise ValueError(f"{name}: {size} is no whole multiple or fraction of the canvas's {of}")


def _at(name: str, value: int, here: int, full: int) -> int:
    """`value` positions of a canvas of `full`, where there are `here` instead."""
    if value * here % full:
        raise ValueError(
            f"{name}: has {here} positions where the canvas has {full}; {value} of these are no whole number of those"
        )
    return value * here // full


def _between_zeros(x: Tensor, axis: int, before: int, after: int) -> Tensor:
    shapes = [(*x.shape[:axis], length, *x.shape[axis + 1 :]) for length in (before, after)]
    return torch.cat([x.new_zeros(shapes[0]), x, x.new_zeros(shapes[1])], axis) if before or after else x


def resampled(weights: Tensor, length: int) -> Tensor:
    """Weights of a tile at another resolution; of ones for a length that is no multiple or fraction of it."""
    if len(weights) % length == 0:
        return torch.unflatten(weights, 0, (length, -1)).mean(1)
    if length % len(weights) == 0:
        return weights.repeat_interleave(length // len(weights))
    return weights.new_ones(length)
