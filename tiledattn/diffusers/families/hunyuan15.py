"""HunyuanVideo15Transformer3DModel: HunyuanVideo 1.5, text and image to video."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ...ops import Rotary
from .base import VIDEO, CallContext, Family, axial_frequencies, device_rotary
from .video import timesteps_of_tiles, vae_factors


class HunyuanVideo15Family(Family):
    """HunyuanVideo 1.5: joint attention over [video, image and text] with a mask, rotary positions."""

    name = "HunyuanVideo 1.5"
    classes = ("HunyuanVideo15Transformer3DModel",)
    pipelines = ("HunyuanVideo15Pipeline",)
    hub = "hunyuanvideo-community/HunyuanVideo-1.5-Diffusers-480p_t2v"
    axes = VIDEO
    required = (
        "timestep",
        "encoder_hidden_states",
        "encoder_attention_mask",
        "encoder_hidden_states_2",
        "encoder_attention_mask_2",
        "image_embeds",
    )
    repeated = (*required[1:], "timestep_r")
    passed = ("return_dict", "attention_kwargs")
    attention = r"transformer_blocks\.\d+\.attn"
    processors = ("HunyuanVideo15AttnProcessor2_0",)
    text = "last"
    positions = "rotary"
    no_canvas_positions = "text would stand as far from a tile as from the canvas's corner, farther than in training"
    notes = "Text that has seen its tile differs from tile to tile."

    def patch(self, model: Any) -> tuple[int, ...]:
        """The configuration's `patch_size_t` and `patch_size`."""
        config = model.config
        return (config.patch_size_t, config.patch_size, config.patch_size)

    def native_tile(self, model: Any) -> tuple[int, ...]:
        """121 frames of 480x848 pixels; of 720x1280 for the larger `target_size`."""
        return (31, 45, 80) if model.config.target_size > 640 else (31, 30, 53)

    def pixels(self, model: Any, pipe: Any | None) -> tuple[int, ...]:
        """The VAE's reduction; 4 frames, 16x16 pixels without one."""
        return vae_factors(pipe, "vae_scale_factor_temporal", "vae_scale_factor_spatial", (4, 16))

    def rotary(self, model: Any, context: CallContext) -> Rotary | None:
        """Pairs of neighbouring channels; time, height and width turn a share of them each."""
        table = axial_frequencies(tuple(model.config.rope_axes_dim), model.config.rope_theta)
        return device_rotary(table, context.call[self.canvas])

    def tile_call(self, call: dict[str, Any], tiles: Tensor, context: CallContext, model: Any) -> dict[str, Any]:
        """All conditioning is repeated."""
        new = super().tile_call(call, tiles, context, model)
        new["timestep"] = timesteps_of_tiles(call["timestep"], context, ())
        return new
