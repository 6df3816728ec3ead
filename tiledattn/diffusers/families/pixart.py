"""PixArtTransformer2DModel: PixArt-alpha and PixArt-Sigma."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .base import CallContext, Family

_REFUSED = {"attention_mask": "it masks the canvas's own tokens"}


class PixArtFamily(Family):
    """Self-attention over the image, text by cross-attention; positions that are stretched over the picture."""

    name = "PixArt"
    classes = ("PixArtTransformer2DModel",)
    pipelines = ("PixArtSigmaPipeline", "PixArtAlphaPipeline")
    hub = "PixArt-alpha/PixArt-Sigma-XL-2-1024-MS"
    repeated = ("timestep", "encoder_hidden_states", "encoder_attention_mask")
    passed = ("return_dict", "cross_attention_kwargs", "added_cond_kwargs")
    refused = _REFUSED
    attention = r"transformer_blocks\.\d+\.attn1"
    cross_attention = r"transformer_blocks\.\d+\.attn2"
    processors = ("AttnProcessor2_0", "FusedAttnProcessor2_0")
    positions = "absolute"
    positional = "pos_embed"
    no_canvas_positions = None
    step_from_scheduler = False

    def check(self, model: Any) -> None:
        """Raises ValueError for GLIGEN's attention."""
        if model.config.attention_type != "default":
            raise ValueError(f"attention_type: can't tile {model.config.attention_type!r}; only 'default'")

    def patch(self, model: Any) -> tuple[int, ...]:
        """The configuration's `patch_size`."""
        return (int(model.config.patch_size),) * 2

    def native_tile(self, model: Any) -> tuple[int, ...]:
        """The configuration's `sample_size`."""
        return (int(model.config.sample_size),) * 2

    def pixels(self, model: Any, pipe: Any | None) -> tuple[int, ...]:
        """The VAE's reduction; 8 without one."""
        return (int(getattr(pipe, "vae_scale_factor", 8)),) * 2

    def check_call(self, call: dict[str, Any]) -> None:
        """Refuses what else `added_cond_kwargs` and `cross_attention_kwargs` may hold."""
        super().check_call(call)
        for name, known in (("added_cond_kwargs", ("resolution", "aspect_ratio")), ("cross_attention_kwargs", ())):
            strange = [key for key, value in (call.get(name) or {}).items() if value is not None and key not in known]
            if strange:
                raise NotImplementedError(f"{name}: {strange} can't be tiled; leave it out, or disable_tiling")

    def tile_call(self, call: dict[str, Any], tiles: Tensor, context: CallContext, model: Any) -> dict[str, Any]:
        """Conditioning repeated, sizes (PixArt-alpha) per tile."""
        new = super().tile_call(call, tiles, context, model)
        if call.get("added_cond_kwargs"):
            new["added_cond_kwargs"] = {
                name: None if value is None else context.repeat(name, _size_of_tile(name, value, context))
                for name, value in call["added_cond_kwargs"].items()
            }
        return new

    def encode(self, pipe: Any, prompt: str) -> dict[str, Tensor]:
        """T5's text with its mask."""
        text, mask, _, _ = pipe.encode_prompt(prompt, do_classifier_free_guidance=False, clean_caption=True)
        return {"encoder_hidden_states": text, "encoder_attention_mask": mask}


def _size_of_tile(name: str, value: Tensor, context: CallContext) -> Tensor:
    """A resolution [B, 2] or aspect ratio [B, 1] for tiles: where it is the canvas's, the tile's.

    Raises:
        ValueError: `size_conditioning` "crop", which PixArt has no words for.
    """
    if context.size_conditioning == "canvas" or context.whole:
        return value
    if context.size_conditioning == "crop":
        raise ValueError('size_conditioning: got "crop"; PixArt is told no crop; use "tile" or "canvas"')
    canvas, tile = (_told(name, size, value, context) for size in (context.size, context.layout.tile))
    same = (value == canvas).all(-1, keepdim=True)
    return torch.where(same, tile, value)


def _told(name: str, size: tuple[int, ...], like: Tensor, context: CallContext) -> Tensor:
    """What PixArt is told of a picture of `size` positions, [1, 2] or [1, 1]."""
    height, width = (n * scale for n, scale in zip(size, context.pixels, strict=True))
    numbers = [float(height), float(width)] if name == "resolution" else [height / width]
    return torch.tensor([numbers], device="cpu").to(like)
