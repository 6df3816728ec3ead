"""ControlNetModel and ControlNetUnionModel: ControlNets of Stable Diffusion and SDXL."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .base import CallContext, Family
from .unet import UNetFamily, check_blocks, check_conditioning, check_modules, tile_time_ids

_REFUSED = {"attention_mask": "a mask over the canvas's own tokens"}


class ControlNetFamily(UNetFamily):
    """A UNet's encoder that reads the canvas and a control image, and gives residuals for each level of the UNet.

    The control image lies on the canvas in pixels, the residuals at the levels' resolutions: they are blended to
    residuals of the whole canvas, which the UNet's tiling cuts again.
    """

    name = "ControlNets of Stable Diffusion 1.x, 2.x, SDXL"
    classes = ("ControlNetModel", "ControlNetUnionModel")
    pipelines = (
        "StableDiffusionControlNetPipeline",
        "StableDiffusionControlNetImg2ImgPipeline",
        "StableDiffusionControlNetInpaintPipeline",
        "StableDiffusionXLControlNetPipeline",
        "StableDiffusionXLControlNetImg2ImgPipeline",
        "StableDiffusionXLControlNetInpaintPipeline",
        "StableDiffusionXLControlNetUnionPipeline",
        "StableDiffusionXLControlNetUnionImg2ImgPipeline",
        "StableDiffusionXLControlNetUnionInpaintPipeline",
    )
    hub = "diffusers/controlnet-canny-sdxl-1.0"
    required = ("timestep", "encoder_hidden_states", "controlnet_cond")
    repeated = ("class_labels", "timestep_cond", "encoder_hidden_states", "control_type")
    passed = (
        "added_cond_kwargs",
        "cross_attention_kwargs",
        "conditioning_scale",
        "control_type_idx",
        "from_multi",
        "guess_mode",
        "return_dict",
    )
    refused = _REFUSED
    by_row = repeated
    on_canvas = ("controlnet_cond",)

    def check(self, model: Any) -> None:
        """Raises ValueError for blocks that mix positions in ways that can't be coupled."""
        check_blocks(model, ("down_block_types",))
        check_modules(model)

    def granularity(self, model: Any) -> tuple[int, ...]:
        """2 to the number of downsamplings."""
        return (2 ** (len(model.config.block_out_channels) - 1),) * 2

    def native_tile(self, model: Any) -> tuple[int, ...]:
        """64x64: a ControlNet doesn't know; in a pipeline its tiles are the UNet's."""
        return (64, 64)

    def finest(self, model: Any) -> int:
        """Pixels of the control image per latent: 2 to the number of its strided convolutions."""
        return int(2 ** (len(model.config.conditioning_embedding_out_channels) - 1))

    def parameters(self, model: Any) -> tuple[str, ...]:
        """Names of the forward's parameters in order."""
        return Family.parameters(self, model)

    def canvas_of(self, call: dict[str, Any], model: Any) -> Tensor:
        """`sample`; raises for arguments that can't be tiled, and control images of another size."""
        canvas = Family.canvas_of(self, call, model)
        check_conditioning(call)
        if (call.get("cross_attention_kwargs") or {}).get("ip_adapter_masks") is not None:
            raise NotImplementedError("cross_attention_kwargs: 'ip_adapter_masks' are the UNet's; leave them out")
        scale = self.finest(model)
        want = tuple(scale * length for length in canvas.shape[2:])
        images = call["controlnet_cond"]
        for image in images if isinstance(images, (list, tuple)) else (images,):
            if not isinstance(image, Tensor) or image.ndim != 4 or tuple(image.shape[2:]) != want:
                got = tuple(image.shape) if isinstance(image, Tensor) else type(image).__name__
                raise ValueError(
                    f"controlnet_cond: got {got}; expected a tensor [B, C, {want[0]}, {want[1]}], {scale} pixels for "
                    "each of the canvas's latents"
                )
        return canvas

    def tile_call(self, call: dict[str, Any], tiles: Tensor, context: CallContext, model: Any) -> dict[str, Any]:
        """Control images cut like the canvas, conditioning repeated, SDXL's `time_ids` per tile."""
        new = Family.tile_call(self, call, tiles, context, model)
        timestep = call["timestep"]
        if isinstance(timestep, Tensor) and timestep.ndim == 1:
            new["timestep"] = context.repeat("timestep", timestep)
        new["controlnet_cond"] = context.cut_all("controlnet_cond", call["controlnet_cond"])
        added = call.get("added_cond_kwargs")
        if added is not None:
            new["added_cond_kwargs"] = {
                name: tile_time_ids(value, context) if name == "time_ids" else context.repeat(name, value)
                for name, value in added.items()
            }
        return new

    def outputs_of(self, output: Any, context: CallContext) -> list[Tensor]:
        """The residuals of the levels, the middle's last; none for a net that pools them (`global_pool_conditions`)."""
        down, middle = _parts(output)
        residuals = [*down, middle]
        return [] if _pooled(residuals, context) else residuals

    def with_outputs(self, output: Any, outputs: list[Tensor], context: CallContext) -> Any:
        """The output with the canvas's residuals; pooled ones [T*B, C, 1, 1] become their mean [B, C, 1, 1]."""
        if not outputs:
            down, middle = _parts(output)
            tiles = context.layout.num_tiles
            outputs = [torch.unflatten(x, 0, (tiles, -1)).mean(0) for x in (*down, middle)]
        if isinstance(output, tuple):
            return (outputs[:-1], outputs[-1], *output[2:])
        return type(output)(down_block_res_samples=outputs[:-1], mid_block_res_sample=outputs[-1])


def _parts(output: Any) -> tuple[list[Tensor], Tensor]:
    if isinstance(output, tuple):
        return list(output[0]), output[1]
    return list(output.down_block_res_samples), output.mid_block_res_sample


def _pooled(residuals: list[Tensor], context: CallContext) -> bool:
    """Whether even the finest residual is one number per channel, where a tile has more positions."""
    return tuple(residuals[0].shape[2:]) == (1, 1) and context.layout.tile_positions > 1
