"""CogVideoXTransformer3DModel: CogVideoX 2b, 5b and 1.5, text and image to video."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ...ops import Rotary
from .base import VIDEO, CallContext, Family, axial_frequencies, device_rotary
from .video import timesteps_of_tiles, vae_factors

Crop = tuple[tuple[int, int], tuple[int, int]]

_REFUSED = {"timestep_cond": "no released model has it"}


class CogVideoXFamily(Family):
    """CogVideoX: joint attention over [text, video], frames before channels; 5b rotary, 2b absolute positions."""

    name = "CogVideoX"
    classes = ("CogVideoXTransformer3DModel",)
    pipelines = ("CogVideoXPipeline", "CogVideoXImageToVideoPipeline")
    hub = "zai-org/CogVideoX-5b"
    axes = VIDEO
    repeated = ("encoder_hidden_states", "ofs")
    passed = ("return_dict", "attention_kwargs", "image_rotary_emb")
    refused = _REFUSED
    attention = r"transformer_blocks\.\d+\.attn1"
    processors = ("CogVideoXAttnProcessor2_0", "FusedCogVideoXAttnProcessor2_0")
    text = "first"
    positions = "rotary, or absolute (2b)"
    no_canvas_positions = "a CogVideoX tile has the positions of a whole video of its size, scaled to the trained one"
    notes = (
        "2b and the first 5b image-to-video model also add absolute positions, those of a tile alone; the latter takes "
        "tiles of its own size only. Text that has seen its tile differs from tile to tile."
    )
    step_from_scheduler = False

    def patch(self, model: Any) -> tuple[int, ...]:
        """The configuration's `patch_size_t` (1.5) and `patch_size`."""
        config = model.config
        return (config.patch_size_t or 1, config.patch_size, config.patch_size)

    def native_tile(self, model: Any) -> tuple[int, ...]:
        """The configuration's sample size: 49 frames of 480x720 pixels; for 1.5, 85 frames of 768x1360."""
        config = model.config
        if config.patch_size_t is not None:
            return (22, min(96, config.sample_height), min(170, config.sample_width))
        frames = (config.sample_frames - 1) // config.temporal_compression_ratio + 1
        return (frames, config.sample_height, config.sample_width)

    def pixels(self, model: Any, pipe: Any | None) -> tuple[int, ...]:
        """The VAE's reduction; 4 frames, 8x8 pixels without one."""
        return vae_factors(pipe, "vae_scale_factor_temporal", "vae_scale_factor_spatial", (4, 8))

    def rotary(self, model: Any, context: CallContext) -> Rotary | None:
        """Neighbouring channels; a quarter for time, the rest for height and width, in steps of a tile's own table."""
        if not model.config.use_rotary_positional_embeddings:
            return None
        dim = model.config.attention_head_dim
        table = axial_frequencies((dim // 4, dim // 8 * 3, dim // 8 * 3), 10000.0)
        steps = self._steps(model, self._grid(model, context.layout.tile))
        return device_rotary(table * table.new_tensor(steps)[:, None], context.call[self.canvas])

    def canvas_of(self, call: dict[str, Any], model: Any) -> Tensor:
        """[B, frames, C, height, width] -> [B, C, frames, height, width]."""
        self.check_call(call)
        canvas = call["hidden_states"]
        if not isinstance(canvas, Tensor) or canvas.ndim != 5:
            got = tuple(canvas.shape) if isinstance(canvas, Tensor) else type(canvas).__name__
            raise ValueError(f"hidden_states: got {got}; expected a tensor [B, frames, C, height, width]")
        rotary = call.get("image_rotary_emb")
        if (rotary is not None) != bool(model.config.use_rotary_positional_embeddings):
            raise ValueError(
                f"image_rotary_emb: got {'a table' if rotary is not None else None}, but the model's configuration has "
                f"use_rotary_positional_embeddings={model.config.use_rotary_positional_embeddings}"
            )
        tokens = math.prod(self._grid(model, (canvas.shape[1], *canvas.shape[3:])))
        if rotary is not None and len(rotary[0]) != tokens:
            raise ValueError(f"image_rotary_emb: got {len(rotary[0])} tokens; the canvas has {tokens}")
        return canvas.transpose(1, 2)

    def tile_call(self, call: dict[str, Any], tiles: Tensor, context: CallContext, model: Any) -> dict[str, Any]:
        """Frames before channels; rotary positions of a tile of its own, as in training.

        Raises:
            ValueError: learned positions, and tiles of another size.
        """
        config = model.config
        size = (config.sample_height, config.sample_width)
        if config.use_learned_positional_embeddings and context.layout.tile[1:] != size:
            pixels = [n * p for n, p in zip(size, context.pixels[1:], strict=True)]
            raise ValueError(
                f"tile: got {context.layout.tile[1:]} latents; this model learned its positions for {size}, no other: "
                f"pass tile=({pixels[0]}, {pixels[1]}) in pixels, and a canvas at least as large"
            )
        new = super().tile_call(call, tiles, context, model)
        new["hidden_states"] = tiles.transpose(1, 2)
        new["timestep"] = timesteps_of_tiles(call["timestep"], context, ())
        if call.get("image_rotary_emb") is not None:
            new["image_rotary_emb"] = self._table(model, self._grid(model, context.layout.tile), tiles.device)
        return new

    def prediction_of(self, output: Any, context: CallContext) -> Tensor:
        """[T*B, C, *tile]."""
        return super().prediction_of(output, context).transpose(1, 2)

    def with_prediction(self, output: Any, prediction: Tensor, context: CallContext) -> Any:
        """Frames before channels again."""
        return super().with_prediction(output, prediction.transpose(1, 2), context)

    def encode(self, pipe: Any, prompt: str) -> dict[str, Tensor]:
        """T5's features of a prompt."""
        text, _ = pipe.encode_prompt(prompt, do_classifier_free_guidance=False, device=pipe._execution_device)
        return {"encoder_hidden_states": text}

    def _grid(self, model: Any, size: tuple[int, ...]) -> tuple[int, int, int]:
        """Tokens of `size` latents, per axis."""
        frames, height, width = (n // p for n, p in zip(size, self.patch(model), strict=True))
        return (frames, height, width)

    def _crop(self, model: Any, grid: tuple[int, int, int]) -> Crop:
        """Where a tile's rows and columns lie on the grid that CogVideoX 1.0 was trained on."""
        from diffusers.pipelines.cogvideo.pipeline_cogvideox import get_resize_crop_region_for_grid

        config = model.config
        base = (config.sample_width // config.patch_size, config.sample_height // config.patch_size)
        crop: Crop = get_resize_crop_region_for_grid(grid[1:], *base)
        return crop

    def _steps(self, model: Any, grid: tuple[int, int, int]) -> tuple[float, float, float]:
        """Positions of the table per token, per axis."""
        if model.config.patch_size_t is not None:
            return (1.0, 1.0, 1.0)
        start, stop = self._crop(model, grid)
        steps = [
            (b * (n - 1) / n - a) / (n - 1) if n > 1 else float(b - a)
            for a, b, n in zip(start, stop, grid[1:], strict=True)
        ]
        return (1.0, steps[0], steps[1])

    def _table(self, model: Any, grid: tuple[int, int, int], device: torch.device) -> tuple[Tensor, Tensor]:
        """Cosines and sines [tokens, D] of a video of `grid` tokens, as the pipeline makes them."""
        from diffusers.models.embeddings import get_3d_rotary_pos_embed

        config = model.config
        dim, space = config.attention_head_dim, grid[1:]
        if config.patch_size_t is None:
            crop = self._crop(model, grid)
            table = get_3d_rotary_pos_embed(dim, crop, space, temporal_size=grid[0], device=device)
        else:
            table = get_3d_rotary_pos_embed(
                dim, None, space, temporal_size=grid[0], grid_type="slice", max_size=space, device=device
            )
        cos, sin = table
        return cos, sin
