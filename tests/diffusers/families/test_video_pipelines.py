"""Whole pipelines of video families other than Wan, from a prompt to frames."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import (
    ClassifierFreeGuidance,
    CogVideoXDDIMScheduler,
    CogVideoXImageToVideoPipeline,
    CogVideoXPipeline,
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideo15Pipeline,
    HunyuanVideo15Transformer3DModel,
    HunyuanVideoImageToVideoPipeline,
    HunyuanVideoPipeline,
    LTXImageToVideoPipeline,
    LTXPipeline,
    MochiPipeline,
    MochiTransformer3DModel,
)
from tiny_diffusers import quiet, shake
from tiny_transformers.cogvideox import NEWER, ROTARY, make_cogvideox
from tiny_transformers.hunyuan import make_hunyuan
from tiny_transformers.ltx import make_ltx
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer, LlamaConfig, LlamaModel

import tiledattn.diffusers as td
from tiledattn.diffusers.families import family_of

from .texts import WIDTH, WORDS, t5_encoder, word_tokenizer
from .video_parts import (
    check_video_pipeline,
    cogvideox_vae,
    error,
    film,
    flow,
    hunyuan15_vae,
    hunyuan_vae,
    ltx_vae,
    mochi_vae,
    numbers,
    photo,
    still,
)

ONCE, TWICE = [0, 1, 2], [0, 0, 1, 1, 2, 2]
SHORT = {"max_sequence_length": 6}


def t5_parts() -> dict[str, Any]:
    return {"text_encoder": t5_encoder(), "tokenizer": word_tokenizer()}


def ltx(pipeline: Any) -> Any:
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    return quiet(pipeline(scheduler=scheduler, vae=ltx_vae(), transformer=make_ltx()(), **t5_parts()))


def clip(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """CLIP for prompts of the length that HunyuanVideo pads to."""
    torch.manual_seed(2)
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        eos_token_id=tokenizer.eos_token_id,
    )
    return still(CLIPTextModel(config))


def hunyuan(tokenizer: CLIPTokenizer) -> HunyuanVideoPipeline:
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=WIDTH,
        intermediate_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
    )
    parts = {
        "text_encoder": still(LlamaModel(config)),
        "tokenizer": word_tokenizer(),
        "text_encoder_2": clip(tokenizer),
        "tokenizer_2": tokenizer,
        "transformer": make_hunyuan(pooled_projection_dim=16)(),
        "vae": hunyuan_vae(),
        "scheduler": flow(),
    }
    return quiet(HunyuanVideoPipeline(**parts))


def cogvideox(pipeline: Any, **options: Any) -> Any:
    transformer = make_cogvideox(**options)()
    return quiet(
        pipeline(vae=cogvideox_vae(), transformer=transformer, scheduler=CogVideoXDDIMScheduler(), **t5_parts())
    )


def mochi() -> MochiPipeline:
    transformer = MochiTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        pooled_projection_dim=16,
        in_channels=12,
        text_embed_dim=WIDTH,
        time_embed_dim=8,
        max_sequence_length=6,
    )
    scheduler = FlowMatchEulerDiscreteScheduler(invert_sigmas=True)
    return quiet(MochiPipeline(scheduler=scheduler, vae=mochi_vae(), transformer=shake(transformer), **t5_parts()))


@pytest.mark.parametrize("positions", ["tile", "canvas"])
def test_ltx(positions: str) -> None:
    call = {"num_frames": 17, "height": 32, "width": 64, **SHORT}
    check_video_pipeline(ltx(LTXPipeline), (9, 32, 32), (2, 1, 2), ONCE, call, positions=positions)


def test_ltx_image_to_video() -> None:
    pipe = ltx(LTXImageToVideoPipeline)
    call = {"num_frames": 17, "height": 32, "width": 64, "image": photo(32, 64), **SHORT}
    check_video_pipeline(pipe, (9, 32, 32), (2, 1, 2), ONCE, call)
    with td.enable_tiling(pipe, tile=(9, 32, 32), halo=0) as tiling:
        predictions: list[torch.Tensor] = []
        tiling.on_tiles = lambda tiles, layout, step: predictions.append(tiles)
        for image in (photo(32, 64), photo(32, 64, seed=8)):
            film(pipe, **{**call, "image": image, "num_inference_steps": 1})
        layout = tiling.layout
    assert layout is not None
    first = [origin[0] == 0 for origin in layout.origins]
    later = [not here for here in first]
    assert error(predictions[1][first], predictions[0][first]) > 1e-2
    assert torch.equal(predictions[1][later], predictions[0][later])


@pytest.mark.parametrize("two", [False, True])
def test_hunyuan(tokenizer: CLIPTokenizer, two: bool) -> None:
    call = {"num_frames": 17, "height": 32, "width": 48, "max_sequence_length": 8}
    guided = {"true_cfg_scale": 3.0, "negative_prompt": "blurred"} if two else {}
    check_video_pipeline(hunyuan(tokenizer), (9, 32, 32), (2, 1, 2), TWICE if two else ONCE, {**call, **guided})


@pytest.mark.parametrize(("kind", "channels", "dropped"), [("latent_concat", 9, 4), ("token_replace", 4, 0)])
def test_hunyuan_image_to_video(kind: str, channels: int, dropped: int) -> None:
    transformer = make_hunyuan(pooled_projection_dim=16, image_condition_type=kind, in_channels=channels)()
    names = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "image_processor")
    parts = {"transformer": transformer, "vae": hunyuan_vae(), "scheduler": flow(), **dict.fromkeys(names)}
    call = {
        "image": photo(32, 48),
        "prompt": None,
        "prompt_embeds": numbers(1, 6, 16),
        "prompt_attention_mask": torch.ones(1, 6, dtype=torch.long),
        "pooled_prompt_embeds": numbers(1, 16),
        "num_frames": 17,
        "height": 32,
        "width": 48,
    }
    pipe = quiet(HunyuanVideoImageToVideoPipeline(**parts))
    check_video_pipeline(pipe, (9, 32, 32), (2, 1, 2), ONCE, call, dropped=dropped)


def test_hunyuan15() -> None:
    transformer = HunyuanVideo15Transformer3DModel(
        in_channels=9,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=12,
        num_layers=2,
        num_refiner_layers=1,
        mlp_ratio=2.0,
        text_embed_dim=16,
        text_embed_2_dim=8,
        image_embed_dim=8,
        rope_axes_dim=(4, 4, 4),
        target_size=16,
    )
    names = ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")
    parts = {"transformer": shake(transformer), "vae": hunyuan15_vae(), "scheduler": flow(), **dict.fromkeys(names)}
    call: dict[str, Any] = {"prompt": None, "num_frames": 17, "height": 32, "width": 64}
    for seed, kind in enumerate(("", "negative_")):
        for which, length, width in (("", 6, 16), ("_2", 3, 8)):
            call[f"{kind}prompt_embeds{which}"] = numbers(1, length, width, seed=seed)
            call[f"{kind}prompt_embeds_mask{which}"] = torch.ones(1, length, dtype=torch.long)
    pipe = quiet(HunyuanVideo15Pipeline(guider=ClassifierFreeGuidance(guidance_scale=3.0), **parts))
    check_video_pipeline(pipe, (9, 32, 32), (2, 1, 2), TWICE, call)


@pytest.mark.parametrize("options", [{}, ROTARY], ids=["2b", "5b"])
def test_cogvideox(options: dict[str, Any]) -> None:
    call = {"num_frames": 25, "height": 32, "width": 96, **SHORT}
    check_video_pipeline(cogvideox(CogVideoXPipeline, **options), (17, 32, 64), (2, 1, 2), ONCE, call)


def test_cogvideox_image_to_video() -> None:
    """In both generations the condition's channels lie beside the canvas's."""
    pipe = cogvideox(CogVideoXImageToVideoPipeline, **ROTARY, in_channels=8)
    call = {"num_frames": 25, "height": 32, "width": 96, "image": photo(32, 96), **SHORT}
    check_video_pipeline(pipe, (17, 32, 64), (2, 1, 2), ONCE, call)
    pipe = cogvideox(CogVideoXImageToVideoPipeline, **NEWER, in_channels=8)
    check_video_pipeline(pipe, (13, 32, 64), (2, 1, 2), ONCE, call, whole=(29, 32, 96))


@pytest.mark.filterwarnings("ignore:In CPU autocast")
def test_mochi() -> None:
    call = {"num_frames": 13, "height": 32, "width": 48, **SHORT}
    check_video_pipeline(mochi(), (7, 32, 32), (2, 1, 2), ONCE, call)


def test_frames_are_counted_as_each_vae_counts(tokenizer: CLIPTokenizer) -> None:
    for pipe, frames, latents, near in (
        (ltx(LTXPipeline), 9, 3, "5 and 9"),
        (hunyuan(tokenizer), 9, 3, "5 and 9"),
        (cogvideox(CogVideoXPipeline), 9, 3, "5 and 9"),
        (cogvideox(CogVideoXPipeline, **NEWER), 13, 4, "5 and 13"),
        (mochi(), 13, 3, "7 and 13"),
    ):
        assert td.enable_tiling(pipe, tile=(frames, 32, 32)).options.tile[0] == latents
        with pytest.raises(ValueError, match=rf"tile frames: got {frames - 1} frames; .* nearest are {near}"):
            td.enable_tiling(pipe, tile=(frames - 1, 32, 32))


@pytest.mark.parametrize("make", [lambda: ltx(LTXPipeline), lambda: cogvideox(CogVideoXPipeline)], ids=["ltx", "cog"])
def test_a_prompt_s_conditioning(make: Any) -> None:
    """What a run without guidance gives the denoiser, in the first argument the prompt's features."""
    pipe = make()
    seen: list[Any] = []
    handle = pipe.transformer.register_forward_pre_hook(lambda m, a, k: seen.append(k), with_kwargs=True)
    length = 128 if isinstance(pipe, LTXPipeline) else 6
    call = {"num_frames": 17, "height": 32, "width": 64, "guidance_scale": 1.0, "max_sequence_length": length}
    film(pipe, prompt="a river", **call)
    handle.remove()
    with pytest.MonkeyPatch.context() as patch:
        encode = pipe.encode_prompt
        patch.setattr(pipe, "encode_prompt", lambda *a, **k: encode(*a, **{**k, "max_sequence_length": length}))
        got = family_of(pipe.transformer).encode(pipe, "a river")
    assert next(iter(got)) == "encoder_hidden_states"
    for name, value in got.items():
        assert value.shape[0] == 1
        assert torch.equal(value, seen[0][name])
