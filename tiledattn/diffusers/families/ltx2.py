"""LTX2VideoTransformer3DModel: LTX-2, video with sound."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from ...geometry import TileLayout
from ...geometry.axis import axis_owners
from ...ops import Rotary
from ..frame import CurrentFrame, Frame
from ..sdpa import MarkedLayers
from .base import VIDEO, CallContext, Family, device_rotary
from .ltx import VIDEO_SIZE, check_patch, fractional_frequencies, pack, unpack, unpack_tokens
from .video import FamilyHook, HookedLayers, noisiest, timesteps_of_tiles, vae_factors

_REFUSED = {"video_self_attention_mask": "a mask between the canvas's own tokens"}


class LTX2VideoFamily(Family):
    """LTX-2: self-attention over packed video, with text and sound by cross-attention.

    Sound lies on no canvas position. There is one soundtrack: the layers in which it attends to the video see the
    whole canvas, each position once, so that it stays the same in all tiles and is what the untiled model makes of the
    same video. For its sake time is always the canvas's; "tile" and "canvas" differ in height and width.
    """

    name = "LTX-2"
    classes = ("LTX2VideoTransformer3DModel",)
    pipelines = ("LTX2Pipeline",)
    hub = "Lightricks/LTX-2"
    axes = VIDEO
    required = (
        "audio_hidden_states",
        "encoder_hidden_states",
        "audio_encoder_hidden_states",
        "timestep",
        *VIDEO_SIZE,
    )
    repeated = (
        "audio_hidden_states",
        "encoder_hidden_states",
        "audio_encoder_hidden_states",
        "encoder_attention_mask",
        "audio_encoder_attention_mask",
        "audio_timestep",
        "sigma",
        "audio_sigma",
        "audio_coords",
        "perturbation_mask",
    )
    passed = (
        "return_dict",
        "attention_kwargs",
        "fps",
        "audio_num_frames",
        "video_coords",
        "video_keyframes_mask",
        "isolate_modalities",
        "spatio_temporal_guidance_blocks",
        "use_cross_timestep",
    )
    refused = _REFUSED
    attention = r"transformer_blocks\.\d+\.attn1"
    cross_attention = (
        r"transformer_blocks\.\d+\.(attn2|audio_attn1|audio_attn2|audio_to_video_attn|video_to_audio_attn)"
    )
    processors = ("LTX2AudioVideoAttnProcessor", "LTX2PerturbedAttnProcessor")
    positions = "rotary"
    shift_defaults = (1024, 4096, 0.95, 2.05)
    no_canvas_positions = None
    notes = "Sound hears the whole canvas, whatever the halo; for its sake time is the canvas's in every tile."
    step_from_scheduler = False

    def check(self, model: Any) -> None:
        """Raises ValueError for patches of several latents."""
        check_patch(model)

    def native_tile(self, model: Any) -> tuple[int, ...]:
        """121 frames of 512x768 pixels."""
        return (16, 16, 24)

    def pixels(self, model: Any, pipe: Any | None) -> tuple[int, ...]:
        """The VAE's reduction; 8 frames, 32x32 pixels without one."""
        return vae_factors(pipe, "vae_temporal_compression_ratio", "vae_spatial_compression_ratio", (8, 32))

    def layers(self, model: Any, halo: bool, current: CurrentFrame) -> MarkedLayers:
        """Sound attends to the whole canvas; layers that guidance perturbs don't attend at all."""
        hooks: list[tuple[nn.Module, FamilyHook]] = []
        for block in model.transformer_blocks:
            hooks += [(block.video_to_audio_attn, _HearsCanvas(current)), (block.attn1, _Perturbed(current))]
        crossing, watched = self.self_attentions(model), self.cross_attentions(model)
        return HookedLayers(hooks, crossing, watched, halo, current, self.processors)

    def canvas_of(self, call: dict[str, Any], model: Any) -> Tensor:
        """Packed tokens [B, frames * height * width, C] -> [B, C, frames, height, width]."""
        self.check_call(call)
        return unpack(call)

    def rotary(self, model: Any, context: CallContext) -> Rotary | None:
        """Pairs dealt to the axes in turn over all heads; time isn't turned, as it is the canvas's already."""
        if context.positions == "canvas":
            return None
        rope, factors = model.rope, model.config.vae_scale_factors
        units = [0.0, factors[1] / rope.base_height, factors[2] / rope.base_width]
        table = fractional_frequencies(rope.dim, rope.num_attention_heads, rope.theta, units)
        return device_rotary(table, context.call[self.canvas], rope.rope_type == "interleaved")

    def tile_call(self, call: dict[str, Any], tiles: Tensor, context: CallContext, model: Any) -> dict[str, Any]:
        """Packed tiles, their shape and coordinates; timesteps and marks of tokens are cut, all else is repeated.

        Raises:
            NotImplementedError: a video that is periodic in time, or a part of the canvas.
        """
        size = context.size
        covered = zip(context.layout.size, context.origins[0], size, context.layout.wrap, strict=True)
        if any(length < full if wrap else begin > 0 or begin + length < full for length, begin, full, wrap in covered):
            raise NotImplementedError("refresh: sound hears the whole canvas and can't be made of a part of it")
        if context.layout.wrap[0]:
            raise NotImplementedError("wrap: a video with sound can't be periodic in time; pass False for frames")
        new = super().tile_call(call, pack(tiles), context, model)
        new.update(zip(VIDEO_SIZE, context.layout.tile, strict=True))
        new["timestep"] = timesteps_of_tiles(call["timestep"], context, size)
        if call.get("video_keyframes_mask") is not None:
            new["video_keyframes_mask"] = context.cut_tokens("video_keyframes_mask", call["video_keyframes_mask"], size)
        new["video_coords"] = self._coordinates(call, model, context)
        return new

    def timestep_of(self, call: dict[str, Any]) -> Any:
        """The timestep of what isn't given."""
        return noisiest(call["timestep"])

    def prediction_of(self, output: Any, context: CallContext) -> Tensor:
        """[T*B, C, *tile]."""
        return unpack_tokens(super().prediction_of(output, context), context.layout.tile)

    def with_prediction(self, output: Any, prediction: Tensor, context: CallContext) -> Any:
        """Video packed again; sound is the same in all tiles."""
        if isinstance(output, tuple):
            return (pack(prediction), output[1][: context.batch])
        return type(output)(sample=pack(prediction), audio_sample=output.audio_sample[: context.batch])

    def _coordinates(self, call: dict[str, Any], model: Any, context: CallContext) -> Tensor:
        """[T*B, 3, tokens, 2]: seconds of the canvas, pixels of the tile or of the canvas."""
        layout, coords = context.layout, call.get("video_coords")
        if coords is None:
            device = call[self.canvas].device
            fps = {} if call.get("fps") is None else {"fps": call["fps"]}
            coords = model.rope.prepare_video_coords(context.batch, *context.size, device, **fps)
        by_token = coords.transpose(1, 2)  # [B, tokens, 3, ...]
        cut = context.cut_tokens("video_coords", by_token, context.size)
        if context.positions == "tile":
            frames, height, width = layout.tile
            first = torch.unflatten(by_token, 1, context.size)[:, :frames, :height, :width].flatten(1, 3)
            local = context.repeat("video_coords", first)
            cut = torch.cat([cut[:, :, :1], local[:, :, 1:]], 2)
        return cut.transpose(1, 2)


class _HearsCanvas(FamilyHook):
    """On the layers in which sound attends to video: one soundtrack, which hears the whole canvas."""

    def before(
        self, frame: Frame, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Rows [T*B, ...] of sound and tiles of video -> rows [B, ...] of sound and of the canvas."""
        assert frame.tokens is not None
        tiles, (sound,) = frame.tokens.num_tiles, args
        batch = sound.shape[0] // tiles
        index = _owners(frame.tokens, frame.origins[0], frame.size).to(sound.device)

        def gather(x: Tensor) -> Tensor:
            """[T*B, (H,) tokens of a tile, C] -> [B, (H,) tokens of the canvas, C]."""
            return torch.unflatten(x, 0, (tiles, batch)).movedim(0, -3).flatten(-3, -2).index_select(-2, index)

        new = dict(kwargs)
        new["encoder_hidden_states"] = gather(kwargs["encoder_hidden_states"])
        new["query_rotary_emb"] = tuple(x[:batch] for x in kwargs["query_rotary_emb"])
        new["key_rotary_emb"] = tuple(gather(x) for x in kwargs["key_rotary_emb"])
        return (sound[:batch],), new

    def after(self, frame: Frame, module: nn.Module, output: Any) -> Any:
        """Rows [B, ...] -> [T*B, ...]."""
        assert frame.tokens is not None
        return output.repeat(frame.tokens.num_tiles, 1, 1)


class _Perturbed(FamilyHook):
    """On self-attention layers: one that guidance perturbs in all rows passes values on, and has nothing to cross."""

    def before(
        self, frame: Frame, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The layer isn't waited for."""
        if kwargs.get("all_perturbed") is not None and bool(kwargs["all_perturbed"]):
            frame.layer = None
        return args, kwargs


@lru_cache(maxsize=32)
def _owners(layout: TileLayout, begin: tuple[int, ...], size: tuple[int, ...]) -> Tensor:
    """For each canvas position the index among [T * tokens of a tile] of the token that stands for it, once each.

    It is that of the tile in which the position lies deepest on each axis; ties go to the lower index. `begin` is where
    the layout begins on the canvas of `size`; what it covers outside the canvas is left out.
    """
    tiles, places = [], []
    for axis, origins, start, length in zip(layout.axes, layout.axis_origins, begin, size, strict=True):
        position = torch.arange(axis.length, device="cpu")
        if not axis.wrap:
            position = position[(position + start >= 0) & (position + start < length)]
        tile = torch.from_numpy(axis_owners(axis).copy())[position]
        tiles.append(tile)
        places.append((position - torch.tensor(origins, device="cpu")[tile]) % axis.length)

    def ravel(indices: list[Tensor], sizes: tuple[int, ...]) -> Tensor:
        frames, height, width = indices
        return (frames[:, None, None] * sizes[1] + height[:, None]) * sizes[2] + width

    return (ravel(tiles, layout.grid) * layout.tile_positions + ravel(places, layout.tile)).flatten()
