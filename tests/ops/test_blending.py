import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import BACKENDS, assert_within_budget, layouts, relative_error

import tiledattn as ta
from tiledattn.geometry import WINDOWS, normalized_windows

few = settings(max_examples=40, deadline=None)
each_backend = pytest.mark.parametrize("backend", BACKENDS)
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def random(*shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def strided(x):
    wide = torch.zeros(*x.shape[:-1], 2 * x.shape[-1], dtype=x.dtype)
    wide[..., ::2] = x
    return wide[..., ::2]


@each_backend
@few
@given(layout=layouts(), dtype=st.sampled_from(DTYPES), batch=st.integers(0, 2), channels=st.integers(1, 3))
def test_extract_is_the_definition_for_any_strides(backend, layout, dtype, batch, channels):
    canvas = random(batch, channels, *layout.size, dtype=dtype)
    tiles = ta.extract_tiles(canvas, layout, backend=backend)
    assert tiles.is_contiguous()
    assert torch.equal(tiles, ta.extract_tiles(canvas, layout, backend="reference"))
    for other in (strided(canvas), canvas.transpose(0, 1).contiguous().transpose(0, 1)):
        assert torch.equal(ta.extract_tiles(other, layout, backend=backend), tiles)


@each_backend
@few
@given(layout=layouts(), window=st.sampled_from(WINDOWS), dtype=st.sampled_from(DTYPES))
def test_blend_inverts_extract(backend, layout, window, dtype):
    canvas = random(2, 3, *layout.size, dtype=dtype)
    tiles = ta.extract_tiles(canvas, layout, backend=backend)
    blended = ta.blend_tiles(tiles, layout, window, backend=backend)
    assert blended.dtype == dtype
    accumulated = torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
    assert relative_error(blended, canvas) <= 4 * accumulated
    if dtype in (torch.bfloat16, torch.float16):
        assert torch.equal(blended, canvas)  # a half's rounding swallows the accumulator's


def plain_blend(tiles, layout, window):
    """The value-and-weight loop that everybody writes, in the tiles' precision."""
    value = torch.zeros(*tiles.shape[1:3], *layout.size, dtype=tiles.dtype)
    tables = normalized_windows(layout, window)
    for t, origin in enumerate(layout.origins):
        index = [t // math.prod(layout.grid[d + 1 :]) % layout.grid[d] for d in range(len(origin))]
        weight = torch.ones(())
        for table, i in zip(tables, index, strict=True):
            weight = weight[..., None] * torch.tensor(table[i], dtype=tiles.dtype)
        places = [(o + torch.arange(w)) % n for o, w, n in zip(origin, layout.tile, layout.size, strict=True)]
        value[(slice(None), slice(None), *torch.meshgrid(*places, indexing="ij"))] += tiles[t] * weight
    return value


@each_backend
@few
@given(layout=layouts(), window=st.sampled_from(WINDOWS), dtype=st.sampled_from(DTYPES), transposed=st.booleans())
def test_blend_stays_within_the_budget(backend, layout, window, dtype, transposed):
    tiles = random(layout.num_tiles, 2, 3, *layout.tile, dtype=dtype)
    view = tiles.transpose(1, 2).contiguous().transpose(1, 2) if transposed else strided(tiles)
    exact = ta.blend_tiles(tiles.double(), layout, window, backend="reference")
    found = ta.blend_tiles(tiles, layout, window, backend=backend)
    assert_within_budget(found, plain_blend(tiles, layout, window), exact)
    assert torch.equal(ta.blend_tiles(view, layout, window, backend=backend), found)


@each_backend
def test_windows_of_ones_own(backend):
    layout = ta.TileLayout((8, 6), (4, 6), (2, 0))
    tiles = random(3, 1, 2, 4, 6)
    rising = torch.tensor([1.0, 2.0, 3.0, 4.0])
    found = ta.blend_tiles(tiles, layout, [rising, torch.ones(6)], backend=backend)
    expected = (3 * tiles[0, :, :, 2] + 1 * tiles[1, :, :, 0]) / 4
    torch.testing.assert_close(found[:, :, 2], expected)


@pytest.mark.parametrize("size", [1e-300, 1.0, 1.5e308])
def test_only_the_proportions_of_a_window_count(size):
    layout = ta.TileLayout(6, 4, 2)
    ones = torch.ones(2, 1, 1, 4, dtype=torch.float64)
    window = torch.full((4,), size, dtype=torch.float64)
    torch.testing.assert_close(ta.blend_tiles(ones, layout, [window]), torch.ones(1, 1, 6, dtype=torch.float64))


@each_backend
def test_one_tile_is_a_copy_and_not_an_alias(backend):
    layout = ta.TileLayout((4, 4), 4)
    canvas = random(1, 1, 4, 4)
    tiles = ta.extract_tiles(canvas, layout, backend=backend)
    known = {canvas.untyped_storage()._cdata}
    blended, padded = (op(tiles, layout, *a, backend=backend) for op, *a in ((ta.blend_tiles,), (ta.pad_tiles, 0)))
    for found in (tiles, blended, padded):
        assert torch.equal(found.flatten(), canvas.flatten())
        assert found.untyped_storage()._cdata not in known
        known.add(tiles.untyped_storage()._cdata)


LAYOUT = ta.TileLayout((4, 4), 2)
CANVAS, TILES = random(1, 2, 4, 4), random(4, 1, 2, 2, 2)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ta.extract_tiles([1], LAYOUT), TypeError, "canvas: got list"),
        (lambda: ta.extract_tiles(CANVAS[0], LAYOUT), ValueError, r"canvas: shape is .* needs \[B, C, 4, 4\]"),
        (lambda: ta.extract_tiles(CANVAS[..., :3], LAYOUT), ValueError, "canvas: shape is"),
        (lambda: ta.extract_tiles(CANVAS.long(), LAYOUT), TypeError, "canvas: dtype is torch.int64"),
        (lambda: ta.extract_tiles(CANVAS, None), TypeError, "layout: got NoneType"),
        (lambda: ta.extract_tiles(CANVAS, LAYOUT, backend="x"), ValueError, "backend: got 'x'"),
        (lambda: ta.blend_tiles(TILES[:3], LAYOUT), ValueError, r"tiles: shape is .* needs \[4, B, C, 2, 2\]"),
        (lambda: ta.blend_tiles(TILES, LAYOUT, "flat"), ValueError, "window: got 'flat'; known are uniform"),
        (lambda: ta.blend_tiles(TILES, LAYOUT, 3), TypeError, "window: got int"),
        (lambda: ta.blend_tiles(TILES, LAYOUT, torch.ones(2)), TypeError, "window: got Tensor"),
        (lambda: ta.blend_tiles(TILES, LAYOUT, [torch.ones(2)]), ValueError, "window: got 1 tensors"),
        (
            lambda: ta.blend_tiles(TILES, LAYOUT, [torch.ones(2), torch.ones(3)]),
            ValueError,
            r"window\[1\]: shape",
        ),
        (
            lambda: ta.blend_tiles(TILES, LAYOUT, [torch.ones(2), -torch.ones(2)]),
            ValueError,
            r"window\[1\]: .*positive",
        ),
        (
            lambda: ta.blend_tiles(TILES, LAYOUT, [torch.ones(2), torch.ones(2) / 0]),
            ValueError,
            r"window\[1\]: .*finite",
        ),
        (lambda: ta.pad_tiles(TILES, LAYOUT, -1), ValueError, r"pad\[0\]: got -1"),
        (lambda: ta.pad_tiles(TILES, LAYOUT, 1.0), TypeError, "pad: got 1.0"),
        (lambda: ta.pad_tiles(TILES, LAYOUT, (1, 1, 1)), ValueError, "pad: got 3 values"),
        (lambda: ta.pad_tiles(TILES, LAYOUT, (0, 5)), ValueError, r"pad\[1\]: got 5; it must be at most"),
        (lambda: ta.pad_tiles(TILES[0], LAYOUT, 1), ValueError, "tiles: shape is"),
    ],
)
def test_bad_arguments_are_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_a_window_that_wants_a_gradient_is_refused():
    layout = ta.TileLayout((4, 4), 2)
    tiles, window = torch.zeros(4, 1, 1, 2, 2), torch.ones(2, requires_grad=True)
    with pytest.raises(ValueError, match=r"window\[1\]: requires grad"):
        ta.blend_tiles(tiles, layout, (torch.ones(2), window))


def test_windows_of_any_positive_numbers():
    layout = ta.TileLayout((4,), (2,), 0)
    window = torch.tensor([1e-200, 1e200], dtype=torch.float64)
    assert torch.equal(ta.blend_tiles(torch.ones(2, 1, 1, 2), layout, [window]), torch.ones(1, 1, 4))
    layout = ta.TileLayout((6,), (4,), 2)
    window = torch.full((4,), 1e308, dtype=torch.float64)
    assert torch.equal(ta.blend_tiles(torch.ones(2, 1, 1, 4), layout, [window]), torch.ones(1, 1, 6))
