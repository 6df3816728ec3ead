"""Contact sheets of what a model paints."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from PIL import Image

PROMPTS = ("a photo of a brick wall", "a photo of grass", "a photo of gravel", "stars in deep space")


def tile_up(rows: list[list[torch.Tensor]], path: Path, zoom: int = 2) -> None:
    """A contact sheet of ``[3, H, W]`` pictures in -1..1."""
    sheet = torch.cat([torch.cat([_margin(p) for p in row], 2) for row in rows], 1)
    pixels = ((sheet.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    picture = Image.fromarray(pixels)
    picture = picture.resize((picture.width * zoom, picture.height * zoom), Image.Resampling.NEAREST)
    partial = path.with_suffix(".partial.png")
    picture.save(partial)
    os.replace(partial, path)


def fill_up(rows: list[list[torch.Tensor]]) -> None:
    """White at the right of the shorter rows."""
    widest = max(sum(p.shape[2] + 2 for p in row) for row in rows)
    for row in rows:
        gap = widest - sum(p.shape[2] + 2 for p in row)
        if gap > 2:
            row.append(torch.ones(3, 64, gap - 2))


def _margin(picture: torch.Tensor) -> torch.Tensor:
    """Two white pixels between pictures."""
    return torch.nn.functional.pad(picture, (1, 1, 1, 1), value=1.0)
