"""FluxControlNetModel: ControlNets of Flux.1, for one kind of control image or several."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .base import CallContext
from .flux import FluxFamily
from .packed import pack, unpack

HINT_PIXELS = 8  # per latent, of the convolutions that read a control image in pixels


class FluxControlNetFamily(FluxFamily):
    """Some of Flux.1's blocks, that read the canvas and a control image and give residuals for the blocks of Flux.

    The control image is a packed canvas, as the VAE encodes it, or pixels that the net encodes by convolutions. The
    residuals are blended to residuals of the whole canvas, which Flux's tiling cuts again.
    """

    name = "ControlNets of Flux.1"
    classes = ("FluxControlNetModel",)
    pipelines = (
        "FluxControlNetPipeline",
        "FluxControlNetImg2ImgPipeline",
        "FluxControlNetInpaintPipeline",
    )
    hub = "InstantX/FLUX.1-dev-Controlnet-Union"
    required = (*FluxFamily.required, "controlnet_cond")
    repeated = (*FluxFamily.repeated, "controlnet_mode")
    passed = ("guidance", "joint_attention_kwargs", "conditioning_scale", "return_dict")
    processors = ("FluxAttnProcessor",)
    image_prompts = None
    notes = "text sees its own tile only"
    has_couplings = True

    def finest(self, model: Any) -> int:
        """Pixels of the control image per token where the net reads pixels, else 1."""
        return 1 if model.input_hint_block is None else HINT_PIXELS * int(model.config.patch_size)

    def tile_call(self, call: dict[str, Any], tiles: Tensor, context: CallContext, model: Any) -> dict[str, Any]:
        """The control image is cut like the canvas."""
        new = super().tile_call(call, tiles, context, model)
        image = call["controlnet_cond"]
        if image.ndim == 3:
            new["controlnet_cond"] = context.cut_tokens("controlnet_cond", image, self.grids(call)[0])
        else:
            new["controlnet_cond"] = context.cut_all("controlnet_cond", image)
        return new

    def outputs_of(self, output: Any, context: CallContext) -> list[Tensor]:
        """The residuals of the double blocks, then of the single ones."""
        tile = (context.layout.tile[0], context.layout.tile[1])
        return [unpack(tokens, tile) for samples in _samples(output) for tokens in samples or ()]

    def with_outputs(self, output: Any, outputs: list[Tensor], context: CallContext) -> Any:
        """The output with the canvas's residuals, packed."""
        rest = [pack(x) for x in outputs]
        parts = []
        for samples in _samples(output):
            length = len(samples or ())
            parts.append(rest[:length] or None)
            rest = rest[length:]
        if isinstance(output, tuple):
            return (*parts, *output[2:])
        return type(output)(controlnet_block_samples=parts[0], controlnet_single_block_samples=parts[1])


def _samples(output: Any) -> tuple[list[Tensor] | None, list[Tensor] | None]:
    if isinstance(output, tuple):
        return output[0], output[1]
    return output.controlnet_block_samples, output.controlnet_single_block_samples
