"""T2I-Adapters: features of the whole canvas, computed once, reach every tile level by level."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import MultiAdapter, StableDiffusionAdapterPipeline, StableDiffusionXLAdapterPipeline, T2IAdapter
from tiny_diffusers import error, make_unet, paint, quiet, shake, unet_inputs
from torch import Tensor

import tiledattn.diffusers as td

ROUNDING = 1e-4
ALL: dict[str, Any] = {"tile": 64, "halo": "all", "size_conditioning": "canvas"}


def make_adapter(kind: str, seed: int = 7) -> T2IAdapter:
    """An adapter for images of 4 pixels per latent; SDXL's begins at the UNet's second level."""
    if kind == "sd":
        return shake(T2IAdapter(3, [16, 32, 32], 1, downscale_factor=4, adapter_type="full_adapter"), seed)
    return shake(T2IAdapter(3, [16, 32, 32, 32], 1, downscale_factor=8, adapter_type="full_adapter_xl"), seed)


def picture(seed: int = 3) -> Tensor:
    return torch.rand(1, 3, 64, 128, generator=torch.Generator().manual_seed(seed))


def with_adapter(pipe: Any, adapter: Any) -> Any:
    """The parts of a pipeline, and adapters, in another pipeline."""
    if "tokenizer_2" in pipe.components:
        return quiet(StableDiffusionXLAdapterPipeline(**pipe.components, adapter=adapter))
    parts = {name: part for name, part in pipe.components.items() if name != "image_encoder"}
    return quiet(StableDiffusionAdapterPipeline(**parts, adapter=adapter, requires_safety_checker=False))


@pytest.fixture(params=["sd", "sdxl"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.usefixtures("joined_and_cut")
def test_law_4_with_an_adapter(kind: str, request: pytest.FixtureRequest) -> None:
    pipe = with_adapter(request.getfixturevalue(kind), make_adapter(kind))
    want = paint(pipe, image=picture())
    assert error(paint(pipe, image=picture(9)), want) > 100 * ROUNDING
    with td.enable_tiling(pipe, **ALL):
        assert error(paint(pipe, image=picture()), want) < ROUNDING


def test_several_adapters(sd: Any) -> None:
    pipe = with_adapter(sd, MultiAdapter([make_adapter("sd"), make_adapter("sd", 8)]))
    run = {"image": [picture(), picture(4)], "adapter_conditioning_scale": [0.8, 0.5]}
    want = paint(pipe, **run)
    with td.enable_tiling(pipe, **ALL):
        assert error(paint(pipe, **run), want) < ROUNDING


@pytest.mark.usefixtures("joined_and_cut")
def test_the_old_argument() -> None:
    """Features passed as ControlNet residuals without a middle one, as pipelines used to."""
    model, (x, t, kwargs) = make_unet("sd"), unet_inputs("sd", 16, 32)
    features = make_adapter("sd")(picture().expand(2, -1, -1, -1))

    def run() -> Tensor:
        return model(x, t, **kwargs, down_block_additional_residuals=[f.clone() for f in features]).sample

    want = run()
    with td.enable_tiling(model, tile=16, halo="all", unit="latent"):
        assert error(run(), want) < ROUNDING


@pytest.mark.usefixtures("joined_and_cut")
def test_one_row_of_features_stands_for_all() -> None:
    model, (x, t, kwargs) = make_unet("sd"), unet_inputs("sd", 16, 32)
    features = make_adapter("sd")(picture())

    def run() -> Tensor:
        return model(x, t, **kwargs, down_intrablock_additional_residuals=[f.clone() for f in features]).sample

    want = run()
    with td.enable_tiling(model, tile=16, halo="all", unit="latent"):
        assert error(run(), want) < ROUNDING
