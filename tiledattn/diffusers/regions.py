"""Region prompts: boxes of the canvas with prompts of their own, mixed tile by tile."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .view import CanvasView


@dataclass(frozen=True)
class Region:
    """A box of the canvas with a prompt of its own.

    A tile's conditioning is sum_r w_r e_r + (1 - sum_r w_r) e, with e the call's own prompt, e_r the region's, and w_r
    the region's weight times the share of the tile that its box covers. Where the w_r sum to more than 1 they are
    divided by their sum. So a tile inside one box reads that box's prompt alone, and one that several share a mix.

    Attributes:
        box: (left, top, right, bottom) in pixels of the canvas, as in PIL; for videos it holds for all frames.
        prompt: what to paint there.
        weight: factor of its share, at least 0.
        feather: pixels over which the box's edges fade linearly, half of them outside it: two boxes side by side
            with the same feather go over into one another. Edges on the border of the canvas don't fade.

    Raises:
        TypeError, ValueError: a value of the wrong type or out of range.
    """

    box: tuple[float, float, float, float]
    prompt: str
    weight: float = 1.0
    feather: float = 0

    def __post_init__(self) -> None:
        if isinstance(self.box, str) or not isinstance(self.box, Sequence):
            raise TypeError(f"box: got {self.box!r} ({type(self.box).__name__}); expected (left, top, right, bottom)")
        if len(self.box) != 4:
            raise ValueError(f"box: got {len(self.box)} numbers {tuple(self.box)}; expected (left, top, right, bottom)")
        for name, value in zip(("left", "top", "right", "bottom"), self.box, strict=True):
            _check_number(f"box {name}", value)
        object.__setattr__(self, "box", tuple(self.box))
        left, top, right, bottom = self.box
        if right <= left or bottom <= top:
            raise ValueError(f"box: got {self.box}, which is empty; left must be below right and top below bottom")
        if not isinstance(self.prompt, str):
            raise TypeError(f"prompt: got {self.prompt!r} ({type(self.prompt).__name__}); expected a text")
        _check_number("weight", self.weight)
        _check_number("feather", self.feather)

    def check_inside(self, height: int, width: int) -> None:
        """Raises ValueError for a box that isn't inside a canvas of `height` x `width` pixels."""
        if self.box[2] > width or self.box[3] > height:
            raise ValueError(
                f"regions: box {self.box} (left, top, right, bottom) is outside the canvas, which is {width} pixels "
                f"wide and {height} high"
            )


def read_regions(regions: Any) -> tuple[Region, ...]:
    """Checks the argument `regions` of `enable_tiling`.

    Raises:
        TypeError: something else than None or a list of `Region`.
    """
    if regions is None:
        return ()
    if isinstance(regions, (str, Region)) or not isinstance(regions, Sequence):
        raise TypeError(f"regions: got {regions!r} ({type(regions).__name__}); expected a list of Region")
    for region in regions:
        if not isinstance(region, Region):
            raise TypeError(
                f"regions: got {region!r} ({type(region).__name__}) in the list; expected Region(box, prompt)"
            )
    return tuple(regions)


def region_weights(regions: Sequence[Region], view: CanvasView, pixels: tuple[int, ...]) -> Tensor:
    """The weights w_r of the regions in every tile, and what is left for the call's own prompt.

    Args:
        regions: the regions.
        view: how the canvas is cut.
        pixels: pixels per position, per axis.

    Returns:
        float64 [T, regions + 1] of rows that sum to 1; the last column is the call's own prompt.

    Raises:
        ValueError: a box outside the canvas.
    """
    size = [n * p for n, p in zip(view.size, pixels, strict=True)]
    columns = []
    for region in regions:
        region.check_inside(size[-2], size[-1])
        left, top, right, bottom = region.box
        wraps = view.layout.wrap if view.place is None else view.place.wrap
        edges = ((top, bottom, -2), (left, right, -1))
        axes = [_Edge(a, b, region.feather, size[axis], wraps[axis]) for a, b, axis in edges]
        tile = [view.layout.tile[axis] * pixels[axis] for axis in (-2, -1)]
        columns.append(
            [
                region.weight
                * math.prod(e.share(o[i] * pixels[i], w) for e, i, w in zip(axes, (-2, -1), tile, strict=True))
                for o in view.origins
            ]
        )
    weights = torch.tensor(columns, dtype=torch.float64, device="cpu").T
    total = weights.sum(1, keepdim=True)
    weights = weights / total.clamp(min=1.0)
    return torch.cat([weights, (1.0 - total).clamp(min=0.0)], 1)


@dataclass(frozen=True)
class _Edge:
    """A box along one axis: 1 inside, linear over `feather` pixels about its ends, 0 outside."""

    first: float
    last: float
    feather: float
    size: int
    wrap: bool

    def share(self, start: float, length: float) -> float:
        """The mean over `length` pixels from `start`, of those that lie on the canvas."""
        end = start + length
        if not self.wrap:
            start, end = max(0.0, start), min(float(self.size), end)
            return (self._area(end) - self._area(start)) / (end - start) if end > start else 0.0
        turns = range(-2, 3)
        area = sum(self._area(end + turn * self.size) - self._area(start + turn * self.size) for turn in turns)
        return min(1.0, area / length)

    def _area(self, x: float) -> float:
        """What lies before `x`."""
        whole = self.last - self.first >= self.size
        rise = _ramp(x - self.first, 0.0 if whole or (self.first <= 0 and not self.wrap) else self.feather)
        fall = _ramp(x - self.last, 0.0 if whole or (self.last >= self.size and not self.wrap) else self.feather)
        return rise - fall


def _ramp(x: float, feather: float) -> float:
    """The area before x under a ramp from 0 to 1 that is `feather` wide, about 0."""
    if x <= -feather / 2:
        return 0.0
    if x >= feather / 2:
        return x
    return (x + feather / 2) ** 2 / (2 * feather)


def _check_number(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name}: got {value!r} ({type(value).__name__}); expected a number")
    if not math.isfinite(value) or value < 0:
        raise ValueError(f"{name}: got {value}; it must be finite and at least 0")
