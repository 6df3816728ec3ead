"""ControlNets on tiles: the UNet and its ControlNets together are the untiled ones, and stay local."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import pytest
import torch
from diffusers import (
    ControlNetModel,
    ControlNetUnionModel,
    SD3ControlNetModel,
    StableDiffusionControlNetImg2ImgPipeline,
    StableDiffusionControlNetInpaintPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionXLControlNetImg2ImgPipeline,
    StableDiffusionXLControlNetInpaintPipeline,
    StableDiffusionXLControlNetPipeline,
    StableDiffusionXLControlNetUnionImg2ImgPipeline,
    StableDiffusionXLControlNetUnionInpaintPipeline,
    StableDiffusionXLControlNetUnionPipeline,
)
from tiny_diffusers import FACTOR, circular, error, make_unet, paint, quiet, shake, unet_inputs
from torch import Tensor

import tiledattn.diffusers as td
from tiledattn.diffusers.tiling import tiling_of

ROUNDING = 1e-4
ALL: dict[str, Any] = {"tile": 64, "halo": "all", "size_conditioning": "canvas"}
LATENT: dict[str, Any] = {**ALL, "tile": 16, "unit": "latent"}


def make_net(unet: Any, seed: int = 7, **options: Any) -> Any:
    """A ControlNet for a UNet, whose control image has 4 pixels per latent; its zero convolutions aren't zero."""
    net = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 8, 8))
    net.register_to_config(**options)
    return shake(net, seed)


def make_union(unet: Any) -> Any:
    """A ControlNet for six kinds of control images."""
    known = inspect.signature(ControlNetUnionModel.__init__).parameters
    config = {name: value for name, value in ControlNetModel.from_unet(unet).config.items() if name in known}
    config |= {"conditioning_embedding_out_channels": (8, 8, 8), "num_trans_channel": 16, "num_proj_channel": 16}
    return shake(ControlNetUnionModel(**config, num_trans_head=2), 7)


def control(height: int = 64, width: int = 128, seed: int = 3) -> Tensor:
    return torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(seed))


def with_net(pipe: Any, cls: Any, net: Any) -> Any:
    """The parts of a pipeline, and ControlNets, in another pipeline."""
    checker = {} if "tokenizer_2" in pipe.components else {"requires_safety_checker": False}
    return quiet(cls(**pipe.components, controlnet=net, **checker))


@pytest.fixture(params=["sd", "sdxl"])
def plain(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


def classes(pipe: Any) -> tuple[Any, Any, Any]:
    """Text-to-image, image-to-image, inpainting."""
    if "tokenizer_2" in pipe.components:
        return (
            StableDiffusionXLControlNetPipeline,
            StableDiffusionXLControlNetImg2ImgPipeline,
            StableDiffusionXLControlNetInpaintPipeline,
        )
    return (
        StableDiffusionControlNetPipeline,
        StableDiffusionControlNetImg2ImgPipeline,
        StableDiffusionControlNetInpaintPipeline,
    )


@pytest.fixture
def pipe(plain: Any) -> Any:
    return with_net(plain, classes(plain)[0], make_net(plain.unet))


@pytest.mark.usefixtures("joined_and_cut")
@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_law_4_with_a_controlnet(pipe: Any, guidance: float) -> None:
    run = {"image": control(128, 128), "guidance_scale": guidance, "height": 128, "width": 128}
    want = paint(pipe, **run)
    assert error(paint(pipe, **{**run, "controlnet_conditioning_scale": 0.0}), want) > 100 * ROUNDING
    with td.enable_tiling(pipe, **ALL):
        assert error(paint(pipe, **run), want) < ROUNDING


def test_law_4_with_overlap_blended_behind_attention(pipe: Any) -> None:
    run = {"image": control(128, 160), "height": 128, "width": 160}
    want = paint(pipe, **run)
    with td.enable_tiling(pipe, **ALL, overlap=16, blend="attention"):
        assert error(paint(pipe, **run), want) < ROUNDING


def test_one_controlnet_for_two_images(sd: Any) -> None:
    net = make_net(sd.unet)
    forward, pipe = set(vars(net)), with_net(sd, StableDiffusionControlNetPipeline, [net, net])
    run: dict[str, Any] = {"image": [control(128, 128), control(128, 128, seed=4)], "height": 128, "width": 128}
    want = paint(pipe, **run)
    with td.enable_tiling(pipe, **ALL) as tiling:
        assert len(tiling.companions) == 1
        assert error(paint(pipe, **run), want) < ROUNDING
    assert set(vars(net)) == forward
    assert torch.equal(paint(pipe, **run), want)


@pytest.mark.parametrize("taken", [{"halo": 0}, {"conv_halo": False}, {"norm": "tile"}])
def test_the_controlnet_needs_each_coupling(taken: dict[str, Any]) -> None:
    """The ControlNet alone, so that no coupling of the UNet can hide what its own lack."""
    net, args = make_net(make_unet("sd")), unet_inputs("sd", 32, 32)
    call = (*args[:2], args[2]["encoder_hidden_states"], control(128, 128).expand(2, -1, -1, -1))
    want = net(*call).down_block_res_samples
    with td.enable_tiling(net, **{**LATENT, **taken}):
        got = net(*call).down_block_res_samples
    assert error(got[-1], want[-1]) > 100 * ROUNDING


@pytest.mark.usefixtures("joined_and_cut")
@pytest.mark.parametrize(
    "options",
    [{}, {"overlap": 4}, {"overlap": 4, "window": (torch.linspace(0.1, 1, 16), torch.ones(16))}, {"tile": (8, 16)}],
    ids=["plain", "overlap", "custom window", "low tiles"],
)
@pytest.mark.parametrize("return_dict", [False, True])
def test_residuals_of_every_level(options: dict[str, Any], return_dict: bool) -> None:
    net, args = make_net(make_unet("sd")), unet_inputs("sd", 24, 40)
    call = (*args[:2], args[2]["encoder_hidden_states"], control(96, 160).expand(2, -1, -1, -1))
    want = net(*call, return_dict=return_dict)
    with td.enable_tiling(net, **{**LATENT, **options}):
        got = net(*call, return_dict=return_dict)
    assert type(got) is type(want)
    for ours, theirs in zip([*got[0], got[1]], [*want[0], want[1]], strict=True):
        assert ours.shape == theirs.shape
        assert error(ours, theirs) < ROUNDING


def test_wrapped_to_the_picture(sd: Any) -> None:
    """As if every convolution were circular in x, those over pixels of the control image and the VAE's as well."""
    net, unet, vae = make_net(sd.unet), sd.unet, sd.vae
    pipe = with_net(sd, StableDiffusionControlNetPipeline, circular(net, (False, True)))
    pipe.unet, pipe.vae = circular(unet, (False, True)), copy.deepcopy(vae)
    pipe.vae.decoder = circular(vae.decoder, (False, True))
    run = {"image": control(64, 192), "width": 192, "output_type": "pt"}
    want = paint(pipe, **run)
    pipe.unet, pipe.vae, pipe.controlnet = unet, vae, net
    with td.enable_tiling(pipe, wrap=(False, True), **ALL):
        assert error(paint(pipe, **run), want) < ROUNDING


def test_a_grid_that_moves(sd: Any) -> None:
    """UNet and ControlNet agree on it at every step, and round a wrapped axis it changes nothing."""
    pipe = with_net(sd, StableDiffusionControlNetPipeline, make_net(sd.unet))
    run = {"image": control(64, 128), "steps": 3}
    with td.enable_tiling(pipe, wrap=True, **ALL):
        want = paint(pipe, **run)
    with td.enable_tiling(pipe, wrap=True, jitter=3, **ALL):
        assert error(paint(pipe, **run), want) < ROUNDING
    with td.enable_tiling(pipe, jitter=3, tile=32, halo=8) as tiling:
        places = []
        tiling.on_tiles = lambda tiles, layout, step: places.append((layout, tiling.companions[0].layout))
        assert paint(pipe, **run).isfinite().all()
    assert len(places) == 3
    assert all(own == net for own, net in places)


def test_region_prompts(sd: Any) -> None:
    """The ControlNet gets the regions' prompts as well."""
    pipe = with_net(sd, StableDiffusionControlNetPipeline, make_net(sd.unet))
    run = {"image": control(64, 128), "guidance_scale": 1.0, "steps": 1}
    with td.enable_tiling(pipe, **ALL, regions=[td.Region((0, 0, 128, 64), "a stone")]):
        got = paint(pipe, **run)
    assert error(got, paint(pipe, **run, prompt="a stone")) < ROUNDING / 10
    assert error(got, paint(pipe, **run)) > 3 * ROUNDING


def test_repainting_a_part_of_the_canvas(sd: Any) -> None:
    """The ControlNet runs where the UNet does: tiles that see nothing of one another, of which the mask touches one."""
    pipe = with_net(sd, StableDiffusionControlNetInpaintPipeline, make_net(sd.unet))
    mask = torch.zeros(64, 128)
    mask[:, 64:] = 1
    run = {"image": control(seed=5), "control_image": control(), "mask_image": mask[None, None], "height": 64}
    run |= {"width": 128, "num_inference_steps": 2, "strength": 1.0}
    apart = {"tile": 64, "halo": 0, "conv_halo": False, "norm": "tile"}
    with td.enable_tiling(pipe, **apart):
        want = repaint(pipe, **run)
    with td.enable_tiling(pipe, **apart, refresh=mask) as tiling:
        assert error(repaint(pipe, **run), want) < ROUNDING
        assert tiling.layout.num_tiles == tiling.companions[0].layout.num_tiles == 1


@pytest.mark.parametrize("halo", [0, 8])
def test_control_is_local(sd: Any, halo: int) -> None:
    """A corner of the control image changes its own tile and, through the couplings, others; nothing else."""
    pipe = with_net(sd, StableDiffusionControlNetPipeline, make_net(sd.unet))
    image, changed = control(128, 192), control(128, 192)
    changed[..., :16, :16] = 1 - changed[..., :16, :16]
    with td.enable_tiling(pipe, tile=64, halo=halo, conv_halo=False, norm="tile"):
        first, second = (paint(pipe, 128, 192, steps=1, image=x) for x in (image, changed))
    assert not torch.equal(first[..., :16, :16], second[..., :16, :16])
    for rows, columns in ((slice(0, 16), slice(16, 32)), (slice(16, 32), slice(0, 16))):
        assert torch.equal(first[..., rows, columns], second[..., rows, columns]) == (halo == 0)


@pytest.mark.usefixtures("joined_and_cut")
@pytest.mark.parametrize(
    "options",
    [
        {"guess_mode": True},
        {"controlnet_conditioning_scale": 0.3},
        {"control_guidance_start": 0.4},
        {"control_guidance_end": 0.5},
    ],
    ids=lambda o: next(iter(o)),
)
def test_strength_of_control(pipe: Any, options: dict[str, Any]) -> None:
    run = {"image": control(), "steps": 3}
    want = paint(pipe, **run, **options)
    assert error(paint(pipe, **run), want) > 10 * ROUNDING
    with td.enable_tiling(pipe, **ALL):
        assert error(paint(pipe, **run, **options), want) < ROUNDING


@pytest.mark.usefixtures("joined_and_cut")
def test_several_nets(plain: Any) -> None:
    pipe = with_net(plain, classes(plain)[0], [make_net(plain.unet), make_net(plain.unet, 8)])
    run = {"image": [control(), control(seed=4)], "controlnet_conditioning_scale": [1.0, 0.5]}
    want = paint(pipe, **run)
    with td.enable_tiling(pipe, **ALL) as tiling:
        assert len(tiling.companions) == 2
        assert error(paint(pipe, **run), want) < ROUNDING
    assert not any(tiling_of(net) for net in pipe.controlnet.nets)


@pytest.mark.usefixtures("joined_and_cut")
def test_a_net_that_pools_its_residuals(sd: Any) -> None:
    pipe = with_net(sd, StableDiffusionControlNetPipeline, make_net(sd.unet, global_pool_conditions=True))
    want = paint(pipe, image=control())
    assert error(paint(pipe, image=control(seed=9)), want) > 10 * ROUNDING
    with td.enable_tiling(pipe, **ALL):
        assert error(paint(pipe, image=control()), want) < ROUNDING


def repaint(pipe: Any, **kwargs: Any) -> Tensor:
    return pipe("a river", generator=torch.Generator().manual_seed(0), output_type="latent", **kwargs).images


def test_image_to_image_and_inpainting(plain: Any) -> None:
    mask = torch.zeros(1, 1, 64, 128)
    mask[..., 40:] = 1
    net = make_net(plain.unet)
    for cls, extra in zip(classes(plain)[1:], ({}, {"mask_image": mask, "height": 64, "width": 128}), strict=True):
        pipe = with_net(plain, cls, net)
        run = {"image": control(seed=5), "control_image": control(), "strength": 0.75, "num_inference_steps": 4}

        want = repaint(pipe, **run, **extra)
        with td.enable_tiling(pipe, **ALL):
            assert error(repaint(pipe, **run, **extra), want) < ROUNDING


@pytest.mark.usefixtures("joined_and_cut")
@pytest.mark.parametrize(
    ("cls", "extra"),
    [
        (StableDiffusionXLControlNetUnionPipeline, {}),
        (StableDiffusionXLControlNetUnionImg2ImgPipeline, {"image": control(seed=5), "strength": 0.75}),
        (
            StableDiffusionXLControlNetUnionInpaintPipeline,
            {"image": control(seed=5), "mask_image": control(seed=6)[:, :1], "strength": 0.75},
        ),
    ],
    ids=["text to image", "image to image", "inpaint"],
)
def test_union(sdxl: Any, cls: Any, extra: dict[str, Any]) -> None:
    pipe = with_net(sdxl, cls, make_union(sdxl.unet))
    run = {"control_image": [control(), control(seed=4)], "control_mode": [0, 3], "steps": 3, **extra}
    want = paint(pipe, **run)
    with td.enable_tiling(pipe, **ALL):
        assert error(paint(pipe, **run), want) < ROUNDING


def test_one_tile_and_levels_that_do_not_divide_it(pipe: Any) -> None:
    for size in ((64, 64), (56, 40)):
        want = paint(pipe, *size, image=control(*size))
        with td.enable_tiling(pipe):
            assert error(paint(pipe, *size, image=control(*size)), want) < ROUNDING


def test_prompt_to_picture_beyond_the_native_size(sdxl: Any) -> None:
    pipe = with_net(sdxl, StableDiffusionXLControlNetPipeline, make_net(sdxl.unet))
    with td.enable_tiling(pipe, halo=8, halo_schedule="quadratic") as tiling:
        out = paint(pipe, 128, 192, image=control(128, 192), output_type="pt")
        assert tiling.layout.grid == (2, 3)
    assert out.shape == (1, 3, 128, 192)
    assert out.isfinite().all()


def test_disable_is_to_the_bit(pipe: Any) -> None:
    want = paint(pipe, image=control())
    before = [{name: id(value) for name, value in vars(m).items()} for m in (pipe.unet, pipe.controlnet)]
    processors = dict(pipe.controlnet.attn_processors)
    with td.enable_tiling(pipe, tile=32, halo=8):
        assert not torch.equal(paint(pipe, image=control()), want)
    assert torch.equal(paint(pipe, image=control()), want)
    assert [{name: id(value) for name, value in vars(m).items()} for m in (pipe.unet, pipe.controlnet)] == before
    assert all(pipe.controlnet.attn_processors[name] is p for name, p in processors.items())


def test_a_deep_copy_is_tiled_alike_and_disabled_alone(pipe: Any) -> None:
    want = paint(pipe, image=control())
    with td.enable_tiling(pipe, tile=32, halo=8):
        tiled = paint(pipe, image=control())
        other = quiet(copy.deepcopy(pipe))
        assert torch.equal(paint(other, image=control()), tiled)
        td.disable_tiling(other)
        assert torch.equal(paint(other, image=control()), want)
        assert torch.equal(paint(pipe, image=control()), tiled)


def test_an_untiled_net_in_a_pipeline_that_shares_the_unet(sd: Any) -> None:
    """Its residuals are the whole canvas's, and the UNet cuts them."""
    pipe = with_net(sd, StableDiffusionControlNetPipeline, make_net(sd.unet))
    want = paint(pipe, image=control())
    with td.enable_tiling(sd, **ALL):
        assert tiling_of(pipe.controlnet) is None
        assert error(paint(pipe, image=control()), want) < ROUNDING


def test_calls_that_cannot_be_tiled() -> None:
    net, (x, t, kwargs) = make_net(make_unet("sd")), unet_inputs("sd", 16, 32)
    text = kwargs["encoder_hidden_states"]
    image = control().expand(2, -1, -1, -1)
    with td.enable_tiling(net, **LATENT):
        with pytest.raises(ValueError, match=r"controlnet_cond: got \(2, 3, 16, 32\).*64, 128"):
            net(x, t, text, torch.zeros(2, 3, 16, 32))
        with pytest.raises(TypeError, match="missing controlnet_cond"):
            net(x, t, text)
        with pytest.raises(NotImplementedError, match="attention_mask"):
            net(x, t, text, image, attention_mask=torch.ones(2, 512))
        with pytest.raises(ValueError, match="controlnet_cond: got"):
            net(x, t, text, image[:1].expand(3, -1, -1, -1))
        with pytest.raises(NotImplementedError, match="ip_adapter_masks"):
            net(x, t, text, image, cross_attention_kwargs={"ip_adapter_masks": [x]})


def test_a_controlnet_of_another_kind_is_refused(sd: Any) -> None:
    pipe = with_net(sd, StableDiffusionControlNetPipeline, make_net(sd.unet))
    pipe.controlnet = SD3ControlNetModel(num_layers=1, num_attention_heads=1, attention_head_dim=8, sample_size=16)
    with pytest.raises(NotImplementedError, match="SD3ControlNetModel"):
        td.enable_tiling(pipe)
    assert tiling_of(pipe.unet) is None


def test_a_controlnet_of_more_levels_is_refused(sd: Any) -> None:
    deeper = make_unet(
        "sd",
        block_out_channels=(16, 32, 32, 32),
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    )
    pipe = with_net(sd, StableDiffusionControlNetPipeline, make_net(deeper))
    with pytest.raises(ValueError, match="ControlNetModel: its levels need a height that is a multiple of 8"):
        td.enable_tiling(pipe)


def test_pixels_per_latent() -> None:
    """The tiny VAE's reduction, as the pipelines want it."""
    assert td.families.controlnet.ControlNetFamily().finest(make_net(make_unet("sd"))) == FACTOR
