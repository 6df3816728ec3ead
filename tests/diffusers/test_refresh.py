"""Refresh: only the tiles that a mask touches run, with their neighbours, and they predict what the whole run does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionInpaintPipeline, StableDiffusionPipeline, StableDiffusionXLInpaintPipeline
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_diffusers import error, make_unet, paint, quiet, unet_inputs
from tiny_transformers import CASES
from torch import Tensor

import tiledattn as ta
import tiledattn.diffusers as td
from tiledattn.diffusers.jitter import jittered
from tiledattn.diffusers.refresh import Refresh
from tiledattn.diffusers.view import CanvasView
from tiledattn.models import textures_unet

from .test_families import flat

ROUNDING = 2e-5
LATENT: dict[str, Any] = {"tile": 16, "unit": "latent"}
APART: dict[str, Any] = {**LATENT, "halo": 0, "conv_halo": False, "norm": "tile"}


def mask_of(height: int, width: int, rows: slice, columns: slice) -> Tensor:
    mask = torch.zeros(height, width)
    mask[rows, columns] = 1
    return mask


@st.composite
def parts(draw: Any) -> tuple[ta.TileLayout, Tensor, tuple[int, int], int | None]:
    """A layout, a mask that isn't empty, a reach, and a seed of jitter or none."""
    values = []
    for _ in range(2):
        tile = draw(st.integers(1, 4))
        values.append((draw(st.integers(tile, 12)), tile, draw(st.integers(0, tile - 1))))
    layout = ta.TileLayout(*zip(*values, strict=True), draw(st.tuples(st.booleans(), st.booleans())))
    mask = torch.zeros(layout.size, dtype=torch.bool)
    for _ in range(draw(st.integers(1, 3))):
        mask[tuple(draw(st.integers(0, n - 1)) for n in layout.size)] = True
    reach = (draw(st.integers(0, 3)), draw(st.integers(0, 3)))
    return layout, mask, reach, draw(st.none() | st.integers(0, 9))


def places_of(origin: tuple[int, ...], layout: ta.TileLayout, size: tuple[int, ...], wrap: Any) -> frozenset[Any]:
    """The canvas positions of a tile."""
    axes = []
    for o, n, full, round_ in zip(origin, layout.tile, size, wrap, strict=True):
        axes.append([p % full if round_ else p for p in range(o, o + n)])
    return frozenset((y, x) for y in axes[0] for x in axes[1])


@settings(max_examples=100, deadline=None)
@given(parts())
def test_the_part_holds_what_is_needed_and_lies_on_the_grid(drawn: Any) -> None:
    layout, mask, reach, seed = drawn
    size, wrap, place = layout.size, layout.wrap, None
    if seed is not None:
        layout, place = jittered(layout, (1, 1), seed, 3)
    whole = CanvasView(layout, "auto", place)
    part, at = Refresh(mask).part(layout, place, (8, 8), reach)
    view = CanvasView(part, "auto", at)
    grid = {origin: places_of(origin, layout, size, wrap) for origin in whole.origins}
    assert set(view.origins) <= set(grid)
    assert len(set(view.origins)) == part.num_tiles
    painted = {(int(y), int(x)) for y, x in mask.nonzero()}
    for origin, tile in grid.items():
        if tile & painted:
            assert origin in view.origins
    x = torch.randn(1, 2, *size, dtype=torch.float64)
    out = view.canvas(view.tiles("x", x), "hann")
    covered = torch.zeros(size, dtype=torch.bool)
    for origin in view.origins:
        for y, x_ in grid[origin]:
            if 0 <= y < size[0] and 0 <= x_ < size[1]:
                covered[y, x_] = True
    assert torch.allclose(out[..., covered], x[..., covered])
    assert out[..., ~covered].abs().sum() == 0


def grid(size: tuple[int, int], mask: Tensor, **options: Any) -> tuple[int, ...]:
    layout = ta.TileLayout(size, 4, options.pop("overlap", 0), options.pop("wrap", False))
    return Refresh(mask > 0).part(layout, None, (8, 8), options.pop("reach", (0, 0)))[0].grid


def test_how_many_tiles_run() -> None:
    one = mask_of(4, 40, slice(0, 1), slice(17, 18))
    assert grid((4, 40), one) == (1, 1)
    assert grid((4, 40), one, reach=(0, 1)) == (1, 3)
    assert grid((4, 40), one, reach=(0, 5)) == (1, 5)
    assert grid((4, 40), one, reach="all") == (1, 10)
    assert grid((4, 40), one, overlap=(0, 2)) == (1, 2)
    assert grid((4, 40), one, overlap=(0, 2), reach=(0, 1)) == (1, 6)
    ends = one + mask_of(4, 40, slice(0, 1), slice(39, 40)) + mask_of(4, 40, slice(0, 1), slice(0, 1))
    assert grid((4, 40), ends) == (1, 10)
    ends = mask_of(4, 40, slice(0, 1), slice(39, 40)) + mask_of(4, 40, slice(0, 1), slice(0, 1))
    assert grid((4, 40), ends, wrap=(False, True)) == (1, 2)
    assert grid((4, 40), ends, wrap=(False, True), reach=(0, 1)) == (1, 4)
    assert grid((4, 42), mask_of(4, 42, slice(0, 1), slice(41, 42))) == (1, 1)
    assert grid((4, 42), mask_of(4, 42, slice(0, 1), slice(41, 42)), wrap=(False, True)) == (1, 11)


def test_an_axis_that_tiles_go_round_more_closely_than_their_step_stays_whole() -> None:
    """Four tiles of 5 round 16 positions begin every 4; three of them alone would begin every 5."""
    layout = ta.TileLayout((4, 16), (4, 5), 0, (False, True))
    part, place = Refresh(None, (1,)).part(layout, None, (8, 8), (0, 1))
    assert CanvasView(part, "auto", place).origins == layout.origins


def call(unet: Any, height: int, width: int, kind: str = "sd", **options: Any) -> tuple[Tensor, Any]:
    x, t, kwargs = unet_inputs(kind, height, width)
    with td.enable_tiling(unet, **options) as tiling:
        return unet(x, t, **kwargs).sample, tiling.layout


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
@pytest.mark.parametrize("wrap", [False, (False, True)])
@pytest.mark.parametrize("place", [20, 60, 78], ids=str)
def test_tiles_apart_predict_what_the_whole_run_predicts(kind: str, wrap: Any, place: int) -> None:
    unet = make_unet(kind)
    options = {**APART, "wrap": wrap}
    want, layout = call(unet, 32, 80, kind, **options)
    mask = mask_of(32, 80, slice(3, 5), slice(place, place + 1))
    got, part = call(unet, 32, 80, kind, **options, refresh=mask)
    assert (layout.num_tiles, part.num_tiles) == (10, 1)
    inside = slice(place // 16 * 16, place // 16 * 16 + 16)
    assert error(got[:, :, :16, inside], want[:, :, :16, inside]) < ROUNDING
    got[:, :, :16, inside] = 0
    assert got.abs().max() == 0


def test_overlapping_tiles_and_the_last_uneven_one() -> None:
    unet = make_unet("sd")
    options = {**APART, "overlap": (0, 4)}
    want, layout = call(unet, 16, 56, **options)
    got, part = call(unet, 16, 56, **options, refresh=mask_of(16, 56, slice(0, 1), slice(55, 56)))
    assert layout.axis_origins[1] == (0, 12, 24, 36, 40)
    assert part.grid == (1, 1)
    assert error(got[..., 52:], want[..., 52:]) < ROUNDING


def test_one_layer_of_reach_is_inside_the_part() -> None:
    """A mask's tiles see their neighbours, which see theirs no more: nearer to the whole run than tiles alone."""
    unet = make_unet("sd")
    options = {**LATENT, "halo": 4, "norm": "tile"}
    want, _ = call(unet, 16, 128, **options)
    got, part = call(unet, 16, 128, **options, refresh=mask_of(16, 128, slice(0, 16), slice(64, 80)))
    assert part.grid == (1, 3)
    alone, _ = call(unet, 16, 128, **{**options, "halo": 0, "conv_halo": False})
    inside = slice(64, 80)
    assert error(got[..., inside], want[..., inside]) < 0.5 * error(alone[..., inside], want[..., inside])


def test_indices_of_tiles_and_masks_in_pixels_say_the_same() -> None:
    unet = make_unet("sd")
    by_position, _ = call(unet, 32, 48, **APART, refresh=mask_of(32, 48, slice(20, 21), slice(20, 21)))
    for refresh in ([4], (4,), mask_of(32, 48, slice(16, 32), slice(16, 32)).bool(), torch.ones(256, 384).long()):
        if isinstance(refresh, Tensor) and refresh.shape[0] == 256:
            refresh[:160] = refresh[:, :160] = 0
            refresh[:, 168:] = 0
        assert torch.equal(call(unet, 32, 48, **APART, refresh=refresh)[0], by_position)


def test_all_of_it_is_the_whole_run() -> None:
    unet = make_unet("sd")
    options = {**LATENT, "halo": 4, "wrap": True}
    want, _ = call(unet, 32, 48, **options)
    got, part = call(unet, 32, 48, **options, refresh=torch.ones(32, 48))
    assert part.grid == (2, 3)
    assert error(got, want) < ROUNDING  # its tiles are cut, those of a whole run stay joined


def test_with_jitter_too() -> None:
    unet = make_unet("sd")
    mask = mask_of(32, 64, slice(20, 28), slice(30, 34))
    options = {**APART, "wrap": (False, True), "jitter": 1}
    want, _ = call(unet, 32, 64, **options)
    got, part = call(unet, 32, 64, **options, refresh=mask)
    assert part.num_tiles < 8
    assert error(got[..., mask > 0], want[..., mask > 0]) < ROUNDING


@pytest.mark.parametrize("case", [case for case in CASES if "ltx2" not in case.name], ids=lambda case: case.name)
def test_every_family(case: Any) -> None:
    """The canvas's first position is in the mask."""
    model, arguments = case.build(), case.call(case.size, 2, torch.float32)
    options: dict[str, Any] = {"tile": case.tile, "unit": "latent", "halo": 0, "conv_halo": False, "norm": "tile"}
    mask = mask_of(*case.size[-2:], slice(0, 1), slice(0, 1))
    with torch.no_grad():
        with td.enable_tiling(model, **options) as tiling:
            want = flat(model(**arguments))
            columns, rows = tiling.layout.grid[-1], tiling.layout.grid[-2]
        with td.enable_tiling(model, **options, refresh=mask) as tiling:
            got = flat(model(**arguments))
            assert tiling.layout.grid[-2:] == (1, 1)
    assert got.shape == want.shape
    assert got.isfinite().all()
    zeros = float((got == 0).double().mean())
    assert zeros > 0.1 or (rows, columns) == (1, 1)
    assert abs(got[0] - want[0]) < 1e-4 * want.abs().max()


ARGUMENTS: list[tuple[Any, type[Exception], str]] = [
    ("all", TypeError, "refresh: got 'all'"),
    (3, TypeError, "refresh: got 3"),
    ([], ValueError, "no tiles"),
    ([1.0], TypeError, r"refresh: got 1\.0"),
    ([True], TypeError, "refresh: got True"),
    ([-1], ValueError, "got tile -1"),
    (torch.zeros(16, 32), ValueError, "0 everywhere"),
    (torch.ones(1, 16, 32), ValueError, r"got a mask \(1, 16, 32\)"),
    (torch.full((16, 32), float("nan")), ValueError, "NaN"),
    (np.ones((16, 32)), TypeError, "expected a mask"),
]


@pytest.mark.parametrize(("refresh", "kind", "words"), ARGUMENTS, ids=lambda value: f"{value!s:.12}")
def test_bad_arguments(refresh: Any, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        td.enable_tiling(make_unet("sd"), **LATENT, refresh=refresh)


def test_bad_canvases_and_combinations() -> None:
    unet = make_unet("sd")
    for refresh, words in (
        ([8], r"got tile 8; this canvas has 2, \(1, 2\)"),
        (torch.ones(16, 16), r"\(16, 32\) positions, \(128, 256\)"),
    ):
        with pytest.raises(ValueError, match=words):
            call(unet, 16, 32, **LATENT, refresh=refresh)
    with pytest.raises(ValueError, match="tile indices mean other places"):
        td.enable_tiling(unet, **LATENT, refresh=[0], jitter=1)
    wan = next(case for case in CASES if case.name == "wan").build()
    for option in ({"refresh": [0]}, {"jitter": 1}):
        with pytest.raises(ValueError, match='positions="canvas"'):
            td.enable_tiling(wan, unit="latent", positions="canvas", **option)


@pytest.fixture(params=["sd", "sdxl"])
def inpainting(request: pytest.FixtureRequest) -> Any:
    pipe = request.getfixturevalue(request.param)
    if request.param == "sdxl":
        return quiet(StableDiffusionXLInpaintPipeline(**pipe.components))
    return quiet(StableDiffusionInpaintPipeline(**pipe.components, requires_safety_checker=False))


def inpaint(pipe: Any, mask: Tensor, **options: Any) -> Tensor:
    picture = torch.rand(1, 3, *mask.shape, generator=torch.Generator().manual_seed(5))
    height, width = mask.shape
    call = {"image": picture, "mask_image": mask[None, None], "strength": 0.99, "prompt": "a river", **options}
    return paint(pipe, height, width, steps=4, **call)


def test_inpainting_a_large_canvas_runs_few_tiles(inpainting: Any) -> None:
    """What isn't masked is the original, and what is masked is what the whole canvas gives."""
    mask = mask_of(64, 512, slice(16, 48), slice(272, 300))
    options = {"tile": 64, "halo": 0, "conv_halo": False, "norm": "tile"}
    with td.enable_tiling(inpainting, **options):
        want = inpaint(inpainting, mask)
    ran = []
    with td.enable_tiling(inpainting, **options, refresh=mask) as tiling:
        tiling.on_tiles = lambda tiles, layout, step: ran.append(layout.num_tiles)
        got = inpaint(inpainting, mask)
    assert ran == [1] * len(ran)
    assert error(got, want) < 1e-4


@pytest.mark.parametrize("kind", ["sd", "nine"])
def test_pipelines_that_do_not_put_the_rest_back(sd: Any, kind: str) -> None:
    parts = {**sd.components, "requires_safety_checker": False}
    if kind == "nine":
        pipe = StableDiffusionInpaintPipeline(**{**parts, "unet": make_unet("sd", in_channels=9)})
        words = r"takes the mask as channels \(9, the VAE has 4\)"
    else:
        pipe, words = StableDiffusionPipeline(**parts), "doesn't put the rest of the picture back"
    with pytest.raises(NotImplementedError, match=words):
        td.enable_tiling(pipe, refresh=[0])


def test_one_stone_in_a_wall() -> None:
    """The shipped model repaints an eighth of a picture with an eighth of the tiles; the rest is untouched."""
    pipe = quiet(StableDiffusionPipeline.from_pretrained(textures_unet(), dtype=torch.float32))
    pipe.vae.enable_tiling()  # its norms measure the whole picture
    with td.enable_tiling(pipe, tile=64):
        call = {"height": 64, "width": 512, "num_inference_steps": 6, "guidance_scale": 1.5}
        wall = pipe("a photo of a brick wall", generator=torch.Generator().manual_seed(0), output_type="np", **call)
    repainting = quiet(StableDiffusionInpaintPipeline(**pipe.components, requires_safety_checker=False))
    mask = mask_of(64, 512, slice(0, 64), slice(256, 320))
    with td.enable_tiling(repainting, tile=64, halo=0, conv_halo=False, norm="tile", refresh=mask) as tiling:
        seed = torch.Generator().manual_seed(1)
        picture = torch.from_numpy(wall.images).movedim(3, 1)
        call["strength"] = 0.9
        new = repainting("grass", picture, mask[None, None], generator=seed, output_type="np", **call).images
        assert tiling.layout.num_tiles == 1
    green = (new[..., 1] - new[..., 0]).mean((0, 1))
    assert green[266:300].mean() > 0.03
    assert max(green[:240].mean(), green[336:].mean()) < -0.1
