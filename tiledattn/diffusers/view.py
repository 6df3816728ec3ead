"""CanvasView: cuts what lies on the canvas into tiles, at whatever resolution it lies there, and puts tiles back."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from ..geometry import TileLayout
from ..ops import blend_tiles, extract_tiles
from .frame import split_tiles


@dataclass(frozen=True)
class CanvasView:
    """The part of a canvas that one forward pass works on, and how it is cut.

    Attributes:
        layout: the layout, in positions of the canvas that the denoiser is called with.
        backend: backend of the operations.
    """

    layout: TileLayout
    backend: str = "auto"

    def tiles(self, name: str, x: Tensor) -> Tensor:
        """Cuts a tensor that lies on the canvas.

        Args:
            name: what to call it in errors.
            x: [B, C, *size] of any dtype, on the canvas itself or so many times finer or coarser on each axis (control images in
                pixels, residuals of a deeper level).

        Returns:
            [T*B, C, *tile], the tile index slow.

        Raises:
            ValueError: a size that is no whole multiple or fraction of the canvas's.
        """
        floating = x if x.is_floating_point() else x.double()
        tiles = extract_tiles(floating, self.level(name, tuple(x.shape[2:])), backend=self.backend)
        return tiles.flatten(0, 1).to(x.dtype)

    def canvas(self, tiles: Tensor, window: str | tuple[Tensor, ...]) -> Tensor:
        """Blends tiles [T*B, C, *tile], at the canvas's or another resolution, to [B, C, *size].

        A window of tensors is the canvas's; at another resolution its weights are averaged, or repeated.
        """
        layout = self._scaled("tiles", tuple(tiles.shape[2:]), self.layout.tile)
        if not isinstance(window, str):
            window = tuple(_resampled(weights, length) for weights, length in zip(window, layout.tile, strict=True))
        return blend_tiles(split_tiles(tiles, layout), layout, window, backend=self.backend)

    def level(self, name: str, size: tuple[int, ...]) -> TileLayout:
        """The layout at the resolution at which the whole canvas has `size` positions."""
        return self._scaled(name, size, self.layout.size)

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
            return TileLayout(*values, layout.wrap)
        raise ValueError(f"{name}: {size} is no whole multiple or fraction of the canvas's {of}")


def _resampled(weights: Tensor, length: int) -> Tensor:
    """Weights of a tile at another resolution; of ones for a length that is no multiple or fraction of it."""
    if len(weights) % length == 0:
        return weights.unflatten(0, (length, -1)).mean(1)
    if length % len(weights) == 0:
        return weights.repeat_interleave(length // len(weights))
    return weights.new_ones(length)
