"""The CUDA tile kernels on a CPU: against the reference, at every width of access, inside their own memory."""

import ctypes
import math
from functools import cache

import pytest
import torch
from emulated_tiles import CPU, TYPES, Run, ints, library
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from support import assert_within_budget, layouts

import tiledattn as ta
from tiledattn.backends import cuda_tiles, reference
from tiledattn.backends.tables import custom_window_tables, window_tables
from tiledattn.geometry.axis import Axis, axis_origins

FEW = settings(max_examples=25, deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate))

# last axes that runs of 8, 4, 2 and 1 positions divide
LAYOUTS = [
    ta.TileLayout((6, 64), (4, 32), (2, 16), (False, True)),
    ta.TileLayout((5, 24), (5, 16), (0, 8), (True, True)),
    ta.TileLayout((7, 20), (3, 12), (1, 4)),
    ta.TileLayout((7, 18), (3, 10), (1, 4)),
    ta.TileLayout((9, 11), (4, 5), (2, 0), (True, False)),
    ta.TileLayout(18, 6, 5, True),
    ta.TileLayout((3, 8, 16), (2, 8, 8), (1, 0, 0), (False, True, False)),
]


@cache
def random(shape, dtype, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def sums_of(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


def check_blend(tiles, layout, weights, run):
    exact = reference.blend_tiles(tiles.double(), layout=layout, weights=tuple(w.double() for w in weights))
    found = run.blend_tiles(tiles, layout, weights)
    assert_within_budget(found, exact.to(tiles.dtype), exact)
    return found


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_every_width_of_access(layout, dtype):
    """The widest one that the layout allows, and every smaller one, which must not change a bit."""
    canvas = random((2, 3, *layout.size), dtype)
    tiles = random((layout.num_tiles, 1, 5, *layout.tile), dtype)
    pad = ((1, 0),) * (len(layout.size) - 1) + ((8, 16),)
    weights = window_tables(layout, "hann", CPU, sums_of(dtype))
    results = []
    for vector in (8, 4, 2, 1):
        run = Run(vector, seed=vector)
        cut = run.extract_tiles(canvas, layout)
        widest = math.gcd(cuda_tiles.extract_tables(layout, CPU).unit, 16 // dtype.itemsize)
        assert run.used == min(vector, widest)
        results.append((cut, run.pad_tiles(tiles, layout, pad), check_blend(tiles, layout, weights, run)))
        assert run.used == min(vector, widest)
    assert torch.equal(results[0][0], reference.extract_tiles(canvas, layout=layout))
    assert torch.equal(results[0][1], reference.pad_tiles(tiles, layout=layout, pad=pad))
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


@pytest.mark.parametrize("form", ["contiguous", "channels last", "transposed", "odd strides", "every other"])
@pytest.mark.parametrize("layout", [LAYOUTS[0], LAYOUTS[6]], ids=str)
def test_results_do_not_depend_on_strides(layout, form):
    """Batch entries of several channels, some of them with one stride through both."""
    canvas, tiles = (
        random((2, 3, *layout.size), torch.float16),
        random((layout.num_tiles, 2, 3, *layout.tile), torch.float16),
    )
    pad, weights = ((1, 2),) * len(layout.size), window_tables(layout, "hann", CPU, torch.float32)
    run = Run()
    assert torch.equal(run.extract_tiles(in_form(canvas, form), layout), run.extract_tiles(canvas, layout))
    assert torch.equal(run.pad_tiles(in_form(tiles, form), layout, pad), run.pad_tiles(tiles, layout, pad))
    blended = run.blend_tiles(tiles, layout, weights)
    assert torch.equal(run.blend_tiles(in_form(tiles, form), layout, weights), blended)
    one = canvas[:, :1]
    repeated = run.extract_tiles(one.repeat(1, 3, *(1 for _ in layout.size)), layout)
    assert torch.equal(run.extract_tiles(one.expand_as(canvas), layout), repeated)


@given(data=st.data())
@FEW
def test_random_layouts_and_strides(data):
    layout, dtype = data.draw(layouts()), data.draw(st.sampled_from(list(TYPES)))
    B, C = data.draw(st.sampled_from([(1, 1), (1, 40), (2, 9), (3, 2)]))
    vector, threads = data.draw(st.sampled_from([1, 8])), data.draw(st.sampled_from([32, 128]))
    run = Run(vector, threads, many=data.draw(st.sampled_from([0, 1 << 21])), seed=data.draw(st.integers(0, 99)))
    form = data.draw(st.sampled_from(["contiguous", "channels last", "transposed", "odd strides", "every other"]))
    canvas = in_form(random((B, C, *layout.size), dtype), form)
    tiles = in_form(random((layout.num_tiles, B, C, *layout.tile), dtype), form)
    assert torch.equal(run.extract_tiles(canvas, layout), reference.extract_tiles(canvas, layout=layout))
    pad = tuple(data.draw(st.tuples(st.integers(0, 9), st.integers(0, 9))) for _ in layout.size)
    assert torch.equal(run.pad_tiles(tiles, layout, pad), reference.pad_tiles(tiles, layout=layout, pad=pad))
    windows = [torch.rand(w) + 0.1 for w in layout.tile]
    check_blend(tiles, layout, custom_window_tables(layout, windows, CPU, sums_of(dtype)), run)


def in_form(x, form):
    """The same values under other strides."""
    if form == "channels last":
        return x.movedim(-3, -1).contiguous().movedim(-1, -3) if x.dim() > 3 else x
    if form == "transposed":
        return x.transpose(-1, -2).contiguous().transpose(-1, -2)
    if form == "odd strides":
        return torch.nn.functional.pad(x, (1, 2))[..., 1:-2]
    return torch.stack([x, x], -1)[..., 0] if form == "every other" else x


def test_unaligned_memory_narrows_the_access():
    layout, dtype = LAYOUTS[0], torch.float16
    canvas = random((1, 2, *layout.size), dtype)
    for shift, width in ((0, 8), (4, 4), (2, 2), (1, 1)):
        run = Run(shift=shift)
        assert torch.equal(run.extract_tiles(canvas, layout), reference.extract_tiles(canvas, layout=layout))
        assert run.used == width
    wide = torch.nn.functional.pad(canvas, (4, 4))[..., 4:-4]
    run = Run()
    assert torch.equal(run.extract_tiles(wide, layout), reference.extract_tiles(canvas, layout=layout))
    assert run.used == 4
    tiles = reference.extract_tiles(canvas, layout=layout)
    weights = window_tables(layout, "hann", CPU, torch.float32)
    odd = (weights[0], torch.cat([torch.zeros(1), weights[1].flatten()])[1:].view_as(weights[1]))
    assert torch.equal(run.blend_tiles(tiles, layout, odd), Run().blend_tiles(tiles, layout, weights))
    assert run.used == 1


def test_wrong_tables_read_nothing_foreign():
    """Zeros instead, wherever an entry points outside the source or at no aligned run."""
    layout = LAYOUTS[0]
    tiles = random((layout.num_tiles, 1, 2, *layout.tile), torch.float16)
    weights = window_tables(layout, "hann", CPU, torch.float32)
    for entry in ((99, 0), (-7, 0), (0, 32), (0, -8), (0, 2**30), (1, 3)):
        for axis in (0, 1) if entry != (1, 3) else (1,):
            for tables, call in (
                (cuda_tiles.blend_tables(layout, CPU), lambda t: Run().blend_tiles(tiles, layout, weights, t)),
                (
                    cuda_tiles.pad_tables(layout, ((1, 1), (8, 8)), CPU),
                    lambda t: Run().pad_tiles(tiles, layout, ((1, 1), (8, 8)), t),
                ),
            ):
                wrong = [table.clone() for table in tables.places]
                wrong[axis][:] = torch.tensor(entry, dtype=torch.int32)
                assert not call(cuda_tiles.PlaceTables(tuple(wrong), tables.unit)).any()


@pytest.mark.parametrize("unit", [2, 4, 8])
def test_a_wrong_unit_touches_nothing_foreign(unit):
    for layout in (ta.TileLayout(10, 10), ta.TileLayout((3, 18), (3, 6), (0, 5), (False, True))):
        canvas = random((1, 8, *layout.size), torch.float16)
        tables = cuda_tiles.extract_tables(layout, CPU)
        for entry in (None, (0, layout.size[-1] - layout.size[-1] % 8)):
            places = [table.clone() for table in tables.places]
            if entry is not None:
                places[-1][:] = torch.tensor(entry, dtype=torch.int32)
            Run().extract_tiles(canvas, layout, cuda_tiles.PlaceTables(tuple(places), unit))


def test_foreign_memory_is_noticed(monkeypatch):
    """The watch itself: a call whose memory has not been named fails."""
    monkeypatch.setattr(Run, "_name", lambda run, tensor, writable=False: tensor.data_ptr())
    with pytest.raises(RuntimeError, match="an access of 8 bytes outside the named memory"):
        Run().extract_tiles(random((1, 2, *LAYOUTS[0].size), torch.float16), LAYOUTS[0])


def test_a_misaligned_access_is_noticed():
    """The watch itself: tables at an odd address."""
    layout, canvas = LAYOUTS[0], random((1, 1, *LAYOUTS[0].size), torch.float32)
    places, unit = cuda_tiles.extract_tables(layout, CPU)
    odd = tuple(torch.cat([p.new_zeros(1), p.flatten()])[1:].view_as(p) for p in places)
    with pytest.raises(RuntimeError, match="misaligned access of 8 bytes"):
        Run().extract_tiles(canvas, layout, cuda_tiles.PlaceTables(odd, unit))


def test_a_changed_margin_is_noticed(monkeypatch):
    """The watch itself: what lies around a result."""
    result = Run._result

    def touched(run, shape, dtype):
        buffer, out = result(run, shape, dtype)
        buffer[0] = 0
        return buffer, out

    monkeypatch.setattr(Run, "_result", touched)
    with pytest.raises(AssertionError):
        Run().extract_tiles(random((1, 2, *LAYOUTS[0].size), torch.float16), LAYOUTS[0])


@given(st.integers(1, 2**31 - 1), st.integers(0, 2**31 - 1))
@settings(max_examples=2000, deadline=None)
def test_division(by, n):
    for value in (n, n // by * by, max(n // by * by - 1, 0), 2**31 - 1):
        assert library().divide(by, value) == value // by


sizes = st.tuples(*(st.integers(1, most) for most in (8, 70, 3, 5, 70)))


@given(sizes, st.sampled_from([2, 4, 8]), st.sampled_from([1, 4]), st.sampled_from([32, 64, 256]), st.integers(0, 2000))
@settings(max_examples=100, deadline=None)
def test_every_element_is_served_once(numbers, unroll, most, threads, many):
    counts = ints([0] * math.prod(numbers))
    assert library().count_served(ints([*numbers, unroll, most, threads, many]), counts) is None
    assert set(counts) == {1}


def test_threads_serve_more_rows_of_large_results():
    """The cost of finding a place is shared by more rows, where enough threads are left."""
    found, spot = [], ints([0] * 12)
    for outer, most in ((2, 4), (16, 4), (64, 4), (64, 1)):
        assert library().find_spot(ints([outer, 4096, 1, 1, 512, 4, most, 256, 1 << 21]), ints([0] * 4), spot) is None
        found.append(outer * 4096 * 512 / math.prod(spot[8:]))
    assert found == [4, 16, 16, 4]


@pytest.mark.parametrize("numbers", [(2, 3, 1, 50_000, 60_000), (1, 1, 70, 3000, 30_000), (1, 1, 1, 1, 2**30)])
@pytest.mark.parametrize("most", [1, 4])
def test_a_canvas_of_more_than_2_31_elements(numbers, most):
    """Groups of lines: numbers of blocks and threads, and what they mean, worked out by hand."""
    outer, rows, z, y, width = numbers
    unroll, found = 4, ints([0] * 12)
    generator = torch.Generator().manual_seed(0)
    assert library().find_spot(ints([*numbers, unroll, most, 256, 1 << 21]), ints([0, 0, 0, 0]), found) is None
    blocks_x, blocks_y, across, down = found[8:]
    lines = z * y
    group = min(lines, 2**30 // width)
    chunks, row_blocks = -(-group * width // across), -(-rows // (down * unroll * most))
    assert (blocks_x, blocks_y) == (chunks * row_blocks * outer, -(-lines // group))
    for _ in range(200):
        bx, by, tx, ty = (int(torch.randint(n, (), generator=generator)) for n in (blocks_x, blocks_y, across, down))
        assert library().find_spot(ints([*numbers, unroll, most, 256, 1 << 21]), ints([bx, by, tx, ty]), found) is None
        local, x = divmod(bx % chunks * across + tx, width)
        line, row = by * group + local, bx // chunks % row_blocks * down * unroll * most + ty
        inside = local < group and line < lines and row < rows
        assert found[6] == inside
        if inside:
            number = bx // chunks // row_blocks
            place = ((number * rows + row) * lines + line) * width + x
            assert tuple(found[:8]) == (number, row, line // y, line % y, x, line, 1, place)


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ((1, 1, 1, 1, 2**30 + 1), b"more than 2^30 rows, lines or vectors of a line"),
        ((1, 2**30 + 1, 1, 1, 1), b"more than 2^30 rows"),
        ((1, 1, 2**16, 2**16, 1), b"more than 2^30 rows"),
        ((2**20, 2**20, 1, 2**20, 1), b"more than 2^31 - 1 blocks"),
        ((1, 1, 1, 2**30, 2**30), b"more than 2^31 - 1 blocks"),
    ],
)
def test_what_has_too_many_blocks_is_refused(numbers, message):
    error = library().count_served(ints([*numbers, 4, 4, 256, 1 << 21]), ints([]))
    assert error is not None
    assert error.startswith(message)


@given(st.integers(1, 60), st.data())
@settings(max_examples=300, deadline=None)
def test_tiles_are_counted_without_origins(length, data):
    tile = data.draw(st.integers(1, length))
    axis = Axis(length, tile, data.draw(st.integers(0, tile - 1)), data.draw(st.booleans()))
    assert library().count_tiles(ints([length, tile, axis.overlap, axis.wrap])) == len(axis_origins(axis))


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_the_width_of_an_access_is_the_largest_that_fits(data):
    size = data.draw(st.sampled_from([2, 4, 8]))
    numbers = [data.draw(st.integers(0, 9)) * data.draw(st.sampled_from([1, 2, 4, 8])) * size for _ in range(7)]
    unit, last = data.draw(st.sampled_from([1, 2, 4, 8])), data.draw(st.sampled_from([size, size, size, 2 * size, 0]))
    found = library().width_of(
        *(ctypes.c_int64(x) for x in (numbers[0], numbers[1], unit, size)), ints([*numbers[2:], last])
    )
    fits = [w for w in (8, 4, 2, 1) if w * size <= 16 and unit % w == 0 and all(x % (w * size) == 0 for x in numbers)]
    assert found == (fits[0] if last == size else 1)


@given(st.integers(1, 40), st.integers(0, 20), st.integers(0, 20), st.data())
@settings(max_examples=200, deadline=None)
def test_aligned_runs_of_a_padded_tile_lie_next_to_one_another(length, before, after, data):
    tile = data.draw(st.integers(1, length))
    layout = ta.TileLayout(length, tile, data.draw(st.integers(0, tile - 1)), data.draw(st.booleans()))
    (table,), unit = cuda_tiles.pad_tables(layout, ((before, after),), CPU)
    assert unit in (1, 2, 4, 8)
    assert tile % unit == 0
    runs = table.view(table.shape[0], -1, unit, 2)
    first = runs[:, :, :1]
    known = first[..., 0] >= 0
    assert torch.equal(runs[..., 0], first[..., 0].expand_as(runs[..., 0]))
    steps = torch.where(known, first[..., 1] + torch.arange(unit, dtype=torch.int32), -1)
    assert torch.equal(runs[..., 1], steps.to(torch.int32))
    assert not (runs[..., 0, 1][known[..., 0]] % unit).any()
