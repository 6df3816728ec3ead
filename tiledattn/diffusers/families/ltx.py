"""LTXVideoTransformer3DModel: LTX-Video, text and image to video."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ...ops import Rotary
from .base import VIDEO, CallContext, Family, device_rotary
from .video import noisiest, timesteps_of_tiles, vae_factors


class LTXVideoFamily(Family):
    """LTX-Video: self-attention over packed (frames, height, width), text by cross-attention.

    Rotary positions are fractions of a largest video, and each head has frequencies of its own.
    """

    name = "LTX-Video"
    classes = ("LTXVideoTransformer3DModel",)
    pipelines = ("LTXPipeline", "LTXImageToVideoPipeline")
    hub = "Lightricks/LTX-Video"
    axes = VIDEO
    required = ("encoder_hidden_states", "timestep", "encoder_attention_mask", "num_frames", "height", "width")
    repeated = ("encoder_hidden_states", "encoder_attention_mask")
    passed = ("return_dict", "attention_kwargs", "rope_interpolation_scale", "video_coords")
    attention = r"transformer_blocks\.\d+\.attn1"
    cross_attention = r"transformer_blocks\.\d+\.attn2"
    processors = ("LTXVideoAttnProcessor",)
    positions = "rotary"
    no_canvas_positions = None
    step_from_scheduler = False

    def check(self, model: Any) -> None:
        """Raises ValueError for patches of several latents."""
        check_patch(model)

    def native_tile(self, model: Any) -> tuple[int, ...]:
        """161 frames of 512x704 pixels."""
        return (21, 16, 22)

    def pixels(self, model: Any, pipe: Any | None) -> tuple[int, ...]:
        """The VAE's reduction; 8 frames, 32x32 pixels without one."""
        return vae_factors(pipe, "vae_temporal_compression_ratio", "vae_spatial_compression_ratio", (8, 32))

    def canvas_of(self, call: dict[str, Any], model: Any) -> Tensor:
        """Packed tokens [B, frames * height * width, C] -> [B, C, frames, height, width]."""
        if all(call.get(name) is None for name in VIDEO_SIZE):
            raise NotImplementedError(
                "num_frames, height, width: not given, as by LTXConditionPipeline, whose conditioning frames stand "
                "behind the canvas's tokens and can't be tiled; use LTXPipeline or LTXImageToVideoPipeline"
            )
        self.check_call(call)
        return unpack(call)

    def rotary(self, model: Any, context: CallContext) -> Rotary | None:
        """Pairs of neighbouring channels, dealt to time, height and width in turn over all heads.

        Raises:
            NotImplementedError: coordinates from outside: only "canvas" can take them.
        """
        if context.positions == "canvas":
            return None
        if context.call.get("video_coords") is not None:
            raise NotImplementedError('video_coords: are the canvas\'s; pass positions="canvas" to enable_tiling')
        rope, config = model.rope, model.config
        scale = context.call.get("rope_interpolation_scale")
        units = [1.0] * 3 if scale is None else [float(s) / b for s, b in zip(scale, _bases(rope), strict=True)]
        table = fractional_frequencies(rope.dim, config.num_attention_heads, rope.theta, units)
        return device_rotary(table, context.call[self.canvas])

    def tile_call(self, call: dict[str, Any], tiles: Tensor, context: CallContext, model: Any) -> dict[str, Any]:
        """Packed tiles, their shape; timesteps of tokens (image to video) are cut, with "canvas" coordinates, too."""
        new = super().tile_call(call, pack(tiles), context, model)
        new.update(zip(VIDEO_SIZE, context.layout.tile, strict=True))
        new["timestep"] = timesteps_of_tiles(call["timestep"], context, context.size)
        if context.positions == "canvas":
            coords = call.get("video_coords")
            if coords is None:
                coords = self._coordinates(call, model, context)
            cut = context.cut_tokens("video_coords", coords.transpose(1, 2), context.size)
            new["video_coords"] = cut.transpose(1, 2)
        return new

    def timestep_of(self, call: dict[str, Any]) -> Any:
        """The timestep of what isn't given."""
        return noisiest(call["timestep"])

    def prediction_of(self, output: Any, context: CallContext) -> Tensor:
        """[T*B, C, *tile]."""
        return unpack_tokens(super().prediction_of(output, context), context.layout.tile)

    def with_prediction(self, output: Any, prediction: Tensor, context: CallContext) -> Any:
        """Packed again."""
        return super().with_prediction(output, pack(prediction), context)

    def encode(self, pipe: Any, prompt: str) -> dict[str, Tensor]:
        """T5's features of a prompt, and which of them are padding."""
        text, mask, _, _ = pipe.encode_prompt(prompt, do_classifier_free_guidance=False)
        return {"encoder_hidden_states": text, "encoder_attention_mask": mask}

    def _coordinates(self, call: dict[str, Any], model: Any, context: CallContext) -> Tensor:
        """The canvas's coordinates [B, 3, tokens] in seconds and pixels, as the model makes them of its shape."""
        rope, scale = model.rope, call.get("rope_interpolation_scale")
        units = _bases(rope) if scale is None else scale
        device = call[self.canvas].device
        axes = [
            torch.arange(length, dtype=torch.float32, device=device) * unit
            for length, unit in zip(context.size, units, strict=True)
        ]
        grid = torch.stack(torch.meshgrid(*axes, indexing="ij")).flatten(1)
        return grid.expand(context.batch, *grid.shape)


VIDEO_SIZE = ("num_frames", "height", "width")


def check_patch(model: Any) -> None:
    """Raises ValueError for patches of several latents: no released model has them."""
    config = model.config
    if (config.patch_size, config.patch_size_t) != (1, 1):
        raise ValueError(
            f"patch_size, patch_size_t: got {config.patch_size}, {config.patch_size_t}; "
            "only patches of one latent can be tiled"
        )


def unpack(call: dict[str, Any]) -> Tensor:
    """Packed tokens [B, frames * height * width, C] -> [B, C, frames, height, width].

    Raises:
        ValueError: other tokens than the canvas's.
    """
    canvas, size = call["hidden_states"], tuple(int(call[name]) for name in VIDEO_SIZE)
    if not isinstance(canvas, Tensor) or canvas.ndim != 3 or canvas.shape[1] != math.prod(size):
        got = tuple(canvas.shape) if isinstance(canvas, Tensor) else type(canvas).__name__
        raise ValueError(
            f"hidden_states: got {got}; expected [B, {math.prod(size)}, C], tokens of (frames, height, width) {size}; "
            "conditioning tokens behind them can't be tiled"
        )
    return unpack_tokens(canvas, size)


def unpack_tokens(tokens: Tensor, size: tuple[int, ...]) -> Tensor:
    """[B, frames * height * width, C] -> [B, C, frames, height, width]."""
    return tokens.transpose(1, 2).reshape(tokens.shape[0], tokens.shape[2], *size)


def pack(canvas: Tensor) -> Tensor:
    """[B, C, frames, height, width] -> [B, frames * height * width, C]."""
    return canvas.flatten(2).transpose(1, 2)


def fractional_frequencies(dim: int, heads: int, theta: float, units: list[float]) -> Tensor:
    """Frequencies of rotary positions counted as fractions f, at angles theta^(j / (n - 1)) pi / 2 (2 f - 1).

    Pairs go to time, height and width in turn, over all heads; what n = dim // 6 pairs an axis leave over stands in
    front and isn't turned.

    Args:
        dim: channels of all heads.
        heads: H.
        theta: the largest rate.
        units: fractions per token, per axis; 0 for an axis that is not to be turned.

    Returns:
        Radians per token, float64 [3, H, dim / H / 2].
    """
    count = dim // 6
    powers = torch.linspace(0.0, 1.0, count, dtype=torch.float64, device="cpu")
    rates = (theta**powers * (math.pi / 2)).float().double() * 2
    table = torch.zeros(3, dim // 2, dtype=torch.float64, device="cpu")
    for axis, unit in enumerate(units):
        table[axis, dim // 2 - 3 * count + axis :: 3] = rates * unit
    return table.reshape(3, heads, -1)


def _bases(rope: Any) -> tuple[float, float, float]:
    return (rope.base_num_frames, rope.base_height, rope.base_width)
