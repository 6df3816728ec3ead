"""SDXL's size conditioning per tile."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLImg2ImgPipeline
from tiny_diffusers import FACTOR, make_unet, paint, quiet
from torch import Tensor

import tiledattn as ta
import tiledattn.diffusers as td
from tiledattn.diffusers.families.base import CallContext
from tiledattn.diffusers.families.unet import tile_time_ids
from tiledattn.diffusers.view import CanvasView

LAYOUT = ta.TileLayout((16, 32), (16, 16))  # latents: a canvas of 64 x 128 pixels, tiles of 64 x 64


def context(how: str, batch: int = 2) -> CallContext:
    return CallContext(CanvasView(LAYOUT), batch, (FACTOR, FACTOR), how)


BASE = [[64, 128, 3, 5, 64, 128], [640, 1280, 0, 0, 64, 128]]
REFINER = [[64, 128, 3, 5, 6], [640, 1280, 0, 0, 2]]
EXPECTED: dict[tuple[str, str], list[list[int]]] = {
    ("base", "canvas"): BASE * 2,
    ("base", "tile"): [[64, 64, 3, 5, 64, 64], [640, 1280, 0, 0, 64, 64]] * 2,
    ("base", "crop"): [
        [64, 128, 3, 5, 64, 64],
        [64, 128, 0, 0, 64, 64],
        [64, 128, 3, 69, 64, 64],
        [64, 128, 0, 64, 64, 64],
    ],
    ("refiner", "canvas"): REFINER * 2,
    ("refiner", "tile"): [[64, 64, 3, 5, 6], [640, 1280, 0, 0, 2]] * 2,
    ("refiner", "crop"): [[64, 128, 3, 5, 6], [64, 128, 0, 0, 2], [64, 128, 3, 69, 6], [64, 128, 0, 64, 2]],
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int64])
@pytest.mark.parametrize(("model", "how"), EXPECTED)
def test_rows_per_tile(model: str, how: str, dtype: torch.dtype) -> None:
    given = torch.tensor(BASE if model == "base" else REFINER, dtype=dtype)
    got = tile_time_ids(given, context(how))
    assert got.dtype == (torch.float32 if dtype == torch.bfloat16 and how != "canvas" else dtype)
    assert got.tolist() == EXPECTED[model, how]


def test_one_row_serves_the_batch() -> None:
    assert tile_time_ids(torch.tensor(BASE[:1]), context("tile")).tolist() == [[64, 64, 3, 5, 64, 64]] * 4


@pytest.mark.parametrize("how", ["tile", "crop", "canvas"])
@pytest.mark.parametrize("model", ["base", "refiner"])
def test_one_tile_is_told_what_the_user_says(model: str, how: str) -> None:
    given = torch.tensor(BASE if model == "base" else REFINER)
    alone = CallContext(CanvasView(ta.TileLayout((16, 32), (16, 32))), 2, (FACTOR, FACTOR), how)
    assert torch.equal(tile_time_ids(given, alone), given)


def test_sizes_beyond_float16() -> None:
    """A pipeline in float16 writes 66,560 as inf; tiles get what they should."""
    wide = ta.TileLayout((128, 8320), (128, 128))
    given = torch.tensor([[1024, 66560, 0, 0, 1024, 66560]]).half()
    assert given.isinf().any()
    tile = tile_time_ids(given, CallContext(CanvasView(wide), 1, (8, 8), "tile"))
    assert tile.tolist() == [[1024, 1024, 0, 0, 1024, 1024]] * 65
    crop = tile_time_ids(given, CallContext(CanvasView(wide), 1, (8, 8), "crop"))
    assert crop[-1].tolist() == [1024, 66560, 0, 65536, 1024, 1024]


@pytest.mark.parametrize("shape", [(3, 6), (12,), (2, 6, 1)])
def test_wrong_shapes(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"time_ids: got shape .*expected \[2, 6\]"):
        tile_time_ids(torch.zeros(shape), context("tile"))


def test_unknown_conditioning_passes_as_it_is_or_is_refused() -> None:
    assert tile_time_ids(torch.zeros(2, 4), context("canvas")).shape == (4, 4)
    with pytest.raises(ValueError, match="size_conditioning='canvas'"):
        tile_time_ids(torch.zeros(2, 4), context("tile"))


def seen_by_the_model(pipe: Any, **options: Any) -> Tensor:
    """The time_ids that the UNet embeds during a run."""
    seen: list[Tensor] = []
    handle = pipe.unet.add_time_proj.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with td.enable_tiling(pipe, tile=64, **options):
        if "Img2Img" in type(pipe).__name__:
            pipe("a", image=torch.rand(1, 3, 64, 128), strength=1.0, num_inference_steps=2, output_type="latent")
        else:
            paint(pipe, 64, 128, steps=1)
    handle.remove()
    return seen[0]


def test_a_pipeline_tells_each_tile_its_size(sdxl: Any) -> None:
    """Two tiles, two guidance copies, six numbers each; tiles that are told the same stay joined."""
    assert seen_by_the_model(sdxl).tolist() == [64, 64, 0, 0, 64, 64] * 2
    assert seen_by_the_model(sdxl, norm="neighbours").tolist() == [64, 64, 0, 0, 64, 64] * 4
    crops = seen_by_the_model(sdxl, size_conditioning="crop").tolist()
    assert crops == [64, 128, 0, 0, 64, 64] * 2 + [64, 128, 0, 64, 64, 64] * 2
    assert seen_by_the_model(sdxl, size_conditioning="canvas").tolist() == [64, 128, 0, 0, 64, 128] * 2


def test_a_refiner(sdxl: Any) -> None:
    unet = make_unet("sdxl", projection_class_embeddings_input_dim=5 * 8 + 16)
    pipe = quiet(StableDiffusionXLImg2ImgPipeline(**{**sdxl.components, "unet": unet}, requires_aesthetics_score=True))
    rows = [[64, 64, 0, 0, 2.5], [64, 64, 0, 0, 6.0]]
    assert seen_by_the_model(pipe).reshape(-1, 5).tolist() == rows
    assert seen_by_the_model(pipe, norm="neighbours").reshape(-1, 5).tolist() == rows * 2


def test_a_bare_unet_counts_eight_pixels_a_latent() -> None:
    model = make_unet("sdxl")
    seen: list[Tensor] = []
    model.add_time_proj.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    added = {"text_embeds": torch.zeros(1, 16), "time_ids": torch.tensor([[128, 256, 0, 0, 128, 256]])}
    with td.enable_tiling(model, tile=16, unit="latent"):
        model(torch.zeros(1, 4, 16, 32), 5, torch.zeros(1, 3, 32), added_cond_kwargs=added)
    assert seen[0].tolist() == [128, 128, 0, 0, 128, 128]
