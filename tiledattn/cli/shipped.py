"""The models that ship with the package, as the command line knows them."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..models import textures_dit, textures_unet

# What they were trained on, in the words of their prompts.
MATERIALS = frozenset(
    ("brick", "bricks", "mortar", "grass", "lawn", "gravel", "stones", "stars", "galaxies", "space", "sky")
)


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
    """The shipped model that `--model` asks for by name or folder; the first where it isn't given; else None."""
    if model is None:
        return SHIPPED[0]
    if Path(model).is_dir():
        return next((one for one in SHIPPED if Path(one.folder).resolve() == Path(model).resolve()), None)
    return next((one for one in SHIPPED if one.name == model), None)


def note_vocabulary(known: Shipped | None, prompts: Iterable[str]) -> None:
    """One line on stderr for each prompt that names nothing that the shipped model knows; none for an empty one."""
    if known is None:
        return
    for text in prompts:
        if text.strip() and MATERIALS.isdisjoint(re.findall(r"\w+", text.casefold())):
            print(
                f"tiledattn: note: the shipped model knows brick, grass, gravel and stars; {text!r} names none of them",
                file=sys.stderr,
            )
