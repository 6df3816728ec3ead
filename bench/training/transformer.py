"""The denoiser: a Wan transformer, in which attention alone carries anything from one position to another."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from diffusers import UniPCMultistepScheduler, WanTransformer3DModel
from diffusers.models.transformers.transformer_wan import WanAttnProcessor
from torch import nn
from transformers import T5Tokenizer

from training import batches, photos, words

_TOKENS = 10
# The pipeline pads prompts with zeros to `max_sequence_length` and attends to them all; any of these will do later.
_PADDED_LENGTHS = (16, 32, 64, 128, 226, 512)
_TIMESTEPS = 1000


def _attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
    return torch.softmax(scores if attn_mask is None else scores + attn_mask, -1) @ value


@contextmanager
def plain_attention() -> Iterator[None]:
    """Within it attention keeps its weights for the way back: on a CPU two thirds of the time of the fused one."""
    fused = F.scaled_dot_product_attention
    F.scaled_dot_product_attention = _attention
    try:
        yield
    finally:
        F.scaled_dot_product_attention = fused


class PaddedText(WanAttnProcessor):
    """Cross-attention in which one padding position counts for as many as the pipeline adds, and costs as one."""

    def __init__(self) -> None:
        super().__init__()
        self.bias: torch.Tensor | None = None

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, rotary_emb=None):
        """Wan's attention, biased."""
        bias = None if self.bias is None else self.bias.to(hidden_states.dtype)
        return super().__call__(attn, hidden_states, encoder_hidden_states, bias, rotary_emb)


class Denoiser(nn.Module):
    """Transformer and text encoder, together only because they are trained together."""

    def __init__(self, tokenizer: T5Tokenizer) -> None:
        super().__init__()
        self.text = words.build_encoder(tokenizer)
        self.transformer = WanTransformer3DModel(
            patch_size=(1, 1, 1),
            num_attention_heads=4,
            attention_head_dim=32,
            in_channels=4,
            out_channels=4,
            text_dim=words.WIDTH,
            freq_dim=128,
            ffn_dim=384,
            num_layers=8,
            rope_max_seq_len=1024,
        )
        nn.init.zeros_(self.transformer.proj_out.weight)
        nn.init.zeros_(self.transformer.proj_out.bias)


def sampling_scheduler() -> UniPCMultistepScheduler:
    """The solver Wan ships with, on the straight paths that training asks for."""
    return UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=1.0, num_train_timesteps=_TIMESTEPS
    )


class StepLoss:
    """Error of the predicted velocity, noise less latents, on random windows with a random phrasing as prompt."""

    def __init__(self, model: Denoiser, tokenizer: T5Tokenizer, bank: list[list[torch.Tensor]], batch: int) -> None:
        self.model = model
        prompts = [self._tokens(tokenizer, list(material.prompts)) for material in photos.MATERIALS]
        self.batches = batches.Batches(bank, self._tokens(tokenizer, [""])[0], prompts, batch)
        self.processors = [PaddedText() for _ in model.transformer.blocks]
        for block, processor in zip(model.transformer.blocks, self.processors, strict=True):
            block.attn2.set_processor(processor)

    @staticmethod
    def _tokens(tokenizer: T5Tokenizer, prompts: list[str]) -> torch.Tensor:
        encoded = tokenizer(prompts, padding="max_length", max_length=_TOKENS, truncation=True)
        return torch.tensor(encoded["input_ids"])

    def _context(self, tokens: torch.Tensor, length: int) -> torch.Tensor:
        """Texts as the pipeline hands them over at a ``max_sequence_length`` of ``length``; sets the processors."""
        mask = tokens.ne(0)
        counts = mask.sum(1, keepdim=True)
        place = torch.arange(tokens.shape[1])
        bias = torch.where(place == counts, torch.log((length - counts).float()), -math.inf)
        bias = torch.where(mask, 0.0, bias)[:, None, None]
        for processor in self.processors:
            processor.bias = bias
        return self.model.text(tokens, mask.long()).last_hidden_state * mask[..., None]

    def __call__(self, step: int, generator: torch.Generator) -> torch.Tensor:
        """Draw the batch of one step and return its loss."""
        batch = self.batches.draw(step, generator)
        length = _PADDED_LENGTHS[int(torch.randint(len(_PADDED_LENGTHS), (1,), generator=generator))]
        # A normal distribution's logistic: most steps lie midway, where there is most to learn.
        sigma = torch.sigmoid(torch.special.ndtri(batch.strata.clamp(1e-4, 1 - 1e-4)))
        level = sigma.view(-1, 1, 1, 1)
        noisy = batch.clean.lerp(batch.noise, level)
        with plain_attention(), torch.autocast("cpu", torch.bfloat16):
            context = self._context(batch.tokens, length)
            velocity = self.model.transformer(noisy.unsqueeze(2), sigma * _TIMESTEPS, context).sample.squeeze(2)
        return F.mse_loss(velocity.float(), batch.noise - batch.clean)
