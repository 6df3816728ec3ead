"""The photographs that the shipped models learned from: sources, licences, words, and how they are made ready.

They come with scikit-image (the extra tiledattn[bench]); grey ones are given a hue, and the wall is put straight.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

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


def material_of(prompt: str) -> Material | None:
    """The material that a prompt of the shipped models names, or None."""
    words = prompt.casefold().strip()
    return next((one for one in MATERIALS if words in one.prompts), None)


def load(material: Material) -> Picture:
    """The whole photograph at its own size, ``[H, W, 3]`` in 0..1. Grey photographs are coloured.

    Raises:
        ImportError: scikit-image is missing; names the extra.
    """
    try:
        from skimage import data
    except ImportError as error:
        raise ImportError(
            "the photographs come with scikit-image, which is not installed: pip install 'tiledattn[bench]'"
        ) from error
    pixels = getattr(data, material.name)().astype(np.float32) / 255
    if pixels.ndim == 3:
        return np.asarray(pixels, dtype=np.float32)
    return _colour(_level_bricks(pixels) if material.name == "brick" else pixels, material.tint)


def at_training_scale(material: Material) -> Picture:
    """The photograph at the middle of the sizes that the models saw, ``[3, H, W]`` in 0..1."""
    picture = load(material)
    height, width = (round(n * material.scale) for n in picture.shape[:2])
    planes: Picture = np.stack([resize(picture[..., c], width, height) for c in range(3)])
    return planes


def from_file(path: Any) -> Picture:
    """A picture file, ``[3, H, W]`` in 0..1."""
    from PIL import Image

    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB"), dtype=np.float32) / 255
    return np.ascontiguousarray(np.moveaxis(pixels, -1, 0))


def resize(plane: Picture, width: int, height: int) -> Picture:
    """A plane ``[H, W]`` at another size, clipped to 0..1."""
    from PIL import Image

    resized = Image.fromarray(plane).resize((width, height), Image.Resampling.LANCZOS)
    clipped: Picture = np.clip(np.asarray(resized, dtype=np.float32), 0, 1)
    return clipped


def _level_bricks(grey: Picture) -> Picture:
    """Turn the brick photograph so that courses run left to right, and undo its perspective."""
    from scipy.ndimage import map_coordinates

    turned = np.rot90(grey)
    size = turned.shape[0]
    slope, fan, bow = _BRICK_VIEW
    across = np.linspace(-0.5 / (1 - 0.5 * fan), 0.5 / (1 + 0.5 * fan), 528, dtype=np.float32)
    down = np.linspace(-0.41, 0.41, 420, dtype=np.float32)
    w, v = np.meshgrid(across, down)
    u = w / (1 - fan * w)
    y = v + slope * u + fan * u * v + bow * u * u
    level = map_coordinates(turned, [(y + 0.5) * size, (u + 0.5) * size], order=3, mode="nearest")
    clipped: Picture = np.clip(level, 0, 1).astype(np.float32)
    return clipped


def _colour(grey: Picture, tint: tuple[float, float, float]) -> Picture:
    """Give a grey photograph a hue and leave its luminance; highlights and shadows stay nearly neutral."""
    hue = np.asarray(tint, dtype=np.float32)
    hue = hue - float(hue @ _LUMA)
    strength = (grey * (1 - grey) * 4 * np.clip(1.6 - 1.6 * grey, 0, 1))[..., None]
    coloured: Picture = np.clip(grey[..., None] + hue * strength, 0, 1)
    return coloured
