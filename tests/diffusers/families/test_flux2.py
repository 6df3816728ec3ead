"""Flux.2: exact attention layer by layer, reference images, what is refused, and whole pipelines."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import AutoencoderKLFlux2, Flux2KleinPipeline, Flux2Pipeline
from diffusers.models.transformers.transformer_flux2 import Flux2KVAttnProcessor, Flux2KVParallelSelfAttnProcessor
from tiny_diffusers import quiet, shake
from tiny_transformers.flux2 import flux2, flux2_call, reference_call

import tiledattn as ta
import tiledattn.diffusers as td
from tiledattn.diffusers.families import family_of

from .joint import layer_errors, run
from .running import TILE, check_pipeline, error, paint, photo, scheduler
from .texts import WIDTH, qwen3_encoder, word_tokenizer

LAYOUTS = {
    "grid": ta.TileLayout((6, 8), (3, 4), 0),
    "overlapping": ta.TileLayout((6, 8), (4, 4), (2, 1)),
}


def rotary(model: Any, call: dict[str, Any], layout: ta.TileLayout, origin: tuple[int, ...]) -> Any:
    """Tables for text as far from the tile at `origin` as in training, the canvas, and crops of reference images."""
    shift = torch.tensor([0.0, *origin, 0.0])
    ids = call["img_ids"][0].unflatten(0, (-1, *layout.size))
    (top, left), (height, width) = origin, layout.tile
    crops = ids[1:, top : top + height, left : left + width]
    return model.pos_embed(torch.cat([call["txt_ids"][0] + shift, ids[0].flatten(0, 1), crops.flatten(0, 2)]))


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("make", [flux2_call, reference_call])
def test_layers_see_the_whole_canvas_and_one_text(layout: ta.TileLayout, make: Any) -> None:
    model, call = flux2()(), make(layout.size, 2, torch.float32)
    errors = layer_errors(model, call, layout, rotary, halo="all")
    assert len(errors) == 4
    assert max(errors.values()) < 1e-5
    assert min(layer_errors(model, call, layout, rotary, halo=0).values()) > 1e-2


def test_the_first_layer_of_a_run_is_exact() -> None:
    layout = LAYOUTS["grid"]
    model, call = flux2()(), flux2_call(layout.size, 2, torch.float32)
    errors = layer_errors(model, call, layout, rotary, fed=False, halo="all")
    assert errors["transformer_blocks.0.attn"] < 1e-5


def test_wrapped_and_far_larger_than_a_tile() -> None:
    model, call = flux2()(), flux2_call((8, 64), 1, torch.float32)
    with td.enable_tiling(model, tile=(4, 4), halo=1, wrap=(False, True), unit="latent") as tiling:
        got = run(model, call)
        assert tiling.layout.num_tiles == 32
    with td.enable_tiling(model, tile=(4, 4), halo=1, unit="latent"):
        assert error(got, run(model, call)) > 1e-3
    assert got.isfinite().all()


def test_a_cache_of_keys_is_refused() -> None:
    model, call = flux2()(), flux2_call((6, 8), 1, torch.float32)
    want = run(model, call)
    for name, layer in family_of(model).self_attentions(model).items():
        single = name.startswith("single")
        layer.set_processor(Flux2KVParallelSelfAttnProcessor() if single else Flux2KVAttnProcessor())
    with td.enable_tiling(model, tile=(3, 4), unit="latent"):
        assert run(model, call).shape == want.shape
        with pytest.raises(NotImplementedError, match="kv_cache_mode"):
            run(model, {**call, "kv_cache_mode": "extract", "num_ref_tokens": 4})


def test_a_reference_image_of_another_size_is_refused() -> None:
    model, call = flux2()(), reference_call((6, 8), 1, torch.float32)
    call["hidden_states"], call["img_ids"] = call["hidden_states"][:, :-8], call["img_ids"][:, :-8]
    with td.enable_tiling(model, tile=(3, 4), unit="latent"), pytest.raises(NotImplementedError, match=r"\(5, 8\)"):
        run(model, call)


@pytest.fixture(scope="module")
def parts() -> dict[str, Any]:
    vae = AutoencoderKLFlux2(
        block_out_channels=(8, 8, 16),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=64,
    )
    return {
        "scheduler": scheduler(),
        "vae": shake(vae, 1),
        "text_encoder": qwen3_encoder(),
        "tokenizer": word_tokenizer(),
    }


def make_pipe(cls: Any, parts: dict[str, Any]) -> Any:
    """A pipeline with a small transformer, that shares the other parts."""
    return quiet(cls(**parts, transformer=flux2(joint_attention_dim=3 * WIDTH)()))


@pytest.mark.parametrize("image", [None, [photo()]], ids=["text", "reference image"])
@pytest.mark.parametrize(
    ("cls", "steps"), [(Flux2Pipeline, [0, 1, 2]), (Flux2KleinPipeline, [0, 0, 1, 1, 2, 2])], ids=["dev", "klein"]
)
def test_pipeline(parts: dict[str, Any], cls: Any, steps: list[int], image: Any) -> None:
    check_pipeline(make_pipe(cls, parts), steps, max_sequence_length=16, image=image)


def test_a_wrapped_panorama_is_decoded_round(parts: dict[str, Any]) -> None:
    pipe = make_pipe(Flux2Pipeline, parts)
    with td.enable_tiling(pipe, tile=TILE, halo=8, wrap=(False, True)):
        (picture,) = paint(pipe, 2 * TILE, "pt", max_sequence_length=16)
    assert picture.isfinite().all()


def test_encoding_a_prompt(parts: dict[str, Any]) -> None:
    pipe = make_pipe(Flux2KleinPipeline, parts)
    got = family_of(pipe.transformer).encode(pipe, "a river")
    assert got.keys() == {"encoder_hidden_states"}
    assert torch.equal(got["encoder_hidden_states"], pipe.encode_prompt("a river")[0])
