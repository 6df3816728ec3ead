"""FluxTransformer2DModel: Flux.1 dev, schnell, Krea, Fill, Depth, Canny and Kontext."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .base import CallContext
from .packed import Grid, PackedFamily, grids_of_ids, ids_of_grid

_RESIDUALS = ("controlnet_block_samples", "controlnet_single_block_samples")


class FluxFamily(PackedFamily):
    """Flux.1: joint attention over text and tokens, with rotary positions out of `img_ids` (image, row, column)."""

    name = "Flux.1"
    classes = ("FluxTransformer2DModel",)
    pipelines: tuple[str, ...] = (
        "FluxPipeline",
        "FluxImg2ImgPipeline",
        "FluxInpaintPipeline",
        "FluxFillPipeline",
        "FluxControlPipeline",
        "FluxKontextPipeline",
    )
    hub = "black-forest-labs/FLUX.1-dev"
    required: tuple[str, ...] = ("timestep", "encoder_hidden_states", "pooled_projections", "img_ids", "txt_ids")
    repeated: tuple[str, ...] = ("encoder_hidden_states", "pooled_projections")
    passed: tuple[str, ...] = (
        *_RESIDUALS,
        "guidance",
        "joint_attention_kwargs",
        "controlnet_blocks_repeat",
        "return_dict",
    )
    attention = r"(single_)?transformer_blocks\.\d+\.attn"
    processors: tuple[str, ...] = ("FluxAttnProcessor", "FluxIPAdapterAttnProcessor")
    kwargs = "joint_attention_kwargs"
    image_prompts: str | None = "ip_adapter_image_embeds"
    """The attention argument with a row of IP-Adapter's image prompts per row of the canvas batch."""
    notes = "reference images must be as large as the canvas; text sees its own tile only"

    def check_call(self, call: dict[str, Any]) -> None:
        """Image prompts of IP-Adapter are known besides."""
        others = {name: value for name, value in (call.get(self.kwargs) or {}).items() if name != self.image_prompts}
        super().check_call({**call, self.kwargs: others})

    def tile_call(self, call: dict[str, Any], tiles: Tensor, context: CallContext, model: Any) -> dict[str, Any]:
        """Every tile gets the image prompts; residuals of a ControlNet are cut like the canvas."""
        new = super().tile_call(call, tiles, context, model)
        for residuals in _RESIDUALS:
            if call.get(residuals) is not None:
                grid = self.grids(call)[0]
                new[residuals] = [context.cut_tokens(residuals, x, grid) for x in call[residuals]]
        name, kwargs = self.image_prompts, call.get(self.kwargs) or {}
        if name is not None and name in kwargs:
            new[self.kwargs] = {**kwargs, name: context.repeat(name, kwargs[name])}
        return new

    def grids(self, call: dict[str, Any]) -> list[Grid]:
        """Out of `img_ids`."""
        grids: list[Grid] = grids_of_ids("img_ids", _flat(call["img_ids"]))
        return grids

    def place(self, call: dict[str, Any], grids: list[Grid], context: CallContext) -> dict[str, Any]:
        """`img_ids` of a tile and its crops: both count from the tile's own corner."""
        ids, start, out = _flat(call["img_ids"]), 0, []
        for whole, grid in zip(self.grids(call), grids, strict=True):
            out.append(ids_of_grid(ids[start], grid))
            start += whole[0] * whole[1]
        return {"img_ids": torch.cat(out)}

    def encode(self, pipe: Any, prompt: str) -> dict[str, Tensor]:
        """Text of T5, and CLIP's pooled one."""
        text, pooled, _ = pipe.encode_prompt(prompt, None)
        return {"encoder_hidden_states": text, "pooled_projections": pooled}


def _flat(ids: Tensor) -> Tensor:
    """[S, axes]; of [B, S, axes] the model takes the first."""
    return ids[0] if ids.ndim == 3 else ids
