"""SD3Transformer2DModel: Stable Diffusion 3 and 3.5."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .base import CallContext, Family

_REFUSED = {"block_controlnet_hidden_states": "a ControlNet's residuals lie on the canvas"}


class SD3Family(Family):
    """Joint attention over [image, text], in some layers of SD 3.5 over the image besides; a table of positions."""

    name = "Stable Diffusion 3.x"
    classes = ("SD3Transformer2DModel",)
    pipelines = ("StableDiffusion3Pipeline",)
    hub = "stabilityai/stable-diffusion-3.5-medium"
    required = ("timestep", "encoder_hidden_states", "pooled_projections")
    repeated = ("timestep", "encoder_hidden_states", "pooled_projections")
    passed = ("return_dict", "joint_attention_kwargs", "skip_layers")
    refused = _REFUSED
    attention = r"transformer_blocks\.\d+\.attn2?"
    processors = ("JointAttnProcessor2_0", "FusedJointAttnProcessor2_0")
    text = "last"
    positions = "absolute"
    shift_defaults = (256, 4096, 0.5, 1.16)
    positional = "pos_embed"
    no_canvas_positions = None
    step_from_scheduler = False

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
        """Refuses IP-Adapter besides."""
        super().check_call(call)
        extra = call.get("joint_attention_kwargs") or {}
        strange = [name for name in extra if name != "scale"]
        if strange:
            raise NotImplementedError(
                f"joint_attention_kwargs: {strange} can't be tiled (IP-Adapter's images would need repeating); "
                "leave it out, or disable_tiling"
            )

    def tile_call(self, call: dict[str, Any], tiles: Tensor, context: CallContext, model: Any) -> dict[str, Any]:
        """Conditioning repeated; with positions "canvas" the table must cover the canvas."""
        tokens = int(model.config.pos_embed_max_size)
        largest = tuple(tokens * p for p in self.patch(model))
        pixels = tuple(n * scale for n, scale in zip(largest, context.pixels, strict=True))
        covers = f"the model's table of positions covers {largest} latents, {pixels} pixels, at most"
        if any(n > m for n, m in zip(context.layout.tile, largest, strict=True)):
            raise ValueError(f"tile: got {context.layout.tile} latents; {covers}; use smaller tiles")
        if context.positions == "canvas" and any(n > m for n, m in zip(context.size, largest, strict=True)):
            raise ValueError(
                f'positions: "canvas" got a canvas of {context.size} latents; {covers}; use positions="tile", or a '
                "smaller canvas"
            )
        return super().tile_call(call, tiles, context, model)

    def encode(self, pipe: Any, prompt: str) -> dict[str, Tensor]:
        """Text of both CLIPs and T5, and CLIP's pooled text."""
        text, _, pooled, _ = pipe.encode_prompt(prompt, None, None, do_classifier_free_guidance=False)
        return {"encoder_hidden_states": text, "pooled_projections": pooled}
