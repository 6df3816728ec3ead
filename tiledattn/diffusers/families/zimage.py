"""ZImageTransformer2DModel: Z-Image."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...ops import Rotary
from ..turning import angles_of_rows
from .base import CallContext, Family, axial_frequencies, device_rotary

FILLED = 32  # tokens; the model fills up sequences to multiples of it

_OMNI = "images to edit (Z-Image Omni) lie on canvases of their own"

_REFUSED = {
    "controlnet_block_samples": "a ControlNet's residuals lie on the canvas",
    "siglip_feats": _OMNI,
    "image_noise_mask": _OMNI,
}


class ZImageFamily(Family):
    """Attention over [image, caption], refiners over each alone; rotary positions; lists of pictures and captions.

    The model fills up a tile's tokens to a multiple of 32 with learned ones, which the tile sees as it sees text.
    """

    name = "Z-Image"
    classes = ("ZImageTransformer2DModel",)
    pipelines = ("ZImagePipeline",)
    hub = "Tongyi-MAI/Z-Image-Turbo"
    canvas = "x"
    required = ("t", "cap_feats")
    repeated = ("t",)
    passed = ("return_dict", "patch_size", "f_patch_size", "joint_attention_kwargs")
    refused = _REFUSED
    attention = r"(noise_refiner|layers)\.\d+\.attention"
    cross_attention = r"context_refiner\.\d+\.attention"
    processors = ("ZSingleStreamAttnProcessor",)
    text = "last"
    positions = "rotary"
    no_canvas_positions = "the model counts an image's positions from 0 itself"

    def patch(self, model: Any) -> tuple[int, ...]:
        """The first of the model's patch sizes."""
        return (int(model.config.all_patch_size[0]),) * 2

    def native_tile(self, model: Any) -> tuple[int, ...]:
        """1024x1024 pixels."""
        return (128, 128)

    def pixels(self, model: Any, pipe: Any | None) -> tuple[int, ...]:
        """The VAE's reduction; 8 without one."""
        return (int(getattr(pipe, "vae_scale_factor", 8)),) * 2

    def rotary(self, model: Any, context: CallContext) -> Rotary | None:
        """Pairs of neighbouring channels; the first axis counts the caption, height and width follow."""
        table = _frequencies(model)[1:]
        return device_rotary(table, context.call[self.canvas][0])

    def row_angles(
        self, call: dict[str, Any], context: CallContext, model: Any, lengths: tuple[int, ...] | None
    ) -> Tensor | None:
        """The canvas stands behind the caption, filled up."""
        starts = [-(-len(caption) // FILLED) * FILLED for caption in call["cap_feats"]]
        return angles_of_rows(starts, context.batch, _frequencies(model)[0])

    def canvas_of(self, call: dict[str, Any], model: Any) -> Tensor:
        """The list of pictures [C, 1, height, width], stacked.

        Raises:
            NotImplementedError: lists of several pictures a row, and patches of another size.
            ValueError: pictures of several shapes, or of several frames.
        """
        self.check_call(call)
        pictures = list(call["x"])
        if not pictures or not all(isinstance(item, Tensor) for item in pictures):
            raise NotImplementedError(f"x: got a list of {_types(pictures)}; expected tensors: {_OMNI}")
        shapes = {tuple(item.shape) for item in pictures}
        if len(shapes) > 1 or pictures[0].ndim != 4 or pictures[0].shape[1] != 1:
            raise ValueError(f"x: got shapes {sorted(shapes)}; expected pictures [C, 1, height, width] of one shape")
        wanted = {"patch_size": self.patch(model)[0], "f_patch_size": 1}
        for name, value in wanted.items():
            if call.get(name, value) != value:
                raise NotImplementedError(f"{name}: got {call[name]}; tiles are cut for {value}; leave it out")
        return torch.stack(pictures).squeeze(2)

    def tile_call(self, call: dict[str, Any], tiles: Tensor, context: CallContext, model: Any) -> dict[str, Any]:
        """Lists with an item for every tile of every row."""
        if len(call["cap_feats"]) != context.batch:
            raise ValueError(f"cap_feats: got {len(call['cap_feats'])} captions; x has {context.batch} pictures")
        captions = list(call["cap_feats"]) * context.layout.num_tiles
        times = context.repeat("t", call["t"])
        return {**call, "x": list(tiles.unsqueeze(2).unbind(0)), "t": times, "cap_feats": captions}

    def timestep_of(self, call: dict[str, Any]) -> Any:
        """`t`."""
        return call["t"]

    def prediction_of(self, output: Any, context: CallContext) -> Tensor:
        """The list of predictions [C, 1, *tile], stacked."""
        return torch.stack(list(super().prediction_of(output, context))).squeeze(2)

    def with_prediction(self, output: Any, prediction: Tensor, context: CallContext) -> Any:
        """A list of predictions [C, 1, *size] again."""
        rows = list(prediction.unsqueeze(2).unbind(0))
        return (rows,) if isinstance(output, tuple) else type(output)(sample=rows)

    def encode(self, pipe: Any, prompt: str) -> dict[str, Tensor]:
        """The caption, [1, tokens, C]."""
        captions, _ = pipe.encode_prompt(prompt, do_classifier_free_guidance=False)
        return {"cap_feats": captions[0].unsqueeze(0)}


def _frequencies(model: Any) -> Tensor:
    """Radians per token of caption, height and width, [3, D / 2]."""
    return axial_frequencies(tuple(model.axes_dims), float(model.rope_theta))


def _types(items: list[Any]) -> str:
    return ", ".join(sorted({type(item).__name__ for item in items})) or "nothing"
