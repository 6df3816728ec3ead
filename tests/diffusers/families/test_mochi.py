"""Mochi: exact attention layer by layer, and rows with texts of unlike lengths."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_transformers.mochi import build_mochi, call_mochi
from torch import Tensor

import tiledattn as ta
import tiledattn.diffusers as td

from .video_layers import LAYOUTS, canvas_size, layer_errors, positions

pytestmark = pytest.mark.filterwarnings("ignore:In CPU autocast")


def table(model: Any, layout: ta.TileLayout, origin: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Positions that the tile at `origin` has: centred in height and width, in steps that go by its area."""
    _, height, width = layout.tile
    step = (model.rope.target_area / (height * width)) ** 0.5
    places = positions(layout, origin) - torch.tensor([0.0, (height - 1) / 2, (width - 1) / 2])
    angles = torch.einsum("nd,dhf->nhf", places * torch.tensor([1.0, step, step]), model.pos_frequencies.double())
    return angles.cos().float(), angles.sin().float()


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_layers_see_the_whole_canvas_and_one_text(layout: ta.TileLayout) -> None:
    model = build_mochi()
    call = call_mochi(canvas_size(model, layout), 2, torch.float32)
    errors = layer_errors(model, call, layout, table, halo="all")
    assert len(errors) == 2
    assert max(errors.values()) < 1e-5
    assert min(layer_errors(model, call, layout, table, halo=0).values()) > 1e-2


def test_gradients_flow_through_rows() -> None:
    model, call = build_mochi(), call_mochi((2, 4, 4), 2, torch.float32)
    video = call["hidden_states"].requires_grad_()
    with td.enable_tiling(model, tile=(1, 4, 4), halo="all", unit="latent"):
        model(**call).sample[:, :, 0].square().sum().backward()
    assert video.grad is not None
    assert video.grad[:, :, 1].abs().max() > 1e-4 * video.grad.abs().max()
