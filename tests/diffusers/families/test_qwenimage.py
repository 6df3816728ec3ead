"""Qwen-Image: exact attention layer by layer, reference images, what is refused, and whole pipelines."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKLQwenImage,
    QwenImageImg2ImgPipeline,
    QwenImageInpaintPipeline,
    QwenImagePipeline,
)
from tiny_diffusers import quiet, shake
from tiny_transformers.qwenimage import edit_call, qwenimage, qwenimage_call
from torch import Tensor

import tiledattn as ta
import tiledattn.diffusers as td
from tiledattn.diffusers.families import family_of

from .joint import layer_errors, run
from .running import TILE, check_pipeline, error, mask, paint, photo, scheduler
from .texts import qwen_vl_encoder, word_tokenizer

LAYOUTS = {
    "grid": ta.TileLayout((6, 8), (3, 4), 0),
    "odd": ta.TileLayout((5, 9), (5, 3), 0),
    "overlapping": ta.TileLayout((6, 8), (4, 4), (2, 1)),
}


def rotary(model: Any, call: dict[str, Any], layout: ta.TileLayout, origin: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Tables for the canvas, the tile's crops of reference images, and text on the tile's own diagonal."""
    rope = model.pos_embed
    shapes = call["img_shapes"][0]
    images, _ = rope([shapes], max_txt_seq_len=1, device=torch.device("cpu"))
    places = images.unflatten(0, (len(shapes), *layout.size))
    (top, left), (height, width) = origin, layout.tile
    crops = places[1:, top : top + height, left : left + width]
    words = torch.arange(call["encoder_hidden_states"].shape[1]) + max(layout.tile) // 2
    shifts = [0]
    for start, size, tile in zip(origin, layout.size, layout.tile, strict=True):
        shifts.append(start + (tile - tile // 2) - (size - size // 2))  # from the tile's middle to the canvas's
    axes = zip(shifts, rope.axes_dim, strict=True)
    text = torch.cat([rope.rope_params(words + shift, dim, rope.theta) for shift, dim in axes], 1)
    return torch.cat([places[0].flatten(0, 1), crops.flatten(0, 2)]), text


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("make", [qwenimage_call, edit_call])
def test_layers_see_the_whole_canvas_and_one_text(layout: ta.TileLayout, make: Any) -> None:
    model, call = qwenimage()(), make(layout.size, 2, torch.float32)
    errors = layer_errors(model, call, layout, rotary, halo="all")
    assert len(errors) == 2
    assert max(errors.values()) < 1e-5
    assert min(layer_errors(model, call, layout, rotary, halo=0).values()) > 1e-2


def test_the_first_layer_of_a_run_is_exact() -> None:
    layout = LAYOUTS["grid"]
    model, call = qwenimage()(), qwenimage_call(layout.size, 2, torch.float32)
    errors = layer_errors(model, call, layout, rotary, fed=False, halo="all")
    assert errors["transformer_blocks.0.attn"] < 1e-5


def test_padding_of_the_text_is_not_seen() -> None:
    model, call = qwenimage()(), qwenimage_call((6, 8), 1, torch.float32)
    other = {**call, "encoder_hidden_states": call["encoder_hidden_states"].clone()}
    other["encoder_hidden_states"][:, 5] += 3  # the padded word
    with td.enable_tiling(model, tile=(3, 4), halo=1, unit="latent"):
        assert torch.equal(run(model, call), run(model, other))
        assert not torch.equal(run(model, {**call, "encoder_hidden_states_mask": None}), run(model, call))


def test_wrapped_and_far_larger_than_a_tile() -> None:
    model, call = qwenimage()(), qwenimage_call((8, 64), 1, torch.float32)
    with td.enable_tiling(model, tile=(4, 4), halo=1, wrap=(False, True), unit="latent") as tiling:
        got = run(model, call)
        assert tiling.layout.num_tiles == 32
    with td.enable_tiling(model, tile=(4, 4), halo=1, unit="latent"):
        assert error(got, run(model, call)) > 1e-3
    assert got.isfinite().all()


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="use_layer3d_rope"):
        td.enable_tiling(qwenimage(use_layer3d_rope=True)(), tile=(3, 4), unit="latent")
    model, call = qwenimage()(), qwenimage_call((6, 8), 2, torch.float32)
    with td.enable_tiling(model, tile=(3, 4), unit="latent"):
        for bad, told in (
            ({"controlnet_block_samples": [torch.zeros(2, 48, 32)]}, "ControlNet"),
            ({"attention_kwargs": {"anything": 1}}, "anything"),
            ({"img_shapes": [[(2, 6, 4)]] * 2}, "one frame"),
            ({"img_shapes": [[(1, 6, 8), (1, 3, 8)]] * 2, "hidden_states": torch.zeros(2, 72, 16)}, r"\(3, 8\)"),
        ):
            with pytest.raises(NotImplementedError, match=told):
                run(model, {**call, **bad})
        for bad, told in (
            ({"img_shapes": [[(1, 6, 8)], [(1, 8, 6)]]}, "differ"),
            ({"img_shapes": [[(1, 6, 7)]] * 2}, "hidden_states: got 48 tokens"),
        ):
            with pytest.raises(ValueError, match=told):
                run(model, {**call, **bad})


@pytest.fixture(scope="module")
def parts() -> dict[str, Any]:
    vae = AutoencoderKLQwenImage(
        base_dim=8,
        z_dim=4,
        dim_mult=[1, 2, 4],
        num_res_blocks=1,
        temperal_downsample=[False, True],
        latents_mean=[0.1] * 4,
        latents_std=[1.5] * 4,
    )
    return {
        "scheduler": scheduler(),
        "vae": shake(vae, 1),
        "text_encoder": qwen_vl_encoder(),
        "tokenizer": word_tokenizer(),
    }


def make_pipe(cls: Any, parts: dict[str, Any]) -> Any:
    """A pipeline with a small transformer, that shares the other parts."""
    return quiet(cls(**parts, transformer=qwenimage()()))


TWO_CALLS = {"negative_prompt": "blurred", "true_cfg_scale": 3.0}  # of other lengths of text
VARIANTS: dict[str, tuple[Any, dict[str, Any], list[int]]] = {
    "text": (QwenImagePipeline, {}, [0, 1, 2]),
    "true guidance": (QwenImagePipeline, TWO_CALLS, [0, 0, 1, 1, 2, 2]),
    "padded prompts": (QwenImagePipeline, {"prompt": ["a river delta", "a"], **TWO_CALLS}, [0, 0, 1, 1, 2, 2]),
    "image to image": (QwenImageImg2ImgPipeline, {"image": photo(), "strength": 0.6}, [1, 2]),
    "inpaint": (QwenImageInpaintPipeline, {"image": photo(), "mask_image": mask(), "strength": 0.6}, [1, 2]),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_pipeline(parts: dict[str, Any], name: str) -> None:
    cls, call, steps = VARIANTS[name]
    check_pipeline(make_pipe(cls, parts), steps, **call)


def test_a_wrapped_panorama_is_decoded_round(parts: dict[str, Any]) -> None:
    pipe = make_pipe(QwenImagePipeline, parts)
    with td.enable_tiling(pipe, tile=TILE, halo=8, wrap=(False, True)):
        (picture,) = paint(pipe, 2 * TILE, "pt")
    assert picture.shape == (3, 2 * TILE, 2 * TILE)
    assert picture.isfinite().all()


def test_encoding_a_prompt(parts: dict[str, Any]) -> None:
    pipe = make_pipe(QwenImagePipeline, parts)
    got = family_of(pipe.transformer).encode(pipe, "a river")
    assert got.keys() == {"encoder_hidden_states"}  # the pipeline drops a mask of ones
    assert torch.equal(got["encoder_hidden_states"], pipe.encode_prompt("a river")[0])
