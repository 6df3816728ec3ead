"""Wan's autoencoder for single frames, 64x64 pixels to 16x16 latents of 4 channels, trained as a 2-D network.

Its latents are those of the autoencoder of ``textures_unet``, which has them from a longer training.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, AutoencoderKLWan
from diffusers.models.autoencoders.autoencoder_kl_wan import WanAttentionBlock, WanCausalConv3d
from diffusers.models.autoencoders.vae import DecoderOutput, DiagonalGaussianDistribution
from diffusers.models.modeling_outputs import AutoencoderKLOutput
from torch import nn

from training import photos, sharpening


def build() -> AutoencoderKLWan:
    """4x reduction in space and time, without attention, and blind to every frame but the one it is at."""
    vae = AutoencoderKLWan(
        base_dim=16,
        decoder_base_dim=32,
        z_dim=4,
        dim_mult=[1, 2, 2],
        num_res_blocks=1,
        temperal_downsample=[True, True],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
        scale_factor_spatial=4,
        scale_factor_temporal=4,
    )
    for module in vae.modules():
        # Wan has one block of attention in the middle, which would make pictures depend on the canvas's size.
        if isinstance(module, WanAttentionBlock):
            nn.init.zeros_(module.proj.weight)
            nn.init.zeros_(module.proj.bias)
            module.requires_grad_(False)
        elif isinstance(module, WanCausalConv3d):
            with torch.no_grad():
                module.weight[:, :, :-1] = 0
    return vae


def _flat(self: WanCausalConv3d, x: torch.Tensor, cache_x: torch.Tensor | None = None) -> torch.Tensor:
    padding = (self._padding[2], self._padding[0])
    return F.conv2d(x[:, :, 0], self.weight[:, :, -1], self.bias, self.stride[1:], padding).unsqueeze(2)


@contextmanager
def flat_convolutions() -> Iterator[None]:
    """Within it the causal convolutions see single frames, for which their last slice is all that counts."""
    convolve, attend = WanCausalConv3d.forward, WanAttentionBlock.forward
    WanCausalConv3d.forward, WanAttentionBlock.forward = _flat, lambda self, x: x
    try:
        yield
    finally:
        WanCausalConv3d.forward, WanAttentionBlock.forward = convolve, attend


class Frames(nn.Module):
    """The autoencoder on pictures ``[N, C, H, W]``, with the methods of the one for pictures."""

    def __init__(self, vae: AutoencoderKLWan) -> None:
        super().__init__()
        self.vae = vae

    @property
    def post_quant_conv(self) -> nn.Module:
        return self.vae.post_quant_conv

    @property
    def decoder(self) -> nn.Module:
        return self.vae.decoder

    def encode(self, x: torch.Tensor) -> AutoencoderKLOutput:
        """What ``AutoencoderKLWan.encode`` does to one frame."""
        with flat_convolutions():
            moments = self.vae.quant_conv(self.vae.encoder(x.unsqueeze(2))).squeeze(2)
        return AutoencoderKLOutput(latent_dist=DiagonalGaussianDistribution(moments))

    def decode(self, z: torch.Tensor) -> DecoderOutput:
        """What ``AutoencoderKLWan.decode`` does to one frame, without its clamp."""
        with flat_convolutions():
            return DecoderOutput(sample=self.decoder(self.post_quant_conv(z.unsqueeze(2))).squeeze(2))

    def forward(self, x: torch.Tensor) -> DecoderOutput:
        """Reconstructions."""
        return self.decode(self.encode(x).latent_dist.mode())


class FrameDecoder(sharpening.Decoder):
    """The half that paints, on pictures."""

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """What ``Frames.decode`` does."""
        with flat_convolutions():
            return super().forward(z.unsqueeze(2)).squeeze(2)


class FrameEncoder(nn.Module):
    """A copy of the half that reads."""

    def __init__(self, vae: Frames) -> None:
        super().__init__()
        self.encoder = copy.deepcopy(vae.vae.encoder)
        self.quant_conv = copy.deepcopy(vae.vae.quant_conv)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Means and logarithms of variances, ``[N, 8, H / 4, W / 4]``."""
        with flat_convolutions():
            return self.quant_conv(self.encoder(x.unsqueeze(2))).squeeze(2)

    def install(self, vae: Frames) -> None:
        """Give the autoencoder this encoder."""
        vae.vae.encoder.load_state_dict(self.encoder.state_dict())
        vae.vae.quant_conv.load_state_dict(self.quant_conv.state_dict())


class EncoderLoss:
    """Difference to what another encoder says of random crops, in units of its latents' deviation."""

    def __init__(self, model: FrameEncoder, teacher: AutoencoderKL, pictures: list[list[torch.Tensor]]) -> None:
        self.model, self.teacher, self.pictures = model, teacher, pictures

    def __call__(self, step: int, generator: torch.Generator) -> torch.Tensor:
        """Draw the batch of one step and return its loss."""
        x = torch.stack([photos.crop(self.pictures[i % len(self.pictures)], 64, 64, generator) for i in range(16)])
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                wanted = self.teacher.encode(x).latent_dist
            mean, spread = self.model(x).float().chunk(2, 1)
        scaling = self.teacher.config.scaling_factor
        return scaling * F.l1_loss(mean, wanted.mean.float()) + 0.05 * F.l1_loss(spread, wanted.logvar.float())


@torch.no_grad()
def latent_bank(
    vae: AutoencoderKLWan, teacher: AutoencoderKL, pictures: list[list[torch.Tensor]]
) -> list[list[torch.Tensor]]:
    """Whole pictures encoded once, each channel shifted and scaled to 0 and 1, which ``vae``'s config then tells."""
    bank = [[teacher.encode(p[None]).latent_dist.mean[0] for p in per_material] for per_material in pictures]
    values = torch.cat([z.flatten(1) for per_material in bank for z in per_material], 1)
    mean, std = ([round(float(n), 5) for n in row] for row in (values.mean(1), values.std(1)))
    vae.register_to_config(latents_mean=mean, latents_std=std)
    shift, scale = (torch.tensor(row).view(-1, 1, 1) for row in (mean, std))
    return [[(z - shift) / scale for z in per_material] for per_material in bank]
