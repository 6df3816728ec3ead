"""HunyuanVideoTransformer3DModel: HunyuanVideo, text and image to video."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ...ops import Rotary
from ..frame import CurrentFrame, Frame
from ..sdpa import MarkedLayers
from .base import VIDEO, CallContext, Family, axial_frequencies, device_rotary
from .video import FamilyHook, HookedLayers, rows_of_first_frames, timesteps_of_tiles, vae_factors


class HunyuanVideoFamily(Family):
    """HunyuanVideo: joint attention over [video, text] with a mask of the text, rotary positions."""

    name = "HunyuanVideo"
    classes = ("HunyuanVideoTransformer3DModel",)
    pipelines = ("HunyuanVideoPipeline", "HunyuanVideoImageToVideoPipeline")
    hub = "hunyuanvideo-community/HunyuanVideo"
    axes = VIDEO
    required = ("timestep", "encoder_hidden_states", "encoder_attention_mask", "pooled_projections")
    repeated = ("encoder_hidden_states", "encoder_attention_mask", "pooled_projections", "guidance")
    passed = ("return_dict", "attention_kwargs")
    attention = r"(single_)?transformer_blocks\.\d+\.attn"
    processors = ("HunyuanVideoAttnProcessor2_0",)
    text = "last"
    positions = "rotary"
    no_canvas_positions = "text would stand as far from a tile as from the canvas's corner, farther than in training"
    notes = "Text that has seen its tile differs from tile to tile."

    def patch(self, model: Any) -> tuple[int, ...]:
        """The configuration's `patch_size_t` and `patch_size`."""
        config = model.config
        return (config.patch_size_t, config.patch_size, config.patch_size)

    def native_tile(self, model: Any) -> tuple[int, ...]:
        """129 frames of 720x1280 pixels."""
        return (33, 90, 160)

    def pixels(self, model: Any, pipe: Any | None) -> tuple[int, ...]:
        """The VAE's reduction; 4 frames, 8x8 pixels without one."""
        return vae_factors(pipe, "vae_scale_factor_temporal", "vae_scale_factor_spatial", (4, 8))

    def layers(self, model: Any, halo: bool, current: CurrentFrame) -> MarkedLayers:
        """Where a given first frame replaces tokens, only tiles that begin with it treat their first frame as given."""
        hooks: list[tuple[nn.Module, FamilyHook]] = []
        if model.config.image_condition_type == "token_replace":
            hooks = [(model.time_text_embed, _GivenFirstFrame(current))]
        return HookedLayers(hooks, self.self_attentions(model), {}, halo, current, self.processors)

    def rotary(self, model: Any, context: CallContext) -> Rotary | None:
        """Pairs of neighbouring channels; time, height and width turn a share of them each."""
        table = axial_frequencies(tuple(model.config.rope_axes_dim), model.config.rope_theta)
        return device_rotary(table, context.call[self.canvas])

    def tile_call(self, call: dict[str, Any], tiles: Tensor, context: CallContext, model: Any) -> dict[str, Any]:
        """All conditioning is repeated; the mask of the text always goes along.

        Raises:
            NotImplementedError: a periodic time axis with a given first frame.
        """
        if model.config.image_condition_type == "token_replace" and context.layout.wrap[0]:
            raise NotImplementedError("wrap: a video whose first frame is given can't be periodic in time; use False")
        new = super().tile_call(call, tiles, context, model)
        new["timestep"] = timesteps_of_tiles(call["timestep"], context, ())
        return new


class _GivenFirstFrame(FamilyHook):
    """After the embedding of time and text: token replacement in tiles that begin with the canvas's first frame only.

    In the others the modulation of "replaced" tokens is that of all tokens.
    """

    def after(self, frame: Frame, module: nn.Module, output: Any) -> Any:
        """Rows [T*B, C] of (modulation, modulation of the given frame)."""
        modulation, given = output
        first = rows_of_first_frames(frame, len(modulation), modulation.device)
        return modulation, torch.where(first[:, None], given, modulation)
