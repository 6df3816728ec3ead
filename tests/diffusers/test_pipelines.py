"""Tiling inside whole pipelines: exactness, shapes, precisions, tasks, callbacks, LoRA."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from diffusers import (
    EulerDiscreteScheduler,
    LCMScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
)
from peft import LoraConfig
from tiny_diffusers import FACTOR, circular, error, make_unet, paint, quiet

import tiledattn as ta
import tiledattn.diffusers as td

ROUNDING = 1e-4  # of a whole run: the UNet's 1e-5, amplified by guidance and steps
ALL = {"tile": 64, "halo": "all", "size_conditioning": "canvas"}
SHARED = ("vae", "text_encoder", "tokenizer", "unet", "scheduler")


@pytest.fixture(params=["sd", "sdxl"])
def pipe(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


@pytest.mark.usefixtures("joined_and_cut")
@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_law_4_over_a_whole_run(pipe: Any, guidance: float) -> None:
    want = paint(pipe, 128, 128, steps=3, guidance_scale=guidance)
    with td.enable_tiling(pipe, **ALL):
        assert error(paint(pipe, 128, 128, steps=3, guidance_scale=guidance), want) < ROUNDING


def test_law_4_wrapped_over_a_whole_run_to_the_picture(pipe: Any) -> None:
    """A 360-degree panorama, decoded: as if every convolution of UNet and VAE were circular in x."""
    unet, vae = pipe.unet, pipe.vae
    pipe.unet, pipe.vae = circular(unet, (False, True)), copy.deepcopy(vae)
    pipe.vae.decoder = circular(vae.decoder, (False, True))
    want = paint(pipe, 64, 192, steps=3, output_type="pt")
    pipe.unet, pipe.vae = unet, vae
    with td.enable_tiling(pipe, wrap=(False, True), **ALL):
        assert error(paint(pipe, 64, 192, steps=3, output_type="pt"), want) < ROUNDING


@pytest.mark.parametrize("taken", [{"halo": 0}, {"conv_halo": False}, {"norm": "tile"}])
def test_a_run_needs_each_coupling(sd: Any, taken: dict[str, Any]) -> None:
    want = paint(sd, 128, 64)
    with td.enable_tiling(sd, **{**ALL, **taken}):
        assert error(paint(sd, 128, 64), want) > 100 * ROUNDING


def test_one_tile_is_the_stock_pipeline(pipe: Any) -> None:
    """Also where the canvas is smaller than the tile, and where the UNet's levels don't divide it."""
    sizes = [(64, 64), (56, 40)]
    want = [paint(pipe, *size, output_type="pt") for size in sizes]
    with td.enable_tiling(pipe):
        for size, stock in zip(sizes, want, strict=True):
            assert error(paint(pipe, *size, output_type="pt"), stock) < ROUNDING


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("wrap", [False, True, (False, True)])
@pytest.mark.parametrize(("rows", "columns"), [(1, 6), (2, 3), (4, 2)])
def test_canvases_run(pipe: Any, rows: int, columns: int, wrap: Any, dtype: torch.dtype) -> None:
    pipe.to(dtype=dtype)
    with td.enable_tiling(pipe, tile=32, halo=8, wrap=wrap) as tiling:
        out = paint(pipe, rows * 32, columns * 32, steps=1, output_type="pt")
        assert tiling.layout.grid == (rows, columns)
    assert out.shape == (1, 3, rows * 32, columns * 32)
    assert out.dtype == dtype
    assert out.isfinite().all()


def test_half_precision_is_as_close_as_the_untiled_model(sd: Any) -> None:
    exact = paint(sd, 64, 128)
    sd.to(dtype=torch.bfloat16)
    budget = 2 * error(paint(sd, 64, 128), exact) + 1e-2
    with td.enable_tiling(sd, **ALL):
        assert error(paint(sd, 64, 128), exact) < budget


@pytest.mark.usefixtures("joined_and_cut")
@pytest.mark.parametrize("options", [{"overlap": 32}, {"overlap": (0, 16), "window": "gaussian"}])
def test_overlapping_tiles_blend(pipe: Any, options: dict[str, Any]) -> None:
    want = paint(pipe, 64, 160)
    with td.enable_tiling(pipe, **ALL, **options):
        assert error(paint(pipe, 64, 160), want) < ROUNDING


@pytest.mark.usefixtures("joined_and_cut")
def test_custom_window(sd: Any) -> None:
    ramp = torch.linspace(0.1, 1.0, 64 // FACTOR)
    with td.enable_tiling(sd, tile=64, overlap=32, window=(ramp, ramp)):
        assert paint(sd, 64, 160).isfinite().all()


@pytest.mark.usefixtures("joined_and_cut")
def test_custom_window_on_a_canvas_lower_than_the_tile(sd: Any) -> None:
    """One tile down: the ramp has nobody to share with there, whatever it is."""
    ramp = torch.linspace(0.1, 1.0, 64 // FACTOR)
    results = []
    for vertical in (ramp, torch.ones(64 // FACTOR)):
        with td.enable_tiling(sd, tile=64, overlap=32, window=(vertical, ramp)):
            results.append(paint(sd, 48, 160))
    assert torch.equal(*results)
    with td.enable_tiling(sd, tile=64, overlap=32, window=(ramp, torch.ones(64 // FACTOR))):
        assert error(paint(sd, 48, 160), results[0]) > ROUNDING


def test_plain_blending_is_tiles_apart(sd: Any) -> None:
    """Nothing crosses a border: MultiDiffusion. Processors are untouched, and each tile is the model's own."""
    processors = dict(sd.unet.attn_processors)
    seen = []
    with td.enable_tiling(sd, tile=64, halo=0, conv_halo=False, norm="tile") as tiling:
        assert all(sd.unet.attn_processors[name] is p for name, p in processors.items())
        tiling.on_tiles = lambda tiles, layout, step: seen.append((tiles, layout, step))
        canvas = torch.randn(1, 4, 16, 32)
        text = torch.randn(1, 5, 16)
        sd.scheduler.set_timesteps(2)
        sd.unet(canvas, sd.scheduler.timesteps[1], text)
    tiles, layout, step = seen[0]
    assert (tiles.shape, layout.grid, step) == ((2, 1, 4, 16, 16), (1, 2), 1)
    for tile, x in zip(tiles, canvas.split(16, dim=-1), strict=True):
        assert error(tile, sd.unet(x, sd.scheduler.timesteps[1], text).sample) < ROUNDING


def test_on_tiles_counts_steps(pipe: Any) -> None:
    steps = []
    with td.enable_tiling(pipe, tile=64, halo=8) as tiling:
        tiling.on_tiles = lambda tiles, layout, step: steps.append(step)
        paint(pipe, steps=3)
        pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
        paint(pipe, steps=4)
    assert steps == [0, 1, 2, 0, 1, 2, 3]


def test_several_images_and_prompts(pipe: Any) -> None:
    kwargs = {"prompt": ["a river", "a wood"], "num_images_per_prompt": 2}
    want = paint(pipe, **kwargs)
    with td.enable_tiling(pipe, **ALL):
        got = paint(pipe, **kwargs)
    assert got.shape[0] == 4
    assert error(got, want) < ROUNDING


def test_callback_sees_the_canvas(pipe: Any) -> None:
    shapes = []

    def look(pipe: Any, step: int, timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        shapes.append(tuple(kwargs["latents"].shape))
        pipe._interrupt = step == 1
        return kwargs

    with td.enable_tiling(pipe, tile=64):
        paint(pipe, 64, 128, steps=4, callback_on_step_end=look)
    assert shapes == [(1, 4, 16, 32)] * 2


def task(pipe: Any, cls: Any, **parts: Any) -> Any:
    """The same parts in another pipeline."""
    return quiet(cls(**{**pipe.components, **parts}, **({} if "tokenizer_2" in pipe.components else NO_CHECKER)))


NO_CHECKER = {"requires_safety_checker": False}
PICTURE = torch.rand(1, 3, 64, 128, generator=torch.Generator().manual_seed(5))
MASK = torch.zeros(1, 1, 64, 128)
MASK[..., 40:] = 1


def repaint(pipe: Any, **kwargs: Any) -> torch.Tensor:
    return pipe(
        "a river",
        image=PICTURE,
        num_inference_steps=4,
        generator=torch.Generator().manual_seed(0),
        output_type="latent",
        **kwargs,
    ).images


def test_image_to_image(pipe: Any) -> None:
    sdxl = hasattr(pipe, "tokenizer_2")
    pipe = task(pipe, StableDiffusionXLImg2ImgPipeline if sdxl else StableDiffusionImg2ImgPipeline)
    want = repaint(pipe, strength=0.5)
    with td.enable_tiling(pipe, **ALL):
        assert error(repaint(pipe, strength=0.5), want) < ROUNDING


@pytest.mark.parametrize("channels", [4, 9])
def test_inpainting(pipe: Any, channels: int) -> None:
    sdxl = hasattr(pipe, "tokenizer_2")
    unet = make_unet("sdxl" if sdxl else "sd", in_channels=channels)
    cls = StableDiffusionXLInpaintPipeline if sdxl else StableDiffusionInpaintPipeline
    pipe = task(pipe, cls, unet=unet)
    kwargs = {"mask_image": MASK, "height": 64, "width": 128, "strength": 0.75}
    want = repaint(pipe, **kwargs)
    with td.enable_tiling(pipe, **ALL):
        assert error(repaint(pipe, **kwargs), want) < ROUNDING


@pytest.mark.usefixtures("joined_and_cut")
def test_guidance_by_an_embedding(sd: Any) -> None:
    """Distilled models take the guidance scale as `timestep_cond`, one row for each image."""
    sd.unet = make_unet("sd", time_cond_proj_dim=8)
    sd.scheduler = LCMScheduler.from_config(sd.scheduler.config)
    want = paint(sd, num_images_per_prompt=2)
    with td.enable_tiling(sd, **ALL):
        assert error(paint(sd, num_images_per_prompt=2), want) < ROUNDING


def lora(unet: Any, name: str = "default", **options: Any) -> None:
    """A LoRA with visible weights on attention, convolutions, down- and upsamplers."""
    targets = ["to_q", "to_k", "to_v", "to_out.0", "conv1", "conv2", "conv", "conv_in"]
    unet.add_adapter(LoraConfig(r=2, target_modules=targets, init_lora_weights=False, **options), name)


@pytest.mark.usefixtures("joined_and_cut")
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("dora", [False, True])
def test_lora(pipe: Any, when: str, dora: bool) -> None:
    """By float64, from the same noise: DoRA divides by norms, which may amplify rounding."""
    noise = torch.randn(1, 4, 16, 32, generator=torch.Generator().manual_seed(0))

    def run(scale: float | None = None) -> torch.Tensor:
        options = {} if scale is None else {"cross_attention_kwargs": {"scale": scale}}
        return paint(pipe, latents=noise.to(pipe.unet.dtype), **options).double()

    plain = run()
    torch.manual_seed(0)
    if when == "before":
        lora(pipe.unet, use_dora=dora)
    tiling = td.enable_tiling(pipe, **ALL)
    if when == "after":
        lora(pipe.unet, use_dora=dora)
    got, weaker = run(), run(0.5)
    tiling.disable()
    untiled = run(), run(0.5)
    pipe.to(torch.float64)
    exact = run(), run(0.5)
    pipe.to(torch.float32)
    for found, usual, right in zip((got, weaker), untiled, exact, strict=True):
        assert error(found, right) <= 2 * error(usual, right)
    assert error(got, plain) > 0.01
    with td.enable_tiling(pipe, **ALL):
        pipe.unet.delete_adapters("default")
        assert error(run(), plain) < ROUNDING


@pytest.mark.usefixtures("joined_and_cut")
@pytest.mark.parametrize("when", ["before", "after"])
def test_fused_projections(pipe: Any, when: str) -> None:
    want = paint(pipe)
    if when == "before":
        pipe.fuse_qkv_projections(vae=False)
    with td.enable_tiling(pipe, **ALL):
        if when == "after":
            pipe.fuse_qkv_projections(vae=False)
        assert error(paint(pipe), want) < ROUNDING
        for layer in pipe.unet.modules():  # the fused weights are the ones in use
            if hasattr(layer, "to_qkv"):
                layer.to_q.weight.zero_()
        assert error(paint(pipe), want) < ROUNDING


@pytest.mark.usefixtures("joined_and_cut")
def test_sliced_attention_and_processors_set_later(sd: Any) -> None:
    want = paint(sd)
    with td.enable_tiling(sd, **ALL):
        sd.enable_attention_slicing(1)
        assert error(paint(sd), want) < ROUNDING
        sd.unet.set_attn_processor(td.CrossTileAttnProcessor())
        assert error(paint(sd), want) < ROUNDING


@pytest.mark.parametrize("backend", ["torch", "reference"])
def test_backends_agree(sd: Any, backend: str) -> None:
    want = paint(sd, steps=1)
    with td.enable_tiling(sd, **ALL, backend=backend):
        assert error(paint(sd, steps=1), want) < ROUNDING


def test_a_backend_that_is_not_here_says_so(sd: Any) -> None:
    if ta.backends()["triton"] is None:
        pytest.skip("Triton runs here")
    with td.enable_tiling(sd, **ALL, backend="triton") as tiling:
        with pytest.raises(ta.BackendUnavailableError, match="triton"):
            paint(sd)
        assert tiling.options.norm_backend == "auto"


def ip_adapter(unet: Any) -> dict[str, dict[str, torch.Tensor]]:
    """Random weights of an IP-Adapter for image embeddings of 8 numbers."""
    g, width = torch.Generator().manual_seed(0), unet.config.cross_attention_dim
    weights, number = {}, 1
    for name, layer in unet.named_modules():
        if name.endswith("attn2"):
            for key in ("to_k_ip", "to_v_ip"):
                weights[name, key] = torch.randn(layer.inner_dim, width, generator=g) * width**-0.5
    order = [name.removesuffix(".processor") for name in unet.attn_processors if "attn2" in name]
    adapter = {}
    for name in order:
        for key in ("to_k_ip", "to_v_ip"):
            adapter[f"{number}.{key}.weight"] = weights[name, key]
        number += 2
    projection = {
        "proj.weight": torch.randn(4 * width, 8, generator=g),
        "proj.bias": torch.zeros(4 * width),
        "norm.weight": torch.ones(width),
        "norm.bias": torch.zeros(width),
    }
    return {"image_proj": projection, "ip_adapter": adapter}


@pytest.mark.usefixtures("joined_and_cut")
@pytest.mark.parametrize("when", ["before", "after"])
def test_ip_adapter(pipe: Any, when: str) -> None:
    """Its images are conditioning of the whole canvas, like text."""
    embeds = torch.randn(2, 1, 8, generator=torch.Generator().manual_seed(1))  # one for each guidance copy
    tiling = None if when == "before" else td.enable_tiling(pipe, **ALL)
    plain = paint(pipe)
    pipe.unet._load_ip_adapter_weights(ip_adapter(pipe.unet))
    with td.enable_tiling(pipe, **ALL) if tiling is None else tiling:
        got = paint(pipe, ip_adapter_image_embeds=[embeds])
    assert error(got, paint(pipe, ip_adapter_image_embeds=[embeds])) < ROUNDING
    assert error(got, plain) > 0.01


def test_ip_adapter_masks(sd: Any) -> None:
    """Two images, each in its half of the picture: every tile gets its crop of the masks."""
    embeds = torch.randn(2, 2, 8, generator=torch.Generator().manual_seed(1))
    sd.unet._load_ip_adapter_weights(ip_adapter(sd.unet))
    left = torch.zeros(1, 1, 64, 128)
    left[..., :64] = 1

    def masked(first: torch.Tensor, image_embeds: torch.Tensor) -> torch.Tensor:
        masks = {"ip_adapter_masks": [torch.cat([first, 1 - first], 1)]}
        return paint(sd, ip_adapter_image_embeds=[image_embeds], cross_attention_kwargs=masks, steps=1)

    want = masked(left, embeds)
    assert error(masked(1 - left, embeds), want) > 50 * ROUNDING
    with td.enable_tiling(sd, **ALL):
        assert error(masked(left, embeds), want) < ROUNDING
    with td.enable_tiling(sd, tile=(64, 128), wrap=True):  # one tile, which reads round the canvas
        masked(left, embeds)
    changed = embeds.clone()
    changed[:, 1] = -changed[:, 1]
    with td.enable_tiling(sd, tile=64, halo=0, conv_halo=False, norm="tile"):
        before, after = masked(left, embeds), masked(left, changed)
    assert torch.equal(before[..., :16], after[..., :16])
    assert not torch.equal(before[..., 16:], after[..., 16:])
