"""SanaTransformer2DModel: Sana."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor

from .base import Family

_REFUSED = {
    "attention_mask": "it masks the canvas's own tokens",
    "controlnet_block_samples": "a ControlNet's residuals lie on the canvas",
}


class SanaFamily(Family):
    """Linear attention inside each tile, text by cross-attention; depthwise convolutions that cross borders."""

    name = "Sana"
    classes = ("SanaTransformer2DModel",)
    pipelines = ("SanaPipeline",)
    hub = "Efficient-Large-Model/Sana_1600M_1024px_diffusers"
    repeated = ("timestep", "guidance", "encoder_hidden_states", "encoder_attention_mask")
    passed = ("return_dict", "attention_kwargs")
    refused = _REFUSED
    attention = r"transformer_blocks\.\d+\.attn1"
    cross_attention = r"transformer_blocks\.\d+\.attn2"
    processors = ("SanaLinearAttnProcessor2_0", "SanaAttnProcessor2_0")
    no_halo = (
        "Sana's attention is linear, sums over all tokens that no softmax tells apart, so tiles are blended only; "
        "its convolutions cross borders"
    )
    positions = "absolute, or none"
    positional = "patch_embed"
    no_canvas_positions = None
    notes = "linear attention stays inside a tile"
    has_couplings = True

    def patch(self, model: Any) -> tuple[int, ...]:
        """The configuration's `patch_size`."""
        return (int(model.config.patch_size),) * 2

    def native_tile(self, model: Any) -> tuple[int, ...]:
        """The configuration's `sample_size`."""
        return (int(model.config.sample_size),) * 2

    def pixels(self, model: Any, pipe: Any | None) -> tuple[int, ...]:
        """The autoencoder's reduction; 32 without one."""
        return (int(getattr(pipe, "vae_scale_factor", 32)),) * 2

    def encode(self, pipe: Any, prompt: str) -> dict[str, Tensor]:
        """Gemma's text with its mask, under the pipeline's own instruction."""
        instruction = inspect.signature(type(pipe).__call__).parameters["complex_human_instruction"].default
        text, mask, _, _ = pipe.encode_prompt(
            prompt, do_classifier_free_guidance=False, complex_human_instruction=instruction
        )
        return {"encoder_hidden_states": text, "encoder_attention_mask": mask}
