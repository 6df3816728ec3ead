"""The denoiser: a UNet with attention at two levels and the text encoder it is trained with."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, UNet2DConditionModel
from torch import nn
from transformers import CLIPTokenizer

from training import batches, photos, text


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
        self.model = model
        self.scheduler = training_scheduler()
        prompts = [self._tokens(tokenizer, list(material.prompts)) for material in photos.MATERIALS]
        self.batches = batches.Batches(bank, self._tokens(tokenizer, [""])[0], prompts, batch)

    @staticmethod
    def _tokens(tokenizer: CLIPTokenizer, prompts: list[str]) -> torch.Tensor:
        encoded = tokenizer(prompts, padding="max_length", max_length=text.LENGTH, truncation=True)
        return torch.tensor(encoded["input_ids"])

    def __call__(self, step: int, generator: torch.Generator) -> torch.Tensor:
        """Draw the batch of one step and return its loss."""
        batch = self.batches.draw(step, generator)
        t = (batch.strata * self.scheduler.config.num_train_timesteps).long()
        noisy = self.scheduler.add_noise(batch.clean, batch.noise, t)
        target = self.scheduler.get_velocity(batch.clean, batch.noise, t)
        with torch.autocast("cpu", torch.bfloat16):
            context = self.model.text(batch.tokens).last_hidden_state
            velocity = self.model.unet(noisy, t, context).sample
        return F.mse_loss(velocity.float(), target)
