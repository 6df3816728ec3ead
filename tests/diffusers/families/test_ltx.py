"""LTX-Video: positions of the canvas, given frames, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_transformers import CASES
from torch import Tensor

import tiledattn.diffusers as td

from ..test_families import error, run

LTX, GIVEN = (next(case for case in CASES if case.name == name) for name in ("ltx", "ltx-i2v"))
SIZE, TILE = (5, 4, 6), (2, 2, 6)


def coordinates(batch: int, size: tuple[int, ...] = SIZE) -> Tensor:
    """Seconds and pixels of a video's tokens [B, 3, tokens]: its first latent frame is one frame, not eight."""
    frames, height, width = (torch.arange(n, dtype=torch.float32) for n in size)
    grid = torch.meshgrid((frames * 8 - 7).clamp(min=0) / 25, height * 256, width * 256, indexing="ij")
    return torch.stack(grid).flatten(1).expand(batch, -1, -1)


def test_coordinates_from_outside_are_the_canvas_s() -> None:
    model, call = LTX.build(), LTX.call(SIZE, 2, torch.float32)
    call["video_coords"] = coordinates(2)
    want = run(model, call)
    with td.enable_tiling(model, tile=TILE, halo="all", positions="canvas", unit="latent"):
        assert error(run(model, call), want) < 1e-5
    with (
        td.enable_tiling(model, tile=TILE, halo="all", unit="latent"),
        pytest.raises(NotImplementedError, match='positions="canvas"'),
    ):
        run(model, call)


def test_a_tile_has_the_positions_of_a_video_of_its_size() -> None:
    model, call = LTX.build(), LTX.call(SIZE, 1, torch.float32)
    with td.enable_tiling(model, tile=TILE, halo=0, unit="latent"):
        got = model(**call).sample.unflatten(1, SIZE)
    own = {**call, "hidden_states": call["hidden_states"].unflatten(1, SIZE)[:, 3:, 2:].flatten(1, 3)}
    own.update(num_frames=2, height=2, width=6)
    want = model(**own).sample.unflatten(1, TILE)
    assert error(got[:, 4:, 2:], want[:, 1:]) < 1e-5
    with td.enable_tiling(model, tile=TILE, halo=0, positions="canvas", unit="latent"):
        elsewhere = model(**call).sample.unflatten(1, SIZE)
    assert error(elsewhere[:, :2, :2], got[:, :2, :2]) < 1e-5
    assert error(elsewhere[:, 4:, 2:], want[:, 1:]) < 1e-4  # offsets inside a tile are the same wherever it lies


def test_timesteps_of_tokens_belong_to_their_tile() -> None:
    """With halo 0, tiles without the given frame don't depend on it or its timestep."""
    model, call = GIVEN.build(), GIVEN.call(SIZE, 1, torch.float32)
    plain = {**call, "timestep": torch.full((1, call["hidden_states"].shape[1]), 500.0)}
    with td.enable_tiling(model, tile=(2, 4, 6), overlap=0, halo=0, unit="latent"):
        given, free = (model(**each).sample.unflatten(1, SIZE) for each in (call, plain))
    assert error(given[:, :2], free[:, :2]) > 1e-2
    assert torch.equal(given[:, 2:], free[:, 2:])


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"num_frames": None, "height": None, "width": None}, NotImplementedError, "LTXConditionPipeline"),
        ({"height": None}, TypeError, "missing height"),
        ({"hidden_states": torch.zeros(1, 130, 4)}, ValueError, r"expected \[B, 120, C\]"),
        ({"mask": torch.zeros(1)}, NotImplementedError, "mask: can't be tiled"),
    ],
)
def test_what_is_refused(change: dict[str, Any], kind: type[Exception], message: str) -> None:
    model, call = LTX.build(), LTX.call(SIZE, 1, torch.float32)
    with td.enable_tiling(model, tile=TILE, unit="latent"), pytest.raises(kind, match=message):
        model(**{**call, **change})


def test_patches_of_several_latents_are_refused() -> None:
    model = LTX.build()
    model.register_to_config(patch_size=2)
    with pytest.raises(ValueError, match="patch_size, patch_size_t: got 2, 1"):
        td.enable_tiling(model, unit="latent")
