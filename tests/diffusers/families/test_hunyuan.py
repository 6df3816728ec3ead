"""HunyuanVideo and 1.5: exact attention layer by layer, and a given first frame."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_transformers import CASES
from tiny_transformers.hunyuan import make_hunyuan
from torch import Tensor

import tiledattn as ta
import tiledattn.diffusers as td

from .video_layers import LAYOUTS, axial_table, canvas_size, layer_errors, positions

HUNYUAN = [case for case in CASES if case.name in ("hunyuan", "hunyuan-replace", "hunyuan15")]
BY_NAME = {case.name: case for case in CASES}


def table(model: Any, layout: ta.TileLayout, origin: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    return axial_table(model.config.rope_axes_dim, model.config.rope_theta, positions(layout, origin))


@pytest.mark.parametrize("case", HUNYUAN, ids=lambda case: case.name)
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_layers_see_the_whole_canvas_and_one_text(case: Any, layout: ta.TileLayout) -> None:
    model = case.build()
    call = case.call(canvas_size(model, layout), 2, torch.float32)
    errors = layer_errors(model, call, layout, table, halo="all")
    assert len(errors) == 2
    assert max(errors.values()) < 1e-5
    assert min(layer_errors(model, call, layout, table, halo=0).values()) > 1e-2


def test_only_the_first_frame_is_given() -> None:
    """With layers that don't attend, a tiled canvas equals the untiled one: later tiles have no given frame."""
    model, case = make_hunyuan(image_condition_type="token_replace")(), BY_NAME["hunyuan-replace"]
    for name, parameter in model.named_parameters():
        if ".attn.to_v." in name or ".attn.add_v_proj." in name:
            parameter.zero_()
    call = case.call((6, 4, 8), 2, torch.float32)
    want = model(**call).sample
    for tile in ((2, 4, 8), (3, 4, 4)):
        with td.enable_tiling(model, tile=tile, unit="latent"):
            got = model(**call).sample
        assert (got - want).abs().max() < 1e-5 * want.abs().max()
    with td.enable_tiling(model, tile=(2, 4, 8), halo=0, refresh=[1], unit="latent"):
        part = model(**call).sample
    assert (part[:, :, 2:4] - want[:, :, 2:4]).abs().max() < 1e-5 * want.abs().max()
    other = model(**{**call, "hidden_states": call["hidden_states"].roll(1, 2)}).sample.roll(-1, 2)
    assert (other - want).abs().max() > 1e-2 * want.abs().max()


def test_a_given_first_frame_and_a_loop_exclude_each_other() -> None:
    case = BY_NAME["hunyuan-replace"]
    model, call = case.build(), case.call(case.size, 1, torch.float32)
    with (
        td.enable_tiling(model, tile=case.tile, wrap=(True, False, False), unit="latent"),
        pytest.raises(NotImplementedError, match="periodic in time"),
    ):
        model(**call)


def test_the_canvas_s_positions_are_refused() -> None:
    with pytest.raises(ValueError, match="positions"):
        td.enable_tiling(BY_NAME["hunyuan"].build(), positions="canvas", unit="latent")
