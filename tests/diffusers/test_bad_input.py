"""Every argument of enable_tiling, and every call that can't be tiled: what is said, and that nothing is changed."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DiTTransformer2DModel,
    StableDiffusionPipeline,
    UNet2DModel,
)
from tiny_diffusers import error, make_unet, paint, quiet, unet_inputs
from torch import nn

import tiledattn.diffusers as td

LATENT = {"tile": 16, "unit": "latent"}

# argument, value, error, words that the message has to hold (the pipeline's unit is 4 pixels a latent, 16 a level)
ARGUMENTS: list[tuple[str, Any, type[Exception], str]] = [
    ("tile", 0, ValueError, "tile: got 0.*at least 1"),
    ("tile", -64, ValueError, "tile: got -64"),
    ("tile", 64.0, TypeError, r"tile: got 64\.0 \(float\)"),
    ("tile", "64", TypeError, "tile: got '64'"),
    ("tile", True, TypeError, "tile: got True"),
    ("tile", (64, 64, 64), ValueError, "tile: got 3 values"),
    ("tile", (64, None), TypeError, "tile: got None"),
    ("tile", 50, ValueError, "tile height: got 50 pixels.*multiple of 16.*48 and 64"),
    ("tile", (64, 5), ValueError, "tile width: got 5 pixels.*nearest is 16"),
    ("overlap", -1, ValueError, "overlap: got -1"),
    ("overlap", 0.25, TypeError, r"overlap: got 0\.25 \(float\)"),
    ("overlap", False, TypeError, "overlap: got False"),
    ("overlap", 10, ValueError, "overlap height: got 10 pixels.*0 and 16"),
    ("overlap", (0, 64), ValueError, "overlap width: got 64 pixels; it must be below the tile's 64"),
    ("overlap", (0,), ValueError, "overlap: got 1 values"),
    ("halo", -4, ValueError, "halo: got -4"),
    ("halo", 1.5, TypeError, r"halo: got 1\.5"),
    ("halo", "everything", ValueError, "halo: got 'everything'.*\"all\""),
    ("halo", 6, ValueError, "halo height: got 6 pixels.*multiple of 4.*4 and 8"),
    ("halo", (4, 4, 4), ValueError, "halo: got 3 values"),
    ("halo", {4}, TypeError, r"halo: got \{4\}"),
    ("window", "hanning", ValueError, "window: got 'hanning'; known are uniform, hann, linear, gaussian"),
    ("window", 3, TypeError, "window: got int"),
    ("window", torch.ones(16), TypeError, "window: got Tensor"),
    ("window", (torch.ones(16),), ValueError, r"window: got .*expected tensors of shape \(16,\)"),
    ("window", (torch.ones(16), torch.ones(64)), ValueError, r"expected tensors of shape \(16,\) and \(16,\)"),
    ("window", (torch.ones(16), torch.zeros(16)), ValueError, "window: weights must be positive"),
    ("window", (torch.ones(16), torch.full((16,), float("nan"))), ValueError, "window: weights must be positive"),
    ("wrap", 1, TypeError, "wrap: got 1"),
    ("wrap", "x", TypeError, "wrap: got 'x'"),
    ("wrap", (True,), ValueError, "wrap: got 1 values"),
    ("wrap", (True, 0), TypeError, "wrap: got"),
    ("conv_halo", 1, TypeError, "conv_halo: got 1"),
    ("conv_halo", None, TypeError, "conv_halo: got None"),
    ("norm", "image", ValueError, "norm: got 'image'; known are tile, neighbours, canvas"),
    ("norm", True, TypeError, "norm: got True"),
    ("halo_schedule", "linear", ValueError, "halo_schedule: got 'linear'; known are constant, quadratic"),
    ("halo_schedule", 0.5, TypeError, "halo_schedule: got float"),
    ("num_steps", 0, ValueError, "num_steps: got 0"),
    ("num_steps", 2.0, TypeError, r"num_steps: got 2\.0"),
    ("num_steps", True, TypeError, "num_steps: got True"),
    ("size_conditioning", "picture", ValueError, "size_conditioning: got 'picture'; known are tile, crop, canvas"),
    ("size_conditioning", None, TypeError, "size_conditioning: got None"),
    ("backend", "opencl", ValueError, "backend: got 'opencl'; known are auto, "),
    ("backend", None, TypeError, "backend: got None"),
    ("unit", "metre", ValueError, "unit: got 'metre'; known are pixel, latent"),
    ("unit", 8, TypeError, "unit: got 8"),
    ("regions", "a wall", TypeError, "regions: got 'a wall'"),
    ("regions", td.Region((0, 0, 64, 64), "a"), TypeError, "regions: got Region.*expected a list"),
    ("regions", [((0, 0, 64, 64), "a")], TypeError, r"regions: got \(\(0, 0, 64, 64\), 'a'\).*expected Region"),
    ("jitter", True, TypeError, "jitter: got True"),
    ("jitter", 0.5, TypeError, r"jitter: got 0\.5 \(float\)"),
    ("jitter", -1, ValueError, "jitter: got -1"),
    ("refresh", "all", TypeError, "refresh: got 'all'"),
    ("refresh", [], ValueError, "refresh: got no tiles"),
    ("refresh", torch.zeros(8, 8), ValueError, "refresh: the mask is 0 everywhere"),
    ("refresh", [0], NotImplementedError, "refresh: StableDiffusionPipeline.*doesn't put the rest"),
]


@pytest.fixture(scope="module")
def untouched(sd_parts: dict[str, Any]) -> Any:
    """A pipeline that a refused enable_tiling may not change."""
    return quiet(StableDiffusionPipeline(**sd_parts))


@pytest.mark.parametrize(
    ("name", "value", "kind", "words"), ARGUMENTS, ids=[f"{name}={value!s:.20}" for name, value, *_ in ARGUMENTS]
)
def test_arguments(untouched: Any, name: str, value: Any, kind: type[Exception], words: str) -> None:
    before = dict(vars(untouched.unet))
    with pytest.raises(kind, match=words):
        td.enable_tiling(untouched, **{"tile": 64, name: value})
    assert dict(vars(untouched.unet)) == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tile": 64}, "unit='latent'"),
        ({"tile": 64, "unit": "pixel"}, "unit='latent'"),
        ({"tile": 18, "unit": "latent"}, "tile height: got 18 latents.*16 and 20"),
        ({**LATENT, "halo_schedule": "quadratic"}, "pass num_steps="),
        ({**LATENT, "halo_schedule": lambda i, n: 1.0}, "pass num_steps="),
    ],
)
def test_bare_models(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        td.enable_tiling(make_unet("sd"), **options)


@pytest.mark.parametrize("target", [None, "runwayml/stable-diffusion", 3, UNet2DModel])
def test_neither_pipeline_nor_model(target: Any) -> None:
    for function in (td.enable_tiling, td.disable_tiling):
        with pytest.raises(TypeError, match="pipe_or_model: got"):
            function(target)


@pytest.mark.parametrize(
    "model",
    [
        nn.Linear(2, 2),
        UNet2DModel(block_out_channels=(32,), down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",)),
        DiTTransformer2DModel(num_layers=1, attention_head_dim=8, num_attention_heads=2, norm_num_groups=1),
    ],
    ids=lambda m: type(m).__name__,
)
def test_unsupported_models(model: nn.Module) -> None:
    with pytest.raises(TypeError, match=f"{type(model).__name__}.*UNet2DConditionModel"):
        td.enable_tiling(model, **LATENT)
    td.disable_tiling(model)


def test_a_pipeline_without_a_denoiser(sd: Any) -> None:
    sd.unet = None
    with pytest.raises(TypeError, match="StableDiffusionPipeline: has no unet"):
        td.enable_tiling(sd)
    td.disable_tiling(sd)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mid_block_type": "UNetMidBlock2DSimpleCrossAttn"}, "mid_block_type.*SimpleCrossAttn"),
        ({"down_block_types": ("KDownBlock2D",) * 3}, "down_block_types.*KDownBlock2D"),
        ({"attention_type": "gated"}, "GLIGEN"),
        ({"cross_attention_norm": "group_norm"}, "attn2: cross_attention_norm"),
    ],
)
def test_unsupported_configurations(options: dict[str, Any], words: str) -> None:
    model = make_unet("sd")
    if "cross_attention_norm" in options:
        model.get_submodule("mid_block.attentions.0.transformer_blocks.0.attn2").norm_cross = nn.GroupNorm(4, 16)
    model.register_to_config(**options)
    with pytest.raises(ValueError, match=words):
        td.enable_tiling(model, **LATENT)


def test_a_model_padded_circularly_by_hand() -> None:
    model = make_unet("sd")
    model.conv_in.padding_mode = "circular"
    with pytest.raises(ValueError, match=r"conv_in: padding_mode is 'circular'.*wrap=True"):
        td.enable_tiling(model, **LATENT)


@pytest.mark.parametrize(
    ("options", "size", "words"),
    [
        ({"tile": 32}, (64, 72), "width of the canvas: got 72 pixels.*multiple of 16.*64 and 80"),
        ({"tile": 32}, (40, 64), "height of the canvas: got 40 pixels.*32 and 48"),
        ({"tile": 8, "unit": "latent"}, (64, 72), "width of the canvas: got 18 latents.*16 and 20"),
        ({"tile": 64, "wrap": True}, (64, 56), "width of the canvas: got 56 pixels.*48 and 64"),
    ],
)
def test_canvases_that_the_levels_cannot_divide(sd: Any, options: Any, size: Any, words: str) -> None:
    with td.enable_tiling(sd, **options), pytest.raises(ValueError, match=words):
        paint(sd, *size)


def test_pixels_and_latents_say_the_same(sd: Any) -> None:
    pixels = td.enable_tiling(sd, tile=(64, 32), overlap=(16, 0), halo=(8, 4)).options
    latents = td.enable_tiling(sd, tile=(16, 8), overlap=(4, 0), halo=(2, 1), unit="latent").options
    assert (pixels.tile, pixels.overlap, pixels.halo) == (latents.tile, latents.overlap, latents.halo)
    default = td.enable_tiling(sd).options
    assert (default.tile, default.overlap, default.halo) == ((16, 16), (0, 0), (2, 2))


X, T, KWARGS = unet_inputs("sd", 16, 32)
CALLS: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"sample": X[0]}, ValueError, r"sample: got \(4, 16, 32\)"),
    ({"sample": None}, ValueError, "sample: got NoneType"),
    (
        {"encoder_hidden_states": KWARGS["encoder_hidden_states"][:, 0, 0].repeat(2)},
        ValueError,
        "encoder_hidden_states",
    ),
    ({"timestep": torch.tensor([1, 2, 3])}, ValueError, "timestep: got shape"),
    ({"class_labels": torch.tensor([1, 2, 3])}, ValueError, "class_labels: got shape"),
    ({"timestep_cond": 3.0}, TypeError, "timestep_cond: got float"),
    ({"attention_mask": torch.ones(2, 512)}, NotImplementedError, "attention_mask: can't be tiled"),
    ({"mid_block_additional_residual": X[:, 0]}, ValueError, "mid_block_additional_residual"),
    ({"mid_block_additional_residual": X[:1].repeat(3, 1, 1, 1)}, ValueError, r"residual: got \(3, 4, 16, 32\)"),
    ({"down_block_additional_residuals": [X[..., :-3]]}, ValueError, "down_block_additional_residuals"),
    ({"down_intrablock_additional_residuals": [3]}, ValueError, "down_intrablock_additional_residuals: got int"),
    ({"cross_attention_kwargs": {"gligen": {}}}, NotImplementedError, "gligen"),
    ({"cross_attention_kwargs": {"ip_adapter_masks": [X]}}, ValueError, r"ip_adapter_masks: got \(2, 4, 16, 32\)"),
    ({"cross_attention_kwargs": {"ip_adapter_masks": [X[:1, :, 1:]]}}, ValueError, "ip_adapter_masks"),
    ({"added_cond_kwargs": {"hint": X}}, NotImplementedError, "hint"),
]


@pytest.mark.parametrize("norm", ["canvas", "neighbours"], ids=["joined", "cut"])
@pytest.mark.parametrize(("change", "kind", "words"), CALLS, ids=[next(iter(c)) for c, *_ in CALLS])
def test_calls_that_cannot_be_tiled(change: dict[str, Any], kind: type[Exception], words: str, norm: str) -> None:
    model = make_unet("sd")
    with td.enable_tiling(model, **LATENT, norm=norm):
        with pytest.raises(kind, match=words):
            model(**{"sample": X, "timestep": T, **KWARGS, **change})
        assert model(X, T, **KWARGS).sample.shape == X.shape


def test_arguments_given_twice_or_too_many_or_not_at_all() -> None:
    model = make_unet("sd")
    with td.enable_tiling(model, **LATENT):
        with pytest.raises(TypeError, match="missing sample, encoder_hidden_states"):
            model(timestep=1)
        with pytest.raises(TypeError, match="several values"):
            model(X, T, sample=X, **KWARGS)
        with pytest.raises(TypeError, match="positional"):
            model(*[None] * 14)


def test_gradient_checkpointing_is_refused() -> None:
    """It would run layers again in the backward pass, where no tiling is in force."""
    model = make_unet("sd")
    model.enable_gradient_checkpointing()
    with td.enable_tiling(model, **LATENT):
        with pytest.raises(NotImplementedError, match="disable_gradient_checkpointing"):
            model(X, T, **KWARGS)
        with torch.no_grad():
            model(X, T, **KWARGS)


def test_freeu_is_refused_where_tiles_are_cut(sd: Any) -> None:
    sd.enable_freeu(0.9, 0.2, 1.2, 1.4)
    for block in sd.unet.up_blocks:
        block.resolution_idx = 0
    with (
        td.enable_tiling(sd, overlap=16, blend="prediction"),
        pytest.raises(NotImplementedError, match="disable_freeu"),
    ):
        paint(sd)
    want = paint(sd)
    with td.enable_tiling(sd, halo="all"):
        assert error(paint(sd), want) < 1e-4


def test_without_diffusers_the_extra_is_named() -> None:
    code = "import sys; sys.modules['diffusers'] = None; import tiledattn; import tiledattn.diffusers"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "ImportError" in result.stderr
    assert "pip install 'tiledattn[diffusers]'" in result.stderr


def test_what_watches_tiles_is_a_function() -> None:
    model = make_unet("sd")
    x, t, kwargs = unet_inputs("sd", 16, 32, batch=1)
    with td.enable_tiling(model, **LATENT) as tiling:
        tiling.on_tiles = 3  # type: ignore[assignment]
        with pytest.raises(TypeError, match="on_tiles: got 3; expected None, or a function"):
            model(x, t, **kwargs)


def test_integers_of_numpy_are_integers() -> None:
    model = make_unet("sd")
    sizes: dict[str, Any] = {"tile": np.int64(16), "overlap": (np.int64(0), 8), "halo": np.int32(4)}
    with td.enable_tiling(model, **sizes, unit="latent") as tiling:
        assert (tiling.options.tile, tiling.options.overlap, tiling.options.halo) == ((16, 16), (0, 8), (4, 4))
