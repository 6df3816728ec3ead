"""The shipped transformer: loads offline from the package, is small and safe, and paints what it is asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tiledattn.models import textures_dit

for package in ("diffusers", "transformers", "skimage"):
    pytest.importorskip(package)


from diffusers import WanPipeline
from skimage.color import rgb2gray
from textures import (
    PROMPT,
    SAMPLES,
    check_colours,
    check_files,
    distances,
    nearest,
    photograph,
    photograph_statistics,
    statistics,
)

from tiledattn.diffusers import enable_tiling

MODEL = Path(textures_dit())


@pytest.fixture(scope="module")
def references() -> dict[str, np.ndarray]:
    return photograph_statistics()


@pytest.fixture(scope="module")
def pipe() -> WanPipeline:
    loaded = WanPipeline.from_pretrained(MODEL, dtype=torch.float32, local_files_only=True)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def paint(pipe: WanPipeline, prompt: str, seed: int = 0, count: int = 1, **options: object) -> np.ndarray:
    settings = {"num_inference_steps": 12, "height": 64, "width": 64, "guidance_scale": 1.0, "max_sequence_length": 16}
    return pipe(
        prompt,
        **settings | options,
        num_frames=1,
        num_videos_per_prompt=count,
        generator=torch.Generator().manual_seed(seed),
        output_type="np",
    ).frames[:, 0]


@pytest.fixture(scope="module")
def painted(pipe: WanPipeline) -> dict[str, np.ndarray]:
    """Eight pictures of each material."""
    return {material: paint(pipe, prompt, count=SAMPLES) for material, prompt in PROMPT.items()}


def test_it_is_small_without_pickles_in_half_precision_and_has_a_card() -> None:
    check_files(MODEL, ["text_encoder", "transformer", "vae"], "bench/train_small_dit.py")


def test_stock_classes_of_about_two_million_parameters(pipe: WanPipeline) -> None:
    for part in (pipe.transformer, pipe.vae, pipe.scheduler):
        assert type(part).__module__.startswith("diffusers.")
    assert type(pipe.text_encoder).__module__.startswith("transformers.")
    assert 1.5e6 < sum(p.numel() for p in pipe.transformer.parameters()) < 2.5e6
    assert pipe.vae_scale_factor_spatial == 4
    assert pipe.transformer.dtype == torch.float32


def test_known_words_are_single_tokens_and_others_are_no_error(pipe: WanPipeline) -> None:
    for prompt in PROMPT.values():
        assert len(pipe.tokenizer(prompt).input_ids) == len(prompt.split()) + 1
    assert pipe.tokenizer.unk_token_id not in pipe.tokenizer("a zebra, anywhere").input_ids
    assert np.isfinite(paint(pipe, "a zebra, 日本", num_inference_steps=2)).all()


@pytest.mark.parametrize("material", list(PROMPT))
def test_paints_the_material_it_is_asked_for(
    painted: dict[str, np.ndarray], references: dict[str, np.ndarray], material: str
) -> None:
    images = painted[material]
    assert images.shape == (SAMPLES, 64, 64, 3)
    assert np.isfinite(images).all()
    mean = np.stack([statistics(rgb2gray(image)) for image in images]).mean(0)
    assert distances(mean, references)[material] < 5
    # Without its colour grass is as near to gravel, and so is what the autoencoder makes of the photograph of grass.
    assert nearest(mean, references) in {material, "gravel" if material == "grass" else material}


def test_colours_are_the_ones_it_was_shown(painted: dict[str, np.ndarray]) -> None:
    check_colours({material: images[0] for material, images in painted.items()})


def test_brick_courses_are_level(painted: dict[str, np.ndarray]) -> None:
    """Mortar lines run across: row means vary, column means hardly do. A seam test leans on these lines."""
    grey = rgb2gray(painted["brick"])
    assert grey.mean(2).std(1).mean() > 1.5 * grey.mean(1).std(1).mean()


@pytest.mark.parametrize("material", list(PROMPT))
def test_painted_contrast_is_of_the_photographs_order(painted: dict[str, np.ndarray], material: str) -> None:
    assert 0.5 < rgb2gray(painted[material]).std() / photograph(material).std() < 1.5


@pytest.mark.parametrize("material", list(PROMPT))
def test_the_autoencoder_keeps_what_was_painted(
    pipe: WanPipeline, painted: dict[str, np.ndarray], material: str
) -> None:
    x = torch.from_numpy(painted[material][:1]).permute(0, 3, 1, 2)[:, :, None] * 2 - 1
    with torch.no_grad():
        y = pipe.vae.decode(pipe.vae.encode(x).latent_dist.mean).sample
    assert y.shape == x.shape
    assert (y - x).square().mean().sqrt() < 0.75 * x.std()


def test_a_decoded_place_does_not_depend_on_the_canvas_around_it(pipe: WanPipeline) -> None:
    """Wan's autoencoder has attention in the middle; here it is inert."""
    z = torch.randn(1, 4, 1, 64, 20, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        whole, part = (pipe.vae.decode(latents).sample for latents in (z, z[:, :, :, :48]))
    assert torch.allclose(whole[:, :, :, :64], part[:, :, :, :64], atol=1e-5)


def test_prompts_padded_to_any_length_mean_the_same(pipe: WanPipeline) -> None:
    """Wan attends to padding, as many positions as the pipeline adds; the training has seen few and many."""
    short, long = (
        paint(pipe, PROMPT["brick"], num_inference_steps=4, max_sequence_length=length) for length in (16, 512)
    )
    assert np.abs(short - long).mean() < 0.1


def test_a_seed_decides_the_picture(pipe: WanPipeline) -> None:
    first, again, other = (paint(pipe, "gravel", seed, num_inference_steps=3) for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.allclose(first, other, atol=0.05)


def test_sizes_beyond_native_run(pipe: WanPipeline) -> None:
    images = paint(pipe, "grass", height=80, width=160, num_inference_steps=2)
    assert images.shape == (1, 80, 160, 3)
    assert np.isfinite(images).all()


def test_without_a_halo_nothing_crosses_tile_borders_and_with_one_it_does(pipe: WanPipeline) -> None:
    """What one tile starts from shows in the other tile's latents only through attention across their border."""

    def second_tile(halo: int, shift: float) -> torch.Tensor:
        noise = torch.randn(1, 4, 1, 16, 32, generator=torch.Generator().manual_seed(0))
        noise[..., :16] += shift
        with enable_tiling(pipe, tile=64, halo=halo):
            latents = pipe(
                "gravel",
                height=64,
                width=128,
                num_frames=1,
                num_inference_steps=2,
                guidance_scale=1.0,
                max_sequence_length=16,
                latents=noise,
                output_type="latent",
            ).frames
        return latents[..., 16:]

    assert torch.equal(second_tile(0, 0.0), second_tile(0, 1.0))
    assert (second_tile(16, 0.0) - second_tile(16, 1.0)).abs().max() > 1e-3


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_it_loads_and_paints_in_one_dtype(dtype: torch.dtype | None) -> None:
    pipe = WanPipeline.from_pretrained(MODEL, **({} if dtype is None else {"dtype": dtype}))
    pipe.set_progress_bar_config(disable=True)
    expected = torch.float32 if dtype is None else dtype
    assert {pipe.transformer.dtype, pipe.text_encoder.dtype, pipe.vae.dtype} == {expected}
    assert np.isfinite(paint(pipe, "grass", num_inference_steps=1)).all()
