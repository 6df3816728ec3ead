"""Extract, blend and pad kernels against the reference: run by test_kernels.py, as the attention cases are."""

import itertools

import pytest
import torch
from backends.triton.kernel_memory import address_space, amid_nan
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from support import assert_within_budget, layouts, poison

import tiledattn as ta
from tiledattn.backends import reference
from tiledattn.backends import triton as backend
from tiledattn.backends.tables import custom_window_tables, window_tables
from tiledattn.backends.triton.tiles import blend_tiles_fwd, extract_tiles_fwd, pad_tiles_fwd

DEVICE = torch.device("cpu" if backend.interpreted() else "cuda")
# the interpreter copies bfloat16 faithfully, but rounds to it wrongly
COPIED = [torch.float32, torch.float16, torch.bfloat16]
BLENDED = COPIED[:2] if backend.interpreted() else COPIED
# examples are small, and interpreted kernels too slow to shrink them
FEW = settings(max_examples=10, deadline=None, derandomize=True, database=None, phases=(Phase.explicit, Phase.generate))

# last axes that runs of 8, 4, 2 and 1 positions divide; covers of 1 to 6 tiles
LAYOUTS = [
    ta.TileLayout((6, 64), (4, 32), (2, 16), (False, True)),
    ta.TileLayout((5, 24), (5, 16), (0, 4), (False, True)),
    ta.TileLayout((7, 20), (3, 10), (1, 4)),
    ta.TileLayout((9, 11), (4, 5), (2, 0), (True, False)),
    ta.TileLayout(18, 6, 5, True),
    ta.TileLayout((3, 8, 16), (2, 8, 8), (1, 0, 0), (False, True, False)),
]


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch):
    poison(monkeypatch)


def random(shape, dtype, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def strided_forms(x):
    """The same values under other strides."""
    yield "channels last", x.movedim(-3, -1).contiguous().movedim(-1, -3) if x.dim() > 3 else x
    yield "transposed", x.transpose(-1, -2).contiguous().transpose(-1, -2)
    yield "odd strides", torch.nn.functional.pad(x, (1, 2))[..., 1:-2]
    yield "every other", torch.stack([x, x], -1)[..., 0]


def plain_blend(tiles, layout, weights):
    """Accumulation tile after tile in the precision of the tiles."""
    out = torch.zeros(*tiles.shape[1:3], *layout.size, dtype=tiles.dtype)
    places = [range(count) for count in layout.grid]
    for t, index in enumerate(itertools.product(*places)):
        part, where = tiles[t], []
        for axis, (i, table) in enumerate(zip(index, weights, strict=True)):
            shape = [-1 if a == axis else 1 for a in range(len(index))]
            part = part * table[i].to(tiles.dtype).view(shape)
            origin = layout.axis_origins[axis][i]
            where.append((origin + torch.arange(layout.tile[axis])) % layout.size[axis])
        out[(slice(None), slice(None), *torch.meshgrid(*where, indexing="ij"))] += part
    return out


def check_blend(tiles, layout, weights, **options):
    hemmed = tuple(amid_nan(w.to(DEVICE)) for w in weights)
    found = blend_tiles_fwd(amid_nan(tiles.to(DEVICE)), layout, hemmed, **options).cpu()
    exact = reference.blend_tiles(tiles.double(), layout=layout, weights=tuple(w.double() for w in weights))
    assert found.is_contiguous()
    assert found.dtype == tiles.dtype
    assert_within_budget(found, plain_blend(tiles, layout, weights), exact)
    return found


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_extract(layout):
    for dtype in COPIED[::2]:
        canvas = random((2, 3, *layout.size), dtype)
        exact = reference.extract_tiles(canvas, layout=layout)
        wide = dtype == torch.bfloat16
        assert torch.equal(extract_tiles_fwd(canvas.to(DEVICE), layout, wide_offsets=wide).cpu(), exact)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("window", ["hann", "gaussian"])
def test_blend(layout, window):
    weights = window_tables(layout, window, torch.device("cpu"), torch.float32)
    for dtype in BLENDED:
        check_blend(random((layout.num_tiles, 2, 3, *layout.tile), dtype), layout, weights)


def test_blend_twice_and_with_wide_offsets_to_the_bit():
    layout = LAYOUTS[0]
    weights = window_tables(layout, "hann", torch.device("cpu"), torch.float32)
    tiles = random((layout.num_tiles, 2, 3, *layout.tile), torch.float16)
    found = check_blend(tiles, layout, weights)
    assert torch.equal(found, check_blend(tiles, layout, weights))
    assert torch.equal(found, check_blend(tiles, layout, weights, wide_offsets=True))


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_blending_what_was_extracted_gives_the_canvas_back(layout):
    canvas = random((1, 2, *layout.size), torch.float32).to(DEVICE)
    weights = window_tables(layout, "linear", DEVICE, torch.float32)
    blended = blend_tiles_fwd(extract_tiles_fwd(canvas, layout), layout, weights)
    torch.testing.assert_close(blended, canvas, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize(("pad", "dtype"), [((1, 1), torch.float16), ((9, 5), torch.float32), ((0, 0), torch.bfloat16)])
def test_pad(layout, pad, dtype):
    pads = ((0, 1),) * (len(layout.size) - 1) + (pad,)
    tiles = random((layout.num_tiles, 1, 5, *layout.tile), dtype)
    found = pad_tiles_fwd(amid_nan(tiles.to(DEVICE)), layout, pads, wide_offsets=dtype == torch.float32).cpu()
    assert torch.equal(found, reference.pad_tiles(tiles, layout=layout, pad=pads))


@given(st.data())
@FEW
def test_random_layouts(data):
    layout = data.draw(layouts())
    B, C = data.draw(st.integers(1, 2)), data.draw(st.integers(1, 5))
    canvas = random((B, C, *layout.size), torch.float32)
    tiles = random((layout.num_tiles, B, C, *layout.tile), data.draw(st.sampled_from(BLENDED)))
    windows = [torch.rand(w) + 0.1 for w in layout.tile]
    weights = custom_window_tables(layout, windows, torch.device("cpu"), torch.float32)
    check_blend(tiles, layout, weights)
    assert torch.equal(
        backend.extract_tiles(canvas.to(DEVICE), layout=layout).cpu(),
        reference.extract_tiles(canvas, layout=layout),
    )
    pads = tuple(data.draw(st.tuples(st.integers(0, 3), st.integers(0, 3))) for _ in layout.size)
    assert torch.equal(
        backend.pad_tiles(tiles.to(DEVICE), layout=layout, pad=pads).cpu(),
        reference.pad_tiles(tiles, layout=layout, pad=pads),
    )


def test_results_do_not_depend_on_strides():
    layout = ta.TileLayout((6, 32), (4, 16), (2, 8), (False, True))
    canvas = random((2, 8, *layout.size), torch.float16).to(DEVICE)
    tiles = random((layout.num_tiles, 2, 8, *layout.tile), torch.float16).to(DEVICE)
    weights = window_tables(layout, "hann", DEVICE, torch.float32)
    pads = ((1, 1), (1, 1))
    cut, blended, padded = (
        backend.extract_tiles(canvas, layout=layout),
        backend.blend_tiles(tiles, layout=layout, weights=weights),
        backend.pad_tiles(tiles, layout=layout, pad=pads),
    )
    for name, form in strided_forms(canvas):
        assert torch.equal(form, canvas), name
        assert torch.equal(backend.extract_tiles(form, layout=layout), cut), name
    for name, form in strided_forms(tiles):
        assert torch.equal(backend.blend_tiles(form, layout=layout, weights=weights), blended), name
        assert torch.equal(backend.pad_tiles(form, layout=layout, pad=pads), padded), name
    one = canvas[:1, :1]
    assert torch.equal(
        backend.extract_tiles(one.expand(2, 3, -1, -1), layout=layout),
        backend.extract_tiles(one.repeat(2, 3, 1, 1), layout=layout),
    )


def test_entries_further_apart_than_32_bit_offsets():
    layout = ta.TileLayout((4, 12), (4, 4), 0, (False, True))
    # the distance fits in 32 bits, twice the distance does not
    gap = 2**30 + 64
    memory = address_space(2 * gap + 1000, DEVICE)
    weights = window_tables(layout, "hann", DEVICE, torch.float32)
    tiles = memory.as_strided((3, 1, 3, 4, 4), (gap, 0, 20, 5, 1)).copy_(random((3, 1, 3, 4, 4), torch.float16))
    near = tiles.contiguous()
    blended = backend.blend_tiles(tiles, layout=layout, weights=weights)
    assert torch.equal(blended, backend.blend_tiles(near, layout=layout, weights=weights))
    padded = backend.pad_tiles(tiles, layout=layout, pad=((1, 1), (2, 1)))
    assert torch.equal(padded, backend.pad_tiles(near, layout=layout, pad=((1, 1), (2, 1))))
    canvas = memory.as_strided((3, 3, 4, 12), (gap, 52, 13, 1)).copy_(random((3, 3, 4, 12), torch.float16))
    cut = backend.extract_tiles(canvas, layout=layout)
    assert torch.equal(cut, backend.extract_tiles(canvas.contiguous(), layout=layout))


def test_many_programs_a_tile():
    layout = ta.TileLayout((40, 72), (40, 48), (0, 24))
    tiles = random((layout.num_tiles, 1, 6, *layout.tile), torch.float32)
    check_blend(tiles, layout, window_tables(layout, "hann", torch.device("cpu"), torch.float32))
    cut = extract_tiles_fwd(random((1, 6, *layout.size), torch.float32).to(DEVICE), layout).cpu()
    exact = reference.extract_tiles(random((1, 6, *layout.size), torch.float32), layout=layout)
    assert torch.equal(cut, exact)


def test_nothing_to_do():
    layout = ta.TileLayout((8, 8), (4, 4))
    weights = window_tables(layout, "hann", DEVICE, torch.float32)
    tiles = torch.empty(4, 0, 3, 4, 4, device=DEVICE)
    assert backend.extract_tiles(torch.empty(0, 3, 8, 8, device=DEVICE), layout=layout).shape == tiles.shape
    assert backend.blend_tiles(tiles, layout=layout, weights=weights).shape == (0, 3, 8, 8)
    assert backend.pad_tiles(tiles, layout=layout, pad=((1, 1), (0, 2))).shape == (4, 0, 3, 6, 6)
