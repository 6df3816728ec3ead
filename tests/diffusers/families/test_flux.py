"""Flux.1: exact attention layer by layer, reference images, what is refused, and whole pipelines."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import (
    FluxControlPipeline,
    FluxFillPipeline,
    FluxImg2ImgPipeline,
    FluxInpaintPipeline,
    FluxKontextPipeline,
    FluxPipeline,
)
from diffusers.models.transformers.transformer_flux import FluxIPAdapterAttnProcessor
from tiny_diffusers import make_text_encoder, make_vae, quiet, shake
from tiny_transformers.flux import flux, flux_call, image_ids, kontext_call
from transformers import CLIPTextModel, CLIPTokenizer

import tiledattn as ta
import tiledattn.diffusers as td
from tiledattn.diffusers.families import family_of

from .joint import layer_errors, run
from .running import TILE, check_pipeline, error, mask, paint, photo, scheduler
from .texts import t5_encoder, word_tokenizer

LAYOUTS = {
    "grid": ta.TileLayout((6, 8), (3, 4), 0),
    "row": ta.TileLayout((4, 12), (4, 3), 0),
    "overlapping": ta.TileLayout((6, 8), (4, 4), (2, 1)),
}


def rotary(model: Any, call: dict[str, Any], layout: ta.TileLayout, origin: tuple[int, ...]) -> Any:
    """Tables for text as far from the tile at `origin` as in training, the canvas, and crops of reference images."""
    shift = torch.tensor([0.0, *origin])
    ids = call["img_ids"].unflatten(0, (-1, *layout.size))
    (top, left), (height, width) = origin, layout.tile
    crops = ids[1:, top : top + height, left : left + width]
    return model.pos_embed(torch.cat([call["txt_ids"] + shift, ids[0].flatten(0, 1), crops.flatten(0, 2)]))


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("make", [flux_call, kontext_call])
def test_layers_see_the_whole_canvas_and_one_text(layout: ta.TileLayout, make: Any) -> None:
    model, call = flux()(), make(layout.size, 2, torch.float32)
    errors = layer_errors(model, call, layout, rotary, halo="all")
    assert len(errors) == 4
    assert max(errors.values()) < 1e-5
    apart = layer_errors(model, call, layout, rotary, halo=0)
    assert min(apart.values()) > 1e-2


def test_the_first_layer_of_a_run_is_exact() -> None:
    layout = LAYOUTS["grid"]
    model, call = flux()(), flux_call(layout.size, 2, torch.float32)
    errors = layer_errors(model, call, layout, rotary, fed=False, halo="all")
    assert errors["transformer_blocks.0.attn"] < 1e-5
    assert errors["single_transformer_blocks.1.attn"] > 1e-3  # text is each tile's own


@pytest.mark.parametrize("wrap", [True, (False, True)])
def test_wrapped(wrap: Any) -> None:
    model, call = flux()(), flux_call((4, 12), 1, torch.float32)
    want = run(model, call)
    with td.enable_tiling(model, tile=(4, 4), halo=1, wrap=wrap, unit="latent"):
        got = run(model, call)
    with td.enable_tiling(model, tile=(4, 4), halo=1, unit="latent"):
        assert error(got, run(model, call)) > 1e-3
    assert got.shape == want.shape
    assert got.isfinite().all()


def test_a_far_larger_canvas_and_positions_in_bfloat16() -> None:
    """bfloat16 holds whole numbers up to 256: a pipeline's positions are rounded, a tile's are not."""
    model, call = flux(num_layers=1, num_single_layers=1)(), flux_call((4, 300), 1, torch.float32)
    with td.enable_tiling(model, tile=(4, 20), halo=2, unit="latent") as tiling:
        want = run(model, call)
        assert tiling.layout.grid == (1, 15)
        assert torch.equal(run(model, {**call, "img_ids": call["img_ids"].bfloat16()}), want)


def test_what_is_refused() -> None:
    model, call = flux()(), flux_call((6, 8), 1, torch.float32)
    ids = call["img_ids"]
    small = torch.cat([ids, image_ids((3, 8), 1)])
    with td.enable_tiling(model, tile=(3, 4), unit="latent"):
        for bad, told in (
            ({"joint_attention_kwargs": {"ip_adapter_masks": torch.zeros(1)}}, "ip_adapter_masks"),
            ({"img_ids": small, "hidden_states": torch.zeros(1, 72, 16)}, r"\(3, 8\)"),
        ):
            with pytest.raises(NotImplementedError, match=told):
                run(model, {**call, **bad})
        for bad, told in (
            ({"img_ids": ids.flip(0)}, "img_ids: the positions of tokens 0 to 47"),
            ({"img_ids": ids[:-1]}, "img_ids"),
            ({"img_ids": ids[:-8]}, "hidden_states: got 48 tokens"),
            ({"hidden_states": torch.zeros(1, 16, 6, 8)}, "hidden_states"),
        ):
            with pytest.raises(ValueError, match=told):
                run(model, {**call, **bad})
    with pytest.raises(ValueError, match="positions"):
        td.enable_tiling(model, tile=(3, 4), unit="latent", positions="canvas")


def test_one_tile_takes_any_reference_image() -> None:
    model, call = flux()(), flux_call((6, 8), 1, torch.float32)
    call["hidden_states"] = torch.cat([call["hidden_states"], torch.ones(1, 15, 16)], 1)
    call["img_ids"] = torch.cat([call["img_ids"], image_ids((3, 5), 1)])
    want = run(model, call)
    with td.enable_tiling(model, tile=(6, 8), unit="latent"):
        assert torch.equal(run(model, call), want)


def test_compiled_as_a_whole_each_canvas_is_told_apart() -> None:
    """Canvases of as many tokens and other shapes: the shape stands in `img_ids` alone, where a graph breaks."""
    plain, model = flux()(), flux()()
    for each in (plain, model):
        td.enable_tiling(each, tile=(3, 4), unit="latent")
    compiled = torch.compile(model, backend="eager")
    for size in ((6, 8), (12, 4), (3, 16), (6, 8)):
        call = flux_call(size, 1, torch.float32)
        assert error(run(compiled, call), run(plain, call)) < 1e-5


class ImageProjection(torch.nn.Module):
    """Image prompts as they come."""

    def forward(self, embeds: list[torch.Tensor]) -> list[torch.Tensor]:
        return embeds


def test_image_prompts_reach_every_tile() -> None:
    """Without a halo each tile is the stock model's, with IP-Adapter's own attention in the double blocks."""
    model, call = flux()(), flux_call((4, 8), 2, torch.float32)
    for block in model.transformer_blocks:
        block.attn.set_processor(shake(FluxIPAdapterAttnProcessor(32, 24)))
    model.encoder_hid_proj = ImageProjection()
    embeds = [torch.randn(2, 3, 24, generator=torch.Generator().manual_seed(5))]
    call["joint_attention_kwargs"] = {"ip_adapter_image_embeds": embeds}
    halves = call["hidden_states"].unflatten(1, (4, 2, 4))
    want = []
    for half in range(2):
        tile = {"hidden_states": halves[:, :, half].flatten(1, 2), "img_ids": image_ids((4, 4))}
        want.append(run(model, {**call, **tile}).unflatten(1, (4, 4)))
    with td.enable_tiling(model, tile=(4, 4), halo=0, unit="latent"):
        assert error(run(model, call), torch.cat(want, 2).flatten(1, 2)) < 1e-5
        other = {"joint_attention_kwargs": {"ip_adapter_image_embeds": [-embeds[0]]}}
        assert error(run(model, {**call, **other}), run(model, call)) > 1e-3
    with td.enable_tiling(model, tile=(4, 4), halo=1, unit="latent"):
        assert run(model, call).isfinite().all()
    assert call["joint_attention_kwargs"]["ip_adapter_image_embeds"] is embeds


@pytest.fixture(scope="module")
def parts(tokenizer: CLIPTokenizer) -> dict[str, Any]:
    vae = make_vae()
    vae.register_to_config(shift_factor=0.1)
    return {
        "scheduler": scheduler(),
        "vae": vae,
        "text_encoder": make_text_encoder(CLIPTextModel, tokenizer, 2),
        "tokenizer": tokenizer,
        "text_encoder_2": t5_encoder(),
        "tokenizer_2": word_tokenizer(),
    }


def make_pipe(cls: Any, parts: dict[str, Any], **options: Any) -> Any:
    """A pipeline with a small transformer, that shares the other parts."""
    return quiet(cls(**parts, transformer=flux(**options)()))


VARIANTS: dict[str, tuple[Any, dict[str, Any], dict[str, Any], list[int]]] = {
    "dev": (FluxPipeline, {}, {}, [0, 1, 2]),
    "schnell": (FluxPipeline, {"guidance_embeds": False}, {}, [0, 1, 2]),
    "true guidance": (
        FluxPipeline,
        {},
        {"negative_prompt": "blurred", "true_cfg_scale": 2.0},
        [0, 0, 1, 1, 2, 2],
    ),
    "image to image": (FluxImg2ImgPipeline, {}, {"image": photo(), "strength": 0.6}, [1, 2]),
    "inpaint": (FluxInpaintPipeline, {}, {"image": photo(), "mask_image": mask(), "strength": 0.6}, [1, 2]),
    "fill": (
        FluxFillPipeline,
        {"in_channels": 16 + 16 + 64, "out_channels": 16},
        {"image": photo(), "mask_image": mask()},
        [0, 1, 2],
    ),
    "control": (
        FluxControlPipeline,
        {"in_channels": 32, "out_channels": 16},
        {"control_image": photo()},
        [0, 1, 2],
    ),
    "kontext": (
        FluxKontextPipeline,
        {},
        {"image": photo(), "max_area": 4 * TILE**2, "_auto_resize": False},
        [0, 1, 2],
    ),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_pipeline(parts: dict[str, Any], name: str) -> None:
    cls, options, call, steps = VARIANTS[name]
    check_pipeline(make_pipe(cls, parts, **options), steps, max_sequence_length=16, **call)


def test_a_wrapped_panorama_is_decoded_round(parts: dict[str, Any]) -> None:
    pipe = make_pipe(FluxPipeline, parts)
    with td.enable_tiling(pipe, tile=TILE, halo=8, wrap=(False, True)):
        (picture,) = paint(pipe, 2 * TILE, "pt", max_sequence_length=16)
    assert picture.isfinite().all()


def test_encoding_a_prompt(parts: dict[str, Any]) -> None:
    pipe = make_pipe(FluxPipeline, parts)
    got = family_of(pipe.transformer).encode(pipe, "a river")
    text, pooled, _ = pipe.encode_prompt("a river", "a river")
    assert got.keys() == {"encoder_hidden_states", "pooled_projections"}
    assert torch.equal(got["encoder_hidden_states"], text)
    assert torch.equal(got["pooled_projections"], pooled)
