"""Lumina2Transformer2DModel: Lumina-Image 2.0."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...ops import Rotary
from ..turning import angles_of_rows
from .base import CallContext, Family, axial_frequencies, device_rotary


class Lumina2Family(Family):
    """Attention over [caption, image], refiners over each alone; rotary positions; captions as long as they are."""

    name = "Lumina-Image 2.0"
    classes = ("Lumina2Transformer2DModel",)
    pipelines = ("Lumina2Pipeline",)
    hub = "Alpha-VLLM/Lumina-Image-2.0"
    required = ("timestep", "encoder_hidden_states", "encoder_attention_mask")
    repeated = ("timestep", "encoder_hidden_states", "encoder_attention_mask")
    passed = ("return_dict", "attention_kwargs")
    attention = r"(noise_refiner|layers)\.\d+\.attn"
    cross_attention = r"context_refiner\.\d+\.attn"
    processors = ("Lumina2AttnProcessor2_0",)
    text = "first"
    positions = "rotary"
    no_canvas_positions = "the model counts an image's positions from 0 itself"

    def patch(self, model: Any) -> tuple[int, ...]:
        """The configuration's `patch_size`."""
        return (int(model.config.patch_size),) * 2

    def native_tile(self, model: Any) -> tuple[int, ...]:
        """The configuration's `sample_size`."""
        return (int(model.config.sample_size),) * 2

    def pixels(self, model: Any, pipe: Any | None) -> tuple[int, ...]:
        """The VAE's reduction; 8 without one."""
        return (int(getattr(pipe, "vae_scale_factor", 8)),) * 2

    def rotary(self, model: Any, context: CallContext) -> Rotary | None:
        """Pairs of neighbouring channels; the first axis counts the caption, height and width follow."""
        table = _frequencies(model)[1:]
        return device_rotary(table, context.call[self.canvas])

    def row_angles(
        self, call: dict[str, Any], context: CallContext, model: Any, lengths: tuple[int, ...] | None
    ) -> Tensor | None:
        """The canvas stands behind the caption."""
        return None if lengths is None else angles_of_rows(lengths, context.batch, _frequencies(model)[0])

    def text_lengths(self, call: dict[str, Any], context: CallContext) -> tuple[int, ...] | None:
        """The captions' lengths, where they differ."""
        lengths = tuple(int(n) for n in call["encoder_attention_mask"].sum(1).tolist())
        return lengths if len(set(lengths)) > 1 else None

    def encode(self, pipe: Any, prompt: str) -> dict[str, Tensor]:
        """The text with its mask."""
        text, mask, _, _ = pipe.encode_prompt(prompt, do_classifier_free_guidance=False)
        return {"encoder_hidden_states": text, "encoder_attention_mask": mask}


def _frequencies(model: Any) -> Tensor:
    """Radians per token of caption, height and width, [3, D / 2]."""
    rope = model.rope_embedder
    return axial_frequencies(tuple(rope.axes_dim), float(rope.theta))
