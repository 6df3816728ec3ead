import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from support import all_positions, assert_within_budget, layouts

import tiledattn as ta
from tiledattn.backends import reference

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
SCOPES = ["tile", "neighbours", "canvas"]


def plain_group_norm(tiles, layout, num_groups, weight, bias, eps, scope):
    """Weighted sums, then one multiply-add with scale and shift per channel, as PyTorch's own group norm does it."""
    axes, indices = reference._tiles(layout)
    x = tiles if tiles.dtype == torch.float64 else tiles.float()
    x = x.reshape(*x.shape[:2], num_groups, -1, layout.tile_positions)
    places = all_positions(layout.tile)
    owned = torch.tensor(
        [
            [
                all(a.deepest((a.origins[i] + p) % a.length) == i for a, i, p in zip(axes, t, r, strict=True))
                for r in places
            ]
            for t in indices
        ]
    )
    out = torch.empty_like(x)
    scale = torch.ones(tiles.shape[2]) if weight is None else weight
    shift = torch.zeros(tiles.shape[2]) if bias is None else bias
    scale, shift = (c.to(x.dtype).view(num_groups, -1, 1) for c in (scale, shift))
    for t, index in enumerate(indices):
        near = torch.tensor([reference._nearness(axes, index, other, scope) for other in indices], dtype=x.dtype)
        share = near[:, None] * (torch.ones_like(owned) if scope == "tile" else owned)
        share = (share / (share.sum() * x.shape[3]))[:, None, None, None, :]
        mean = (x * share).sum((0, 3, 4))[..., None, None]
        var = ((x - mean).square() * share).sum((0, 3, 4))[..., None, None]
        factor = scale * torch.rsqrt(var + eps)
        out[t] = x[t] * factor + (shift - mean * factor)
    return out.view(tiles.shape).to(tiles.dtype)


@settings(max_examples=40, deadline=None)
@given(layouts(most_positions=8), st.sampled_from(SCOPES), st.sampled_from(DTYPES), st.booleans(), st.integers(0, 99))
def test_statistics_stay_within_the_budget(layout, scope, dtype, affine, seed):
    torch.manual_seed(seed)
    # several batch entries of groups of eight channels: the error of two or three numbers is a matter of luck
    tiles = (torch.randn(layout.num_tiles, 4, 24, *layout.tile) * 2 + 1).to(dtype)
    weight, bias = (torch.randn(24).to(dtype), torch.randn(24).to(dtype)) if affine else (None, None)
    upcast = [None if x is None else x.double() for x in (weight, bias)]
    exact = ta.group_norm_tiles(tiles.double(), layout, 3, *upcast, 1e-3, scope=scope, backend="reference")
    found = ta.group_norm_tiles(tiles, layout, 3, weight, bias, 1e-3, scope=scope)
    assert found.dtype == dtype
    assert_within_budget(found, plain_group_norm(tiles, layout, 3, weight, bias, 1e-3, scope), exact)


@pytest.mark.parametrize("wrap", [False, True])
@pytest.mark.parametrize("overlap", [0, 1, 2])
def test_canvas_scope_is_group_norm_of_the_canvas(wrap, overlap):
    layout = ta.TileLayout((8, 12), (4, 4), overlap, wrap)
    canvas = torch.randn(2, 6, 8, 12, dtype=torch.float64) + 5
    weight, bias = torch.randn(6, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    expected = ta.extract_tiles(F.group_norm(canvas, 2, weight, bias), layout)
    found = ta.group_norm_tiles(ta.extract_tiles(canvas, layout), layout, 2, weight, bias, scope="canvas")
    torch.testing.assert_close(found, expected)


def test_tile_scope_is_group_norm_of_each_tile():
    layout = ta.TileLayout((8, 8), 4, 2)
    tiles = torch.randn(9, 2, 6, 4, 4)
    expected = F.group_norm(tiles.flatten(0, 1), 3).view(tiles.shape)
    assert torch.equal(ta.group_norm_tiles(tiles, layout, 3, scope="tile"), expected)


def test_neighbours_lie_between_tile_and_canvas():
    layout = ta.TileLayout(24, 4)
    tiles = torch.randn(6, 1, 2, 4) + torch.arange(6.0)[:, None, None, None]  # a tone step from tile to tile
    spread = {s: float(ta.group_norm_tiles(tiles, layout, 1, scope=s).mean((1, 2, 3)).std()) for s in SCOPES}
    assert spread["tile"] < spread["neighbours"] < spread["canvas"]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"num_groups": 4}, ValueError, "num_groups: got 4; it must divide the 6 channels"),
        ({"num_groups": 0}, ValueError, "num_groups: got 0"),
        ({"weight": torch.ones(5)}, ValueError, r"weight: shape is \[5\]; expected \[6\]"),
        ({"bias": torch.ones(6).double()}, TypeError, "bias: dtype is torch.float64, but tiles has"),
        ({"bias": 1.0}, TypeError, "bias: got float"),
        ({"eps": -1.0}, ValueError, "eps: got -1.0"),
        ({"scope": "row"}, ValueError, "scope: got 'row'; known are tile, neighbours, canvas"),
        ({"tiles": torch.ones(4, 1, 6, 2, 3)}, ValueError, "tiles: shape is"),
    ],
)
def test_bad_arguments_are_named(change, error, message):
    good = {"tiles": torch.ones(4, 1, 6, 2, 2), "layout": ta.TileLayout((4, 4), 2), "num_groups": 3}
    with pytest.raises(error, match=message):
        ta.group_norm_tiles(**{**good, **change})


@pytest.mark.parametrize("scope", ["neighbours", "canvas"])
@pytest.mark.parametrize("overlap", [0, 2])
def test_a_cpu_without_gradients_computes_what_training_does(scope, overlap):
    """Large means, which sums of squares would lose."""
    layout = ta.TileLayout((8, 10), (4, 6), overlap, (False, True))
    tiles = torch.randn(layout.num_tiles, 2, 6, *layout.tile, dtype=torch.float64) + 1e4
    weight, bias = torch.randn(6, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    with torch.no_grad():
        quick = ta.group_norm_tiles(tiles, layout, 3, weight, bias, scope=scope)
    learning = ta.group_norm_tiles(tiles.requires_grad_(), layout, 3, weight, bias, scope=scope)
    torch.testing.assert_close(quick, learning.detach(), rtol=1e-8, atol=1e-8)
