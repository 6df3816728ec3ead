"""The models that ship with the package, and good values for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import textures_dit, textures_unet


@dataclass(frozen=True)
class Shipped:
    """A shipped model: its folder, good values for it, and further arguments of its pipeline."""

    name: str
    folder: str
    steps: int
    guidance: float
    native: tuple[int, int] = (64, 64)
    arguments: Mapping[str, Any] = field(default_factory=dict)


SHIPPED = (
    Shipped("textures_unet", textures_unet(), steps=20, guidance=1.5),
    # Its pipeline pads prompts to 512 tokens, which every tile would attend to, unless told otherwise.
    Shipped("textures_dit", textures_dit(), steps=12, guidance=1.0, arguments={"max_sequence_length": 32}),
)


def shipped(model: str | None) -> Shipped | None:
    """The shipped model of a name or folder; the first for None; None for any other model."""
    if model is None:
        return SHIPPED[0]
    if Path(model).is_dir():
        return next((one for one in SHIPPED if Path(one.folder).resolve() == Path(model).resolve()), None)
    return next((one for one in SHIPPED if one.name == model), None)
