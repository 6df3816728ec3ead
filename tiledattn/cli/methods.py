"""What the demo compares, and what it keeps of each run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..geometry import TileLayout

PROMPTS = {
    "brick": "a photo of a brick wall",
    "grass": "a photo of grass",
    "gravel": "a photo of gravel",
    "stars": "stars in deep space",
}


@dataclass(frozen=True)
class Method:
    """One way of tiling a model. `overlap` and `halo` are in shares of the tile, as 1/n; 0 is none."""

    key: str
    name: str
    model: str = "UNet"
    overlap: int = 0
    halo: int = 0
    conv_halo: bool = False
    norm: str = "tile"
    window: str = "hann"

    def options(self, tile: int) -> dict[str, Any]:
        """Arguments of `enable_tiling` for a tile `tile` pixels wide."""
        return {
            "overlap": (0, tile // self.overlap if self.overlap else 0),
            "halo": (0, tile // self.halo if self.halo else 0),
            "conv_halo": self.conv_halo,
            "norm": self.norm,
            "window": self.window,
        }


UNET_METHODS = (
    Method("alone", "tiles alone"),
    Method("blend25", "blended, 25% overlap (hann)", overlap=4),
    Method("blend50", "blended, 50% overlap (hann)", overlap=2),
    Method("coupled", "coupled, no overlap", halo=8, conv_halo=True, norm="canvas"),
)
# Nothing but attention crosses between a transformer's tokens: its halo is all the coupling there is, and is wider.
DIT_METHODS = (
    Method("dit-alone", "tiles alone", "DiT"),
    Method("dit-blend25", "blended, 25% overlap (hann)", "DiT", overlap=4),
    Method("dit-coupled", "coupled, wide halo", "DiT", halo=2),
)


def methods_for(pipe: Any) -> tuple[Method, ...]:
    """The ways to tile a pipeline that the demo compares."""
    return UNET_METHODS if getattr(pipe, "unet", None) is not None else DIT_METHODS


@dataclass(frozen=True, eq=False)
class Painted:
    """The pictures of one prompt by one method.

    Attributes:
        method: how they were tiled.
        prompt: the prompt's short name.
        layout: in pixels.
        period: pixels per position of the model's coarsest level; see `tiledattn.metrics.control_lines`.
        pictures: [seeds, 3, H, W] in [0, 1].
        seconds: per picture.
        disagreement: RMS in the overlaps at each step; empty without overlap.
        steps: of denoising.
    """

    method: Method
    prompt: str
    layout: TileLayout
    period: int
    pictures: NDArray[np.floating[Any]]
    seconds: float
    disagreement: tuple[float, ...]
    steps: int = 0

    @property
    def computed(self) -> float:
        """Positions the model computes per canvas position."""
        return self.layout.num_tiles * self.layout.tile_positions / math.prod(self.layout.size)
