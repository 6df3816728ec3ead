"""Wan: whole pipelines, given frames, two denoisers, frame counts, region prompts, circular decoding."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import WanImageToVideoPipeline, WanPipeline, WanTransformer3DModel
from tiny_diffusers import quiet, shake
from tiny_transformers import randn
from tiny_transformers.wan import _wan as tiny_wan
from tiny_transformers.wan import _wan_call as tiny_wan_call

import tiledattn.diffusers as td
from tiledattn.diffusers.families import family_of

from ..test_families import run
from .texts import word_tokenizer
from .video_parts import check_video_pipeline, error, film, flow, photo, umt5_encoder, unipc, wan_vae

CALL = {"num_frames": 17, "height": 32, "width": 48, "max_sequence_length": 8, "guidance_scale": 3.0}
TILE, GRID = (9, 32, 32), (2, 1, 2)


@pytest.fixture(autouse=True)
def clean_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """The image-to-video pipeline cleans prompts by a library that isn't needed for clean ones."""
    library = SimpleNamespace(fix_text=lambda text: text)
    monkeypatch.setattr("diffusers.pipelines.wan.pipeline_wan_i2v.ftfy", library, raising=False)


def transformer(in_channels: int = 16, seed: int = 0) -> WanTransformer3DModel:
    model = WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=in_channels,
        out_channels=16,
        text_dim=16,
        freq_dim=16,
        ffn_dim=32,
        num_layers=2,
        cross_attn_norm=True,
        qk_norm="rms_norm_across_heads",
        rope_max_seq_len=32,
    )
    return shake(model, seed)


def parts(in_channels: int = 16, **others: Any) -> dict[str, Any]:
    return {
        "tokenizer": word_tokenizer(),
        "text_encoder": umt5_encoder(),
        "vae": wan_vae(),
        "scheduler": unipc(),
        "transformer": transformer(in_channels),
        **others,
    }


def wan(**others: Any) -> WanPipeline:
    return quiet(WanPipeline(**parts(**others)))


def image_to_video(in_channels: int = 36, **others: Any) -> WanImageToVideoPipeline:
    return quiet(WanImageToVideoPipeline(**parts(in_channels, image_encoder=None, image_processor=None, **others)))


def test_text_to_video() -> None:
    check_video_pipeline(wan(), TILE, GRID, [0, 0, 1, 1, 2, 2], CALL)


def test_image_to_video() -> None:
    call = {**CALL, "image": photo(32, 48)}
    check_video_pipeline(image_to_video(), TILE, GRID, [0, 0, 1, 1, 2, 2], call)


def test_two_denoisers() -> None:
    pipe = image_to_video(transformer_2=transformer(36, seed=1), boundary_ratio=0.9)
    check_video_pipeline(pipe, TILE, GRID, [0, 0, 1, 1, 2, 2], {**CALL, "image": photo(32, 48)})
    with td.enable_tiling(pipe) as tiling:
        assert len(tiling.companions) == 1
        assert tiling.companions[0].enabled
    assert not tiling.companions[0].enabled


@pytest.mark.parametrize("num_steps", [None, 4])
def test_two_denoisers_count_steps_together(num_steps: int | None) -> None:
    pipe, seen = wan(transformer_2=transformer(seed=1), boundary_ratio=0.7), []

    def schedule(step: int, steps: int) -> float:
        seen.append((step, steps))
        return 0.5

    with td.enable_tiling(pipe, tile=TILE, halo_schedule=schedule, num_steps=num_steps):
        film(pipe, num_inference_steps=4, **CALL)
    assert seen == [(step, 4) for step in range(4) for _ in range(2)]


@pytest.mark.parametrize("batch", [1, 2])
def test_features_of_first_and_last_frames(batch: int) -> None:
    """Two rows of images for one of the canvas batch."""
    model = tiny_wan(image_dim=16, pos_embed_seq_len=10, added_kv_proj_dim=32)()
    call = {**tiny_wan_call((3, 8, 16), batch, torch.float32)}
    call["encoder_hidden_states_image"] = randn(2 * batch, 5, 16, seed=3)
    want = run(model, call)
    swapped = run(model, {**call, "encoder_hidden_states_image": call["encoder_hidden_states_image"].flip(0)})
    assert error(swapped, want) > 1e-3
    with td.enable_tiling(model, tile=(3, 8, 8), halo="all", unit="latent"):
        assert error(run(model, call), want) < 1e-5


@pytest.mark.parametrize("given", [False, True])
def test_timesteps_of_tokens(given: bool) -> None:
    """Wan 2.2 5B: each token has its timestep, a given frame's is 0."""
    pipe = image_to_video(16, expand_timesteps=True) if given else wan(expand_timesteps=True)
    call = {**CALL, "image": photo(32, 48)} if given else CALL
    check_video_pipeline(pipe, TILE, GRID, [0, 0, 1, 1, 2, 2], call)


def test_a_given_frame_reaches_its_tile() -> None:
    """First tiles depend on it directly; with halo 0 the others have what the VAE says of their own place."""
    pipe, call = image_to_video(), {**CALL, "num_inference_steps": 1, "guidance_scale": 1.0}
    inputs: list[torch.Tensor] = []
    handle = pipe.transformer.patch_embedding.register_forward_pre_hook(lambda m, args: inputs.append(args[0]))
    predictions: list[torch.Tensor] = []
    with td.enable_tiling(pipe, tile=TILE, halo=0) as tiling:
        tiling.on_tiles = lambda tiles, layout, step: predictions.append(tiles)
        film(pipe, image=photo(32, 48), **call)
        film(pipe, image=photo(32, 48, seed=8), **call)
        layout = tiling.layout
    film(pipe, image=photo(32, 48), **call)
    handle.remove()
    tiles, _, canvas = inputs
    assert layout is not None
    for index, origin in enumerate(layout.origins):
        place = tuple(slice(o, o + n) for o, n in zip(origin, layout.tile, strict=True))
        assert torch.equal(tiles[index, 16:], canvas[(0, slice(16, None), *place)])
    first, later = ([i for i, o in enumerate(layout.origins) if (o[0] == 0) == here] for here in (True, False))
    assert tiles[first, 16:20, 0].eq(1).all()
    assert tiles[later, 16:20].eq(0).all()
    assert error(predictions[1][first], predictions[0][first]) > 1e-2


def test_frames_are_counted_as_the_vae_counts() -> None:
    pipe = wan()
    assert td.enable_tiling(pipe, tile=(17, 32, 48)).options.tile == (5, 4, 6)
    with pytest.raises(ValueError, match=r"tile frames: got 16 frames; .* nearest are 13 and 17"):
        td.enable_tiling(pipe, tile=(16, 32, 48))
    with pytest.raises(ValueError, match=r"tile width: got 40 pixels; .* nearest are 32 and 48"):
        td.enable_tiling(pipe, tile=(17, 32, 40))
    with pytest.raises(ValueError, match=r"overlap frames: got 3 frames; .* nearest are 0 and 4"):
        td.enable_tiling(pipe, tile=(17, 32, 48), overlap=(3, 0, 0))
    assert td.enable_tiling(pipe, tile=32).options.tile == (21, 4, 4)
    td.disable_tiling(pipe)


def test_a_prompt_s_conditioning() -> None:
    pipe = wan(scheduler=flow())
    seen: list[Any] = []
    handle = pipe.transformer.register_forward_pre_hook(lambda m, a, k: seen.append(k), with_kwargs=True)
    film(pipe, prompt="a river", num_frames=1, height=16, width=16, guidance_scale=1.0, max_sequence_length=226)
    handle.remove()
    got = family_of(pipe.transformer).encode(pipe, "a river")
    assert {name: value.shape[0] for name, value in got.items()} == {"encoder_hidden_states": 1}
    for name, value in got.items():
        assert torch.equal(value, seen[0][name])
