"""ControlNets of Flux.1: control images and residuals are cut with their tiles, packed or in pixels."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import (
    FluxControlNetImg2ImgPipeline,
    FluxControlNetInpaintPipeline,
    FluxControlNetModel,
    FluxControlNetPipeline,
)
from tiny_diffusers import make_text_encoder, make_vae, quiet, shake
from tiny_transformers.flux import flux, flux_call, image_ids
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

import tiledattn.diffusers as td
from tiledattn.diffusers.tiling import tiling_of

from .running import TILE, check_pipeline, error, mask, paint, photo, scheduler
from .texts import t5_encoder, word_tokenizer

SIZE, ROUNDING = (6, 8), 1e-5
ALL: dict[str, Any] = {"tile": (3, 4), "halo": "all", "unit": "latent"}
NETS: dict[str, dict[str, Any]] = {
    "packed": {},
    "double blocks alone": {"num_single_layers": 0},
    "union": {"num_mode": 3},
    "pixels": {"conditioning_embedding_channels": 4, "patch_size": 2},
}


def make_net(**options: Any) -> Any:
    """A ControlNet for the tiny Flux, with a block of each kind."""
    config = dict(flux()().config)
    known = ("in_channels", "attention_head_dim", "num_attention_heads", "joint_attention_dim", "pooled_projection_dim")
    config = {name: config[name] for name in (*known, "guidance_embeds", "axes_dims_rope")}
    return shake(FluxControlNetModel(**{**config, "num_layers": 1, "num_single_layers": 1, **options}), 4)


def net_call(net: Any, size: tuple[int, int] = SIZE, batch: int = 2, text: int = 0) -> dict[str, Any]:
    """A call of a ControlNet; without text, which each tile would see at another distance than the canvas does."""
    call = flux_call(size, batch, torch.float32)
    call["encoder_hidden_states"] = call["encoder_hidden_states"][:, :text]
    call["txt_ids"] = call["txt_ids"][:text]
    g = torch.Generator().manual_seed(5)
    if net.input_hint_block is None:
        call["controlnet_cond"] = torch.randn(batch, size[0] * size[1], 16, generator=g)
    else:
        call["controlnet_cond"] = torch.randn(batch, 3, size[0] * 16, size[1] * 16, generator=g)
    if net.union:
        call["controlnet_mode"] = torch.tensor([[1], [2]])
    return call


@torch.no_grad()
def residuals(net: Any, call: dict[str, Any], return_dict: bool = True) -> list[Tensor]:
    """The residuals of double and single blocks."""
    out = net(**call, return_dict=return_dict)
    both = out if isinstance(out, tuple) else (out.controlnet_block_samples, out.controlnet_single_block_samples)
    return [tokens for samples in both for tokens in samples or ()]


@torch.no_grad()
def guided(model: Any, net: Any, call: dict[str, Any]) -> Tensor:
    """A prediction of Flux with a ControlNet."""
    double, single = net(**call, return_dict=False)
    rest = {name: value for name, value in call.items() if not name.startswith("controlnet")}
    return model(**rest, controlnet_block_samples=double, controlnet_single_block_samples=single).sample


@pytest.mark.parametrize("return_dict", [False, True])
@pytest.mark.parametrize("kind", [name for name in NETS if name != "union"])
def test_residuals_are_the_canvas_s(kind: str, return_dict: bool) -> None:
    net = make_net(**NETS[kind])
    call = net_call(net)
    want = residuals(net, call)
    with td.enable_tiling(net, **ALL):
        got = residuals(net, call, return_dict)
    for ours, theirs in zip(got, want, strict=True):
        assert ours.shape == theirs.shape
        assert error(ours, theirs) < ROUNDING
    for taken in ({"halo": 0}, {"conv_halo": False}):
        with td.enable_tiling(net, **{**ALL, **taken}):
            changed = error(residuals(net, call)[0], want[0]) > 100 * ROUNDING
        assert changed == ("halo" in taken or kind == "pixels")


def test_flux_and_its_net_are_the_untiled_ones() -> None:
    model, net = flux()(), make_net()
    call = net_call(net)
    want = guided(model, net, call)
    assert error(guided(model, net, {**call, "controlnet_cond": -call["controlnet_cond"]}), want) > 1e-2
    with td.enable_tiling(model, **ALL), td.enable_tiling(net, **ALL):
        assert error(guided(model, net, call), want) < ROUNDING


@pytest.mark.parametrize("kind", NETS)
def test_tiles_alone_are_the_stock_model_s(kind: str) -> None:
    """With text and the kind of the control image, which each tile has for itself."""
    model, net = flux()(), make_net(**NETS[kind])
    call = net_call(net, (4, 8), text=5)
    image = call["controlnet_cond"]
    want = []
    for half in range(2):
        tile = {"hidden_states": call["hidden_states"].unflatten(1, (4, 2, 4))[:, :, half].flatten(1, 2)}
        packed = image.ndim == 3
        own = image.unflatten(1, (4, 2, 4))[:, :, half].flatten(1, 2) if packed else image.chunk(2, -1)[half]
        part = guided(model, net, {**call, **tile, "controlnet_cond": own, "img_ids": image_ids((4, 4))})
        want.append(part.unflatten(1, (4, 4)))
    options: dict[str, Any] = {"tile": (4, 4), "halo": 0, "conv_halo": False, "unit": "latent"}
    with td.enable_tiling(model, **options), td.enable_tiling(net, **options):
        assert error(guided(model, net, call), torch.cat(want, 2).flatten(1, 2)) < ROUNDING


def test_what_is_refused() -> None:
    net = make_net()
    call = net_call(net)
    with td.enable_tiling(net, **ALL):
        with pytest.raises(ValueError, match="controlnet_cond: got 40 tokens"):
            net(**{**call, "controlnet_cond": torch.zeros(2, 40, 16)})
        with pytest.raises(TypeError, match="missing controlnet_cond"):
            net(**{**call, "controlnet_cond": None})
        with pytest.raises(NotImplementedError, match="joint_attention_kwargs"):
            net(**call, joint_attention_kwargs={"strange": 1})
    model = flux()()
    rest = {name: value for name, value in call.items() if not name.startswith("controlnet")}
    with td.enable_tiling(model, **ALL), pytest.raises(ValueError, match="controlnet_block_samples: got 40 tokens"):
        model(**rest, controlnet_block_samples=[torch.zeros(2, 40, 32)])


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
        "transformer": flux()(),
    }


PIPELINES: dict[str, tuple[Any, Any, dict[str, Any], list[int]]] = {
    "one": (FluxControlNetPipeline, {}, {"control_image": photo()}, [0, 1, 2]),
    "image to image": (
        FluxControlNetImg2ImgPipeline,
        {},
        {"control_image": photo(), "image": photo(), "strength": 0.6},
        [1, 2],
    ),
    "inpaint": (
        FluxControlNetInpaintPipeline,
        {},
        {"control_image": photo(), "image": photo(), "mask_image": mask(), "strength": 0.6},
        [1, 2],
    ),
    "union": (FluxControlNetPipeline, {"num_mode": 3}, {"control_image": photo(), "control_mode": 1}, [0, 1, 2]),
}


@pytest.mark.parametrize("name", PIPELINES)
def test_pipeline(parts: dict[str, Any], name: str) -> None:
    cls, options, call, steps = PIPELINES[name]
    pipe = quiet(cls(**parts, controlnet=make_net(**options)))
    check_pipeline(pipe, steps, max_sequence_length=16, **call)
    assert tiling_of(pipe.controlnet) is None


def test_several_nets(parts: dict[str, Any]) -> None:
    pipe = quiet(FluxControlNetPipeline(**parts, controlnet=[make_net(), make_net(num_layers=2)]))
    call = {"control_image": [photo()] * 2, "controlnet_conditioning_scale": [1.0, 0.5], "max_sequence_length": 16}
    check_pipeline(pipe, [0, 1, 2], control_mode=[None, None], **call)
    with td.enable_tiling(pipe, tile=TILE, halo=8) as tiling:
        assert len(tiling.companions) == 2
        full = paint(pipe, 2 * TILE, control_mode=[None, None], **call)
        call["controlnet_conditioning_scale"] = [0.0, 0.0]
        assert error(paint(pipe, 2 * TILE, control_mode=[None, None], **call), full) > 1e-3
