"""The photographs the small models learn from, and how crops are cut."""

from __future__ import annotations

import numpy as np
import torch

from tiledattn.bench.quality.photographs import MATERIALS, Material, Picture, load, resize

__all__ = ["MATERIALS", "Material", "Picture", "crop", "load", "variants"]


def variants(material: Material, count: int, rng: np.random.Generator) -> list[torch.Tensor]:
    """Resized, shifted, flipped versions of the photograph, ``[3, H, W]`` in -1..1, sides multiples of 4."""
    picture = load(material)
    out = []
    for _ in range(count):
        side = material.scale * (1 + material.jitter * float(rng.uniform(-1, 1)))
        height, width = (round(n * side) for n in picture.shape[:2])
        small = np.stack([resize(picture[..., c], width, height) for c in range(3)])
        top, left = (int(n) for n in rng.integers(0, 4, 2))
        small = small[:, top:, left:]
        if material.turns:
            small = np.rot90(small, int(rng.integers(4)), axes=(1, 2))
        elif rng.random() < 0.5:
            small = np.rot90(small, 2, axes=(1, 2))
        if rng.random() < 0.5:
            small = small[:, :, ::-1]
        height, width = (n // 4 * 4 for n in small.shape[1:])
        out.append(torch.from_numpy(small[:, :height, :width].copy() * 2 - 1))
    return out


def crop(pictures: list[torch.Tensor], height: int, width: int, generator: torch.Generator) -> torch.Tensor:
    """A random ``height x width`` window of a random picture."""
    picture = pictures[int(torch.randint(len(pictures), (1,), generator=generator))]
    top = int(torch.randint(picture.shape[1] - height + 1, (1,), generator=generator))
    left = int(torch.randint(picture.shape[2] - width + 1, (1,), generator=generator))
    return picture[:, top : top + height, left : left + width]
