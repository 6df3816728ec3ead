"""Frame: what the layers of a model need to know about the tiles while its forward runs."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from ..geometry import TileLayout
from ..ops import Rotary
from .rows import RowByRow
from .traced import pack_places
from .turning import Turns


class Layer(Protocol):
    """A self-attention layer under way."""

    name: str


@dataclass
class Frame:
    """One forward pass over a batch of tiles `[T*B, ...]`, the tile index slow.

    Attributes:
        layout: the layout at the model's finest resolution: latents for a denoiser, pixels for a decoder.
        halo: attention reach per axis in the layout's unit, or "all".
        halo_weight: weight of the halo in [0, 1] at this step.
        backend: backend of the operations.
        norm_backend: backend of group norms.
        batch: rows of the canvas batch, B; 0 where that isn't known.
        joined: whether the model runs on the canvas, [B, ...], and attention alone goes by tiles.
        window: weights by which joined tiles that overlap are blended after attention.
        paused: True while an operation of the package runs, so that couplings leave its own calls alone.
        tokens: the layout in tokens of a transformer; None for UNets, whose levels differ.
        rotary: how a transformer's rotary positions turn; None: they don't, or are the canvas's already.
        text: where a transformer's text tokens stand in self-attention.
        behind: tokens behind the canvas's that lie beside it (reference images), where text isn't last.
        layer: the self-attention layer under way that has not attended yet.
        text_lengths: how many text tokens stand before the canvas's in each row [T*B], int64, where rows differ.
        turns: what turns the rows of tiles whose texts differ in length to one place; None: they stand there.
        rows: collects the rows of a layer whose processor attends to them one at a time.
        size: the canvas that a transformer is called with, in positions; the layout may cover a part of it.
        origins: where tiles begin on that canvas.

    With tokens also `tile_tokens`, the number of canvas tokens of a tile; `crosses`, whether attention crosses
    borders; `places` and `weight`, layout with halo and the halo's weight as tensors.
    """

    layout: TileLayout
    halo: tuple[int, ...] | Literal["all"] = (0, 0)
    halo_weight: float = 1.0
    backend: str = "auto"
    norm_backend: str = "auto"
    batch: int = 0
    joined: bool = False
    window: str | tuple[Tensor, ...] = "hann"
    paused: bool = False
    tokens: TileLayout | None = None
    rotary: Rotary | None = None
    text: Literal["none", "first", "last"] = "none"
    behind: int = 0
    layer: Layer | None = None
    text_lengths: Tensor | None = None
    turns: Turns | None = None
    rows: RowByRow | None = None
    size: tuple[int, ...] = ()
    origins: tuple[tuple[int, ...], ...] = ()

    def __post_init__(self) -> None:
        """What compiled layers read: numbers that stay the same from step to step, and tensors for the others."""
        if self.tokens is not None:
            self.tile_tokens = self.tokens.tile_positions
            self.crosses = self.tokens.num_tiles > 1 and self.halo_weight > 0
            self.places = pack_places(self.tokens, self.token_halo())
            self.weight = torch.tensor(self.halo_weight, dtype=torch.float64, device="cpu")

    def factor(self, height: int, width: int) -> int | None:
        """How many times coarser than the layout features of `height` x `width` are; None when they fit no level.

        Features are a tile's; of joined tiles the canvas's.
        """
        full_height, full_width = self._extent
        factor = full_height // height if height else 0
        fits = factor >= 1 and (height * factor, width * factor) == (full_height, full_width)
        return factor if fits and self._divides(factor) else None

    def token_factor(self, tokens: int) -> int | None:
        """The same for features of `tokens` tokens."""
        positions = math.prod(self._extent)
        if tokens < 1 or positions % tokens:
            return None
        factor = round((positions // tokens) ** 0.5)
        return factor if factor * factor * tokens == positions and self._divides(factor) else None

    @property
    def _extent(self) -> tuple[int, ...]:
        """What the model's features cover: a tile, or the canvas of joined tiles."""
        return self.layout.size if self.joined else self.layout.tile

    def level_halo(self, factor: int) -> tuple[int, ...] | Literal["all"]:
        """The halo at the level that is `factor` times coarser, rounded up."""
        return "all" if self.halo == "all" else tuple(-(-reach // factor) for reach in self.halo)

    def token_halo(self) -> tuple[int, ...] | Literal["all"]:
        """The halo in tokens of a transformer, rounded up."""
        if self.halo == "all" or self.tokens is None:
            return self.halo
        patches = [size // tokens for size, tokens in zip(self.layout.size, self.tokens.size, strict=True)]
        return tuple(-(-reach // patch) for reach, patch in zip(self.halo, patches, strict=True))

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Leaves tensors alone inside: for the package's own operations."""
        before, self.paused = self.paused, True
        try:
            yield
        finally:
            self.paused = before

    def _divides(self, factor: int) -> bool:
        layout = self.layout
        return not any(value % factor for value in (*layout.size, *layout.tile, *layout.overlap))


class _Slot:
    """One thread's forward pass."""

    def __init__(self) -> None:
        self.frame: Frame | None = None  # of the instance from the start: torch.compile guards on its being there


class CurrentFrame(threading.local):
    """The forward pass under way in the calling thread. A deep copy starts with none."""

    def __init__(self) -> None:
        self._slot = _Slot()

    @property
    def frame(self) -> Frame | None:
        """The calling thread's forward pass, or None."""
        return self._slot.frame

    @frame.setter
    def frame(self, frame: Frame | None) -> None:
        self._slot.frame = frame

    def __reduce__(self) -> tuple[type[CurrentFrame], tuple[()]]:
        return type(self), ()


def split_tiles(batch: Tensor, layout: TileLayout) -> Tensor:
    """[T*B, ...] -> [T, B, ...]."""
    return batch.reshape(layout.num_tiles, -1, *batch.shape[1:])
