"""The shipped model: loads offline from the package, is small and safe, and paints what it is asked for."""

from __future__ import annotations

import itertools
import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from tiledattn.models import textures_unet

pytest.importorskip("diffusers")
pytest.importorskip("transformers")
skimage_data = pytest.importorskip("skimage.data")


from diffusers import StableDiffusionPipeline
from skimage.color import rgb2gray
from skimage.transform import rescale

MODEL = Path(textures_unet())
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

    The model paints with less contrast than its photographs have; what tells grass from gravel is the texture.
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
    picture = getattr(skimage_data, material)()
    grey = rgb2gray(picture) if picture.ndim == 3 else picture / 255.0
    # The shipped photograph of a wall lies on its side.
    grey = np.rot90(grey) if material == "brick" else grey
    return rescale(grey, SCALE[material], anti_aliasing=True)


@pytest.fixture(scope="module")
def references() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    out = {}
    for material in PROMPT:
        grey = photograph(material)
        corners = rng.integers(0, [n - 63 for n in grey.shape], (64, 2))
        out[material] = np.stack([statistics(grey[y : y + 64, x : x + 64]) for y, x in corners])
    return out


def nearest(sample: np.ndarray, references: dict[str, np.ndarray]) -> str:
    """The photograph whose patches are like ``sample``, each statistic in units of its spread over patches."""
    spread = np.sqrt(np.mean([patches.var(0) for patches in references.values()], axis=0))
    away = {m: np.linalg.norm((sample - patches.mean(0)) / spread) for m, patches in references.items()}
    return min(away, key=away.__getitem__)


@pytest.fixture(scope="module")
def pipe() -> StableDiffusionPipeline:
    loaded = StableDiffusionPipeline.from_pretrained(MODEL, dtype=torch.float32, local_files_only=True)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def paint(pipe: StableDiffusionPipeline, prompt: str, seed: int = 0, count: int = 1, **options: int) -> np.ndarray:
    return pipe(
        prompt,
        **{"num_inference_steps": 20, "height": 64, "width": 64} | options,
        guidance_scale=1.5,
        num_images_per_prompt=count,
        generator=torch.Generator().manual_seed(seed),
        output_type="np",
    ).images


def test_it_is_small_and_holds_no_pickles() -> None:
    files = [path for path in MODEL.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 8_000_000
    assert {path.suffix for path in files} <= {".json", ".txt", ".md", ".safetensors"}


def test_weights_are_stored_in_half_precision() -> None:
    weights = sorted(MODEL.rglob("*.safetensors"))
    assert [path.parent.name for path in weights] == ["text_encoder", "unet", "vae"]
    for path in weights:
        raw = path.read_bytes()
        (length,) = struct.unpack("<Q", raw[:8])
        header = json.loads(raw[8 : 8 + length])
        dtypes = {entry["dtype"] for name, entry in header.items() if name != "__metadata__"}
        assert dtypes <= {"F16", "I64"}, path


def test_the_card_records_every_photograph_and_its_licence() -> None:
    card = (MODEL / "README.md").read_text(encoding="utf-8")
    for material in PROMPT:
        assert f"`skimage.data.{material}`" in card
    assert card.count("CC0") >= 3
    assert "public domain" in card
    assert "bench/train_small_unet.py" in card


def test_stock_classes_without_a_safety_checker(pipe: StableDiffusionPipeline) -> None:
    assert pipe.safety_checker is None
    assert type(pipe.unet).__module__.startswith("diffusers.")
    assert type(pipe.vae).__module__.startswith("diffusers.")
    assert pipe.unet.config.sample_size * pipe.vae_scale_factor == 64
    assert pipe.unet.dtype == torch.float32


def test_known_words_are_single_tokens_and_others_are_no_error(pipe: StableDiffusionPipeline) -> None:
    for prompt in PROMPT.values():
        assert len(pipe.tokenizer(prompt).input_ids) == len(prompt.split()) + 2
    assert pipe.tokenizer.decode(pipe.tokenizer("zebra", add_special_tokens=False).input_ids).strip() == "zebra"
    assert np.isfinite(paint(pipe, "a zebra, 日本", num_inference_steps=2)).all()


@pytest.mark.parametrize("material", list(PROMPT))
def test_photographs_are_told_apart_by_the_statistics(material: str, references: dict[str, np.ndarray]) -> None:
    right = [nearest(patch, references) == material for patch in references[material]]
    assert np.mean(right) > 0.9


@pytest.mark.parametrize("material", list(PROMPT))
def test_paints_the_material_it_is_asked_for(
    pipe: StableDiffusionPipeline, references: dict[str, np.ndarray], material: str
) -> None:
    images = paint(pipe, PROMPT[material], count=SAMPLES)
    assert images.shape == (SAMPLES, 64, 64, 3)
    assert np.isfinite(images).all()
    samples = np.stack([statistics(rgb2gray(image)) for image in images])
    # Judged on the mean: without its colour a single small picture of grass is as near to gravel as to grass.
    assert nearest(samples.mean(0), references) == material


def test_colours_are_the_ones_it_was_shown(pipe: StableDiffusionPipeline) -> None:
    """Three of the photographs are grey and were given a hue for the training; see the model card."""
    red, green, blue = paint(pipe, PROMPT["brick"])[0].mean((0, 1))
    assert red > 1.3 * max(green, blue)
    red, green, blue = paint(pipe, PROMPT["grass"])[0].mean((0, 1))
    assert green > 1.1 * max(red, blue)
    for material in ("gravel", "hubble_deep_field"):
        colour = paint(pipe, PROMPT[material])[0].mean((0, 1))
        assert colour.max() - colour.min() < 0.15


def test_brick_courses_are_level(pipe: StableDiffusionPipeline) -> None:
    """Mortar lines run across: row means vary, column means hardly do. A seam test leans on these lines."""
    images = paint(pipe, PROMPT["brick"], seed=1, count=SAMPLES)
    grey = rgb2gray(images)
    assert grey.mean(2).std(1).mean() > 1.5 * grey.mean(1).std(1).mean()


def test_a_seed_decides_the_picture(pipe: StableDiffusionPipeline) -> None:
    first, again, other = (paint(pipe, "gravel", seed, num_inference_steps=3) for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.allclose(first, other, atol=0.05)


def test_sizes_beyond_native_run(pipe: StableDiffusionPipeline) -> None:
    images = paint(pipe, "grass", height=72, width=160, num_inference_steps=2)
    assert images.shape == (1, 72, 160, 3)
    assert np.isfinite(images).all()


@pytest.mark.parametrize("material", list(PROMPT))
def test_the_autoencoder_keeps_what_was_painted(pipe: StableDiffusionPipeline, material: str) -> None:
    painted = torch.from_numpy(paint(pipe, PROMPT[material], width=96)).permute(0, 3, 1, 2)
    x = painted * 2 - 1
    with torch.no_grad():
        y = pipe.vae.decode(pipe.vae.encode(x).latent_dist.mean).sample.clamp(-1, 1)
    assert y.shape == x.shape
    assert (y - x).square().mean().sqrt() < 0.75 * x.std()


@pytest.mark.parametrize("material", list(PROMPT))
def test_painted_contrast_is_of_the_photographs_order(pipe: StableDiffusionPipeline, material: str) -> None:
    painted = rgb2gray(paint(pipe, PROMPT[material], count=SAMPLES)).std()
    assert 0.5 < painted / photograph(material).std() < 1.5


@pytest.mark.parametrize("dtype", [None, torch.float32, torch.bfloat16])
def test_it_loads_and_paints_in_one_dtype(dtype):
    pipe = StableDiffusionPipeline.from_pretrained(textures_unet(), **({} if dtype is None else {"dtype": dtype}))
    pipe.set_progress_bar_config(disable=True)
    expected = torch.float32 if dtype is None else dtype
    assert {pipe.unet.dtype, pipe.text_encoder.dtype, pipe.vae.dtype} == {expected}
    picture = pipe("grass", height=64, width=64, num_inference_steps=1, output_type="np").images
    assert np.isfinite(picture).all()
