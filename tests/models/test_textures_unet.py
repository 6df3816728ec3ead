"""The shipped UNet: loads offline from the package, is small and safe, and paints what it is asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tiledattn.models import textures_unet

for package in ("diffusers", "transformers", "skimage"):
    pytest.importorskip(package)


from diffusers import StableDiffusionPipeline
from skimage.color import rgb2gray
from textures import (
    PROMPT,
    SAMPLES,
    check_colours,
    check_files,
    nearest,
    photograph,
    photograph_statistics,
    statistics,
)

MODEL = Path(textures_unet())


@pytest.fixture(scope="module")
def references() -> dict[str, np.ndarray]:
    return photograph_statistics()


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


def test_it_is_small_without_pickles_in_half_precision_and_has_a_card() -> None:
    check_files(MODEL, ["text_encoder", "unet", "vae"], "bench/train_small_unet.py")


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
    check_colours({material: paint(pipe, prompt)[0] for material, prompt in PROMPT.items()})


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
