import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from support import BACKENDS, layouts

import tiledattn as ta


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=60, deadline=None)
@given(
    data=st.data(),
    layout=layouts(),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
)
def test_rings_are_the_owners_features(backend, data, layout, dtype):
    pad = [data.draw(st.integers(0, n)) for n in layout.size]
    tiles = torch.randn(layout.num_tiles, 2, 2, *layout.tile, generator=torch.Generator().manual_seed(0)).to(dtype)
    found = ta.pad_tiles(tiles, layout, pad, backend=backend)
    assert found.is_contiguous()
    assert torch.equal(found, ta.pad_tiles(tiles, layout, pad, backend="reference"))
    other = tiles.transpose(1, 2).contiguous().transpose(1, 2)
    assert torch.equal(ta.pad_tiles(other, layout, pad, backend=backend), found)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("wrap", [False, True])
@pytest.mark.parametrize(("tile", "overlap"), [((4, 6), 0), ((4, 6), 2), ((8, 12), 0)])
def test_convolution_of_padded_tiles_is_convolution_of_the_canvas(backend, wrap, tile, overlap):
    layout = ta.TileLayout((8, 12), tile, overlap, wrap)
    canvas, kernel = torch.randn(2, 3, 8, 12, dtype=torch.float64), torch.randn(4, 3, 3, 5, dtype=torch.float64)
    whole = F.pad(canvas, (2, 2, 1, 1), mode="circular" if wrap else "constant")
    expected = ta.extract_tiles(F.conv2d(whole, kernel), layout)
    padded = ta.pad_tiles(ta.extract_tiles(canvas, layout), layout, (1, 2), backend=backend)
    found = F.conv2d(padded.flatten(0, 1), kernel).unflatten(0, (layout.num_tiles, 2))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gradients_in_half_precision_are_rounded_once(dtype):
    """One position is in 1025 padded tiles' rings."""
    tiles = torch.zeros(512, 1, 1, 1, dtype=dtype, requires_grad=True)
    padded = ta.pad_tiles(tiles, ta.TileLayout((512,), (1,), 0, True), 512)
    padded.float().sum().backward()
    assert torch.equal(tiles.grad, torch.full_like(tiles, 1025))
