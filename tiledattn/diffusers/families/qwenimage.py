"""QwenImageTransformer2DModel: Qwen-Image and Qwen-Image-Edit."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .base import CallContext
from .packed import Grid, PackedFamily

_REFUSED = {"controlnet_block_samples": "ControlNet residuals lie on the canvas"}


class QwenImageFamily(PackedFamily):
    """Qwen-Image: joint attention over text and tokens, with rotary positions counted from an image's middle.

    Text stands on the diagonal beyond the larger half side of the tile, as in training.
    """

    name = "Qwen-Image"
    classes = ("QwenImageTransformer2DModel",)
    pipelines = ("QwenImagePipeline", "QwenImageImg2ImgPipeline", "QwenImageInpaintPipeline")
    hub = "Qwen/Qwen-Image"
    required = ("timestep", "encoder_hidden_states", "img_shapes")
    repeated = ("encoder_hidden_states", "encoder_hidden_states_mask", "additional_t_cond")
    passed = ("guidance", "attention_kwargs", "return_dict")
    refused = _REFUSED
    attention = r"transformer_blocks\.\d+\.attn"
    processors = ("QwenDoubleStreamAttnProcessor2_0",)
    kwargs = "attention_kwargs"
    notes = "reference images must be as large as the canvas; text sees its own tile only"

    def check(self, model: Any) -> None:
        """Raises ValueError for layered models."""
        if model.config.use_layer3d_rope:
            raise ValueError(
                "use_layer3d_rope: a layered model's sequence holds several canvases, one behind the other, which "
                "can't be tiled; use a Qwen-Image model without layers"
            )

    def grids(self, call: dict[str, Any]) -> list[Grid]:
        """Out of `img_shapes`, a list of (frames, height, width) per row; the rows must agree."""
        shapes = call["img_shapes"]
        first = _shapes(shapes[0])
        if any(_shapes(row) != first for row in shapes):
            raise ValueError(f"img_shapes: got rows that differ, {shapes}; the model places all as the first")
        if any(frames != 1 for frames, _, _ in first):
            raise NotImplementedError(f"img_shapes: got {first}; only images, of one frame, can be tiled")
        return [(height, width) for _, height, width in first]

    def place(self, call: dict[str, Any], grids: list[Grid], context: CallContext) -> dict[str, Any]:
        """`img_shapes` of a tile and its crops, as many rows as there are sequences."""
        shapes = [(1, height, width) for height, width in grids]
        return {"img_shapes": [list(shapes) for _ in range(context.layout.num_tiles * context.batch)]}

    def encode(self, pipe: Any, prompt: str) -> dict[str, Tensor]:
        """Text, and which of it is no padding."""
        text, mask = pipe.encode_prompt(prompt)
        return {"encoder_hidden_states": text} | ({} if mask is None else {"encoder_hidden_states_mask": mask})


def _shapes(row: Any) -> list[tuple[int, int, int]]:
    """A row of `img_shapes`; a shape of its own stands for a list of one."""
    return [tuple(shape) for shape in (row if isinstance(row, list) else [row])]
