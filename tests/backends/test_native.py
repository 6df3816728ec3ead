"""The native library: geometry, rounding, every instruction set, what it refuses, and a package without it."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import assert_within_budget, instruction_sets, layouts, relative_error

import tiledattn as ta
from tiledattn.backends import native, native_library, reference
from tiledattn.backends.tables import window_tables
from tiledattn.geometry.axis import Axis, axis_origins, axis_owners, axis_ring
from tiledattn.geometry.cover import axis_cover

ROOT = pathlib.Path(__file__).parents[2]
OPS = torch.ops.tiledattn
HALVES = [torch.float16, torch.bfloat16]
PAD = ((2, 1), (1, 3))  # of axes of two dimensions

needs_library = pytest.mark.skipif(native.probe() is not None, reason=str(native.probe()))


def test_a_compiler_gives_a_library():
    """Else a build that broke would only skip what it is for."""
    if os.environ.get("TILEDATTN_NO_EXT") == "1":
        pytest.skip("TILEDATTN_NO_EXT=1 leaves the library out")
    if shutil.which(os.environ.get("CXX", "c++")) is None:
        pytest.skip("no C++ compiler")
    assert native.probe() is None


@pytest.fixture(params=instruction_sets(), scope="module")
def instruction_set(request):
    yield native.instruction_set(request.param)
    native.instruction_set("auto")


@st.composite
def axes(draw):
    length = draw(st.integers(1, 40))
    tile = draw(st.integers(1, length))
    return Axis(length, tile, draw(st.integers(0, tile - 1)), draw(st.booleans()))


@needs_library
@settings(max_examples=300, deadline=None)
@given(axes(), st.integers(0, 50), st.integers(0, 50))
def test_the_headers_agree_with_the_geometry(axis, before, after):
    ints = [axis.length, axis.tile, axis.overlap, int(axis.wrap)]
    origins, owners, ring, spans = (x.tolist() for x in OPS.native_axis_geometry(ints, before, after))
    assert tuple(x for (x,) in origins) == axis_origins(axis)
    assert [x for (x,) in owners] == axis_owners(axis).tolist()
    expected = [[tile, *segment] for tile, row in enumerate(axis_ring(axis, before, after)) for segment in row]
    assert ring == expected
    cover = axis_cover(axis)
    found = [[] for _ in range(axis.length)]
    for begin, end, tile, local in spans:
        for i in range(begin, end):
            found[i].append((tile, local + i - begin))
    rows = zip(cover.tile.tolist(), cover.local.tolist(), strict=True)
    assert found == [[(t, i) for t, i in zip(*row, strict=True) if t >= 0] for row in rows]


def random(*shape, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)


@needs_library
@pytest.mark.parametrize("dtype", native.DTYPES)
@settings(max_examples=20, deadline=None)
@given(layout=layouts(), data=st.data())
def test_every_instruction_set_is_right(instruction_set, dtype, layout, data):
    pad = tuple((data.draw(st.integers(0, n)), data.draw(st.integers(0, n))) for n in layout.size)
    canvas, tiles = random(2, 3, *layout.size, dtype=dtype), random(layout.num_tiles, 2, 3, *layout.tile, dtype=dtype)
    assert torch.equal(native.extract_tiles(canvas, layout=layout), reference.extract_tiles(canvas, layout=layout))
    assert torch.equal(
        native.pad_tiles(tiles, layout=layout, pad=pad), reference.pad_tiles(tiles, layout=layout, pad=pad)
    )
    sums = torch.float64 if dtype == torch.float64 else torch.float32
    weights = window_tables(layout, "hann", tiles.device, sums)
    exact = reference.blend_tiles(tiles.double(), layout=layout, weights=tuple(w.double() for w in weights))
    found = native.blend_tiles(tiles, layout=layout, weights=weights)
    assert_within_budget(found, exact.to(dtype), exact)


@cache
def parts(dtype, size, tile, overlap, step):
    """Tiles and a canvas of elements `step` apart, and by the reference: blended, plain, cut, padded."""
    layout = ta.TileLayout(size, tile, overlap)
    tiles = random(layout.num_tiles, 1, 2, *tile[:-1], tile[-1] * step, dtype=dtype)[..., ::step]
    canvas = random(1, 2, *size[:-1], size[-1] * step, dtype=dtype)[..., ::step]
    sums = torch.float64 if dtype == torch.float64 else torch.float32
    weights = window_tables(layout, "hann", tiles.device, sums)
    exact = reference.blend_tiles(tiles.double(), layout=layout, weights=tuple(w.double() for w in weights))
    plain = torch.zeros(1, 2, *size, dtype=dtype)
    for t, (y, x) in enumerate(layout.origins):
        rows, columns = weights[0][t // layout.grid[1]].to(dtype), weights[1][t % layout.grid[1]].to(dtype)
        plain[:, :, y : y + tile[0], x : x + tile[1]] += tiles[t] * rows[:, None] * columns
    cut = reference.extract_tiles(canvas, layout=layout)
    padded = reference.pad_tiles(tiles, layout=layout, pad=PAD)
    return layout, tiles, canvas, weights, exact, plain, cut, padded


@needs_library
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("size", "tile", "overlap", "step"),
    [
        ((12, 2100), (11, 1080), (10, 60), 1),  # rows and columns in several parts
        ((12, 13), (6, 6), (5, 5), 1),  # more tiles over a position than are added up at a time
        ((3, 320), (3, 300), (0, 299), 2),  # the same for elements that are not adjacent
        ((4, 2048), (3, 40), (2, 8), 1),  # more runs of a row than are looked up at a time
    ],
)
def test_parts_of_rectangles_fit_together(instruction_set, dtype, size, tile, overlap, step):
    layout, tiles, canvas, weights, exact, plain, cut, padded = parts(dtype, size, tile, overlap, step)
    assert_within_budget(native.blend_tiles(tiles, layout=layout, weights=weights), plain, exact)
    assert torch.equal(native.extract_tiles(canvas, layout=layout), cut)
    assert torch.equal(native.pad_tiles(tiles, layout=layout, pad=PAD), padded)


@needs_library
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize(
    ("size", "tile", "overlap", "wrap"),
    [
        ((33,), (17,), (16,), False),  # 17 tiles over a position, more than are weighed by row at a time
        ((3, 60), (2, 40), (1, 39), False),  # the same in two rows of tiles
        ((3, 60), (3, 30), (2, 29), True),  # in three, all around
        ((4, 1024), (3, 24), (2, 8), True),  # more runs of a row than are looked up at a time
    ],
)
def test_sums_are_the_same_whatever_the_strides(instruction_set, dtype, size, tile, overlap, wrap):
    """Also signs of zeros don't depend on how many tiles there are."""
    layout = ta.TileLayout(size, tile, overlap, wrap)
    apart = random(layout.num_tiles, 1, 2, *tile[:-1], 2 * tile[-1], dtype=dtype)[..., ::2]
    weights = window_tables(layout, "hann", apart.device, torch.promote_types(dtype, torch.float32))
    found = native.blend_tiles(apart.contiguous(), layout=layout, weights=weights)
    assert torch.equal(found, native.blend_tiles(apart, layout=layout, weights=weights))
    zeros = native.blend_tiles(torch.full_like(apart, -0.0).contiguous(), layout=layout, weights=weights)
    if dtype != torch.float64:  # whose sums begin at 0.0
        assert zeros.signbit().all()


@needs_library
def test_more_layouts_than_tables_are_kept():
    for number in [*range(70), 3]:
        layout = ta.TileLayout((40 + number, 9), 9, 3)
        canvas = random(1, 1, *layout.size)
        assert torch.equal(native.extract_tiles(canvas, layout=layout), reference.extract_tiles(canvas, layout=layout))


@needs_library
@pytest.mark.parametrize("dtype", HALVES)
def test_halves_are_rounded_to_nearest_even(instruction_set, dtype):
    """Means of two neighbouring numbers lie half way; every finite number goes through unchanged."""
    layout = ta.TileLayout((1, 65536), (1, 65536))
    every = torch.arange(65536, dtype=torch.int32).to(torch.int16).view(dtype).view(1, 1, 1, 1, -1)
    ones = (torch.ones(1, 1), torch.ones(1, 65536))
    whole = native.blend_tiles(every, layout=layout, weights=ones)
    assert torch.equal(whole.isnan().flatten(), every.isnan().flatten())
    assert torch.equal(whole.nan_to_num(1.0, 2.0, 3.0).flatten(), every.nan_to_num(1.0, 2.0, 3.0).flatten())
    pairs = torch.stack([every.flatten(), every.flatten().roll(-1)])
    layout = ta.TileLayout((3, 65536), (2, 65536), (1, 0))
    tiles = pairs.view(2, 1, 1, 1, -1).expand(2, 1, 1, 2, 65536)
    halves = (torch.full((2, 2), 0.5), torch.ones(1, 65536))
    found = native.blend_tiles(tiles, layout=layout, weights=halves)[0, 0, 1]
    expected = (pairs[0].float() * 0.5 + pairs[1].float() * 0.5).to(dtype)
    assert torch.equal(found.nan_to_num(1.0, 2.0, 3.0), expected.nan_to_num(1.0, 2.0, 3.0))


@needs_library
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("size", "tile", "overlap"),
    [
        ((2100, 2101), (700, 601), (37, 50)),
        ((4800000,), 3001, 7),
        ((2112, 2112), (704, 704), (32, 48)),
        ((4, 1056, 1056), (3, 544, 544), (2, 32, 32)),
    ],
)
def test_large_results_are_streamed_past_the_caches(instruction_set, dtype, size, tile, overlap):
    """Rows that begin and end inside a cache line or with one, several rows of tiles over another; three threads."""
    layout = ta.TileLayout(size, tile, overlap, True)
    canvas = random(1, 2, *size, dtype=dtype)
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        tiles = native.extract_tiles(canvas, layout=layout)
        blended = native.blend_tiles(
            tiles, layout=layout, weights=window_tables(layout, "hann", tiles.device, torch.float32)
        )
        padded = native.pad_tiles(tiles, layout=layout, pad=((3, 2),) * len(size))
    finally:
        torch.set_num_threads(threads)
    ends = [slice(3, -2)] * len(size)
    assert torch.equal(padded[(..., *ends)], tiles)
    wide = canvas
    for d, (n, w) in enumerate(zip(size, layout.tile, strict=True)):
        wide = wide.index_select(2 + d, torch.arange(-3, n + w + 2) % n)
    for t in range(0, layout.num_tiles, max(1, layout.num_tiles // 7)):
        window = [slice(o, o + w + 5) for o, w in zip(layout.origins[t], layout.tile, strict=True)]
        assert torch.equal(padded[t], wide[(..., *window)])
    assert relative_error(blended, canvas) <= 4 * torch.finfo(torch.float32).eps


@needs_library
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shift", [0, 1, 16, 32])
def test_lines_are_written_whole_only_where_they_begin(instruction_set, dtype, shift):
    """A result that begins inside a cache line, into memory around which nothing may change."""
    layout = ta.TileLayout((2112, 4224), (704, 704), (32, 64))
    canvas = random(1, 1, *layout.size, dtype=dtype)
    tiles = native.extract_tiles(canvas, layout=layout)
    wide = torch.full((canvas.numel() + 64,), -7.0, dtype=dtype)
    out = wide[shift : shift + canvas.numel()].view_as(canvas)
    weights = window_tables(layout, "hann", tiles.device, torch.float32)
    assert native.blend_tiles(tiles, layout=layout, weights=weights, out=out) is out
    assert torch.equal(out, canvas) or (dtype == torch.float32 and relative_error(out, canvas) <= 4 * 2**-23)
    assert (wide[:shift] == -7).all()
    assert (wide[shift + canvas.numel() :] == -7).all()
    assert torch.equal(out, native.blend_tiles(tiles, layout=layout, weights=weights))


@cache
def many_rows(dtype):
    """Tiles of which up to nine lie over one another: they are added two at a time, one may be left."""
    layout = ta.TileLayout((5, 12, 150), (3, 7, 90), (2, 5, 33), (False, True, False))
    tiles = random(layout.num_tiles, 1, 1, *layout.tile, dtype=dtype)
    sums = torch.float64 if dtype == torch.float64 else torch.float32
    weights = window_tables(layout, "gaussian", tiles.device, sums)
    exact = reference.blend_tiles(tiles.double(), layout=layout, weights=tuple(w.double() for w in weights))
    return layout, tiles, weights, exact


@needs_library
@pytest.mark.parametrize("dtype", native.DTYPES)
def test_rows_of_tiles_are_added_in_any_number(instruction_set, dtype):
    layout, tiles, weights, exact = many_rows(dtype)
    assert_within_budget(native.blend_tiles(tiles, layout=layout, weights=weights), exact.to(dtype), exact)


@needs_library
def test_the_number_of_threads_changes_nothing():
    layout = ta.TileLayout((300, 500), 100, 30, (True, False))
    tiles = random(layout.num_tiles, 1, 3, 100, 100)
    threads, found = torch.get_num_threads(), []
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        found.append(ta.blend_tiles(tiles, layout, backend="cpu"))
    torch.set_num_threads(threads)
    assert all(torch.equal(x, found[0]) for x in found)


LAYOUT = ta.TileLayout((4, 4), 2)
INTS = LAYOUT.as_ints()
CANVAS, TILES, ONES = random(1, 2, 4, 4), random(4, 1, 2, 2, 2), [torch.ones(2, 2)] * 2


@needs_library
@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: OPS.extract_tiles_cpu(CANVAS, TILES, INTS[:-1]), r"layout: got 7 ints; expected 4 for each of 1 to 3"),
        (lambda: OPS.extract_tiles_cpu(CANVAS, TILES, [4, 4, 5, 2, 0, 0, 0, 0]), r"layout: axis 0 .*tile must be"),
        (lambda: OPS.extract_tiles_cpu(CANVAS, TILES, [4, 4, 2, 2, 2, 0, 0, 0]), r"layout: axis 0 .*overlap must be"),
        (lambda: OPS.extract_tiles_cpu(CANVAS[0], TILES, INTS), r"canvas: shape is \[2, 4, 4\]; expected 4 dims"),
        (
            lambda: OPS.extract_tiles_cpu(CANVAS[..., :3], TILES, INTS),
            r"canvas: shape is \[1, 2, 4, 3\]; expected \[1, 2",
        ),
        (lambda: OPS.extract_tiles_cpu(CANVAS.long(), TILES, INTS), r"canvas: dtype is Long; expected float16"),
        (lambda: OPS.extract_tiles_cpu(CANVAS, TILES.double(), INTS), r"out: dtype is Double; expected Float"),
        (lambda: OPS.extract_tiles_cpu(CANVAS, TILES.mT, INTS), r"out: not contiguous"),
        (lambda: OPS.extract_tiles_cpu(CANVAS, TILES[:3], INTS), r"out: shape is \[3, 1, 2, 2, 2\]; expected \[4, 1"),
        (lambda: OPS.blend_tiles_cpu(TILES[:3], ONES, CANVAS, INTS), r"tiles: shape is \[3, .*; expected \[4"),
        (lambda: OPS.blend_tiles_cpu(TILES, ONES[:1], CANVAS, INTS), r"weights: got 1 tensors; expected 2"),
        (lambda: OPS.blend_tiles_cpu(TILES, [torch.ones(2, 3)] * 2, CANVAS, INTS), r"weights: shape is \[2, 3\]"),
        (lambda: OPS.blend_tiles_cpu(TILES, [x.double() for x in ONES], CANVAS, INTS), r"weights: dtype is Double"),
        (lambda: OPS.blend_tiles_cpu(TILES, ONES, CANVAS[:, :1], INTS), r"out: shape is"),
        (lambda: OPS.pad_tiles_cpu(TILES, TILES, INTS, [1, 1]), r"pad: got 2 ints; expected 2 for each of 2 axes"),
        (
            lambda: OPS.pad_tiles_cpu(TILES, TILES, INTS, [0, 0, 0, -1]),
            r"pad: got \[0, 0, 0, -1\]; expected no negative",
        ),
        (
            lambda: OPS.pad_tiles_cpu(TILES, TILES, INTS, [1, 0, 0, 0]),
            r"out: shape is \[4, 1, 2, 2, 2\]; expected .*3, 2",
        ),
        (lambda: native.instruction_set("sse9"), r"name: got 'sse9'; expected auto, portable"),
    ],
)
def test_what_would_touch_foreign_memory_is_refused(call, message):
    with pytest.raises(RuntimeError, match=message):
        call()


@needs_library
def test_strides_of_dims_of_one_entry_mean_nothing():
    layout = ta.TileLayout((1, 5, 1), (1, 3, 1), (0, 1, 0))
    odd = torch.as_strided(random(40), (1, 1, 1, 5, 1), (7, 9, 11, 2, 1000))
    expected = ta.extract_tiles(odd, layout, backend="reference")
    assert torch.equal(ta.extract_tiles(odd, layout, backend="cpu"), expected)
    tiles = torch.as_strided(random(90), (2, 1, 1, 1, 3, 1), (30, 7, 9, 11, 2, 1000))
    exact = ta.blend_tiles(tiles.double(), layout, backend="reference")
    assert relative_error(ta.blend_tiles(tiles, layout, backend="cpu"), exact) < 1e-6


def run(code, **environment):
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "TILEDATTN_NO_EXT": "", **environment},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


CALLS = """
import json, torch, tiledattn as ta
layout = ta.TileLayout((6, 6), 3)
canvas = torch.randn(1, 1, 6, 6)
assert torch.equal(ta.blend_tiles(ta.extract_tiles(canvas, layout), layout), canvas)
q = torch.randn(4, 1, 9, 2, 8)
ta.cross_tile_attention(q, q, q, layout, 1)
print(json.dumps(ta.backends()["cpu"]))
"""


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"TILEDATTN_NO_EXT": "1"}, "switched off by TILEDATTN_NO_EXT=1"),
        ({"TILEDATTN_LIBRARY": "/nowhere/lib.so"}, "no native library"),
        ({"TILEDATTN_LIBRARY": __file__}, "can't be loaded"),
    ],
)
def test_works_without_the_library_and_says_why(environment, reason):
    assert reason in json.loads(run(CALLS, **environment))


@needs_library
def test_a_library_of_other_sources_is_refused():
    code = f"""
from tiledattn.backends import native, native_library
native_library.INTERFACE = {native_library.INTERFACE + 1}
print(native.probe())
"""
    assert "built from other sources" in run(code)


@needs_library
def test_kernels_of_one_instruction_set_share_no_code_with_another():
    """Of a function that several sources instantiate the linker keeps one: perhaps in instructions unknown here."""
    objects = sorted(ROOT.glob("build/native-*/*_kernel.*.o"))
    if not objects:
        pytest.skip("the library was not built in this folder")
    for path in objects:
        name = path.suffixes[-2].removeprefix(".")
        listed = subprocess.run(["nm", "-C", path], capture_output=True, text=True, check=True).stdout
        weak = [line for line in listed.splitlines() if line[17:18] in "WVu" and f"tiledattn::{name}::" not in line]
        assert not weak, f"{path.name}: {weak[:3]}"


@needs_library
def test_offsets_are_64_bit():
    """Rows and tiles more than 2^31 elements apart; only the pages in use take memory."""
    apart, layout = (1 << 31) + 8, ta.TileLayout((2, 8), (1, 8))
    try:
        storage = torch.empty(apart + 8, dtype=torch.float16)
    except RuntimeError as problem:
        pytest.skip(f"no address space: {problem}")
    canvas = storage.as_strided((1, 1, 2, 8), (0, 0, apart, 1))
    canvas.copy_(random(1, 1, 2, 8))
    copied = canvas.contiguous()
    assert torch.equal(ta.extract_tiles(canvas, layout, backend="cpu").flatten(), copied.flatten())
    tiles = storage.as_strided((2, 1, 1, 1, 8), (apart, 0, 0, 0, 1))
    assert torch.equal(ta.blend_tiles(tiles, layout, backend="cpu"), copied)
    assert torch.equal(ta.pad_tiles(tiles, layout, 0, backend="cpu").flatten(), copied.flatten())
