"""MochiTransformer3DModel: Mochi 1."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ...ops import Rotary
from ..frame import CurrentFrame, Frame
from ..rows import RowByRow
from ..sdpa import MarkedLayers
from .base import VIDEO, CallContext, Family, device_rotary
from .video import FamilyHook, HookedLayers, timesteps_of_tiles, vae_factors


class MochiFamily(Family):
    """Mochi: joint attention over [video, text] with a mask, learned rotary frequencies for each head."""

    name = "Mochi 1"
    classes = ("MochiTransformer3DModel",)
    pipelines = ("MochiPipeline",)
    hub = "genmo/mochi-1-preview"
    axes = VIDEO
    required = ("timestep", "encoder_hidden_states", "encoder_attention_mask")
    repeated = ("encoder_hidden_states", "encoder_attention_mask")
    passed = ("return_dict", "attention_kwargs")
    attention = r"transformer_blocks\.\d+\.attn1"
    processors = ("MochiAttnProcessor2_0",)
    text = "last"
    positions = "rotary"
    no_canvas_positions = "the model scales its positions to the area of what it is given"
    notes = "Text that has seen its tile differs from tile to tile."

    def patch(self, model: Any) -> tuple[int, ...]:
        """The configuration's `patch_size`, in height and width."""
        return (1, model.config.patch_size, model.config.patch_size)

    def native_tile(self, model: Any) -> tuple[int, ...]:
        """163 frames of 480x848 pixels."""
        return (28, 60, 106)

    def pixels(self, model: Any, pipe: Any | None) -> tuple[int, ...]:
        """The VAE's reduction: 6 frames, 8x8 pixels."""
        return vae_factors(pipe, "vae_temporal_scale_factor", "vae_spatial_scale_factor", (6, 8))

    def layers(self, model: Any, halo: bool, current: CurrentFrame) -> MarkedLayers:
        """The processor attends to rows one at a time."""
        crossing = self.self_attentions(model)
        hooks = [(layer, _Rows(current)) for layer in crossing.values()]
        return HookedLayers(hooks, crossing, {}, halo, current, self.processors)

    def rotary(self, model: Any, context: CallContext) -> Rotary | None:
        """Pairs of neighbouring channels, turned by all axes; steps in height and width go by the tile's area."""
        _, height, width = (n // p for n, p in zip(context.layout.tile, self.patch(model), strict=True))
        step = (model.rope.target_area / (height * width)) ** 0.5
        learned = model.pos_frequencies.detach().float()
        return device_rotary(learned * learned.new_tensor([1.0, step, step])[:, None, None], context.call[self.canvas])

    def tile_call(self, call: dict[str, Any], tiles: Tensor, context: CallContext, model: Any) -> dict[str, Any]:
        """All conditioning is repeated; the mask of the text always goes along."""
        new = super().tile_call(call, tiles, context, model)
        new["timestep"] = timesteps_of_tiles(call["timestep"], context, ())
        return new


class _Rows(FamilyHook):
    """On attention layers: their rows are collected."""

    def before(
        self, frame: Frame, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """From now on."""
        frame.rows = RowByRow(kwargs["hidden_states"].shape[0])
        return args, kwargs

    def after(self, frame: Frame, module: nn.Module, output: Any) -> Any:
        """No longer."""
        frame.rows = None
        return output
