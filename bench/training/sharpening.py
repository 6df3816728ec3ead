"""The decoder's second schooling: with the encoder fixed, it learns grain that an average over guesses would blur."""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from training import autoencoder, photos

_GRAIN = 0.6
# Sampled latents are a little off the encoder's; the decoder should not take that for detail.
_LATENT_NOISE = 0.05


class Decoder(nn.Module):
    """A copy of the half of an autoencoder that paints."""

    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.post_quant_conv = copy.deepcopy(vae.post_quant_conv).requires_grad_(True)
        self.decoder = copy.deepcopy(vae.decoder).requires_grad_(True)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """What the autoencoder's ``decode`` does."""
        return self.decoder(self.post_quant_conv(z))

    def install(self, vae: Any) -> None:
        """Give the autoencoder this decoder."""
        vae.decoder.load_state_dict(self.decoder.state_dict())
        vae.post_quant_conv.load_state_dict(self.post_quant_conv.state_dict())


def _grain(x: torch.Tensor) -> torch.Tensor:
    """Log amplitudes of the spectra of 8x8 patches: how rough a place is and in which direction, not where."""
    patches = x.mean(1, keepdim=True).unfold(2, 8, 4).unfold(3, 8, 4)
    window = torch.hann_window(8)
    amplitude = torch.fft.rfft2(patches * window[:, None] * window).abs()
    return torch.log(amplitude + 0.05)


class StepLoss:
    """The autoencoder's loss with more weight on grain."""

    def __init__(
        self, model: Decoder, vae: Any, scaling: float, pictures: list[list[torch.Tensor]], grain: float = _GRAIN
    ) -> None:
        self.model, self.vae, self.pictures, self.grain = model, vae, pictures, grain
        self.noise = _LATENT_NOISE / scaling

    def __call__(self, step: int, generator: torch.Generator) -> torch.Tensor:
        """Draw the batch of one step and return its loss."""
        size, count = (128, 4) if step % 4 == 3 else (64, 16)
        x = torch.stack(
            [photos.crop(self.pictures[i % len(self.pictures)], size, size, generator) for i in range(count)]
        )
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                z = self.vae.encode(x).latent_dist.mean.float()
            y = self.model(z + self.noise * torch.randn(z.shape, generator=generator)).float()
        loss = autoencoder.reconstruction_loss(y, x)
        return loss + self.grain * F.l1_loss(_grain(y), _grain(x)) if self.grain else loss
