"""Region prompts in pipelines of other families: one call or two for guidance, masks, lists, any length of prompts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    QwenImagePipeline,
    WanPipeline,
)
from tiny_diffusers import make_text_encoder, make_vae, quiet, shake
from tiny_transformers.flux import flux
from tiny_transformers.qwenimage import qwenimage
from tiny_transformers.wan import _wan as wan
from transformers import CLIPTextModel, CLIPTokenizer, UMT5Config, UMT5EncoderModel

import tiledattn.diffusers as td

from .running import TILE, error, paint, scheduler
from .test_image_pipelines import MAKERS
from .test_qwenimage import parts as qwen_parts
from .texts import WIDTH, WORDS, t5_encoder, word_tokenizer

GUIDANCE = {"negative_prompt": "blurred"}
LEFT = (0, 0, TILE, 2 * TILE)
APART: dict[str, Any] = {"tile": TILE, "halo": 0, "conv_halo": False, "norm": "tile"}


def flux_pipe(tokenizer: CLIPTokenizer) -> Any:
    vae = make_vae()
    vae.register_to_config(shift_factor=0.1)
    return FluxPipeline(
        scheduler=scheduler(),
        vae=vae,
        text_encoder=make_text_encoder(CLIPTextModel, tokenizer, 2),
        tokenizer=tokenizer,
        text_encoder_2=t5_encoder(),
        tokenizer_2=word_tokenizer(),
        transformer=flux()(),
    )


def qwen_pipe(tokenizer: Any) -> Any:
    return QwenImagePipeline(**qwen_parts.__wrapped__(), transformer=qwenimage()())


def wan_pipe(tokenizer: Any) -> Any:
    torch.manual_seed(3)
    config = UMT5Config(vocab_size=len(WORDS), d_model=WIDTH, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    vae = AutoencoderKLWan(
        base_dim=4, z_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1, latents_mean=[0.1] * 4, latents_std=[1.0] * 4
    )
    return WanPipeline(
        tokenizer=word_tokenizer(),
        text_encoder=UMT5EncoderModel(config).eval().requires_grad_(False),
        transformer=wan()(),
        vae=shake(vae, 1),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
    )


PIPES: dict[str, tuple[Any, dict[str, Any]]] = {
    **{name: (make, {**call, **GUIDANCE, "guidance_scale": 3.0}) for name, (make, call) in MAKERS.items()},
    "flux": (flux_pipe, {"max_sequence_length": 16}),
    "flux, two calls": (flux_pipe, {"max_sequence_length": 16, **GUIDANCE, "true_cfg_scale": 2.0}),
    "qwen": (qwen_pipe, {**GUIDANCE, "true_cfg_scale": 2.0}),
    "wan": (wan_pipe, {**GUIDANCE, "max_sequence_length": 12, "num_frames": 5}),
}
for name in ("pixart-sigma", "pixart-alpha", "sana"):
    PIPES[name][1]["use_resolution_binning"] = False
PIPES["lumina2"][1]["cfg_normalization"] = False  # measures the whole canvas


@pytest.fixture(params=PIPES)
def run(request: pytest.FixtureRequest, tokenizer: CLIPTokenizer) -> Any:
    """Latents of a prompt under options of enable_tiling."""
    make, call = PIPES[request.param]
    pipe = quiet(make(tokenizer))

    def latents(prompt: str, **options: Any) -> torch.Tensor:
        with td.enable_tiling(pipe, **{**APART, **options}):
            if isinstance(pipe, WanPipeline):
                seed = torch.Generator().manual_seed(0)
                size = {"height": 2 * TILE, "width": 2 * TILE, "num_inference_steps": 2}
                return pipe(prompt, generator=seed, output_type="latent", **size, **call).frames
            out = paint(pipe, 2 * TILE, prompt=prompt, **call)
        assert not {"encode_prompt", "check_inputs"} & set(vars(pipe))
        return out

    return latents


def test_a_box_of_the_whole_canvas_is_that_prompt(run: Any) -> None:
    """Also one of another length: its own mask is the only one then. Guidance's negative prompt stays."""
    want, other = run("a river delta"), run("a")
    assert error(other, want) > 1e-4
    box = (0, 0, 2 * TILE, 2 * TILE)
    got = run("a", regions=[td.Region(box, "a river delta")])
    assert error(got, want) < 1e-5


def test_regions_are_encoded_under_the_callers_instruction(tokenizer: CLIPTokenizer) -> None:
    """Lumina-Image puts a system prompt in front of every prompt."""
    make, call = PIPES["lumina2"]
    pipe = quiet(make(tokenizer))

    def latents(prompt: str, **options: Any) -> torch.Tensor:
        with td.enable_tiling(pipe, **{**APART, **options}):
            return paint(pipe, 2 * TILE, prompt=prompt, system_prompt="be brief", **call)

    box = (0, 0, 2 * TILE, 2 * TILE)
    got = latents("a", regions=[td.Region(box, "a river delta")])
    assert error(got, latents("a river delta")) < 1e-5


def test_each_tile_reads_its_own_prompt(run: Any) -> None:
    want, other = run("a river delta"), run("a delta river")
    got = run("a delta river", regions=[td.Region(LEFT, "a river delta")])
    assert error(got, want) > 1e-4
    assert error(got, other) > 1e-4
    with_mix = run("a delta river", regions=[td.Region((0, 0, TILE // 2, 2 * TILE), "a river delta")])
    assert error(with_mix, got) > 1e-4
    assert with_mix.isfinite().all()
    if got.shape[-1] == got.shape[-2]:  # not packed
        half = got.shape[-1] // 2
        assert error(got[..., :half], want[..., :half]) < 1e-4
        assert error(got[..., half:], other[..., half:]) < 1e-4
