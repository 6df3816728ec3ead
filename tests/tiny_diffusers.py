"""Tiny random-weight Stable Diffusion and SDXL models, and how the tests run them."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTokenizer

WIDTH = 16
SMALL: dict[str, Any] = {  # a UNet of two levels that compiles fast; sizes must be multiples of 2 latents
    "block_out_channels": (8, 8),
    "norm_num_groups": 4,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "mid_block_type": None,
}
FACTOR = 4  # pixels per latent of the tiny VAE


def shake(model: nn.Module, seed: int = 0) -> Any:
    """Random weights for which every layer matters; zero-initialised layers and unit norms included."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.ndim > 1:
                gain = 2.0 if name.endswith(("attn1.to_q.weight", "attn1.to_k.weight")) else 1.0
                p.copy_(torch.randn(p.shape, generator=g) * gain * p[0].numel() ** -0.5)
            elif name.endswith("bias"):
                p.copy_(torch.randn(p.shape, generator=g) * 0.1)
            else:
                p.copy_(1 + 0.2 * torch.randn(p.shape, generator=g))
    return model.eval().requires_grad_(False)


def make_unet(kind: str, in_channels: int = 4, **options: Any) -> UNet2DConditionModel:
    """A UNet of three levels, as in SD 1.x ("sd") or SDXL ("sdxl"); sizes must be multiples of 4 latents."""
    common: dict[str, Any] = {
        "sample_size": 16,
        "in_channels": in_channels,
        "out_channels": 4,
        "block_out_channels": (16, 32, 32),
        "layers_per_block": 1,
        "norm_num_groups": 8,
        "cross_attention_dim": WIDTH,
    }
    if kind == "sd":
        common |= {
            "attention_head_dim": 2,
            "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        }
    else:
        common |= {
            "cross_attention_dim": 2 * WIDTH,
            "attention_head_dim": (2, 2, 4),
            "transformer_layers_per_block": (1, 1, 2),
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 8,
            "projection_class_embeddings_input_dim": 6 * 8 + WIDTH,
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        }
    return shake(UNet2DConditionModel(**{**common, **options}))


def make_vae() -> AutoencoderKL:
    """An autoencoder with a 4-fold reduction."""
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 16),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=64,
    )
    return shake(vae, 1)


def circular(model: nn.Module, wrap: tuple[bool, bool]) -> Any:
    """A copy of a model whose padded convolutions are circular on the wrapped axes (height, width)."""
    model = copy.deepcopy(model)
    for conv in model.modules():
        if isinstance(conv, nn.Conv2d) and any(conv.padding):
            conv._conv_forward = _circular_forward(conv, wrap)
    return model


def _circular_forward(conv: nn.Conv2d, wrap: tuple[bool, bool]) -> Any:
    down, side = conv.padding

    def forward(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        x = F.pad(x, (0, 0, down, down), mode="circular" if wrap[0] else "constant")
        x = F.pad(x, (side, side, 0, 0), mode="circular" if wrap[1] else "constant")
        return F.conv2d(x, weight, bias, conv.stride, 0, conv.dilation, conv.groups)

    return forward


def unet_inputs(kind: str, height: int, width: int, batch: int = 2) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Canvas, timestep and conditioning for `make_unet`."""
    g = torch.Generator().manual_seed(1)
    text = WIDTH if kind == "sd" else 2 * WIDTH
    kwargs: dict[str, Any] = {"encoder_hidden_states": torch.randn(batch, 7, text, generator=g)}
    if kind == "sdxl":
        sizes = [height * FACTOR, width * FACTOR]
        kwargs["added_cond_kwargs"] = {
            "text_embeds": torch.randn(batch, WIDTH, generator=g),
            "time_ids": torch.tensor([sizes + [0, 0] + sizes]).float().repeat(batch, 1),
        }
    return torch.randn(batch, 4, height, width, generator=g), torch.tensor(500), kwargs


def error(got: Tensor, want: Tensor) -> float:
    """The largest difference on the scale of the expected output."""
    return float(((got - want).abs().max() / want.abs().max()).detach())


def make_text_encoder(cls: Any, tokenizer: CLIPTokenizer, seed: int) -> Any:
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=16,
        projection_dim=WIDTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(seed)
    return cls(config).eval().requires_grad_(False)


def make_scheduler() -> DDIMScheduler:
    return DDIMScheduler(clip_sample=False, set_alpha_to_one=False, steps_offset=1)


def quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def paint(pipe: Any, height: int = 64, width: int = 128, steps: int = 2, **kwargs: Any) -> Tensor:
    """A run of a pipeline from a fixed seed: latents or pictures as a tensor."""
    kwargs = {"prompt": "a river", "output_type": "latent", "guidance_scale": 3.0, **kwargs}
    out = pipe(
        height=height,
        width=width,
        num_inference_steps=steps,
        generator=torch.Generator().manual_seed(0),
        **kwargs,
    ).images
    return out if isinstance(out, Tensor) else torch.as_tensor(out)
