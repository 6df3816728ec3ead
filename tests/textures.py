"""How the tests of the shipped models tell what is painted: statistics of photographs and of pictures."""

from __future__ import annotations

import itertools
import json
import struct
from pathlib import Path

import numpy as np
from skimage import data
from skimage.color import rgb2gray
from skimage.transform import rescale

SCALE = {"brick": 0.40, "grass": 0.50, "gravel": 0.50, "hubble_deep_field": 0.45}
PROMPT = {
    "brick": "a photo of a brick wall",
    "grass": "a photo of grass",
    "gravel": "a photo of gravel",
    "hubble_deep_field": "stars in deep space",
}
SAMPLES = 8


def statistics(grey: np.ndarray) -> np.ndarray:
    """Brightness, contrast, and, in units of the contrast, gradients and energies in four bands of the spectrum.

    The models paint with less contrast than their photographs have; what tells grass from gravel is the texture.
    """
    grey = np.asarray(grey, dtype=np.float64)
    contrast = grey.std() + 1e-3
    power = np.abs(np.fft.fft2((grey - grey.mean()) / contrast)) ** 2 / grey.size
    frequency = np.hypot(*np.meshgrid(*[np.fft.fftfreq(n) for n in grey.shape], indexing="ij"))
    edges = (0.0, 0.06, 0.13, 0.25, 0.50)
    bands = [
        np.log10(power[(frequency > low) & (frequency <= high)].mean() + 1e-6)
        for low, high in itertools.pairwise(edges)
    ]
    down, across = (np.abs(np.diff(grey, axis=axis)).mean() / contrast for axis in (0, 1))
    return np.array([grey.mean(), contrast, down, across, *bands])


def photograph(material: str) -> np.ndarray:
    picture = getattr(data, material)()
    grey = rgb2gray(picture) if picture.ndim == 3 else picture / 255.0
    # The shipped photograph of a wall lies on its side.
    grey = np.rot90(grey) if material == "brick" else grey
    return rescale(grey, SCALE[material], anti_aliasing=True)


def photograph_statistics() -> dict[str, np.ndarray]:
    """Those of 64 random patches of each photograph, each as large as a native picture."""
    rng = np.random.default_rng(0)
    out = {}
    for material in PROMPT:
        grey = photograph(material)
        corners = rng.integers(0, [n - 63 for n in grey.shape], (64, 2))
        out[material] = np.stack([statistics(grey[y : y + 64, x : x + 64]) for y, x in corners])
    return out


def distances(sample: np.ndarray, references: dict[str, np.ndarray]) -> dict[str, float]:
    """How far ``sample`` is from each photograph's patches, each statistic in units of its spread over patches."""
    spread = np.sqrt(np.mean([patches.var(0) for patches in references.values()], axis=0))
    return {m: float(np.linalg.norm((sample - patches.mean(0)) / spread)) for m, patches in references.items()}


def nearest(sample: np.ndarray, references: dict[str, np.ndarray]) -> str:
    """The photograph whose patches are like ``sample``."""
    away = distances(sample, references)
    return min(away, key=away.__getitem__)


def check_colours(pictures: dict[str, np.ndarray]) -> None:
    """Three of the photographs are grey and were given a hue for the training; see the model cards."""
    red, green, blue = pictures["brick"].mean((0, 1))
    assert red > 1.3 * max(green, blue)
    red, green, blue = pictures["grass"].mean((0, 1))
    assert green > 1.1 * max(red, blue)
    for material in ("gravel", "hubble_deep_field"):
        colour = pictures[material].mean((0, 1))
        assert colour.max() - colour.min() < 0.15


def check_files(model: Path, weights: list[str], script: str) -> None:
    """Small, without pickles, in half precision, and with a card that records the photographs."""
    files = [path for path in model.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 8_000_000
    assert {path.suffix for path in files} <= {".json", ".txt", ".md", ".safetensors"}
    stored = sorted(model.rglob("*.safetensors"))
    assert [path.parent.name for path in stored] == weights
    for path in stored:
        raw = path.read_bytes()
        (length,) = struct.unpack("<Q", raw[:8])
        header = json.loads(raw[8 : 8 + length])
        dtypes = {entry["dtype"] for name, entry in header.items() if name != "__metadata__"}
        assert dtypes <= {"F16", "I64"}, path
    card = (model / "README.md").read_text(encoding="utf-8")
    for material in PROMPT:
        assert f"`skimage.data.{material}`" in card
    assert card.count("CC0") >= 3
    assert "public domain" in card
    assert script in card
