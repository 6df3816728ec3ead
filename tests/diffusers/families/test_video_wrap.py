"""A periodic video: its frames' ends meet, in the denoiser and in the VAE's decoding."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import LTXPipeline
from torch import Tensor

import tiledattn.diffusers as td

from .test_video_pipelines import ltx
from .test_wan import wan
from .video_parts import error, film

PIPES = {"wan": (wan, 16, 8, 0.7), "ltx": (lambda: ltx(LTXPipeline), 4, 4, 1e-3)}


def moved(vae: Any, z: Tensor, pixels: int) -> float:
    """How far frames of turned latents are from turned frames, on average: 0 where there is no border."""
    turned = vae.decode(z.roll(4, 4)).sample.roll(-4 * pixels, 4)
    frames = vae.decode(z).sample
    assert frames.shape[3:] == (z.shape[3] * pixels, z.shape[4] * pixels)
    return float((turned - frames).abs().mean() / frames.std())


@pytest.mark.parametrize("name", PIPES)
def test_the_ends_of_decoded_frames_meet(name: str) -> None:
    """Better than without; exactly where a decoder mixes near positions only (Wan's has attention over a frame)."""
    make, channels, pixels, share = PIPES[name]
    pipe = make()
    z = torch.randn(1, channels, 2, 4, 8, generator=torch.Generator().manual_seed(0))
    plain = moved(pipe.vae, z, pixels)
    with td.enable_tiling(pipe, wrap=(False, True)):
        assert moved(pipe.vae, z, pixels) < share * plain
    assert moved(pipe.vae, z, pixels) == plain


def test_a_turned_start_is_a_turned_video() -> None:
    """Tiles of one size all round, nothing but self-attention between tokens: no place is special."""
    pipe = wan()
    call = {"num_frames": 9, "height": 32, "width": 64, "max_sequence_length": 8, "guidance_scale": 1.0}
    start = torch.randn(1, 16, 3, 4, 8, generator=torch.Generator().manual_seed(0))
    with td.enable_tiling(pipe, tile=(9, 32, 32), halo=(0, 0, 16), wrap=(False, True)) as tiling:
        want = film(pipe, latents=start, **call)
        got = film(pipe, latents=start.roll(4, 4), **call)
        assert tiling.layout is not None
        assert tiling.layout.wrap == (False, False, True)
    assert error(got.roll(-4, 4), want) < 1e-4
    assert error(film(pipe, latents=start.roll(4, 4), **call).roll(-4, 4), film(pipe, latents=start, **call)) > 1e-3
