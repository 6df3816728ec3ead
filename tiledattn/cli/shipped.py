"""The models that ship with the package, as the command line knows them."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable

from ..models.shipped import SHIPPED, Shipped, shipped

__all__ = ["MATERIALS", "SHIPPED", "Shipped", "note_vocabulary", "shipped"]

# What they were trained on, in the words of their prompts.
MATERIALS = frozenset(
    ("brick", "bricks", "mortar", "grass", "lawn", "gravel", "stones", "stars", "galaxies", "space", "sky")
)


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
