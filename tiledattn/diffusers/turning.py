"""Rows of one picture whose tokens stand behind texts of unlike lengths on a rotary axis: turned to one place.

Models that count the text on an axis of its own and set the whole picture behind it (Lumina-Image 2.0, Z-Image) place
tiles with prompts of their own at unlike positions. To turn all tokens of a row by the difference leaves every offset
inside the row as it is, and makes offsets between tiles those of the picture alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Turns = tuple[Tensor, Tensor]


def angles_of_rows(starts: Sequence[int], batch: int, rates: Tensor) -> Tensor | None:
    """What turns each row's canvas to where it stands in the first tile.

    Args:
        starts: where the canvas stands on the axis that counts the text, row by row [T*B].
        batch: B.
        rates: radians per position of that axis, float64 [D / 2].

    Returns:
        Radians, float64 [T*B, D / 2]; None where the tiles of every picture agree.
    """
    moved = [starts[index % batch] - start for index, start in enumerate(starts)]
    return torch.tensor(moved, dtype=torch.float64, device="cpu")[:, None] * rates.cpu() if any(moved) else None


def turns_of_angles(angles: Tensor, like: Tensor) -> Turns:
    """Cosines and sines [T*B, 1, 1, D / 2], for rows of the device of `like`."""
    wide = torch.promote_types(like.dtype, torch.float32)
    cos, sin = (x[:, None, None].to(like.device, wide) for x in (angles.cos(), angles.sin()))
    return cos, sin


def turn_rows(x: Tensor, turns: Turns) -> Tensor:
    """Rows [T*B, S, H, D], whose pairs are neighbouring channels, turned."""
    cos, sin = turns
    a, b = torch.unflatten(x, -1, (-1, 2)).unbind(-1)
    return torch.stack([a * cos - b * sin, a * sin + b * cos], -1).flatten(-2).to(x.dtype)
