"""Tiny parts of video pipelines, built offline, and how the tests run them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from diffusers import (
    AutoencoderKLCogVideoX,
    AutoencoderKLHunyuanVideo,
    AutoencoderKLHunyuanVideo15,
    AutoencoderKLLTXVideo,
    AutoencoderKLMochi,
    AutoencoderKLWan,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)
from PIL import Image
from torch import Tensor
from transformers import UMT5Config, UMT5EncoderModel

import tiledattn.diffusers as td

from .texts import WIDTH, WORDS


def still(model: Any) -> Any:
    """A model for inference."""
    return model.eval().requires_grad_(False)


def umt5_encoder() -> UMT5EncoderModel:
    """UMT5 of a few words."""
    torch.manual_seed(4)
    config = UMT5Config(vocab_size=len(WORDS), d_model=WIDTH, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    return still(UMT5EncoderModel(config))


def wan_vae() -> AutoencoderKLWan:
    """4 frames and 8x8 pixels a latent, of 16 channels."""
    torch.manual_seed(1)
    return still(
        AutoencoderKLWan(
            base_dim=3, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1, temperal_downsample=[False, True, True]
        )
    )


def ltx_vae() -> AutoencoderKLLTXVideo:
    """4 frames and 4x4 pixels a latent, of 4 channels."""
    torch.manual_seed(1)
    return still(
        AutoencoderKLLTXVideo(
            latent_channels=4,
            block_out_channels=(8, 8, 8, 8),
            decoder_block_out_channels=(8, 8, 8, 8),
            layers_per_block=(1, 1, 1, 1, 1),
            decoder_layers_per_block=(1, 1, 1, 1, 1),
            spatio_temporal_scaling=(True, True, False, False),
            decoder_spatio_temporal_scaling=(True, True, False, False),
            decoder_inject_noise=(False,) * 5,
            upsample_residual=(False,) * 4,
            upsample_factor=(1,) * 4,
            patch_size=1,
        )
    )


def hunyuan_vae() -> AutoencoderKLHunyuanVideo:
    """4 frames and 8x8 pixels a latent, of 4 channels."""
    torch.manual_seed(1)
    return still(
        AutoencoderKLHunyuanVideo(
            latent_channels=4,
            down_block_types=("HunyuanVideoDownBlock3D",) * 4,
            up_block_types=("HunyuanVideoUpBlock3D",) * 4,
            block_out_channels=(8, 8, 8, 8),
            layers_per_block=1,
            norm_num_groups=4,
            spatial_compression_ratio=8,
            temporal_compression_ratio=4,
            mid_block_add_attention=True,
        )
    )


def hunyuan15_vae() -> AutoencoderKLHunyuanVideo15:
    """4 frames and 16x16 pixels a latent, of 4 channels."""
    torch.manual_seed(1)
    return still(
        AutoencoderKLHunyuanVideo15(
            latent_channels=4,
            block_out_channels=(16, 16, 16, 16, 16),
            layers_per_block=1,
            downsample_match_channel=False,
            upsample_match_channel=False,
        )
    )


def cogvideox_vae() -> AutoencoderKLCogVideoX:
    """4 frames and 8x8 pixels a latent, of 4 channels."""
    torch.manual_seed(1)
    return still(
        AutoencoderKLCogVideoX(
            down_block_types=("CogVideoXDownBlock3D",) * 4,
            up_block_types=("CogVideoXUpBlock3D",) * 4,
            block_out_channels=(8, 8, 8, 8),
            latent_channels=4,
            layers_per_block=1,
            norm_num_groups=2,
            temporal_compression_ratio=4,
        )
    )


def mochi_vae() -> AutoencoderKLMochi:
    """6 frames and 8x8 pixels a latent, of 12 channels."""
    torch.manual_seed(1)
    return still(
        AutoencoderKLMochi(
            latent_channels=12,
            out_channels=3,
            encoder_block_out_channels=(32, 32, 32, 32),
            decoder_block_out_channels=(32, 32, 32, 32),
            layers_per_block=(1, 1, 1, 1, 1),
        )
    )


def flow() -> FlowMatchEulerDiscreteScheduler:
    """Flow matching."""
    return FlowMatchEulerDiscreteScheduler(shift=7.0)


def unipc() -> UniPCMultistepScheduler:
    """What Wan comes with."""
    return UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)


def photo(height: int, width: int, seed: int = 7) -> Image.Image:
    """A picture of noise."""
    values = torch.randint(0, 256, (height, width, 3), generator=torch.Generator().manual_seed(seed))
    return Image.fromarray(values.numpy().astype(np.uint8))


def numbers(*shape: int, seed: int = 0) -> Tensor:
    """Conditioning from no text encoder."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def film(pipe: Any, output_type: str = "latent", **call: Any) -> Any:
    """A run of three steps from a fixed seed: latents, or frames [B, frames, height, width, 3]."""
    call = {"prompt": "a river delta", "num_inference_steps": 3, **call}
    return pipe(generator=torch.Generator().manual_seed(0), output_type=output_type, **call).frames


def error(got: Tensor, want: Tensor) -> float:
    """The largest difference over the largest wanted value."""
    return float((got - want).abs().max() / want.abs().max())


def check_video_pipeline(
    pipe: Any,
    tile: tuple[int, int, int],
    grid: tuple[int, int, int],
    steps: list[int],
    call: dict[str, Any],
    whole: tuple[int, int, int] | None = None,
    dropped: int = 0,
    **options: Any,
) -> None:
    """A canvas longer and larger than a tile, to frames, with the schedule's steps; one tile is the stock pipeline.

    Args:
        pipe: the pipeline.
        tile: (frames, height, width).
        grid: tiles of the canvas that `call` asks for.
        steps: what the schedule is to be asked for, in order.
        call: arguments of the pipeline.
        whole: a tile as large as the canvas, where that isn't what `call` asks for.
        dropped: frames at the beginning that the pipeline doesn't return.
        options: of the tiling.
    """
    size = (call["num_frames"], call["height"], call["width"])
    want = film(pipe, **call)
    with td.enable_tiling(pipe, tile=whole or size, **options):
        assert error(film(pipe, **call), want) < 1e-5
    with td.enable_tiling(pipe, tile=tile, halo_schedule="quadratic", **options) as tiling:
        seen: list[int] = []
        for each in (tiling, *tiling.companions):
            each.on_tiles = lambda tiles, layout, step: seen.append(step)
        latents = film(pipe, **call)
        layouts = [each.layout for each in (tiling, *tiling.companions)]
        assert [layout.grid for layout in layouts if layout is not None] == [grid] * len(layouts)
        assert seen == steps
        (frames,) = film(pipe, "np", **call)
    assert latents.shape == want.shape
    assert error(latents, want) > 1e-3
    assert frames.shape == (size[0] - dropped, *size[1:], 3)
    assert frames.std() > 1e-3
    assert torch.equal(film(pipe, **call), want)
