"""What the tiny transformers of every family share: Case, and random numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Size = tuple[int, ...]


@dataclass(frozen=True)
class Case:
    """A tiny model of a family, and how to call it.

    Attributes:
        name: for test ids.
        family: the class of its family in `tiledattn.diffusers.families`.
        build: the model, in float32.
        call: the forward's arguments for a canvas of `size` positions, `batch` rows and a dtype.
        size: a canvas of several tiles, in positions.
        tile: a tile, in positions.
    """

    name: str
    family: str
    build: Callable[[], Any]
    call: Callable[[Size, int, torch.dtype], dict[str, Any]]
    size: Size
    tile: Size


def randn(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    """Normal numbers that depend on the seed and the shape only."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
