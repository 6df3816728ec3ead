"""UNet2DConditionModel: Stable Diffusion 1.x and 2.x, SDXL and its refiner."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from ..frame import CurrentFrame
from ..joining import may_be_joined
from ..swapping import ProcessorSwap
from .base import CallContext, Family

SDXL_PIXELS_PER_LATENT = 8

_DOWN = ("DownBlock2D", "CrossAttnDownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D")
_MID = ("UNetMidBlock2DCrossAttn", "UNetMidBlock2D", None)
_UP = ("UpBlock2D", "CrossAttnUpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D")
_BLOCKS = {"down_block_types": _DOWN, "up_block_types": _UP, "mid_block_type": _MID}
_CONDITIONING = ("text_embeds", "time_ids", "image_embeds")
_PARAMETERS = (
    "sample",
    "timestep",
    "encoder_hidden_states",
    "class_labels",
    "timestep_cond",
    "attention_mask",
    "cross_attention_kwargs",
    "added_cond_kwargs",
    "down_block_additional_residuals",
    "mid_block_additional_residual",
    "down_intrablock_additional_residuals",
    "encoder_attention_mask",
    "return_dict",
)
_REQUIRED = 3  # of the parameters
_REFUSED = {"attention_mask": "a mask over the canvas's own tokens"}
_BY_ROW = ("encoder_hidden_states", "class_labels", "timestep_cond", "encoder_attention_mask")
_RESIDUALS = (
    "down_block_additional_residuals",
    "mid_block_additional_residual",
    "down_intrablock_additional_residuals",
)


class UNetFamily(Family):
    """`UNet2DConditionModel` with the blocks of SD 1.x, 2.x and SDXL."""

    name = "Stable Diffusion 1.x, 2.x, SDXL"
    classes: tuple[str, ...] = ("UNet2DConditionModel",)
    pipelines: tuple[str, ...] = (
        "StableDiffusionPipeline",
        "StableDiffusionImg2ImgPipeline",
        "StableDiffusionInpaintPipeline",
        "StableDiffusionXLPipeline",
        "StableDiffusionXLImg2ImgPipeline",
        "StableDiffusionXLInpaintPipeline",
    )
    hub = "stabilityai/stable-diffusion-xl-base-1.0"
    canvas = "sample"
    step_from_scheduler = False
    has_couplings = True
    no_joining = None
    halo_part = 8
    positions = "none"
    no_canvas_positions = "a UNet's tokens have no positions"
    by_row: tuple[str, ...] = _BY_ROW
    """Arguments with a row per row of the canvas batch, besides the timestep and added conditioning."""
    on_canvas: tuple[str, ...] = _RESIDUALS
    """Further arguments that lie on the canvas."""

    def check(self, model: Any) -> None:
        """Raises ValueError for blocks and options that mix positions in ways that can't be coupled."""
        config = model.config
        check_blocks(model, tuple(_BLOCKS))
        if config.attention_type != "default":
            raise ValueError(
                f"attention_type: {config.attention_type!r} (GLIGEN) places boxes on the canvas; "
                "only 'default' can be tiled"
            )
        if config.addition_embed_type == "image_hint":
            raise ValueError("addition_embed_type: 'image_hint' adds a hint on the canvas, which can't be tiled yet")
        check_modules(model)

    def granularity(self, model: Any) -> tuple[int, ...]:
        """2 to the number of downsamplings."""
        return (int(2**model.num_upsamplers),) * 2

    def native_tile(self, model: Any) -> tuple[int, ...]:
        """The configuration's `sample_size`; 64 where it is missing."""
        size = model.config.sample_size
        if size is None:
            return (64, 64)
        return (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))

    def pixels(self, model: Any, pipe: Any | None) -> tuple[int, ...]:
        """The VAE's reduction; without one 8, as in every SDXL VAE (only SDXL UNets are told sizes in pixels)."""
        return (int(getattr(pipe, "vae_scale_factor", SDXL_PIXELS_PER_LATENT)),) * 2

    def parameters(self, model: Any) -> tuple[str, ...]:
        """Names of `UNet2DConditionModel.forward`'s parameters."""
        return _PARAMETERS

    def self_attentions(self, model: Any) -> dict[str, nn.Module]:
        """Self-attention layers of the down, mid and up blocks (`attn1`, and those of attention blocks)."""
        return {name: layer for name, layer in _attentions(model).items() if not layer.is_cross_attention}

    def cross_attentions(self, model: Any) -> dict[str, nn.Module]:
        """Cross-attention layers of the down, mid and up blocks (`attn2`)."""
        return {name: layer for name, layer in _attentions(model).items() if layer.is_cross_attention}

    def layers(self, model: Any, halo: bool, current: CurrentFrame) -> ProcessorSwap:
        """Processors of the package's own: the levels of a UNet differ in their token grids."""
        return ProcessorSwap(self.self_attentions(model), self.cross_attentions(model), halo, current)

    def feed_forwards(self, model: Any) -> list[nn.Module]:
        """Those of the transformer blocks."""
        return [module.ff for module in model.modules() if isinstance(module, BasicTransformerBlock)]

    def canvas_of(self, call: dict[str, Any], model: Any) -> Tensor:
        """`sample`; raises for a missing argument, and for conditioning that can't be tiled."""
        missing = [name for name in _PARAMETERS[:_REQUIRED] if name not in call]
        if missing:
            raise TypeError(f"forward: missing {', '.join(missing)}")
        sample = call["sample"]
        if not isinstance(sample, Tensor) or sample.ndim != 4:
            got = tuple(sample.shape) if isinstance(sample, Tensor) else type(sample).__name__
            raise ValueError(f"sample: got {got}; expected a tensor [B, C, height, width]")
        for name, reason in _REFUSED.items():
            if call.get(name) is not None:
                raise NotImplementedError(f"{name}: can't be tiled yet: {reason}; leave it out, or disable_tiling")
        check_conditioning(call)
        return sample

    def tile_call(self, call: dict[str, Any], tiles: Tensor, context: CallContext, model: Any) -> dict[str, Any]:
        """The same call for all tiles: conditioning repeated, residuals cut level by level, `time_ids` per tile."""
        repeat = context.repeat
        new = {**call, "sample": tiles}
        timestep = call["timestep"]
        if isinstance(timestep, Tensor) and timestep.ndim == 1:
            new["timestep"] = repeat("timestep", timestep)
        for name in _BY_ROW:
            if call.get(name) is not None:
                new[name] = repeat(name, call[name])
        added = call.get("added_cond_kwargs")
        if added is not None:
            new["added_cond_kwargs"] = {
                name: tile_time_ids(value, context) if name == "time_ids" else repeat(name, value)
                for name, value in added.items()
            }
        extra = call.get("cross_attention_kwargs")
        if extra is not None and extra.get("ip_adapter_masks") is not None:
            new["cross_attention_kwargs"] = {
                **extra,
                "ip_adapter_masks": tile_masks(extra["ip_adapter_masks"], context),
            }
        for name in _RESIDUALS:
            if call.get(name) is not None:
                new[name] = context.cut_all(name, call[name])
        return new

    def joined_call(self, call: dict[str, Any], context: CallContext, model: Any) -> dict[str, Any] | str:
        """The call itself, with a tile's `time_ids`; a text where tiles differ in these, or masks lie on the canvas."""
        widest = 2 * max(model.config.block_out_channels)  # with what skips the levels below
        if (call.get("cross_attention_kwargs") or {}).get("ip_adapter_masks") is not None:
            return "ip_adapter_masks are cut with the tiles"
        if context.size_conditioning == "crop" and "time_ids" in (call.get("added_cond_kwargs") or {}):
            return 'size_conditioning="crop" tells every tile another place'
        if not may_be_joined(context.layout, widest):
            return f"{widest} channels on {context.size} positions have 2^31 elements or more"
        new, timestep = dict(call), call["timestep"]
        if isinstance(timestep, Tensor) and timestep.ndim == 1:
            new["timestep"] = context.rows("timestep", timestep)
        for name in self.on_canvas:
            if call.get(name) is not None:
                context.check_cut(name, call[name])
        for name in (*self.by_row, *self.on_canvas):
            if call.get(name) is not None:
                new[name] = context.rows(name, call[name])
        added = call.get("added_cond_kwargs")
        if added is not None:
            new["added_cond_kwargs"] = {
                name: tile_time_ids(value, context)[: context.batch]
                if name == "time_ids"
                else context.rows(name, value)
                for name, value in added.items()
            }
        return new

    def encode(self, pipe: Any, prompt: str) -> dict[str, Tensor]:
        """CLIP's text; for SDXL of both encoders, with the pooled one."""
        options = {"device": pipe._execution_device, "num_images_per_prompt": 1, "do_classifier_free_guidance": False}
        outputs = pipe.encode_prompt(prompt, **options)
        if len(outputs) == 2:
            return {"encoder_hidden_states": outputs[0]}
        return {"encoder_hidden_states": outputs[0], "added_cond_kwargs.text_embeds": outputs[2]}


def check_blocks(model: Any, kinds: tuple[str, ...]) -> None:
    """Raises ValueError for block types, of the given entries of the configuration, that can't be coupled."""
    for name in kinds:
        known, got = _BLOCKS[name], model.config[name]
        blocks = got if isinstance(got, (list, tuple)) else (got,)
        strange = [block for block in blocks if block not in known]
        if strange:
            raise ValueError(f"{name}: can't tile a UNet with {strange}; supported are {', '.join(map(str, known))}")


def check_modules(model: Any) -> None:
    """Raises ValueError for layers that mix positions in ways that can't be coupled."""
    for name, module in model.named_modules():
        mode = getattr(module, "padding_mode", "zeros")
        if isinstance(module, nn.Conv2d) and mode != "zeros":
            raise ValueError(
                f"{name}: padding_mode is {mode!r}; tiling pads by itself: set it back to 'zeros' and pass "
                "wrap=True to enable_tiling"
            )
        if isinstance(module, Attention) and isinstance(module.norm_cross, nn.GroupNorm):
            raise ValueError(f"{name}: cross_attention_norm 'group_norm' can't be told from norms of the canvas")


def check_conditioning(call: dict[str, Any]) -> None:
    """Raises NotImplementedError for conditioning inside the dict arguments that lies on the canvas."""
    extra = call.get("cross_attention_kwargs")
    if extra is not None and extra.get("gligen") is not None:
        raise NotImplementedError(
            "cross_attention_kwargs: 'gligen' lies on the canvas and can't be tiled yet; leave it out"
        )
    added = call.get("added_cond_kwargs")
    strange = [name for name in ({} if added is None else added) if name not in _CONDITIONING]
    if strange:
        raise NotImplementedError(
            f"added_cond_kwargs: {strange} can't be tiled; supported are {', '.join(_CONDITIONING)}"
        )


def _attentions(model: Any) -> dict[str, Any]:
    """Attention layers over canvas tokens, by name."""
    blocks = ("down_blocks", "mid_block", "up_blocks")
    modules = model.named_modules()
    return {name: m for name, m in modules if name.split(".")[0] in blocks and isinstance(m, Attention)}


def tile_time_ids(time_ids: Tensor, context: CallContext) -> Tensor:
    """SDXL's size conditioning for every tile.

    Args:
        time_ids: [B, 6] (original height, width, crop top, left, target height, width) or, for the refiner, [B, 5]
            (original height, width, crop top, left, aesthetic score), in pixels.
        context: the layout, and what `size_conditioning` asks for:
            "tile": an original or target size that is the canvas's becomes the tile's, what the model saw in training;
            "crop": the original size becomes the canvas's, the crop is moved by the tile's origin, the target size
            becomes the tile's: the tile as a crop of one large picture;
            "canvas": as they are. One tile leaves them as they are, too.

    Returns:
        [T*B, 6] or [T*B, 5]; half precisions become float32, in which sizes from 65,520 pixels don't overflow and odd
        ones aren't rounded.

    Raises:
        ValueError: another shape.
    """
    layout, tiles = context.layout, context.layout.num_tiles
    if time_ids.ndim != 2 or time_ids.shape[0] not in (1, context.batch):
        raise ValueError(f"time_ids: got shape {tuple(time_ids.shape)}; expected [{context.batch}, 6] (refiner: 5)")
    rows = time_ids.expand(context.batch, -1).repeat(tiles, 1)
    if context.size_conditioning == "canvas" or context.whole:
        return rows
    if rows.shape[1] not in (5, 6):
        raise ValueError(
            f"time_ids: got {rows.shape[1]} numbers a row; size_conditioning={context.size_conditioning!r} knows 6, "
            "or 5 for the refiner; use size_conditioning='canvas'"
        )
    wide = torch.promote_types(rows.dtype, torch.float32) if rows.is_floating_point() else rows.dtype
    canvas = _row(rows, _pixels(context.size, context), wide)
    tile = _row(rows, _pixels(layout.tile, context), wide)
    given, rows = rows, rows.to(wide)
    original, crop, rest = rows[:, :2], rows[:, 2:4], rows[:, 4:]
    if context.size_conditioning == "tile":
        rounded = canvas.to(given.dtype)
        original = torch.where((given[:, :2] == rounded).all(1, keepdim=True), tile, original)
        if rows.shape[1] == 6:
            rest = torch.where((given[:, 4:] == rounded).all(1, keepdim=True), tile, rest)
    else:
        origins = [_pixels(tuple(max(0, at) for at in origin), context) for origin in context.origins]
        original = canvas.expand_as(original)
        moved = torch.tensor(origins, dtype=wide, device=rows.device)  # [T, 2]
        crop = crop + moved.repeat_interleave(context.batch, 0)
        rest = tile.expand_as(rest) if rows.shape[1] == 6 else rest
    return torch.cat([original, crop, rest], dim=1)


def tile_masks(masks: Any, context: CallContext) -> list[Tensor]:
    """IP-Adapter's masks for every tile.

    Args:
        masks: per adapter [1, images, H, W], or one tensor [adapters, images, H, W], at a whole multiple or fraction of
            the canvas's resolution.
        context: the layout.

    Returns:
        Per adapter [T*B, images, h, w].

    Raises:
        TypeError, ValueError: something else.
    """
    out = []
    for mask in masks.unsqueeze(1) if isinstance(masks, Tensor) else masks:
        if not isinstance(mask, Tensor) or mask.ndim != 4 or mask.shape[0] != 1:
            got = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
            raise ValueError(f"ip_adapter_masks: got {got}; expected tensors [1, images, height, width]")
        out.append(context.cut("ip_adapter_masks", mask).repeat_interleave(context.batch, 0))
    return out


def _pixels(positions: tuple[int, ...], context: CallContext) -> list[int]:
    return [value * scale for value, scale in zip(positions, context.pixels, strict=True)]


def _row(like: Tensor, values: list[int], dtype: torch.dtype) -> Tensor:
    return torch.tensor([values], dtype=dtype, device=like.device)
