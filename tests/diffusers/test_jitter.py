"""Jitter: a grid that lies elsewhere at every step, and alike for all that lies on the canvas."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from diffusers import ControlNetModel, StableDiffusionControlNetPipeline, StableDiffusionInpaintPipeline
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_diffusers import error, make_unet, paint, quiet, shake, unet_inputs
from tiny_transformers import CASES
from torch import Tensor

import tiledattn as ta
import tiledattn.diffusers as td
from tiledattn.diffusers.jitter import jittered
from tiledattn.diffusers.view import CanvasView

from .test_families import error as error_of
from .test_families import run

ROUNDING = 1e-4
EXACT: dict[str, Any] = {"tile": 64, "halo": "all", "size_conditioning": "canvas"}
ROUND = {**EXACT, "wrap": True}


@st.composite
def layouts(draw: Any) -> tuple[ta.TileLayout, tuple[int, int]]:
    """A layout of two axes and what shifts are multiples of."""
    units, values = (draw(st.integers(1, 3)), draw(st.integers(1, 3))), []
    for unit in units:
        tile = draw(st.integers(1, 4))
        values.append([unit * n for n in (draw(st.integers(tile, 11)), tile, draw(st.integers(0, tile - 1)))])
    return ta.TileLayout(*zip(*values, strict=True), draw(st.tuples(st.booleans(), st.booleans()))), units


@settings(max_examples=200, deadline=None)
@given(layouts(), st.integers(0, 99), st.integers(0, 50), st.integers(1, 2))
def test_cutting_and_blending_is_the_identity(drawn: Any, seed: int, step: int, finer: int) -> None:
    """At the canvas's and at a finer resolution, whatever the shift, wrapped or not, with uneven origins or not."""
    layout, units = drawn
    shifted, place = jittered(layout, units, seed, step)
    view = CanvasView(shifted, "auto", place)
    x = torch.randn(2, 3, *(finer * n for n in layout.size), dtype=torch.float64)
    tiles = view.tiles("x", x)
    assert torch.allclose(view.canvas(tiles, "hann"), x)
    for tile, origin in zip(tiles.unflatten(0, (-1, 2)), view.origins, strict=True):
        places = [torch.arange(o * finer, (o + n) * finer) for o, n in zip(origin, layout.tile, strict=True)]
        inside = [(p >= 0) | torch.tensor(w) for p, w in zip(places, layout.wrap, strict=True)]
        rows, columns = (p[i] % (n * finer) for p, i, n in zip(places, inside, layout.size, strict=True))
        assert torch.equal(tile[..., inside[0], :][..., inside[1]], x[..., rows, :][..., columns])


@settings(max_examples=100, deadline=None)
@given(layouts(), st.integers(0, 99), st.integers(0, 50))
def test_shifts_are_multiples_below_a_step_and_functions_of_seed_and_step(drawn: Any, seed: int, step: int) -> None:
    layout, units = drawn
    shifted, place = jittered(layout, units, seed, step)
    assert (shifted, place) == jittered.__wrapped__(layout, units, seed, step)
    assert (shifted.tile, shifted.overlap, shifted.wrap) == (layout.tile, layout.overlap, layout.wrap)
    for axis, (offset, unit, wrap) in enumerate(zip(place.offset, units, layout.wrap, strict=True)):
        assert offset % unit == 0
        assert abs(offset) < layout.step[axis]
        assert offset >= 0 if wrap else offset <= 0
        assert shifted.size[axis] == layout.size[axis] - (0 if wrap else offset)
        assert shifted.grid[axis] <= layout.grid[axis] + (0 if wrap else 1)


def test_steps_spread_and_seeds_differ() -> None:
    layout = ta.TileLayout((64, 64), (16, 16), 0, True)
    for axis, seed in itertools.product((0, 1), range(5)):
        offsets = [jittered(layout, (1, 1), seed, step)[1].offset[axis] for step in range(8)]
        assert len(set(offsets)) >= 6
        assert all(a != b for a, b in itertools.pairwise(offsets))
    assert len({jittered(layout, (1, 1), seed, 0)[1].offset for seed in range(20)}) > 15


def test_frames_stay() -> None:
    layout = ta.TileLayout((9, 16, 16), (3, 8, 8), 0, True)
    offsets = [jittered(layout, (1, 2, 2), 0, step)[1].offset for step in range(9)]
    assert {offset[0] for offset in offsets} == {0}
    assert len({offset[1:] for offset in offsets}) > 6


@pytest.fixture(params=["sd", "sdxl"])
def pipe(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("seed", [0, 1])
def test_fully_coupled_round_canvases_do_not_depend_on_it(pipe: Any, seed: int) -> None:
    """Law 4 whatever the grid: over a whole run, with guidance."""
    with td.enable_tiling(pipe, **ROUND):
        want = paint(pipe, 64, 192, steps=3)
    seen = []
    with td.enable_tiling(pipe, **ROUND, jitter=seed) as tiling:
        tiling.on_tiles = lambda tiles, layout, step: seen.append((step, tiles[0, 0, 0, :2, :2].clone()))
        assert error(paint(pipe, 64, 192, steps=3), want) < ROUNDING
    assert [step for step, _ in seen] == [0, 1, 2]
    with td.enable_tiling(pipe, tile=64, halo=0, wrap=True):
        apart = paint(pipe, 64, 192, steps=3)
    with td.enable_tiling(pipe, tile=64, halo=0, wrap=True, jitter=seed):
        assert error(paint(pipe, 64, 192, steps=3), apart) > 10 * ROUNDING


def test_uneven_origins_on_a_wrapped_axis() -> None:
    unet = make_unet("sd")
    x, t, kwargs = unet_inputs("sd", 16, 40)
    options = {**EXACT, "tile": 16, "wrap": (False, True), "unit": "latent"}
    with td.enable_tiling(unet, **options):
        want = unet(x, t, **kwargs).sample
    for seed in range(4):
        with td.enable_tiling(unet, **options, jitter=seed):
            assert error(unet(x, t, **kwargs).sample, want) < 2e-5


def test_both_calls_of_guidance_have_one_grid(sd: Any) -> None:
    """Two calls at one timestep, as Wan makes them, agree with one call of both rows."""
    x, t, kwargs = unet_inputs("sd", 16, 32)
    sd.scheduler.set_timesteps(5)
    text = kwargs["encoder_hidden_states"]
    with td.enable_tiling(sd, tile=64, halo=8, jitter=3):
        for step in (0, 3):
            t = sd.scheduler.timesteps[step]
            both = sd.unet(x, t, text).sample
            rows = [sd.unet(x[i : i + 1], t, text[i : i + 1]).sample for i in (0, 1)]
            assert error(torch.cat(rows), both) < 2e-5
        assert error(sd.unet(x, sd.scheduler.timesteps[1], text).sample, both) > 1e-2


def test_a_canvas_with_ends_gets_one_tile_more(sd: Any) -> None:
    grids = []
    with td.enable_tiling(sd, tile=64, halo=8, jitter=0) as tiling:
        tiling.on_tiles = lambda tiles, layout, step: grids.append(layout.grid)
        assert paint(sd, 64, 192, steps=4).isfinite().all()
    assert set(grids) <= {(1, 3), (1, 4)}
    assert (1, 4) in grids


def test_a_bare_model_counts_its_steps() -> None:
    unet = make_unet("sd")
    x, _, kwargs = unet_inputs("sd", 16, 32)
    options = {"tile": 16, "halo": 0, "unit": "latent", "wrap": True, "jitter": 0}

    def outputs() -> list[Tensor]:
        return [unet(x, torch.tensor(t), **kwargs).sample for t in (900, 500, 500, 100)]

    with td.enable_tiling(unet, **options):
        first = outputs()
        again = outputs()
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert torch.equal(first[1], first[2])


def test_control_images_and_residuals_are_shifted_alike(sd: Any) -> None:
    torch.manual_seed(0)
    net = shake(ControlNetModel.from_unet(sd.unet, conditioning_embedding_out_channels=(8, 8, 8)), 5)
    pipe = quiet(StableDiffusionControlNetPipeline(**sd.components, controlnet=net, requires_safety_checker=False))
    picture = torch.rand(1, 3, 64, 192, generator=torch.Generator().manual_seed(5))
    with td.enable_tiling(pipe, **ROUND):
        want = paint(pipe, 64, 192, image=picture)
        assert error(paint(pipe, 64, 192, image=picture.flip(3)), want) > 100 * ROUNDING
    with td.enable_tiling(pipe, **ROUND, jitter=1):
        assert error(paint(pipe, 64, 192, image=picture), want) < ROUNDING


def test_inpainting_channels_are_shifted_alike(sd: Any) -> None:
    parts = {**sd.components, "unet": make_unet("sd", in_channels=9), "requires_safety_checker": False}
    pipe = quiet(StableDiffusionInpaintPipeline(**parts))
    mask = torch.zeros(1, 1, 64, 128)
    mask[..., 40:] = 1
    call = {"image": torch.rand(1, 3, 64, 128, generator=torch.Generator().manual_seed(5)), "mask_image": mask}
    with td.enable_tiling(pipe, **ROUND):
        want = paint(pipe, **call)
    with td.enable_tiling(pipe, **ROUND, jitter=1):
        assert error(paint(pipe, **call), want) < ROUNDING


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
@pytest.mark.parametrize("wrap", [False, True])
def test_every_family(case: Any, wrap: bool) -> None:
    """Timesteps of tokens, packed canvases, reference images: all that lies on the canvas finds its place."""
    model, call = case.build(), case.call(case.size, 2, torch.float32)
    want = run(model, call)
    with td.enable_tiling(model, tile=case.tile, unit="latent", wrap=wrap, jitter=1):
        got = run(model, call)
    assert got.shape == want.shape
    assert got.isfinite().all()
    with td.enable_tiling(model, tile=case.tile, unit="latent", wrap=wrap) as tiling:
        there = run(model, call)
        units = tuple(axis.granularity for axis in tiling.options.axes)
        moved = any(jittered(tiling.layout, units, 1, 0)[1].offset)
        assert (error_of(got, there) > 1e-4) == moved
