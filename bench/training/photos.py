"""The photographs the small model learns from: sources, licences, words, and how crops are cut."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import map_coordinates
from skimage import data

Picture = NDArray[np.float32]

_LUMA = np.array([0.299, 0.587, 0.114], dtype=np.float32)
# The brick photograph looks along its wall. These numbers (slope, fan, bow) maximise the variance of the row
# means of the rectified picture, that is, they make the courses level.
_BRICK_VIEW = (-0.0230, 0.3460, 0.0190)


@dataclass(frozen=True)
class Material:
    """One photograph, the words it answers to, and the augmentation that keeps it physically sensible."""

    name: str
    source: str
    licence: str
    prompts: tuple[str, ...]
    scale: float
    jitter: float
    turns: bool
    tint: tuple[float, float, float]


MATERIALS: tuple[Material, ...] = (
    Material(
        "brick",
        "https://cc0textures.com/view.php?tex=Bricks25",
        "CC0 (Creative Commons Zero)",
        (
            "brick",
            "bricks",
            "a brick wall",
            "a photo of brick",
            "a photo of a brick wall",
            "red bricks and mortar",
        ),
        0.40,
        0.04,
        False,
        (0.22, -0.05, -0.15),
    ),
    Material(
        "grass",
        "https://www.deviantart.com/linolafett/art/Grass-01-434853879",
        "CC0 (Creative Commons Zero)",
        ("grass", "green grass", "a photo of grass", "a photo of a lawn", "a lawn", "grass on the ground"),
        0.50,
        0.10,
        True,
        (-0.07, 0.11, -0.22),
    ),
    Material(
        "gravel",
        "https://cc0textures.com/view.php?tex=Gravel04",
        "CC0 (Creative Commons Zero)",
        ("gravel", "grey gravel", "a photo of gravel", "stones", "a photo of stones", "gravel on the ground"),
        0.50,
        0.10,
        True,
        (0.06, 0.00, -0.10),
    ),
    Material(
        "hubble_deep_field",
        "http://hubblesite.org/newscenter/archive/releases/2012/37/image/a/",
        "public domain (captured by NASA; may be freely used in the public domain)",
        (
            "stars",
            "stars in deep space",
            "a photo of stars",
            "galaxies",
            "a photo of deep space",
            "the night sky",
        ),
        0.45,
        0.10,
        True,
        (0.0, 0.0, 0.0),
    ),
)


def _level_bricks(grey: Picture) -> Picture:
    """Turn the brick photograph so that courses run left to right, and undo its perspective."""
    turned = np.rot90(grey)
    size = turned.shape[0]
    slope, fan, bow = _BRICK_VIEW
    across = np.linspace(-0.5 / (1 - 0.5 * fan), 0.5 / (1 + 0.5 * fan), 528, dtype=np.float32)
    down = np.linspace(-0.41, 0.41, 420, dtype=np.float32)
    w, v = np.meshgrid(across, down)
    u = w / (1 - fan * w)
    y = v + slope * u + fan * u * v + bow * u * u
    level = map_coordinates(turned, [(y + 0.5) * size, (u + 0.5) * size], order=3, mode="nearest")
    return np.clip(level, 0, 1).astype(np.float32)


def _colour(grey: Picture, tint: tuple[float, float, float]) -> Picture:
    """Give a grey photograph a hue and leave its luminance; highlights and shadows stay nearly neutral."""
    hue = np.asarray(tint, dtype=np.float32)
    hue = hue - float(hue @ _LUMA)
    strength = (grey * (1 - grey) * 4 * np.clip(1.6 - 1.6 * grey, 0, 1))[..., None]
    return np.clip(grey[..., None] + hue * strength, 0, 1)


def load(material: Material) -> Picture:
    """The whole photograph at its own size, ``[H, W, 3]`` in 0..1. Grey photographs are coloured."""
    pixels = getattr(data, material.name)().astype(np.float32) / 255
    if pixels.ndim == 3:
        return pixels
    return _colour(_level_bricks(pixels) if material.name == "brick" else pixels, material.tint)


def variants(material: Material, count: int, rng: np.random.Generator) -> list[torch.Tensor]:
    """Resized, shifted, flipped versions of the photograph, ``[3, H, W]`` in -1..1, sides multiples of 4."""
    picture = load(material)
    out = []
    for _ in range(count):
        side = material.scale * (1 + material.jitter * float(rng.uniform(-1, 1)))
        height, width = (round(n * side) for n in picture.shape[:2])
        small = np.stack([_resize(picture[..., c], width, height) for c in range(3)])
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


def _resize(plane: Picture, width: int, height: int) -> Picture:
    resized = Image.fromarray(plane).resize((width, height), Image.Resampling.LANCZOS)
    return np.clip(np.asarray(resized, dtype=np.float32), 0, 1)


def crop(pictures: list[torch.Tensor], height: int, width: int, generator: torch.Generator) -> torch.Tensor:
    """A random ``height x width`` window of a random picture."""
    picture = pictures[int(torch.randint(len(pictures), (1,), generator=generator))]
    top = int(torch.randint(picture.shape[1] - height + 1, (1,), generator=generator))
    left = int(torch.randint(picture.shape[2] - width + 1, (1,), generator=generator))
    return picture[:, top : top + height, left : left + width]
