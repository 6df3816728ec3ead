"""Canvas to tiles and back."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..dispatch import check_name
from ..geometry import WINDOWS, TileLayout
from . import calling
from .checks import check_canvas, check_layout, check_out, check_tensor, check_tiles

Window = str | Sequence[Tensor]


def extract_tiles(canvas: Tensor, layout: TileLayout, *, out: Tensor | None = None, backend: str = "auto") -> Tensor:
    """Cuts a canvas into the layout's tiles.

    tiles[t, :, :, r] = canvas[:, :, origin_t + r], modulo the canvas's size on periodic axes.

    Args:
        canvas: [B, C, *size], any strides.
        layout: the layout, in the canvas's own positions (pixels or latents).
        out: a contiguous tensor like the result that it is written to; None for new memory. On a CPU results
            of more than about 32 MB into new memory take longer: the system fills it with zeros first. No gradients.
        backend: "auto", or a name from `tiledattn.backends()`.

    Returns:
        Tiles [T, B, C, *tile], contiguous, of the canvas's dtype; `out` where it is given.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype or shape, naming it.
        RuntimeError: `out` is given, and gradients would be needed.
        BackendUnavailableError: the named backend can't take this call, with the reason.
    """
    check_layout(layout)
    x = check_canvas(canvas, layout)
    if out is not None:
        check_out(out, (layout.num_tiles, *x.shape[:2], *layout.tile), "canvas", x)
    return calling.extract_tiles(x, layout.as_ints(), check_name(backend), out=out)


def blend_tiles(
    tiles: Tensor, layout: TileLayout, window: Window = "hann", *, out: Tensor | None = None, backend: str = "auto"
) -> Tensor:
    """Blends overlapping tiles into one canvas; the inverse of `extract_tiles` for every layout and window.

    canvas[:, :, x] = sum_t W_t(x) tiles[t, :, :, x - origin_t] / sum_t W_t(x), over the tiles that cover x. W is a
    product of one 1-D window per axis, so is its normaliser. Accumulated in float32 (float64 for float64) in the order
    of the tiles: no atomics, the same bits at every call.

    Args:
        tiles: [T, B, C, *tile], any strides.
        layout: the layout, in the canvas's own positions.
        window: "uniform", "hann", "linear", "gaussian" (see `geometry.window_weights`), or one 1-D tensor per axis,
            [tile] with positive finite weights (they get no gradient), on the tiles' device or, better, the CPU.
        out: a contiguous tensor like the result that it is written to; None for new memory. On a CPU results
            of more than about 32 MB into new memory take longer: the system fills it with zeros first. No gradients.
        backend: "auto", or a name from `tiledattn.backends()`.

    Returns:
        Canvas [B, C, *size], contiguous, of the tiles' dtype; `out` where it is given.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype or shape, naming it.
        RuntimeError: `out` is given, and gradients would be needed.
        BackendUnavailableError: the named backend can't take this call, with the reason.

    Averaging predictions over overlapping views is MultiDiffusion's (Bar-Tal et al., 2023); the Gaussian window is
    Mixture of Diffusers' (Jimenez, 2023).
    """
    check_layout(layout)
    x = check_tiles(tiles, layout)
    kind, tables = _check_window(window, layout, x)
    if out is not None:
        check_out(out, (*x.shape[1:3], *layout.size), "tiles", x)
    return calling.blend_tiles(x, tables, layout.as_ints(), kind, check_name(backend), out=out)


def _check_window(window: object, layout: TileLayout, tiles: Tensor) -> tuple[str, list[Tensor]]:
    if isinstance(window, str):
        if window not in WINDOWS:
            raise ValueError(f"window: got {window!r}; known are {', '.join(WINDOWS)}, or one 1-D tensor per axis")
        return window, []
    if isinstance(window, Tensor) or not isinstance(window, Sequence):
        raise TypeError(
            f"window: got {type(window).__name__}; expected a name or a sequence of 1-D tensors, one per axis"
        )
    if len(window) != len(layout.tile):
        raise ValueError(f"window: got {len(window)} tensors; the canvas has {len(layout.tile)} axes")
    tables = []
    for axis, (weights, width) in enumerate(zip(window, layout.tile, strict=True)):
        x = check_tensor(f"window[{axis}]", weights)
        if tuple(x.shape) != (width,):
            raise ValueError(f"window[{axis}]: shape is {list(x.shape)}; expected [{width}], the tile on that axis")
        if x.requires_grad:
            raise ValueError(f"window[{axis}]: requires grad; no gradient flows to it, pass window.detach()")
        if x.device not in (tiles.device, torch.device("cpu")):
            raise ValueError(
                f"window[{axis}]: on {x.device}, but tiles are on {tiles.device}; move it there, or better to the CPU"
            )
        tables.append(x)
    return "", tables
