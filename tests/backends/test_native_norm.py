"""Group norms of the native library: every instruction set, strides, long and short rows, what it refuses."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from support import assert_within_budget, instruction_sets, layouts, plain_group_norm, poison, relative_error

import tiledattn as ta
from tiledattn.backends import native
from tiledattn.geometry.axis import axis_owned

OPS = torch.ops.tiledattn
SCOPES = ["neighbours", "canvas"]

pytestmark = pytest.mark.skipif(native.probe() is not None, reason=str(native.probe()))


@pytest.fixture(params=instruction_sets(), scope="module")
def instruction_set(request):
    yield native.instruction_set(request.param)
    native.instruction_set("auto")


def random(*shape, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)


def normed(tiles, layout, groups, weight=None, bias=None, scope="canvas", eps=1e-3):
    return native.group_norm_tiles(
        tiles, layout=layout, num_groups=groups, weight=weight, bias=bias, eps=eps, scope=scope
    )


def assert_right(tiles, layout, groups, weight=None, bias=None, scope="canvas"):
    doubles = [None if x is None else x.double() for x in (weight, bias)]
    exact = ta.group_norm_tiles(tiles.double(), layout, groups, *doubles, 1e-3, scope=scope, backend="reference")
    plain = plain_group_norm(tiles, layout, groups, weight, bias, 1e-3, scope)
    found = normed(tiles, layout, groups, weight, bias, scope)
    assert found.dtype == tiles.dtype
    assert found.is_contiguous()
    assert_within_budget(found, plain, exact)


@pytest.mark.parametrize("dtype", native.DTYPES)
@settings(max_examples=15, deadline=None)
@given(layout=layouts(most_positions=20), scope=st.sampled_from(SCOPES), affine=st.booleans())
def test_every_instruction_set_is_right(instruction_set, dtype, layout, scope, affine):
    tiles = random(layout.num_tiles, 4, 24, *layout.tile, dtype=dtype) * 2 + 1
    weight, bias = (random(24, dtype=dtype), random(24, dtype=dtype) + 1) if affine else (None, None)
    assert_right(tiles, layout, 3, weight, bias, scope)


def forms(shape, dtype):
    """The same numbers, in other strides."""
    x = random(*shape, dtype=dtype)
    order = [0, 1, *range(3, len(shape)), 2]  # channels last
    last = [order.index(d) for d in range(len(shape))]
    wide = torch.zeros([2 * n + 1 for n in shape], dtype=dtype)
    apart = wide[tuple(slice(1, None, 2) for _ in shape)]
    narrow = torch.zeros([n + 1 for n in shape], dtype=dtype)[tuple(slice(1, None) for _ in shape)]
    return x, [
        x.permute(order).contiguous().permute(last),
        x.mT.contiguous().mT,
        x.transpose(0, 2).contiguous().transpose(0, 2),
        apart.copy_(x),
        narrow.copy_(x),
    ]


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("dtype", native.DTYPES)
@pytest.mark.parametrize(
    ("layout", "channels"),
    [
        (ta.TileLayout((17, 29), (7, 13), (2, 3), (False, True)), 6),
        (ta.TileLayout((15, 20), 5), 3),
        (ta.TileLayout((3, 9, 12), (3, 5, 12), (0, 4, 0)), 4),
        (ta.TileLayout((9, 1), (4, 1), (1, 0)), 2),
        (ta.TileLayout((1, 23), (1, 9), (0, 8)), 5),
        (ta.TileLayout(9000, 4500, 403), 1),  # rows longer than what is summed up at a time
        (ta.TileLayout((700, 3), (600, 2), (7, 1)), 2),  # more rows than that
    ],
)
def test_strides_change_nothing(instruction_set, layout, channels, dtype, scope):
    x, others = forms((layout.num_tiles, 2, 2 * channels, *layout.tile), dtype)
    weight, bias = random(4 * channels, dtype=dtype)[::2], random(2 * channels, dtype=dtype)
    found = normed(x, layout, 2, weight, bias, scope)
    for other in others:
        assert torch.equal(normed(other, layout, 2, weight.contiguous(), bias, scope), found)
    if layout.tile_positions < 200:
        assert_right(x, layout, 2, weight, bias, scope)


def test_one_number_may_stand_for_many(instruction_set):
    layout = ta.TileLayout((9, 8), (4, 5), 2)
    tiles = random(layout.num_tiles, 1, 1, 4, 1).expand(-1, 2, 4, -1, 5)
    assert torch.equal(normed(tiles, layout, 2), normed(tiles.contiguous(), layout, 2))


@pytest.mark.parametrize("positions", [1, 3, 15, 16, 17, 63, 64, 65, 1023, 2047, 2048, 2049, 4097])
def test_groups_may_be_of_any_length(instruction_set, positions):
    layout = ta.TileLayout(2 * positions, positions)
    tiles = random(2, 3, 2, positions) + 3
    exact = F.group_norm(torch.cat([*tiles.double()], -1), 1, eps=1e-3)
    plain = F.group_norm(torch.cat([*tiles], -1), 1, eps=1e-3)
    assert_within_budget(torch.cat([*normed(tiles, layout, 1)], -1), plain, exact)


@pytest.mark.parametrize("mean", [0.0, 1000.0])
def test_large_tiles_with_large_means(instruction_set, mean):
    """No worse than PyTorch on the canvas, and without what a scale and a shift in float32 lose."""
    layout = ta.TileLayout((200, 232), 128, (56, 24), (True, False))
    canvas = random(1, 10, *layout.size) + mean
    weight, bias = random(10), random(10)
    exact = ta.extract_tiles(F.group_norm(canvas.double(), 1, weight.double(), bias.double()), layout)
    plain = ta.extract_tiles(F.group_norm(canvas, 1, weight, bias), layout)
    found = normed(ta.extract_tiles(canvas, layout), layout, 1, weight, bias, eps=1e-5)
    assert_within_budget(found, plain, exact)
    assert relative_error(found, exact) < 1e-7


@pytest.mark.parametrize("scope", SCOPES)
def test_a_tile_may_own_nothing(instruction_set, scope):
    layout = ta.TileLayout((12, 9), (5, 4), (4, 3), (False, True))
    assert not all(axis_owned(axis).any(1).all() for axis in layout.axes)
    assert_right(random(layout.num_tiles, 3, 8, *layout.tile) + 100, layout, 2, scope=scope)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_threads_and_memory_change_nothing(monkeypatch, dtype, scope):
    layout = ta.TileLayout((80, 70), (16, 20), (4, 5), (True, False))
    tiles = random(layout.num_tiles, 3, 64, *layout.tile, dtype=dtype)
    poison(monkeypatch)
    threads, found = torch.get_num_threads(), []
    for count in (1, 1, 2, 5):
        torch.set_num_threads(count)
        found.append(normed(tiles, layout, 32, scope=scope))
    torch.set_num_threads(threads)
    assert not found[0].isnan().any()
    assert all(torch.equal(x, found[0]) for x in found)


@pytest.mark.parametrize("scope", SCOPES)
def test_nothing_comes_of_nothing(scope):
    layout = ta.TileLayout((6, 6), 4, 2)
    for batch, channels in ((0, 4), (2, 0)):
        tiles = torch.empty(layout.num_tiles, batch, channels, 4, 4)
        assert normed(tiles, layout, 2, scope=scope).shape == tiles.shape
        out = torch.empty_like(tiles)
        OPS.group_norm_tiles_cpu(tiles, None, None, out, layout.as_ints(), 2, 1e-5, scope == "neighbours")


def test_what_is_not_finite_stays_in_its_scope():
    layout = ta.TileLayout(40, 4)
    tiles = random(10, 1, 2, 4)
    clean = normed(tiles, layout, 2, scope="neighbours")
    tiles[9, 0, 0, 1] = math.nan
    found = normed(tiles, layout, 2, scope="neighbours")
    assert found[8:, :, 0].isnan().all()
    torch.testing.assert_close(found[:8], clean[:8])
    assert torch.equal(found[:, :, 1], clean[:, :, 1])
    assert normed(tiles, layout, 2)[:, :, 0].isnan().all()


def test_a_constant_is_the_bias(instruction_set):
    layout = ta.TileLayout((8, 9), 5, 2)
    tiles = torch.full((layout.num_tiles, 1, 2, 5, 5), 1e4 / 3)
    found = normed(tiles, layout, 1, bias=torch.tensor([2.0, -1.0]))
    torch.testing.assert_close(found[:, :, 0], torch.full_like(found[:, :, 0], 2.0), rtol=0, atol=1e-2)
    assert torch.equal(found[:, :, 0] - 3, found[:, :, 1])


LAYOUT = ta.TileLayout((4, 4), 2)
INTS = LAYOUT.as_ints()
TILES, OUT, ONES = random(4, 1, 2, 2, 2), torch.empty(4, 1, 2, 2, 2), torch.ones(2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((TILES, None, None, OUT, INTS[:-1], 1), "layout: got 7 ints"),
        ((TILES[:3], None, None, OUT, INTS, 1), r"tiles: shape is \[3, .*; expected \[4"),
        ((TILES.long(), None, None, OUT, INTS, 1), "tiles: dtype is Long; expected float16"),
        ((TILES, torch.ones(3), None, OUT, INTS, 1), r"weight: shape is \[3\]; expected \[2\]"),
        ((TILES, ONES.double(), None, OUT, INTS, 1), "weight: dtype is Double; expected Float"),
        ((TILES, torch.ones(4)[::2], None, OUT, INTS, 1), "weight: not contiguous"),
        ((TILES, None, torch.ones(1), OUT, INTS, 1), r"bias: shape is \[1\]; expected \[2\]"),
        ((TILES, None, None, OUT[:3], INTS, 1), r"out: shape is \[3"),
        ((TILES, None, None, OUT.mT, INTS, 1), "out: not contiguous"),
        ((TILES, None, None, OUT.double(), INTS, 1), "out: dtype is Double"),
        ((TILES, None, None, OUT, INTS, 0), "num_groups: got 0; expected a divisor of the 2 channels"),
        ((TILES, None, None, OUT, INTS, 3), "num_groups: got 3"),
    ],
)
def test_what_would_touch_foreign_memory_is_refused(arguments, message):
    with pytest.raises(RuntimeError, match=message):
        OPS.group_norm_tiles_cpu(*arguments, 1e-5, False)


def test_offsets_are_64_bit():
    """Tiles more than 2^31 elements apart; only the pages in use take memory."""
    apart, layout = (1 << 31) + 8, ta.TileLayout((2, 8), (1, 8))
    try:
        storage = torch.empty(apart + 16, dtype=torch.float16)
    except RuntimeError as problem:
        pytest.skip(f"no address space: {problem}")
    tiles = storage.as_strided((2, 1, 2, 1, 8), (apart, 0, 8, 0, 1))
    tiles.copy_(random(2, 1, 2, 1, 8))
    assert torch.equal(normed(tiles, layout, 1), normed(tiles.contiguous(), layout, 1))
