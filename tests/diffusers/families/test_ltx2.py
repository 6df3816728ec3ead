"""LTX-2: one soundtrack, guidance that perturbs layers, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLLTX2Audio, AutoencoderKLLTX2Video, FlowMatchEulerDiscreteScheduler, LTX2Pipeline
from diffusers.pipelines.ltx2 import LTX2TextConnectors
from tiny_diffusers import quiet, shake
from tiny_transformers import CASES
from tiny_transformers.ltx2 import call_ltx2, make_ltx2

import tiledattn.diffusers as td

from ..test_families import error, run
from .video_parts import numbers, still

LTX2 = [case for case in CASES if case.name in ("ltx2", "ltx2-split")]
SIZE, TILE = (4, 4, 6), (2, 2, 6)


@pytest.mark.parametrize("case", LTX2, ids=lambda case: case.name)
@pytest.mark.parametrize("halo", [0, (0, 1, 1), "all"])
def test_sound_is_the_same_in_all_tiles(case: Any, halo: Any) -> None:
    """It hears the whole canvas whatever the halo: noise in any one tile changes it."""
    model, call = case.build(), case.call(SIZE, 2, torch.float32)
    sounds: list[torch.Tensor] = []
    handle = model.audio_proj_out.register_forward_hook(lambda m, a, out: sounds.append(out.unflatten(0, (4, 2))))
    with td.enable_tiling(model, tile=TILE, halo=halo, unit="latent"):
        sound = model(**call).audio_sample
        tiles = sounds[0]
        assert torch.equal(tiles, tiles[:1].expand_as(tiles))
        assert torch.equal(sound, tiles[0])
        for frame, row in ((0, 0), (0, 2), (2, 0), (2, 2)):
            other = call["hidden_states"].clone().unflatten(1, SIZE)
            other[:, frame : frame + 2, row : row + 2] += 1
            changed = model(**{**call, "hidden_states": other.flatten(1, 3)}).audio_sample
            assert error(changed, sound) > 1e-3
    handle.remove()


def test_time_is_the_canvas_s() -> None:
    """In a later tile sound and video meet at the canvas's time, also with a tile's own height and width."""
    model, call = make_ltx2()(), call_ltx2(SIZE, 1, torch.float32)
    seen: list[torch.Tensor] = []
    handle = model.cross_attn_rope.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
    with td.enable_tiling(model, tile=TILE, unit="latent"):
        model(**call)
    handle.remove()
    (times,) = seen
    begins = times[:, 0].unflatten(1, TILE)[:, :, 0, 0, 0] * 24
    assert begins.round().tolist() == [[0, 1], [0, 1], [9, 17], [9, 17]]


@pytest.mark.parametrize("halo", [0, "all"])
def test_perturbed_layers_pass_values_on(halo: Any) -> None:
    model, call = make_ltx2(perturbed_attn=True)(), call_ltx2(SIZE, 2, torch.float32)
    every = {"spatio_temporal_guidance_blocks": [0, 1]}
    want = run(model, {**call, **every})
    with td.enable_tiling(model, tile=TILE, halo=halo, unit="latent"):
        assert error(run(model, {**call, **every}), want) < 1e-5
    part = {"spatio_temporal_guidance_blocks": [1], "perturbation_mask": torch.tensor([0.0, 1.0])}
    want = run(model, {**call, **part})
    with td.enable_tiling(model, tile=TILE, halo="all", unit="latent"):
        assert error(run(model, {**call, **part}), want) < 1e-5


def test_marked_tokens_and_isolated_modalities() -> None:
    model, call = make_ltx2(use_keyframes_abs_pos_embedding=True)(), call_ltx2(SIZE, 2, torch.float32)
    marked = (torch.arange(96) % 5 == 0).float()[None, :, None].expand(2, -1, -1)
    for change in ({"video_keyframes_mask": marked}, {"isolate_modalities": True}):
        want = run(model, {**call, **change})
        with td.enable_tiling(model, tile=TILE, halo="all", unit="latent"):
            assert error(run(model, {**call, **change}), want) < 1e-5


def test_what_is_refused() -> None:
    model, call = make_ltx2()(), call_ltx2(SIZE, 1, torch.float32)
    with (
        td.enable_tiling(model, tile=TILE, unit="latent"),
        pytest.raises(NotImplementedError, match="video_self_attention_mask"),
    ):
        model(**call, video_self_attention_mask=torch.ones(1, 96, 96))
    with (
        td.enable_tiling(model, tile=TILE, wrap=(True, False, False), unit="latent"),
        pytest.raises(NotImplementedError, match="periodic in time"),
    ):
        model(**call)


@pytest.mark.parametrize("step", [0, 1, 2])
def test_a_shifted_grid_hears_each_position_once(step: int) -> None:
    """Without attention over video, sound in a jittered run is what the untiled model makes."""
    model, call = make_ltx2()(), call_ltx2((2, 6, 6), 1, torch.float32)
    for name, parameter in model.named_parameters():
        if ".attn1.to_v." in name:
            parameter.zero_()
    want = model(**call).audio_sample
    with td.enable_tiling(model, tile=(2, 4, 4), jitter=step, num_steps=3, unit="latent"):
        assert error(model(**call).audio_sample, want) < 1e-5


def test_a_part_of_the_canvas_is_refused() -> None:
    model, call = make_ltx2()(), call_ltx2(SIZE, 1, torch.float32)
    with (
        td.enable_tiling(model, tile=TILE, halo=0, refresh=[0], unit="latent"),
        pytest.raises(NotImplementedError, match="sound hears the whole canvas"),
    ):
        model(**call)


def pipeline() -> LTX2Pipeline:
    """All but the text encoder, and the vocoder that makes sound of a spectrogram."""
    torch.manual_seed(0)
    vae = AutoencoderKLLTX2Video(
        latent_channels=4,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
        spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False, False),
        decoder_inject_noise=(False,) * 5,
        downsample_type=("conv",) * 4,
        upsample_type=("spatiotemporal",) * 4,
        upsample_residual=(False,) * 4,
        upsample_factor=(1,) * 4,
        patch_size=1,
    )
    audio_vae = AutoencoderKLLTX2Audio(
        base_channels=8, ch_mult=(1,), num_res_blocks=1, resolution=32, latent_channels=2, mel_bins=16
    )
    streams = ("video", "audio")
    connectors = LTX2TextConnectors(
        caption_channels=16,
        text_proj_in_factor=2,
        connector_rope_base_seq_len=32,
        **{f"{stream}_connector_num_attention_heads": 2 for stream in streams},
        **{f"{stream}_connector_attention_head_dim": 8 for stream in streams},
        **{f"{stream}_connector_num_layers": 1 for stream in streams},
        **{f"{stream}_connector_num_learnable_registers": None for stream in streams},
    )
    parts = {
        "scheduler": FlowMatchEulerDiscreteScheduler(),
        "vae": still(vae),
        "audio_vae": still(audio_vae),
        "connectors": shake(connectors),
        "transformer": make_ltx2(audio_in_channels=8, audio_out_channels=8, perturbed_attn=True)(),
        **dict.fromkeys(("text_encoder", "tokenizer", "vocoder")),
    }
    return quiet(LTX2Pipeline(**parts))


def test_a_pipeline_with_all_its_guidance() -> None:
    """With halo "all" video and sound are the untiled pipeline's, through steps of three calls each."""
    pipe = pipeline()
    call: dict[str, Any] = {"num_frames": 17, "height": 32, "width": 64, "spatio_temporal_guidance_blocks": [1]}
    for seed, kind in enumerate(("", "negative_")):
        call[f"{kind}prompt_embeds"] = numbers(1, 6, 32, seed=seed)
        call[f"{kind}prompt_attention_mask"] = torch.ones(1, 6, dtype=torch.long)

    def play() -> tuple[torch.Tensor, torch.Tensor]:
        out = pipe(generator=torch.Generator().manual_seed(0), num_inference_steps=2, output_type="latent", **call)
        return out.frames, out.audio

    video, sound = play()
    with td.enable_tiling(pipe, tile=(9, 16, 32), halo="all") as tiling:
        tiled_video, tiled_sound = play()
        assert tiling.layout is not None
        assert tiling.layout.grid == (2, 2, 2)
    assert error(tiled_video, video) < 1e-4
    assert error(tiled_sound, sound) < 1e-4
    with td.enable_tiling(pipe, tile=(9, 16, 32), halo=0, halo_schedule="quadratic") as tiling:
        seen: list[int] = []
        tiling.on_tiles = lambda tiles, layout, step: seen.append(step)
        assert error(play()[0], video) > 1e-2
    assert seen == [0, 0, 0, 1, 1, 1]
