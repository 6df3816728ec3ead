"""The denoiser: a UNet with attention at two levels and the text encoder it is trained with."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, UNet2DConditionModel
from torch import nn
from transformers import CLIPTokenizer

from training import photos, text

# Heights and widths in latents. One step in five is larger than native, so that attention has met more keys
# than a tile's own; those batches are smaller to cost about the same.
_SHAPES = ((16, 16), (16, 16), (16, 16), (16, 16), (16, 32), (16, 16), (16, 16), (16, 16), (16, 16), (32, 16))
_EMPTY_PROMPT = 0.12


class Denoiser(nn.Module):
    """UNet and text encoder, together only because they are trained together."""

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        super().__init__()
        self.text = text.build_encoder(tokenizer)
        self.unet = UNet2DConditionModel(
            sample_size=16,
            block_out_channels=(48, 96),
            layers_per_block=1,
            norm_num_groups=16,
            # Named so for historical reasons: diffusers reads it as the number of heads (dims 16 and 32).
            attention_head_dim=3,
            cross_attention_dim=64,
            down_block_types=("CrossAttnDownBlock2D",) * 2,
            up_block_types=("CrossAttnUpBlock2D",) * 2,
        )


_NOISE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    # Without a trace of signal at the end, dark and bright materials start from the same noise.
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
}


def training_scheduler() -> DDIMScheduler:
    """The noise that training adds and the velocity it asks for."""
    return DDIMScheduler(clip_sample=False, **_NOISE)


def sampling_scheduler() -> DPMSolverMultistepScheduler:
    """A deterministic second-order solver: its 20 steps have the contrast of 40 first-order ones."""
    return DPMSolverMultistepScheduler(**_NOISE)


class StepLoss:
    """Error of the predicted velocity on random windows of the latents, with a random phrasing as prompt."""

    def __init__(self, model: Denoiser, tokenizer: CLIPTokenizer, bank: list[list[torch.Tensor]], batch: int) -> None:
        self.model, self.bank, self.batch = model, bank, batch
        self.scheduler = training_scheduler()
        self.empty = self._tokens(tokenizer, [""])
        self.prompts = [self._tokens(tokenizer, list(material.prompts)) for material in photos.MATERIALS]

    @staticmethod
    def _tokens(tokenizer: CLIPTokenizer, prompts: list[str]) -> torch.Tensor:
        encoded = tokenizer(prompts, padding="max_length", max_length=text.LENGTH, truncation=True)
        return torch.tensor(encoded["input_ids"])

    def _prompt(self, material: int, generator: torch.Generator) -> torch.Tensor:
        if float(torch.rand((), generator=generator)) < _EMPTY_PROMPT:
            return self.empty[0]
        choices = self.prompts[material]
        return choices[int(torch.randint(len(choices), (1,), generator=generator))]

    def __call__(self, step: int, generator: torch.Generator) -> torch.Tensor:
        """Draw the batch of one step and return its loss."""
        height, width = _SHAPES[step % len(_SHAPES)]
        count = self.batch * 256 // (height * width)
        materials = [i % len(self.bank) for i in range(count)]
        clean = torch.stack([photos.crop(self.bank[m], height, width, generator) for m in materials])
        tokens = torch.stack([self._prompt(m, generator) for m in materials])
        noise = torch.randn(clean.shape, generator=generator)
        # One stratum per picture: the same spread of noise levels in every batch is a quieter gradient.
        strata = (torch.rand(count, generator=generator) + torch.randperm(count, generator=generator)) / count
        t = (strata * self.scheduler.config.num_train_timesteps).long()
        noisy = self.scheduler.add_noise(clean, noise, t)
        target = self.scheduler.get_velocity(clean, noise, t)
        with torch.autocast("cpu", torch.bfloat16):
            context = self.model.text(tokens).last_hidden_state
            velocity = self.model.unet(noisy, t, context).sample
        return F.mse_loss(velocity.float(), target)
