"""Feed-forwards of a tiled model run on a few tokens at a time."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from tiny_diffusers import error, make_unet, unet_inputs
from torch import Tensor, nn

import tiledattn.diffusers as td
from tiledattn.diffusers import grouping
from tiledattn.diffusers.frame import CurrentFrame, Frame
from tiledattn.geometry import TileLayout


def call(unet: Any) -> Tensor:
    x, t, kwargs = unet_inputs("sd", 32, 32, batch=1)
    return unet(x, t, **kwargs).sample


@pytest.fixture
def rows() -> list[int]:
    return []


@pytest.fixture
def unet(rows: list[int]) -> Any:
    """A UNet that notes how many tokens its feed-forwards get."""
    model = make_unet("sd")
    for name, module in model.named_modules():
        if name.endswith(".ff"):
            module.net[0].register_forward_pre_hook(lambda _, args: rows.append(args[0][..., 0].numel()))
    return model


@torch.no_grad()
@pytest.mark.parametrize("norm", ["canvas", "neighbours"], ids=["joined", "cut"])
def test_groups_give_the_same_numbers(norm: str, unet: Any, rows: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    with td.enable_tiling(unet, tile=8, unit="latent", norm=norm):
        whole = call(unet)
        assert max(rows) == 32 * 32
        tokens = sum(rows)
        rows.clear()
        monkeypatch.setattr(grouping, "GROUP_BYTES", 20_000)
        assert error(call(unet), whole) < 1e-5
        assert max(rows) < 16 * 16
        assert sum(rows) == tokens
    rows.clear()
    call(unet)
    assert max(rows) == 32 * 32


def test_training_and_untiled_models_are_left_alone(
    unet: Any, rows: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grouping, "GROUP_BYTES", 1)
    with td.enable_tiling(unet, tile=8, unit="latent"):
        call(unet)
    assert max(rows) == 32 * 32
    assert not any("forward" in vars(module) for module in unet.modules())


def test_a_copy_is_taken_apart_alone() -> None:
    unet = make_unet("sd")
    td.enable_tiling(unet, tile=8, unit="latent")
    twin = copy.deepcopy(unet)
    td.disable_tiling(twin)
    assert not any("forward" in vars(module) for module in twin.modules())
    pickle.dumps(twin)
    assert sum("forward" in vars(module) for module in unet.modules()) > 2
    td.disable_tiling(unet)
    assert not any("forward" in vars(module) for module in unet.modules())


@torch.no_grad()
def test_somebody_elses_wrapper_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grouping, "GROUP_BYTES", 1)
    current, layer, seen = CurrentFrame(), nn.Linear(4, 4), []
    current.frame = Frame(TileLayout(4, 4))
    theirs = layer.forward
    layer.forward = lambda x: (seen.append(len(x)), theirs(x))[1]  # type: ignore[method-assign]
    wrapper = layer.forward
    grouped = grouping.GroupedLayers([layer], current)
    grouped.install()
    layer(torch.ones(6, 2, 4))
    grouped.remove(layer)
    assert seen == [6]
    assert layer.forward is wrapper
