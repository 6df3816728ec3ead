"""Law 4: tiles that share everything at their borders are the untiled UNet, to rounding."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from tiny_diffusers import SMALL, circular, error, make_unet, unet_inputs
from torch import Tensor

import tiledattn.diffusers as td

ROUNDING = 2e-5
ALL = {"halo": "all", "conv_halo": True, "norm": "canvas", "size_conditioning": "canvas", "unit": "latent"}
CASES = {
    "2x2": {"size": (32, 32), "tile": 16},
    "1x5": {"size": (16, 80), "tile": 16},
    "overlap": {"size": (24, 40), "tile": 16, "overlap": 4},
    "uneven": {"size": (32, 20), "tile": (16, 8)},
    "2x2 wrapped": {"size": (32, 32), "tile": 16, "wrap": True},
    "1x5 wrapped": {"size": (16, 80), "tile": 16, "wrap": (False, True)},
    "1x3 round one tile": {"size": (8, 24), "tile": 8, "wrap": (True, False)},
    "overlap wrapped": {"size": (16, 40), "tile": 16, "overlap": 4, "wrap": (False, True)},
    "one tile wrapped": {"size": (16, 16), "tile": 16, "wrap": True},
}


@pytest.fixture(scope="module", params=["sd", "sdxl"])
def unet(request: pytest.FixtureRequest) -> tuple[str, Any]:
    return request.param, make_unet(request.param)


def tiled(unet: Any, args: tuple[Tensor, Tensor, dict[str, Any]], **options: Any) -> Tensor:
    with td.enable_tiling(unet, **{**ALL, **options}):
        return unet(*args[:2], **args[2]).sample


def untiled(unet: Any, args: tuple[Tensor, Tensor, dict[str, Any]], wrap: Any = False) -> Tensor:
    wraps = (wrap, wrap) if isinstance(wrap, bool) else wrap
    model = circular(unet, wraps) if any(wraps) else unet
    return model(*args[:2], **args[2]).sample


def doubled(value: Any) -> Any:
    """Floating-point tensors in a structure, in float64."""
    if isinstance(value, dict):
        return {name: doubled(item) for name, item in value.items()}
    if isinstance(value, tuple):
        return tuple(map(doubled, value))
    return value.double() if value.is_floating_point() else value


@pytest.mark.usefixtures("joined_and_cut")
@pytest.mark.parametrize("case", CASES)
def test_fully_coupled_tiles_are_the_untiled_unet(unet: tuple[str, Any], case: str) -> None:
    """As close to the untiled model as rounding lets it: hardly further from float64 than that model is itself."""
    kind, model = unet
    options = dict(CASES[case])
    args = unet_inputs(kind, *options.pop("size"))
    wrap = options.get("wrap", False)
    exact = untiled(copy.deepcopy(model).double(), doubled(args), wrap)
    want, got = untiled(model, args, wrap), tiled(model, args, **options)
    assert error(got, want) < ROUNDING
    assert error(got, exact) < 2 * error(want, exact) + 1e-6


@pytest.mark.parametrize("taken", [{"halo": 0}, {"conv_halo": False}, {"norm": "tile"}, {"norm": "neighbours"}])
@pytest.mark.parametrize("case", ["2x2", "1x5 wrapped"])
def test_each_coupling_is_needed(unet: tuple[str, Any], case: str, taken: dict[str, Any]) -> None:
    kind, model = unet
    options = dict(CASES[case])
    args = unet_inputs(kind, *options.pop("size"), batch=1)
    want = untiled(model, args, options.get("wrap", False))
    assert error(tiled(model, args, **{**options, **taken}), want) > 500 * ROUNDING


def test_size_conditioning_is_needed() -> None:
    """The tile's size instead of the canvas's is another picture: exactness wants size_conditioning="canvas"."""
    model, args = make_unet("sdxl"), unet_inputs("sdxl", 32, 32, batch=1)
    args[2]["added_cond_kwargs"]["time_ids"] = torch.tensor([[256.0, 256, 0, 0, 256, 256]])
    want = untiled(model, args)
    assert error(tiled(model, args, tile=16), want) < ROUNDING
    assert error(tiled(model, args, tile=16, size_conditioning="tile"), want) > 500 * ROUNDING


def test_float64_is_exact_further() -> None:
    model = make_unet("sd").double()
    args = doubled(unet_inputs("sd", 32, 32, batch=1))
    assert error(tiled(model, args, tile=16), untiled(model, args)) < 1e-12


@pytest.mark.parametrize(
    "options",
    [
        {"down_block_types": ("AttnDownBlock2D",) * 3, "up_block_types": ("AttnUpBlock2D",) * 3},
        {"mid_block_type": None},
        {"mid_block_type": "UNetMidBlock2D"},
        {"downsample_padding": 0},
        {"resnet_time_scale_shift": "scale_shift"},
        {"upcast_attention": True},
        {"class_embed_type": "timestep"},
        {"time_cond_proj_dim": 8},
    ],
    ids=lambda o: next(iter(o)) + "=" + str(next(iter(o.values()))),
)
def test_other_unets(options: dict[str, Any]) -> None:
    """Attention blocks with group norms and 4-D inputs, uneven padding, other conditioning."""
    model = make_unet("sd", **options)
    x, t, kwargs = unet_inputs("sd", 32, 16)
    if "class_embed_type" in options:
        kwargs["class_labels"] = torch.tensor([3.0, 700.0])
    if "time_cond_proj_dim" in options:
        kwargs["timestep_cond"] = torch.randn(2, 8)
    args = (x, t, kwargs)
    assert error(tiled(model, args, tile=16), untiled(model, args)) < ROUNDING


def test_conditioning_differs_per_row() -> None:
    """Timesteps, text, masks and class labels of their own for each row of the batch reach every tile."""
    model = make_unet("sd", class_embed_type="timestep")
    x, _, kwargs = unet_inputs("sd", 16, 32, batch=3)
    kwargs["class_labels"] = torch.tensor([1.0, 20.0, 300.0])
    kwargs["encoder_attention_mask"] = torch.tensor([[1] * 7, [1] * 3 + [0] * 4, [1] * 5 + [0] * 2])
    args = (x, torch.tensor([1, 500, 900]), kwargs)
    assert error(tiled(model, args, tile=16), untiled(model, args)) < ROUNDING


@pytest.mark.parametrize("call", ["positional", "keywords", "dict output", "python timestep", "one row of text"])
def test_all_ways_to_call(call: str) -> None:
    model = make_unet("sd")
    x, t, kwargs = unet_inputs("sd", 16, 32)
    text = kwargs["encoder_hidden_states"]
    if call == "one row of text":
        x, text = x[:1], text[:1]

    def run() -> Any:
        if call == "positional":
            return model(x, t, text, None, None, None, None, None, None, None, None, None, False)[0]
        if call == "keywords":
            return model(timestep=t, return_dict=False, encoder_hidden_states=text, sample=x)[0]
        if call == "python timestep":
            return model(x, 500, encoder_hidden_states=text).sample
        return model(x, t, encoder_hidden_states=text)["sample"]

    want = run()
    with td.enable_tiling(model, tile=16, **ALL):
        assert error(run(), want) < ROUNDING


def test_guidance_in_one_call_and_in_two_agree() -> None:
    model = make_unet("sdxl")
    x, t, kwargs = unet_inputs("sdxl", 16, 32, batch=2)
    added = kwargs["added_cond_kwargs"]
    with td.enable_tiling(model, tile=16, halo=4, unit="latent"):
        joint = model(x, t, **kwargs).sample
        for row in range(2):
            one = slice(row, row + 1)
            alone = model(
                x[one],
                t,
                encoder_hidden_states=kwargs["encoder_hidden_states"][one],
                added_cond_kwargs={name: value[one] for name, value in added.items()},
            ).sample
            assert error(alone, joint[one]) < ROUNDING


@pytest.mark.usefixtures("joined_and_cut")
def test_gradients_flow_through_the_tiles() -> None:
    model = make_unet("sd")
    x, t, kwargs = unet_inputs("sd", 16, 32, batch=1)
    want, got = (x.clone().requires_grad_() for _ in range(2))
    model(want, t, **kwargs).sample.square().sum().backward()
    with td.enable_tiling(model, tile=16, **ALL):
        model(got, t, **kwargs).sample.square().sum().backward()
    assert error(got.grad, want.grad) < 1e-4


@pytest.mark.parametrize("options", [{}, {"overlap": 4, "blend": "attention"}], ids=str)
def test_whole_call_compiles_in_one_graph(options: dict[str, Any]) -> None:
    model = make_unet("sd", **SMALL)
    x, t, kwargs = unet_inputs("sd", 8, 16, batch=1)
    want = model(x, t, **kwargs).sample
    with torch.no_grad(), td.enable_tiling(model, tile=8, **ALL, **options):
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        assert error(compiled(x, t, **kwargs).sample, want) < ROUNDING
