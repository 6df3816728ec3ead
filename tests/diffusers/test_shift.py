"""Resolution-dependent timestep shift: a large canvas takes a tile's."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, EulerDiscreteScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu
from diffusers.utils.torch_utils import randn_tensor
from hypothesis import given
from hypothesis import strategies as st
from tiny_transformers.flux import flux, flux_call

import tiledattn.diffusers as td
from tiledattn.diffusers.families import Flux2Family, FluxFamily
from tiledattn.diffusers.shift import tokens_of

TILE = (4, 8)
CANVAS = (12, 16)


def make_scheduler(**options: Any) -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(**{"use_dynamic_shifting": True, **options})


class Pipe(DiffusionPipeline):
    """What Flux's pipeline does with its scheduler and its transformer, without text and picture."""

    vae_scale_factor = 8

    def __init__(self, transformer: Any, scheduler: Any) -> None:
        super().__init__()
        self.register_modules(transformer=transformer, scheduler=scheduler)

    @torch.no_grad()
    def __call__(self, size: tuple[int, int], steps: int = 3) -> list[float]:
        """The noise levels of a run."""
        config = self.scheduler.config
        mu = calculate_shift(
            math.prod(size),
            config.base_image_seq_len,
            config.max_image_seq_len,
            config.base_shift,
            config.max_shift,
        )
        self.scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), device="cpu", mu=mu)
        call = flux_call(size, 1, torch.float32)
        latents = randn_tensor((1, math.prod(size), 16), generator=torch.Generator().manual_seed(0))
        for t in self.scheduler.timesteps:
            timestep = (t / 1000).expand(1)
            noise = self.transformer(**{**call, "hidden_states": latents, "timestep": timestep}).sample
            latents = self.scheduler.step(noise, t, latents).prev_sample
        return self.scheduler.sigmas.tolist()


@pytest.fixture
def pipe() -> Pipe:
    return Pipe(flux()(), make_scheduler())


def enable(pipe: Pipe, **options: Any) -> Any:
    return td.enable_tiling(pipe, tile=TILE, halo=2, unit="latent", **options)


def test_a_large_canvas_takes_the_tiles_shift(pipe: Pipe) -> None:
    tile, canvas = pipe(TILE), pipe(CANVAS)
    assert tile != canvas
    with enable(pipe):
        assert pipe(CANVAS) == pytest.approx(tile, rel=1e-6)
        assert pipe(TILE) == tile
        assert pipe((2, 4)) != tile
    assert pipe(CANVAS) == canvas


def test_the_canvas_keeps_its_own_on_demand(pipe: Pipe) -> None:
    canvas = pipe(CANVAS)
    with enable(pipe, timestep_shift="canvas"):
        assert "set_timesteps" not in vars(pipe.scheduler)
        assert pipe(CANVAS) == canvas


@pytest.mark.parametrize("value", ["image", True])
def test_the_argument_is_checked(pipe: Pipe, value: Any) -> None:
    with pytest.raises((TypeError, ValueError), match="timestep_shift: got"):
        enable(pipe, timestep_shift=value)


def test_a_mu_of_ones_own_is_kept(pipe: Pipe) -> None:
    """No number of tokens has it."""
    with enable(pipe):
        pipe.scheduler.set_timesteps(3, mu=math.pi)
    got = pipe.scheduler.sigmas
    pipe.scheduler.set_timesteps(3, mu=math.pi)
    assert torch.equal(got, pipe.scheduler.sigmas)


def test_disable_leaves_no_trace(pipe: Pipe) -> None:
    before = dict(vars(pipe.scheduler))
    tiling = enable(pipe)
    td.enable_tiling(pipe, tile=(8, 8), halo=2, unit="latent")
    assert "set_timesteps" in vars(pipe.scheduler)
    td.disable_tiling(pipe)
    tiling.disable()
    assert vars(pipe.scheduler).keys() == before.keys()


def test_a_strangers_wrapper_is_not_torn_off(pipe: Pipe) -> None:
    canvas = pipe(CANVAS)
    enable(pipe)
    inner = pipe.scheduler.set_timesteps
    pipe.scheduler.set_timesteps = lambda *args, **kwargs: inner(*args, **kwargs)
    wrapper = pipe.scheduler.set_timesteps
    td.disable_tiling(pipe)
    assert pipe.scheduler.set_timesteps is wrapper
    assert pipe(CANVAS) == canvas


def test_a_wrapper_from_before_is_put_back(pipe: Pipe) -> None:
    inner, tile = pipe.scheduler.set_timesteps, pipe(TILE)

    def wrapper(sigmas: Any = None, device: Any = None, mu: Any = None) -> None:
        inner(sigmas=sigmas, device=device, mu=mu)

    pipe.scheduler.set_timesteps = wrapper
    with enable(pipe):
        assert pipe(CANVAS) == pytest.approx(tile, rel=1e-6)
    assert pipe.scheduler.set_timesteps is wrapper


def test_a_scheduler_set_later_is_refused_once_and_followed(pipe: Pipe) -> None:
    """The steps of the run under way are the canvas's: nothing paints with them."""
    tile, old = pipe(TILE), pipe.scheduler
    with enable(pipe):
        pipe.scheduler = make_scheduler()
        with pytest.raises(RuntimeError, match=r"timestep_shift.*run the pipeline again"):
            pipe(CANVAS)
        assert "set_timesteps" not in vars(old)
        assert pipe(CANVAS) == pytest.approx(tile, rel=1e-6)
        pipe.scheduler = make_scheduler(use_dynamic_shifting=False)
        pipe(CANVAS)
        pipe.scheduler = make_scheduler()
        assert pipe(TILE) == tile
    assert "set_timesteps" not in vars(pipe.scheduler)


def test_schedulers_without_a_shift_are_left_alone(pipe: Pipe) -> None:
    pipe.scheduler = EulerDiscreteScheduler()
    before = dict(vars(pipe.scheduler))
    with enable(pipe):
        assert dict(vars(pipe.scheduler)) == before


def test_a_copy_is_shifted_alike_and_disabled_alone(pipe: Pipe) -> None:
    tile, canvas = pipe(TILE), pipe(CANVAS)
    with enable(pipe):
        other = copy.deepcopy(pipe)
        assert other(CANVAS) == pytest.approx(tile, rel=1e-6)
        td.disable_tiling(other)
        assert other(CANVAS) == canvas
        third = copy.deepcopy(pipe)
        td.disable_tiling(third)
        assert "set_timesteps" not in vars(third.scheduler)
        assert pipe(CANVAS) == pytest.approx(tile, rel=1e-6)


@given(tokens=st.integers(1, 300_000), seed=st.integers(0, 99))
def test_tokens_come_back_from_the_linear_shift(tokens: int, seed: int) -> None:
    config = {"base_shift": 0.5 + seed / 100, "max_shift": 1.15 + seed / 50}
    mu = calculate_shift(tokens, 256, 4096, config["base_shift"], config["max_shift"])
    shift = FluxFamily().shift
    assert tokens_of(mu, lambda n: shift(config, n, 1), ()) == tokens


@given(tokens=st.integers(1, 300_000), steps=st.integers(1, 150))
def test_tokens_come_back_from_flux_2(tokens: int, steps: int) -> None:
    """Its two lines share shifts: the one on which the number is whole is meant."""
    family = Flux2Family()
    mu = compute_empirical_mu(tokens, steps)
    assert family.shift({}, tokens, steps) == pytest.approx(mu, rel=1e-12)
    assert tokens_of(mu, lambda n: family.shift({}, n, steps), family.shift_breaks) == tokens


@given(mu=st.floats(-5, 50))
def test_what_is_no_shift_of_tokens(mu: float) -> None:
    shift = FluxFamily().shift
    tokens = tokens_of(mu, lambda n: shift({}, n, 1), ())
    assert tokens is None or shift({}, tokens, 1) == pytest.approx(mu, rel=1e-9)
