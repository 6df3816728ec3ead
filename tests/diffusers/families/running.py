"""What every packed pipeline must do: runs from a prompt to a picture, untiled against tiled."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from PIL import Image
from torch import Tensor

import tiledattn.diffusers as td

TILE = 32  # pixels; 8 a token


def scheduler() -> FlowMatchEulerDiscreteScheduler:
    """Flow matching with the shift that depends on the picture's size, as the models have it."""
    return FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)


def photo(height: int = 2 * TILE, width: int = 2 * TILE) -> Image.Image:
    """A picture of noise."""
    values = torch.randint(0, 256, (height, width, 3), generator=torch.Generator().manual_seed(7))
    return Image.fromarray(values.numpy().astype(np.uint8))


def mask() -> Image.Image:
    """A mask of the right half."""
    picture = np.zeros((2 * TILE, 2 * TILE), dtype=np.uint8)
    picture[:, TILE:] = 255
    return Image.fromarray(picture)


def paint(pipe: Any, size: int, output_type: str = "latent", **call: Any) -> Any:
    """A run of three steps from a fixed seed: latents, or pictures."""
    generator = torch.Generator().manual_seed(0)
    call = {"prompt": "a river delta", "height": size, "width": size, "num_inference_steps": 3, **call}
    return pipe(generator=generator, output_type=output_type, **call).images


def error(got: Tensor, want: Tensor) -> float:
    """The largest difference over the largest wanted value."""
    return float((got - want).abs().max() / want.abs().max())


def check_pipeline(pipe: Any, steps: list[int], halo: int = 8, **call: Any) -> None:
    """A canvas of 2x2 tiles to the picture, with the schedule's steps; one tile is the stock pipeline."""
    want = paint(pipe, 2 * TILE, **call)
    with td.enable_tiling(pipe, tile=2 * TILE):
        assert error(paint(pipe, 2 * TILE, **call), want) < 1e-5
    with td.enable_tiling(pipe, tile=TILE, halo=halo, halo_schedule="quadratic") as tiling:
        seen: list[int] = []
        tiling.on_tiles = lambda tiles, layout, step: seen.append(step)
        latents = paint(pipe, 2 * TILE, **call)
        assert tiling.layout is not None
        assert tiling.layout.grid == (2, 2)
        assert seen == steps
        picture = paint(pipe, 2 * TILE, "pil", **call)[0]
    assert latents.shape == want.shape
    assert error(latents, want) > 1e-3
    assert picture.size == (2 * TILE, 2 * TILE)
    assert np.asarray(picture).std() > 1
    assert torch.equal(paint(pipe, 2 * TILE, **call), want)
