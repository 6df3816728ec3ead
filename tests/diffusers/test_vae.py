"""Circular decoding: the ends of a wrapped picture meet."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import AutoencoderTiny
from tiny_diffusers import FACTOR, circular, error, make_vae, paint, shake
from torch import Tensor

import tiledattn.diffusers as td

WRAPS = [(True, True), (False, True), (True, False)]


def latents(batch: int = 1, height: int = 12, width: int = 20) -> Tensor:
    return torch.randn(batch, 4, height, width, generator=torch.Generator().manual_seed(3))


def decoded(pipe: Any, z: Tensor, wrap: Any = None) -> Tensor:
    if wrap is None:
        return pipe.vae.decode(z).sample
    with td.enable_tiling(pipe, wrap=wrap):
        return pipe.vae.decode(z).sample


@pytest.mark.parametrize("wrap", WRAPS)
@pytest.mark.parametrize("batch", [1, 3])
def test_decoding_is_that_of_a_circular_vae(sd: Any, wrap: tuple[bool, bool], batch: int) -> None:
    vae = sd.vae
    sd.vae = circular(vae, wrap)
    want = decoded(sd, latents(batch))
    sd.vae = vae
    assert error(decoded(sd, latents(batch), wrap), want) < 1e-5
    assert error(decoded(sd, latents(batch)), want) > 1e-2
    vae.enable_slicing()
    assert error(decoded(sd, latents(batch), wrap), want) < 1e-5


@pytest.mark.parametrize("first", ["compiled", "tiled"])
def test_a_compiled_vae_decodes_alike(sd: Any, first: str) -> None:
    """The wrapper of torch.compile hands what is set on it to the VAE inside."""
    plain, want = decoded(sd, latents()), decoded(sd, latents(), True)
    vae = sd.vae
    if first == "compiled":
        sd.vae = torch.compile(vae, backend="eager")
    with td.enable_tiling(sd, wrap=True):
        sd.vae = torch.compile(vae, backend="eager")
        assert error(sd.vae.decode(latents()).sample, want) < 1e-5
    assert torch.equal(sd.vae.decode(latents()).sample, plain)
    assert "decode" not in vars(vae)


@pytest.mark.parametrize("wrap", WRAPS)
@pytest.mark.parametrize("tiled", [False, True])
def test_rolling_the_latents_rolls_the_picture(sd: Any, wrap: tuple[bool, bool], tiled: bool) -> None:
    """Exactly without the VAE's tiling; with it as well as tiled decoding does anywhere."""
    z = latents(height=32, width=32)
    if tiled:
        sd.vae.enable_tiling()
        z = z.expand(1, 4, 32, 32).mean((2, 3), keepdim=True) + 0.1 * z
    shift = [8 * w for w in wrap]
    pixels = [FACTOR * s for s in shift]
    rolled = decoded(sd, z.roll(shift, (2, 3)), wrap)
    picture = decoded(sd, z, wrap)
    assert picture.shape == (1, 3, 32 * FACTOR, 32 * FACTOR)
    plain = error(decoded(sd, z.roll(shift, (2, 3))).roll([-p for p in pixels], (2, 3)), decoded(sd, z))
    wrapped = error(rolled.roll([-p for p in pixels], (2, 3)), picture)
    assert wrapped < (plain if tiled else 1e-5)
    assert plain > 1e-2


@pytest.mark.parametrize("return_dict", [False, True])
@pytest.mark.parametrize("tiled", [False, True])
def test_both_return_types(sd: Any, return_dict: bool, tiled: bool) -> None:
    if tiled:
        sd.vae.enable_tiling()
    with td.enable_tiling(sd, wrap=True):
        out = sd.vae.decode(latents(), return_dict=return_dict)
    picture = out.sample if return_dict else out[0]
    assert picture.shape == (1, 3, 12 * FACTOR, 20 * FACTOR)


def test_the_encoder_is_left_alone(sd: Any) -> None:
    picture = torch.randn(1, 3, 48, 64)
    want = sd.vae.encode(picture).latent_dist.mean
    with td.enable_tiling(sd, wrap=True):
        assert torch.equal(sd.vae.encode(picture).latent_dist.mean, want)


def test_without_a_wrapped_axis_the_vae_is_left_alone(sd: Any) -> None:
    before = dict(vars(sd.vae))
    with td.enable_tiling(sd):
        assert dict(vars(sd.vae)) == before


def test_a_tiny_autoencoder(sd: Any) -> None:
    small = {"block_out_channels": (8, 8, 8)}
    blocks = {f"{side}_{name}": v for side in ("encoder", "decoder") for name, v in small.items()}
    layers = {"num_encoder_blocks": (1, 1, 1), "num_decoder_blocks": (1, 1, 1)}
    sd.vae = shake(AutoencoderTiny(**blocks, **layers))
    z = latents(height=16, width=16)
    rolled = decoded(sd, z.roll(8, 3), (False, True))
    assert error(rolled.roll(-8 * FACTOR, 3), decoded(sd, z, (False, True))) < 1e-5


def test_a_decode_of_ones_own_is_put_back(sd: Any) -> None:
    inner = sd.vae.decode

    def decode(*args: Any, **kwargs: Any) -> Any:
        return inner(*args, **kwargs)

    sd.vae.decode = decode
    with td.enable_tiling(sd, wrap=True):
        assert sd.vae.decode is not decode
    assert sd.vae.decode is decode


def test_a_strangers_wrapper_is_not_torn_off(sd: Any) -> None:
    want = decoded(sd, latents())
    td.enable_tiling(sd, wrap=True)
    inner = sd.vae.decode
    sd.vae.decode = lambda *args, **kwargs: inner(*args, **kwargs)
    wrapper = sd.vae.decode
    td.disable_tiling(sd)
    assert sd.vae.decode is wrapper
    assert torch.equal(decoded(sd, latents()), want)


def test_two_pipelines_with_one_vae(sd: Any, sdxl: Any) -> None:
    want, vae = decoded(sd, latents()), vars(sd.vae).copy()
    sdxl.vae = sd.vae
    circle = decoded(sd, latents(), True)
    first, second = td.enable_tiling(sd, wrap=True), td.enable_tiling(sdxl, wrap=True)
    assert error(decoded(sd, latents()), circle) < 1e-6
    first.disable()
    assert error(decoded(sd, latents()), circle) < 1e-6
    second.disable()
    assert torch.equal(decoded(sd, latents()), want)
    assert vars(sd.vae) == vae


def test_a_vae_put_in_later_is_followed(sd: Any) -> None:
    first, second = sd.vae, make_vae()
    with td.enable_tiling(sd, wrap=True):
        want = paint(sd, output_type="pt")
        sd.vae = second
        assert torch.equal(paint(sd, output_type="pt"), want)
        assert "decode" in vars(second)
        assert "decode" not in vars(first)
    assert "decode" not in vars(second)


@pytest.mark.parametrize("factor", [0.25, 0.0])
def test_the_ends_are_as_good_as_inside_with_the_vaes_tiling(sd: Any, factor: float) -> None:
    """The error against exact circular decoding jumps no more across the ends than from pixel to pixel inside."""
    turn = torch.sin(torch.arange(64) / 64 * 2 * torch.pi)
    z = 0.3 * latents(height=16, width=64) + 1.5 * turn  # the VAE's tiles differ in their norms' statistics
    exact = decoded(sd, z, (False, True))
    sd.vae.enable_tiling()
    sd.vae.tile_overlap_factor = factor

    def jumps(wrap: Any) -> tuple[float, Tensor]:
        wrong = (decoded(sd, z, wrap) - exact).mean(1)
        step = (wrong - wrong.roll(1, -1)).abs().mean((0, 1))
        return float(step[0]), step[1:]

    ends, inside = jumps((False, True))
    assert ends < (2 * float(inside.mean()) if factor else float(inside.max()))
    assert jumps(False)[0] > 3 * ends


def test_ends_of_a_panorama_meet(sd: Any) -> None:
    """Across the ends a wrapped panorama changes no more than inside; a plain one does."""

    def jump(picture: Tensor) -> float:
        inside = (picture[..., 1:] - picture[..., :-1]).abs().mean()
        return float((picture[..., 0] - picture[..., -1]).abs().mean() / inside)

    plain = paint(sd, 64, 256, output_type="pt")
    with td.enable_tiling(sd, wrap=(False, True)):
        wrapped = paint(sd, 64, 256, output_type="pt")
    assert jump(wrapped) < 1.3
    assert jump(wrapped) < jump(plain)
