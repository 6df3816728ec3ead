"""The autoencoder, 64x64 pixels to 16x16 latents of 4 channels, and the latents the denoiser learns from."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from training import photos


def build() -> AutoencoderKL:
    """A purely convolutional autoencoder with 4x reduction."""
    return AutoencoderKL(
        block_out_channels=(32, 64, 64),
        layers_per_block=1,
        norm_num_groups=8,
        latent_channels=4,
        sample_size=64,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        # Attention in the middle would make the decoder's picture depend on the canvas size.
        mid_block_add_attention=False,
        force_upcast=False,
    )


def _spectrum(x: torch.Tensor) -> torch.Tensor:
    """Log amplitudes of the spectra of 16x16 patches: what a texture looks like, whatever its phase."""
    patches = x.mean(1, keepdim=True).unfold(2, 16, 8).unfold(3, 16, 8)
    window = torch.hann_window(16, periodic=False)
    amplitude = torch.fft.rfft2(patches * window[:, None] * window).abs()
    return torch.log(amplitude + 0.05)


def reconstruction_loss(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Absolute error of pixels, gradients and half-size pictures, and of spectra, which keeps grain alive."""
    loss = F.l1_loss(y, x) + 0.5 * F.l1_loss(F.avg_pool2d(y, 2), F.avg_pool2d(x, 2))
    for axis in (2, 3):
        loss = loss + 0.5 * F.l1_loss(y.diff(dim=axis), x.diff(dim=axis))
    return loss + 0.1 * F.l1_loss(_spectrum(y), _spectrum(x))


class StepLoss:
    """Loss of one step on random native crops; every fourth step sees fewer but larger ones."""

    def __init__(self, model: AutoencoderKL, pictures: list[list[torch.Tensor]]) -> None:
        self.model, self.pictures = model, pictures

    def __call__(self, step: int, generator: torch.Generator) -> torch.Tensor:
        """Draw the batch of one step and return its loss."""
        size, count = (128, 4) if step % 4 == 3 else (64, 16)
        x = torch.stack(
            [photos.crop(self.pictures[i % len(self.pictures)], size, size, generator) for i in range(count)]
        )
        with torch.autocast("cpu", torch.bfloat16):
            posterior = self.model.encode(x).latent_dist
            y = self.model.decode(posterior.sample(generator)).sample
        return reconstruction_loss(y.float(), x) + 1e-5 * posterior.kl().mean() / (size * size // 16)


@torch.no_grad()
def latent_bank(model: AutoencoderKL, pictures: list[list[torch.Tensor]]) -> list[list[torch.Tensor]]:
    """Whole pictures encoded once. Their windows are plain interiors, unmarked by any border of a crop."""
    bank = [[model.encode(p[None]).latent_dist.mean[0] for p in per_material] for per_material in pictures]
    spread = torch.cat([z.flatten() for per_material in bank for z in per_material]).std()
    model.register_to_config(scaling_factor=round(float(1 / spread), 5))
    return [[z * model.config.scaling_factor for z in per_material] for per_material in bank]
