import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from support import BACKENDS, assert_within_budget, layouts, plain_group_norm

import tiledattn as ta

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
SCOPES = ["tile", "neighbours", "canvas"]


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=40, deadline=None)
@given(
    layout=layouts(most_positions=8),
    scope=st.sampled_from(SCOPES),
    dtype=st.sampled_from(DTYPES),
    affine=st.booleans(),
    seed=st.integers(0, 99),
)
def test_statistics_stay_within_the_budget(backend, layout, scope, dtype, affine, seed):
    torch.manual_seed(seed)
    # several batch entries of groups of eight channels: the error of two or three numbers is a matter of luck
    tiles = (torch.randn(layout.num_tiles, 4, 24, *layout.tile) * 2 + 1).to(dtype)
    weight, bias = (torch.randn(24).to(dtype), torch.randn(24).to(dtype)) if affine else (None, None)
    upcast = [None if x is None else x.double() for x in (weight, bias)]
    exact = ta.group_norm_tiles(tiles.double(), layout, 3, *upcast, 1e-3, scope=scope, backend="reference")
    found = ta.group_norm_tiles(tiles, layout, 3, weight, bias, 1e-3, scope=scope, backend=backend)
    assert found.dtype == dtype
    assert_within_budget(found, plain_group_norm(tiles, layout, 3, weight, bias, 1e-3, scope), exact)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("wrap", [False, True])
@pytest.mark.parametrize("overlap", [0, 1, 2])
def test_canvas_scope_is_group_norm_of_the_canvas(backend, wrap, overlap):
    layout = ta.TileLayout((8, 12), (4, 4), overlap, wrap)
    canvas = torch.randn(2, 6, 8, 12, dtype=torch.float64) + 5
    weight, bias = torch.randn(6, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    expected = ta.extract_tiles(F.group_norm(canvas, 2, weight, bias), layout)
    tiles = ta.extract_tiles(canvas, layout)
    found = ta.group_norm_tiles(tiles, layout, 2, weight, bias, scope="canvas", backend=backend)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_tile_scope_is_group_norm_of_each_tile(backend):
    layout = ta.TileLayout((8, 8), 4, 2)
    tiles = torch.randn(9, 2, 6, 4, 4)
    expected = F.group_norm(tiles.flatten(0, 1), 3).view(tiles.shape)
    assert torch.equal(ta.group_norm_tiles(tiles, layout, 3, scope="tile", backend=backend), expected)


@pytest.mark.parametrize("backend", BACKENDS)
def test_neighbours_lie_between_tile_and_canvas(backend):
    layout = ta.TileLayout(24, 4)
    tiles = torch.randn(6, 1, 2, 4) + torch.arange(6.0)[:, None, None, None]  # a tone step from tile to tile
    normed = {s: ta.group_norm_tiles(tiles, layout, 1, scope=s, backend=backend) for s in SCOPES}
    spread = {s: float(x.mean((1, 2, 3)).std()) for s, x in normed.items()}
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


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scope", ["neighbours", "canvas"])
@pytest.mark.parametrize("overlap", [0, 2])
def test_a_cpu_without_gradients_computes_what_training_does(backend, scope, overlap):
    """Large means, which sums of squares would lose."""
    layout = ta.TileLayout((8, 10), (4, 6), overlap, (False, True))
    tiles = torch.randn(layout.num_tiles, 2, 6, *layout.tile, dtype=torch.float64) + 1e4
    weight, bias = torch.randn(6, dtype=torch.float64), torch.randn(6, dtype=torch.float64)
    with torch.no_grad():
        quick = ta.group_norm_tiles(tiles, layout, 3, weight, bias, scope=scope, backend=backend)
    learning = ta.group_norm_tiles(tiles.requires_grad_(), layout, 3, weight, bias, scope=scope, backend=backend)
    torch.testing.assert_close(quick, learning.detach(), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("scope", SCOPES)
def test_gradients_are_those_of_the_definition(backend, scope):
    layout = ta.TileLayout((7, 10), (4, 6), (1, 2), (False, True))
    leaves = [torch.randn(layout.num_tiles, 2, 6, *layout.tile), torch.randn(6), torch.randn(6)]
    cotangent = torch.randn_like(leaves[0])

    def gradients(dtype, normed):
        x, weight, bias = (leaf.to(dtype).requires_grad_() for leaf in leaves)
        return torch.autograd.grad(normed(x, weight, bias), (x, weight, bias), cotangent.to(dtype))

    def by_backend(x, weight, bias):
        return ta.group_norm_tiles(x, layout, 3, weight, bias, 1e-3, scope=scope, backend=backend)

    def plain(x, weight, bias):
        return plain_group_norm(x, layout, 3, weight, bias, 1e-3, scope)

    ways = gradients(torch.float32, by_backend), gradients(torch.float32, plain), gradients(torch.float64, plain)
    for found, usual, exact in zip(*ways, strict=True):
        assert_within_budget(found, usual, exact)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("learning", [False, True])
@pytest.mark.parametrize("overlap", [0, 4])
@pytest.mark.parametrize(("offset", "spread"), [(3, 0.01), (30, 1), (1000, 1)])
def test_tiles_beyond_the_scope_cost_no_digits(backend, learning, overlap, offset, spread):
    """Half of the canvas lies far from the other."""
    layout = ta.TileLayout((128,), (16,), overlap)
    torch.manual_seed(0)
    canvas = torch.randn(2, 8, 128) * spread
    canvas[..., 64:] += offset
    tiles = ta.extract_tiles(canvas, layout)
    exact = ta.group_norm_tiles(tiles.double(), layout, 2, scope="neighbours", backend="reference")
    found = ta.group_norm_tiles(tiles.requires_grad_(learning), layout, 2, scope="neighbours", backend=backend)
    plain = plain_group_norm(tiles.detach(), layout, 2, None, None, 1e-5, "neighbours")
    for t in (0, 1, layout.num_tiles - 2, layout.num_tiles - 1):
        assert_within_budget(found[t].detach(), plain[t], exact[t])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("learning", [False, True])
def test_what_does_not_vary_becomes_nearly_nothing(backend, learning):
    """Not quite 0: a multiply-add of 1000 and 1 / sqrt(eps) rounds to thousandths."""
    layout = ta.TileLayout((128,), (16,))
    tiles = torch.zeros(8, 1, 2, 16)
    tiles[4:] = 1000.0
    found = ta.group_norm_tiles(tiles.requires_grad_(learning), layout, 1, scope="neighbours", backend=backend)
    assert found[0].abs().max() == 0
    assert found[7].abs().max() < 0.01


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("learning", [False, True])
@pytest.mark.parametrize("overlap", [0, 4])
def test_nan_stays_in_its_scope(backend, learning, overlap):
    layout = ta.TileLayout((128,), (16,), overlap)
    tiles = torch.randn(layout.num_tiles, 1, 4, 16)
    tiles[0, 0, 0, 0] = float("nan")
    exact = ta.group_norm_tiles(tiles, layout, 2, scope="neighbours", backend="reference")
    found = ta.group_norm_tiles(tiles.requires_grad_(learning), layout, 2, scope="neighbours", backend=backend)
    assert torch.equal(found.isnan(), exact.isnan())
    assert not found[3:].isnan().any()


@pytest.mark.parametrize("backend", ["reference", *BACKENDS])
@pytest.mark.parametrize("scope", SCOPES)
def test_no_batch_entries(backend, scope):
    layout = ta.TileLayout((8, 8), 4)
    assert ta.group_norm_tiles(torch.zeros(4, 0, 6, 4, 4), layout, 3, scope=scope, backend=backend).shape == (
        4,
        0,
        6,
        4,
        4,
    )
