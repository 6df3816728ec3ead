"""Refresh: only the tiles that a mask touches run, with the neighbours whose features they need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ..geometry import TileLayout
from ..geometry.numbers import is_whole
from .view import Place

Refreshed = Tensor | Sequence[int]


@dataclass(frozen=True, eq=False)
class Refresh:
    """What of a canvas is refreshed, checked.

    Attributes:
        mask: bool [height, width] on the CPU, in pixels or positions of the canvas; None with `tiles`.
        tiles: indices of tiles, row-major over the layout's grid; empty with `mask`.
    """

    mask: Tensor | None
    tiles: tuple[int, ...] = ()

    def part(
        self,
        layout: TileLayout,
        place: Place | None,
        pixels: tuple[int, ...],
        reach: tuple[int, ...] | Literal["all"],
    ) -> tuple[TileLayout, Place]:
        """The smallest rectangle of whole tiles that holds the touched ones and what lies within their reach.

        Args:
            layout: the layout of the whole canvas, perhaps shifted.
            place: where it lies; None: on the canvas.
            pixels: pixels per position, per axis.
            reach: positions beyond a tile's border that its prediction is made from, per axis.

        Returns:
            A layout of these tiles alone, whose tiles lie where they lie in `layout`, and its place on the canvas.

        Raises:
            ValueError: a mask of another size than the canvas, or an index that is no tile.
        """
        place = place or Place(layout.size, (0,) * len(layout.size), layout.wrap)
        touched = self._touched(layout, place, pixels)
        sizes, offsets, wraps = [], [], []
        for axis, indices in enumerate(touched):
            far = None if reach == "all" else reach[axis]
            start, length = _stretch(layout, axis, indices, far)
            whole = length == layout.size[axis]
            sizes.append(length)
            wraps.append(layout.wrap[axis] and whole)
            moved = place.offset[axis] + start
            offsets.append(moved % place.size[axis] if place.wrap[axis] else moved)
        overlaps = [o if w < n else 0 for o, w, n in zip(layout.overlap, layout.tile, sizes, strict=True)]
        part = TileLayout(sizes, layout.tile, overlaps, wraps)
        return part, Place(place.size, tuple(offsets), place.wrap)

    def _touched(self, layout: TileLayout, place: Place, pixels: tuple[int, ...]) -> list[set[int]]:
        """Indices of touched tiles, per axis; all frames of a video."""
        every = [set(range(n)) for n in layout.grid]
        columns = layout.grid[-1]
        rows = layout.grid[-2]
        if self.mask is None:
            wrong = [index for index in self.tiles if index >= layout.num_tiles]
            if wrong:
                raise ValueError(f"refresh: got tile {wrong[0]}; this canvas has {layout.num_tiles}, {layout.grid}")
            found = {(index // columns % rows, index % columns) for index in self.tiles}
        else:
            mask = _on_positions(self.mask, place.size[-2:], pixels[-2:])
            spans = [
                _spans(layout.axis_origins[axis], layout.tile[axis], place.offset[axis], place.size[axis], wrap)
                for axis, wrap in zip((-2, -1), place.wrap[-2:], strict=True)
            ]
            down = torch.stack([mask[places].any(0) for places in spans[0]])  # [rows, width]
            hit = torch.stack([down[:, places].any(1) for places in spans[1]], 1)  # [rows, columns]
            found = {(int(row), int(column)) for row, column in hit.nonzero()}
        return [*every[:-2], {row for row, _ in found}, {column for _, column in found}]


def read_refresh(refresh: Any) -> Refresh | None:
    """Checks the argument `refresh` of `enable_tiling`.

    Raises:
        TypeError, ValueError: naming what it got and what works.
    """
    if refresh is None:
        return None
    if isinstance(refresh, Tensor):
        if refresh.ndim != 2 or refresh.is_complex():
            raise ValueError(f"refresh: got a mask {tuple(refresh.shape)}; expected [height, width] of the canvas")
        mask = refresh.detach().cpu()
        if mask.is_floating_point() and not bool(mask.isfinite().all()):
            raise ValueError("refresh: the mask holds NaN or infinity; expected True, or numbers above 0, to refresh")
        if not bool((mask > 0).any()):
            raise ValueError("refresh: the mask is 0 everywhere; there is nothing to refresh")
        return Refresh(mask > 0)
    if isinstance(refresh, (str, bytes)) or not isinstance(refresh, Sequence):
        kind = type(refresh).__name__
        got = f"{refresh!r} ({kind})" if isinstance(refresh, (str, int, float)) else f"a {kind}"
        raise TypeError(
            f"refresh: got {got}; expected a mask [height, width] as a torch tensor, or a list of tile indices"
        )
    for index in refresh:
        if not is_whole(index):
            raise TypeError(f"refresh: got {index!r} ({type(index).__name__}); expected tile indices, whole numbers")
        if index < 0:
            raise ValueError(f"refresh: got tile {index}; indices begin at 0")
    if not refresh:
        raise ValueError("refresh: got no tiles; there is nothing to refresh")
    return Refresh(None, tuple(map(int, refresh)))


def check_refreshed_pipeline(pipe: Any, model: Any) -> None:
    """Raises NotImplementedError for a pipeline that doesn't put the rest of the picture back at every step.

    Inpainting pipelines do, with a denoiser that predicts as many channels as it is given; one that is given mask and
    picture as channels leaves it to the model to keep them.
    """
    name = type(pipe).__name__
    latents = _latent_channels(getattr(pipe, "vae", None))
    given = getattr(model.config, "in_channels", None)
    if "Inpaint" in name and latents is not None and given in (latents, 4 * latents):
        return
    reason = (
        f"its denoiser takes the mask as channels ({given}, the VAE has {latents}) and is left to keep the rest"
        if "Inpaint" in name
        else "it doesn't put the rest of the picture back"
    )
    raise NotImplementedError(
        f"refresh: {name} would paint garbage outside the refreshed tiles, where nothing is predicted: {reason}; "
        "use an inpainting pipeline with a denoiser for text to image, or a loop of your own on the bare model"
    )


def _latent_channels(vae: Any) -> int | None:
    config = getattr(vae, "config", None)
    for name in ("latent_channels", "z_dim"):
        if getattr(config, name, None) is not None:
            return int(getattr(config, name))
    return None


def _on_positions(mask: Tensor, size: tuple[int, ...], pixels: tuple[int, ...]) -> Tensor:
    """The mask in positions [height, width]: a position that is touched by a pixel of the mask is True."""
    got = tuple(mask.shape)
    if got == tuple(size):
        return mask
    whole = tuple(n * p for n, p in zip(size, pixels, strict=True))
    if got != whole:
        raise ValueError(
            f"refresh: got a mask {got}; the canvas has {tuple(size)} positions, {whole} pixels (height, width)"
        )
    return mask.reshape(size[0], pixels[0], size[1], pixels[1]).any(3).any(1)


def _spans(origins: tuple[int, ...], tile: int, offset: int, size: int, wrap: bool) -> list[Tensor]:
    """The canvas positions of each tile of an axis; none outside the canvas."""
    places = torch.tensor(origins, device="cpu")[:, None] + torch.arange(tile, device="cpu") + offset
    return [row % size if wrap else row[(row >= 0) & (row < size)] for row in places]


def _stretch(layout: TileLayout, axis: int, indices: set[int], reach: int | None) -> tuple[int, int]:
    """(start, length) of the shortest run of tiles that holds some tiles and all that lie in their reach."""
    size, tile = layout.size[axis], layout.tile[axis]
    origins, wrap = layout.axis_origins[axis], layout.wrap[axis]
    # a layout of its own has a step of tile - overlap; a periodic axis may have another, or several
    apart = wrap and any(b - a != layout.step[axis] for a, b in zip(origins, [*origins[1:], size], strict=True))
    if reach is None or apart or len(origins) == 1:
        return 0, size
    rounds = (-size, 0, size) if wrap else (0,)
    near = [i + turn for i in _at(origins, indices) for turn in rounds]
    needed = [
        index in indices or (reach > 0 and any(o < i + tile + reach and i - reach < o + tile for i in near))
        for index, o in enumerate(origins)
    ]
    if all(needed):
        return 0, size
    count = len(origins)
    first = 0 if not wrap else _after_longest_gap(needed)
    run = [(first + k) % count for k in range(count)]
    kept = [k for k, tile_index in enumerate(run) if needed[tile_index]]
    start = origins[run[kept[0]]]
    length = (origins[run[kept[-1]]] - start) % size + tile
    return (start, length) if length < size else (0, size)


def _at(origins: tuple[int, ...], indices: set[int]) -> list[int]:
    return [origins[index] for index in indices]


def _after_longest_gap(needed: list[bool]) -> int:
    """The tile after the longest run, round the axis, of tiles that aren't needed."""
    count = len(needed)

    def gap_before(index: int) -> int:
        return next(k for k in range(count) if needed[(index - 1 - k) % count])

    return max((index for index in range(count) if needed[index]), key=gap_before)
