"""Tiles with a ring of their neighbours' positions, for convolutions that cross tile borders."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral

from torch import Tensor

from ..dispatch import check_name
from ..geometry import TileLayout
from . import calling
from .checks import check_int, check_layout, check_tiles


def pad_tiles(tiles: Tensor, layout: TileLayout, pad: int | Sequence[int], *, backend: str = "auto") -> Tensor:
    """Each tile with `pad` more positions at either end of every axis, taken from the neighbours.

    A ring position comes from its owner, the tile in which it lies deepest, axis by axis (from the tile itself where
    it wraps round onto it); outside a canvas that is not periodic it is zero. A convolution with padding `pad` over
    tiles without overlap thus equals the convolution of the canvas.

    Args:
        tiles: [T, B, C, *tile], any strides.
        layout: the layout, in the tiles' own positions.
        pad: positions at either end, an int or one per axis, at least 0.
        backend: "auto", or a name from `tiledattn.backends()`.

    Returns:
        [T, B, C, *(tile + 2 * pad)], contiguous, of the tiles' dtype.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype or shape, naming it.
        BackendUnavailableError: the named backend can't take this call, with the reason.

    Video-Infinity (Tan et al., 2024) exchanges such frames between devices; here it is tiles of one batch, any axes.
    """
    check_layout(layout)
    x = check_tiles(tiles, layout)
    values = (pad,) * len(layout.tile) if isinstance(pad, Integral) else pad
    if not isinstance(values, Sequence):
        raise TypeError(f"pad: got {pad!r} ({type(pad).__name__}); expected an int or one per axis")
    if len(values) != len(layout.tile):
        raise ValueError(f"pad: got {len(values)} values {tuple(values)}; the canvas has {len(layout.tile)} axes")
    amounts = [check_int(f"pad[{axis}]", value, 0) for axis, value in enumerate(values)]
    for axis, (amount, length) in enumerate(zip(amounts, layout.size, strict=True)):
        if amount > length:
            raise ValueError(f"pad[{axis}]: got {amount}; it must be at most the canvas's {length}")
    return calling.pad_tiles(x, layout.as_ints(), amounts, check_name(backend))
