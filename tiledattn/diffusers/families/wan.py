"""WanTransformer3DModel: Wan 2.1 and 2.2, text and image to video."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...ops import Rotary
from .base import VIDEO, CallContext, Family, axial_frequencies, device_rotary
from .video import noisiest


class WanFamily(Family):
    """Wan: self-attention over (frames, height, width) with rotary positions, text by cross-attention."""

    name = "Wan 2.x"
    classes = ("WanTransformer3DModel",)
    pipelines = ("WanPipeline", "WanImageToVideoPipeline", "WanVideoToVideoPipeline")
    hub = "Wan-AI/Wan2.2-T2V-A14B-Diffusers"
    axes = VIDEO
    repeated = ("encoder_hidden_states", "encoder_hidden_states_image")
    passed = ("return_dict", "attention_kwargs")
    attention = r"blocks\.\d+\.attn1"
    cross_attention = r"blocks\.\d+\.attn2"
    processors = ("WanAttnProcessor",)
    positions = "rotary"
    no_canvas_positions = None  # across tiles the offsets are the canvas's already: "canvas" is "tile", to rounding
    step_from_scheduler = False

    def patch(self, model: Any) -> tuple[int, ...]:
        """The configuration's `patch_size`."""
        return tuple(model.config.patch_size)

    def native_tile(self, model: Any) -> tuple[int, ...]:
        """81 frames of 480x832 pixels."""
        return (21, 60, 104)

    def pixels(self, model: Any, pipe: Any | None) -> tuple[int, ...]:
        """The VAE's reduction; 4 frames, 8x8 pixels without one."""
        space = int(getattr(pipe, "vae_scale_factor_spatial", 8))
        return (int(getattr(pipe, "vae_scale_factor_temporal", 4)), space, space)

    def rotary(self, model: Any, context: CallContext) -> Rotary | None:
        """Pairs of neighbouring channels; time, height and width turn a share of them each."""
        table = axial_frequencies((model.rope.t_dim, model.rope.h_dim, model.rope.w_dim), 10000.0)
        return device_rotary(table, context.call[self.canvas])

    def tile_call(self, call: dict[str, Any], tiles: Tensor, context: CallContext, model: Any) -> dict[str, Any]:
        """Timesteps of tokens (Wan 2.2 5B, [B, tokens]) are cut like the canvas.

        A model of first and last frames takes two rows of images for one of the canvas batch.
        """
        images, pairs = call.get("encoder_hidden_states_image"), model.config.pos_embed_seq_len is not None
        if isinstance(images, Tensor) and pairs and images.shape[0] == 2 * context.batch:
            call = {**call, "encoder_hidden_states_image": torch.unflatten(images, 0, (-1, 2))}
        new = super().tile_call(call, tiles, context, model)
        if call.get("encoder_hidden_states_image") is not images:
            new["encoder_hidden_states_image"] = new["encoder_hidden_states_image"].flatten(0, 1)
        timestep = call["timestep"]
        if timestep.ndim == 2:
            grid = tuple(n // p for n, p in zip(context.size, self.patch(model), strict=True))
            new["timestep"] = context.cut_tokens("timestep", timestep, grid)
        elif timestep.ndim:
            new["timestep"] = context.repeat("timestep", timestep)
        return new

    def timestep_of(self, call: dict[str, Any]) -> Any:
        """The timestep of what isn't given."""
        return noisiest(call["timestep"])

    def encode(self, pipe: Any, prompt: str) -> dict[str, Tensor]:
        """UMT5's features of a prompt."""
        text, _ = pipe.encode_prompt(prompt, do_classifier_free_guidance=False)
        return {"encoder_hidden_states": text}
