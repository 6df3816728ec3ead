"""What a step of either denoiser learns from: windows of the latents, phrasings, noise and where on its way it is."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from training import photos

# Heights and widths in latents. One step in five is larger than native, so that attention has met more keys
# than a tile's own; those batches are smaller to cost about the same.
_SHAPES = ((16, 16), (16, 16), (16, 16), (16, 16), (16, 32), (16, 16), (16, 16), (16, 16), (16, 16), (32, 16))
_EMPTY_PROMPT = 0.12


@dataclass
class Batch:
    """``clean`` and ``noise`` are ``[N, 4, H, W]``; ``strata`` in 0..1, one in each N-th of it."""

    clean: torch.Tensor
    tokens: torch.Tensor
    noise: torch.Tensor
    strata: torch.Tensor


class Batches:
    """Draws batches of ``size`` native crops, or of fewer larger ones."""

    def __init__(
        self, bank: list[list[torch.Tensor]], empty: torch.Tensor, prompts: list[torch.Tensor], size: int
    ) -> None:
        self.bank, self.empty, self.prompts, self.size = bank, empty, prompts, size

    def _prompt(self, material: int, generator: torch.Generator) -> torch.Tensor:
        if float(torch.rand((), generator=generator)) < _EMPTY_PROMPT:
            return self.empty
        choices = self.prompts[material]
        return choices[int(torch.randint(len(choices), (1,), generator=generator))]

    def draw(self, step: int, generator: torch.Generator) -> Batch:
        """The batch of one step."""
        height, width = _SHAPES[step % len(_SHAPES)]
        count = self.size * 256 // (height * width)
        materials = [i % len(self.bank) for i in range(count)]
        clean = torch.stack([photos.crop(self.bank[m], height, width, generator) for m in materials])
        tokens = torch.stack([self._prompt(m, generator) for m in materials])
        noise = torch.randn(clean.shape, generator=generator)
        # One stratum per picture: the same spread of noise levels in every batch is a quieter gradient.
        strata = (torch.rand(count, generator=generator) + torch.randperm(count, generator=generator)) / count
        return Batch(clean, tokens, noise, strata)
