"""Pipelines of SD3, PixArt, Sana, Lumina 2 and Z-Image: from a prompt to the picture, binning, region prompts."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    Lumina2Pipeline,
    PixArtAlphaPipeline,
    PixArtSigmaPipeline,
    SanaPipeline,
    StableDiffusion3Pipeline,
    ZImagePipeline,
)
from tiny_diffusers import make_text_encoder, make_vae, quiet, shake
from tiny_transformers import lumina2, pixart, sana, sd3, zimage
from transformers import CLIPTextModelWithProjection, CLIPTokenizer, Gemma2Config, Gemma2Model, T5Config, T5EncoderModel

import tiledattn.diffusers as td
from tiledattn.diffusers.families import family_of

from .running import TILE, check_pipeline, error, paint
from .texts import WIDTH, WORDS, qwen3_encoder, word_tokenizer


def flow() -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(shift=3.0)


def shifted(vae: AutoencoderKL) -> AutoencoderKL:
    """The autoencoder with a shift of its latents, which these pipelines undo."""
    vae.register_to_config(shift_factor=0.1)
    return vae


def t5(width: int) -> T5EncoderModel:
    torch.manual_seed(4)
    config = T5Config(vocab_size=len(WORDS), d_model=width, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    return T5EncoderModel(config).eval().requires_grad_(False)


def gemma() -> Gemma2Model:
    torch.manual_seed(5)
    config = Gemma2Config(
        vocab_size=len(WORDS),
        hidden_size=WIDTH,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        pad_token_id=0,
    )
    return Gemma2Model(config).eval().requires_grad_(False)


def stable_diffusion_3(tokenizer: CLIPTokenizer) -> Any:
    model = sd3.build(joint_attention_dim=32, pooled_projection_dim=32, dual_attention_layers=(0,))()
    return StableDiffusion3Pipeline(
        transformer=model,
        scheduler=flow(),
        vae=shifted(make_vae()),
        text_encoder=make_text_encoder(CLIPTextModelWithProjection, tokenizer, 2),
        tokenizer=tokenizer,
        text_encoder_2=make_text_encoder(CLIPTextModelWithProjection, tokenizer, 3),
        tokenizer_2=tokenizer,
        text_encoder_3=t5(32),
        tokenizer_3=word_tokenizer(),
    )


def pixart_sigma(tokenizer: Any, cls: Any = PixArtSigmaPipeline, **options: Any) -> Any:
    return cls(
        tokenizer=word_tokenizer(),
        text_encoder=t5(WIDTH),
        vae=make_vae(),
        transformer=pixart.build(**{"sample_size": 32, **options})(),
        scheduler=DPMSolverMultistepScheduler(),
    )


def pixart_alpha(tokenizer: Any) -> Any:
    """The one of 1024 pixels, which is told the size."""
    return pixart_sigma(tokenizer, PixArtAlphaPipeline, sample_size=128, use_additional_conditions=True)


def sana_(tokenizer: Any) -> Any:
    levels = {"block_types": ("ResBlock", "ResBlock", "EfficientViTBlock"), "block_out_channels": (8, 8, 8)}
    levels |= {"qkv_multiscales": ((), (), (5,)), "layers_per_block": (1, 1, 1)}
    vae = AutoencoderDC(
        latent_channels=4,
        attention_head_dim=2,
        upsample_block_type="interpolate",
        downsample_block_type="conv",
        scaling_factor=0.4,
        **{f"{side}_{name}": value for side in ("encoder", "decoder") for name, value in levels.items()},
    )
    return SanaPipeline(
        tokenizer=word_tokenizer(),
        text_encoder=gemma(),
        vae=shake(vae, 1),
        transformer=sana.build(sample_size=32)(),
        scheduler=flow(),
    )


def lumina_2(tokenizer: Any) -> Any:
    """The pipeline takes every autoencoder for one of 8 pixels a latent."""
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8, 16),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        shift_factor=0.1,
    )
    return Lumina2Pipeline(
        transformer=lumina2.build(axes_lens=(64, 32, 32))(),
        scheduler=flow(),
        vae=shake(vae, 1),
        text_encoder=gemma(),
        tokenizer=word_tokenizer(),
    )


def z_image(tokenizer: Any) -> Any:
    return ZImagePipeline(
        transformer=zimage.build()(),
        scheduler=flow(),
        vae=shifted(make_vae()),
        text_encoder=qwen3_encoder(),
        tokenizer=word_tokenizer(),
    )


MAKERS: dict[str, tuple[Callable[[Any], Any], dict[str, Any]]] = {
    "sd3": (stable_diffusion_3, {"max_sequence_length": 12}),
    "pixart-sigma": (pixart_sigma, {"max_sequence_length": 12}),
    "pixart-alpha": (pixart_alpha, {"max_sequence_length": 12}),
    "sana": (sana_, {"max_sequence_length": 12, "complex_human_instruction": None}),
    "lumina2": (lumina_2, {"max_sequence_length": 48}),
    "zimage": (z_image, {"max_sequence_length": 12}),
}
BINNING = ("pixart-sigma", "pixart-alpha", "sana")


@pytest.fixture(scope="module")
def made(tokenizer: CLIPTokenizer) -> dict[str, Any]:
    """The pipelines, each made once; tests take copies."""
    return {name: quiet(make(tokenizer)) for name, (make, _) in MAKERS.items()}


@pytest.fixture(params=MAKERS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def pipe(name: str, made: dict[str, Any]) -> Any:
    return copy.deepcopy(made[name])


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_from_prompt_to_picture(name: str, pipe: Any, guidance: float) -> None:
    """2x2 tiles with the schedule's steps; one tile is the stock pipeline, and so is the pipeline afterwards."""
    call = {**MAKERS[name][1], "guidance_scale": guidance}
    if name in BINNING:
        call["use_resolution_binning"] = False
    steps = [0, 0, 1, 1, 2, 2] if name == "lumina2" and guidance > 1 else [0, 1, 2]
    check_pipeline(pipe, steps, halo=0 if name == "sana" else 8, **call)


@pytest.mark.parametrize("wrap", [(False, True), True], ids=str)
def test_wrapped(name: str, pipe: Any, wrap: Any) -> None:
    halo = 0 if name == "sana" else 8
    with td.enable_tiling(pipe, tile=TILE, halo=halo, wrap=wrap) as tiling:
        (picture,) = paint(pipe, 2 * TILE, "np", **MAKERS[name][1])
        assert tiling.layout.grid == (2, 2)
    assert picture.shape == (2 * TILE, 2 * TILE, 3)
    assert np.isfinite(picture).all()


def test_encode_is_what_the_pipeline_gives(name: str, pipe: Any) -> None:
    """Region prompts: the conditioning of one prompt, by the forward's own names."""
    options = {} if name != "sd3" else {"max_sequence_length": 256}
    seen: list[dict[str, Any]] = []
    names = family_of(pipe.transformer).parameters(pipe.transformer)
    handle = pipe.transformer.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append({**dict(zip(names, args, strict=False)), **kwargs}), with_kwargs=True
    )
    call = {"use_resolution_binning": False} if name in BINNING else {}
    paint(pipe, TILE, guidance_scale=1.0, **call, **options)
    handle.remove()
    encoded = family_of(pipe.transformer).encode(pipe, "a river delta")
    assert encoded
    for argument, value in encoded.items():
        given = seen[0][argument]
        given = given[0].unsqueeze(0) if isinstance(given, list) else given
        assert value.shape[0] == 1
        assert torch.equal(value, given)


@pytest.fixture(params=BINNING)
def binning(request: pytest.FixtureRequest, made: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    return copy.deepcopy(made[request.param]), MAKERS[request.param][1]


def test_a_tiled_canvas_is_as_large_as_was_asked_for(binning: tuple[Any, dict[str, Any]]) -> None:
    """Resolution binning is on by default, and would paint 256x256 pixels here, made smaller or larger afterwards."""
    pipe, call = binning
    assert pipe.image_processor.classify_height_width_bin(64, 96, {"0.67": [208, 304]}) == (208, 304)
    with td.enable_tiling(pipe, tile=TILE) as tiling:
        (picture,) = paint(pipe, 0, "pil", **{**call, "height": 64, "width": 96})
        assert tiling.layout.size == (16, 24)
    assert picture.size == (96, 64)


def test_binning_off_is_the_same(binning: tuple[Any, dict[str, Any]]) -> None:
    pipe, call = binning
    with td.enable_tiling(pipe, tile=TILE):
        want = paint(pipe, 2 * TILE, use_resolution_binning=False, **call)
        assert error(paint(pipe, 2 * TILE, use_resolution_binning=True, **call), want) == 0


def test_a_size_that_cannot_be_painted_names_the_nearest(made: dict[str, Any]) -> None:
    pipe = copy.deepcopy(made["pixart-sigma"])
    with td.enable_tiling(pipe, tile=TILE), pytest.raises(ValueError, match=r"width: got 100 pixels.*96 and 104"):
        paint(pipe, 64, width=100, **MAKERS["pixart-sigma"][1])


def test_binning_is_put_back(made: dict[str, Any]) -> None:
    pipe = copy.deepcopy(made["pixart-sigma"])
    before = set(vars(pipe.image_processor))
    ratios = {"1.0": [256, 256]}
    td.enable_tiling(pipe, tile=TILE)
    td.enable_tiling(pipe, tile=2 * TILE)
    copied = copy.deepcopy(pipe)
    assert pipe.image_processor.classify_height_width_bin(64, 64, ratios=ratios) == (64, 64)
    td.disable_tiling(pipe)
    assert set(vars(pipe.image_processor)) == before
    assert pipe.image_processor.classify_height_width_bin(64, 64, ratios=ratios) == (256, 256)
    assert copied.image_processor.classify_height_width_bin(64, 64, ratios=ratios) == (64, 64)
    td.disable_tiling(copied)
    assert set(vars(copied.image_processor)) == before


def test_binning_that_a_stranger_replaced_is_his_again(made: dict[str, Any]) -> None:
    pipe = copy.deepcopy(made["pixart-sigma"])
    processor, ratios = pipe.image_processor, {"1.0": [256, 256]}
    processor.classify_height_width_bin = lambda height, width, ratios: (1, 2)
    td.enable_tiling(pipe, tile=TILE)
    inner = processor.classify_height_width_bin
    processor.classify_height_width_bin = lambda height, width, ratios: inner(height, width, ratios)
    assert processor.classify_height_width_bin(64, 64, ratios=ratios) == (64, 64)
    td.disable_tiling(pipe)
    assert processor.classify_height_width_bin(64, 64, ratios=ratios) == (1, 2)
