"""The cuda backend: why it can't run, what the compiler made of its tile kernels, and what tests/gpu leaves out."""

import re
import types

import pytest
import torch
from compiled import read_object, usage
from hypothesis import given, settings
from hypothesis import strategies as st
from support import assert_within_budget, layouts, poison

import tiledattn as ta
from tiledattn.backends import cuda, cuda_attention, cuda_tiles, native_library, reference
from tiledattn.backends.tables import window_tables

OPS = torch.ops.tiledattn
CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
LAYOUT = ta.TileLayout((6, 64), (4, 32), (2, 16), (False, True))

on_gpu = [
    pytest.mark.gpu,
    pytest.mark.skipif(cuda.probe() is not None, reason=f"the cuda backend can't run here: {cuda.probe()}"),
]


def gpu(test):
    for mark in on_gpu:
        test = mark(test)
    return test


@pytest.fixture
def fresh():
    """Reasons found in the test are not remembered after it."""
    caches = (cuda._library_reason, cuda._device_reason)
    for cached in caches:
        cached.cache_clear()
    yield
    for cached in caches:
        cached.cache_clear()


@pytest.fixture
def h200(monkeypatch, fresh):
    """A library and a torch with CUDA, and a device of capability 9.0 on which all is well."""
    state = {"capability": (9, 0), "problem": "", "version": 13000}
    names = {
        "native_cuda_version": lambda: state["version"],
        "native_cuda_reason": lambda: state["problem"],
    }
    monkeypatch.setattr(cuda.native_library, "load", lambda: None)
    monkeypatch.setattr(
        cuda.torch.ops, "tiledattn", type("Operators", (), {k: staticmethod(v) for k, v in names.items()})
    )
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: state["capability"])
    monkeypatch.setattr(torch.cuda, "device", lambda index: torch.no_grad())
    return state


def test_takes_every_dtype_on_a_good_device(h200):
    assert cuda.probe() is None
    for op in cuda.OPS:
        for dtype in cuda.DTYPES:
            if op != "cross_tile_attention" or dtype in (torch.float16, torch.bfloat16):
                assert cuda.rejects(op, GPU, dtype, 64) is None
                assert cuda.rejects(op, torch.device("cuda"), dtype, 64) is None


def test_which_attention_it_takes(h200, monkeypatch):
    assert "only float16, bfloat16 and float32" in cuda.rejects("cross_tile_attention", GPU, torch.float64, 64)
    assert "head dim 257 is above 256" in cuda.rejects("cross_tile_attention", GPU, torch.float16, 257)
    precision = types.SimpleNamespace(fp32_precision="tf32")
    monkeypatch.setattr(torch.backends.cuda, "matmul", precision)
    assert cuda.rejects("cross_tile_attention", GPU, torch.float32, 128) is None
    assert "head dim 129 is above 128" in cuda.rejects("cross_tile_attention", GPU, torch.float32, 129)
    precision.fp32_precision = "ieee"
    assert "tfloat32, which" in cuda.rejects("cross_tile_attention", GPU, torch.float32, 64)


@pytest.mark.parametrize(
    ("op", "device", "dtype", "reason"),
    [
        ("group_norm_tiles", GPU, torch.float32, "group_norm_tiles is not offered by the cuda backend"),
        ("pad_tiles", CPU, torch.float32, "pad_tiles: tensors on cpu; the cuda backend needs a CUDA device"),
        ("pad_tiles", GPU, torch.int32, "pad_tiles: torch.int32 is not supported, only float16"),
    ],
)
def test_what_it_rejects(h200, op, device, dtype, reason):
    assert cuda.rejects(op, device, dtype, 0).startswith(reason)


def test_an_old_device_and_one_without_kernels_are_rejected(h200):
    h200["capability"] = (7, 5)
    assert "compute capability 7.5 of cuda:0 is below 8.0" in cuda.rejects("pad_tiles", GPU, torch.float32, 0)
    cuda._device_reason.cache_clear()
    h200.update(capability=(10, 0), problem="no kernel image is available for execution on the device")
    found = cuda.rejects("pad_tiles", GPU, torch.float32, 0)
    assert re.match(r"pad_tiles: cuda:0 \(compute capability 10.0, built for .*\): no kernel image", found)


def test_a_full_device_is_asked_again(h200):
    h200["problem"] = "out of memory"
    assert cuda.rejects("pad_tiles", GPU, torch.float32, 0) == "pad_tiles: cuda:0: out of memory"
    h200["problem"] = ""
    assert cuda.rejects("pad_tiles", GPU, torch.float32, 0) is None


def test_expanded_tensors_are_nothing_for_the_copy_engine():
    x = torch.zeros(4, 2, 16, 2, 64, dtype=torch.float16)
    assert cuda_attention._takes_boxes(x, x, x)
    one = x[:, :, :, :1]
    assert cuda_attention._takes_boxes(x, one, one)
    for tensors in ((x, one.expand_as(x), x), (x, x, one.expand_as(x)), (one.expand_as(x), x, x)):
        assert not cuda_attention._takes_boxes(*tensors)


@pytest.mark.parametrize(
    ("owner", "name", "value", "reason"),
    [
        (native_library, "load", lambda: "no native library: no compiler", "no native library: no compiler"),
        (torch.version, "cuda", None, f"torch {torch.__version__} was built without CUDA"),
        (torch.cuda, "is_available", lambda: False, "no CUDA device"),
    ],
)
def test_reasons_why_it_cannot_run(h200, monkeypatch, owner, name, value, reason):
    monkeypatch.setattr(owner, name, value)
    assert cuda.probe() == reason


def test_a_library_without_cuda_says_why(h200, monkeypatch):
    h200["version"] = 0
    monkeypatch.setattr(native_library, "build_report", lambda: {"cuda_reason": "no nvcc was found"})
    assert cuda.probe() == "the native library has no CUDA kernels: no nvcc was found"


@pytest.mark.parametrize(
    ("report", "reason"),
    [
        ({"cuda": None, "cuda_reason": "nvcc failed: too old"}, "nvcc failed: too old"),
        ({"cuda": "13.0", "cuda_reason": None}, "no kernel image"),
    ],
)
def test_what_is_reported_is_what_the_build_said_or_the_device_says(h200, monkeypatch, report, reason):
    h200["problem"] = "no kernel image"
    monkeypatch.setattr(native_library, "load", lambda: None)
    monkeypatch.setattr(native_library, "build_report", lambda: report)
    monkeypatch.setattr(native_library, "instruction_set", lambda: "avx2")
    assert native_library.describe()["cuda_reason"] == reason


def test_naming_it_where_it_cannot_run_says_why():
    if cuda.probe() is None:
        pytest.skip("it can run here")
    with pytest.raises(ta.BackendUnavailableError, match=re.escape(cuda.probe())):
        ta.extract_tiles(torch.zeros(1, 1, 4, 4), ta.TileLayout((4, 4), 2), backend="cuda")


def test_tables_are_made_once():
    same = ta.TileLayout((6, 64), (4, 32), (2, 16), (False, True))
    assert cuda_tiles.blend_tables(LAYOUT, CPU) is cuda_tiles.blend_tables(same, CPU)
    with torch.inference_mode():
        made = cuda_tiles.pad_tables(LAYOUT, ((3, 1), (2, 2)), CPU)
    assert not any(table.is_inference() for table in made.places)


# what the compiler made of the kernels


def plain_architectures():
    return [name for name in native_library.build_report()["cuda_architectures"] if name.startswith("sm_")]


def test_kernels_do_not_spill():
    """No stack, and registers that leave room for 3 blocks of 256 threads or more."""
    rows = usage("tiles")
    kernels = {"copy_tiles_kernel": 4, "blend_tiles_kernel": 13}
    for name, count in kernels.items():
        found = [row for row in rows if name in row.function]
        assert len(found) == count * len(plain_architectures())
        for row in found:
            assert (row.stack, row.local) == (0, 0), row
            assert row.registers <= (48 if name == "copy_tiles_kernel" else 72), row


def test_kernels_move_16_bytes_at_once():
    """Each kernel's widest loads of data and its stores are as wide as its name says."""
    functions = re.split(r"\n\s*Function : ", read_object("tiles", "-sass"))[1:]
    width = {2: "U16", 4: None, 8: "64", 16: "128"}
    seen = 0
    for text in functions:
        name = text.split(maxsplit=1)[0]
        assert not re.search(r"\b(LDL|STL)\b", text), name
        copied = re.search(r"copy_tiles_kernelILi(\d+)E", name)
        blended = re.search(r"blend_tiles_kernelI(f|d|NS_4HalfE|NS_5BrainE)Li(\d)E", name)
        if not (copied or blended):
            continue
        size = int(copied[1]) if copied else int(blended[2]) * {"f": 4, "d": 8}.get(blended[1], 2)
        stores = set(re.findall(r"STG\.E(?:\.EF)?\.?(U16|64|128)?", text))
        assert stores == {width[size] or ""}, (name, stores)
        assert re.search(r"LDG\.E" + (rf"\.{width[size]}" if width[size] else "") + r"\.CONSTANT", text), name
        seen += 1
    assert seen == 17 * len(plain_architectures())


# on a GPU


@pytest.fixture
def poisoned(monkeypatch):
    poison(monkeypatch)


def random(shape, dtype, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def forms(x):
    """The same values under other strides."""
    yield x
    yield x.movedim(-3, -1).contiguous().movedim(-1, -3) if x.dim() > 3 else x
    yield x.transpose(-1, -2).contiguous().transpose(-1, -2)
    yield torch.nn.functional.pad(x, (1, 2))[..., 1:-2]
    yield torch.stack([x, x], -1)[..., 0]


def check(layout, dtype, batch, channels, pad):
    """All three operations against the reference, whatever the strides."""
    canvas = random((batch, channels, *layout.size), dtype)
    tiles = random((layout.num_tiles, batch, channels, *layout.tile), dtype)
    cut, padded = reference.extract_tiles(canvas, layout=layout), reference.pad_tiles(tiles, layout=layout, pad=pad)
    sums = torch.float64 if dtype == torch.float64 else torch.float32
    weights = window_tables(layout, "hann", CPU, sums)
    exact = reference.blend_tiles(tiles.double(), layout=layout, weights=tuple(w.double() for w in weights))
    for form in forms(canvas.to(GPU)):
        assert torch.equal(ta.extract_tiles(form, layout, backend="cuda").cpu(), cut)
    for form in forms(tiles.to(GPU)):
        assert torch.equal(ta.pad_tiles(form, layout, pad, backend="cuda").cpu(), padded)
        found = ta.blend_tiles(form, layout, "hann", backend="cuda")
        assert_within_budget(found.cpu(), exact.to(dtype), exact)
        assert torch.equal(found, ta.blend_tiles(form, layout, "hann", backend="cuda"))


@gpu
@pytest.mark.parametrize("dtype", cuda.DTYPES)
@pytest.mark.parametrize(("batch", "channels"), [(1, 1), (2, 3), (1, 70)])
def test_results(poisoned, dtype, batch, channels):
    check(LAYOUT, dtype, batch, channels, ((1, 1), (8, 8)))
    check(ta.TileLayout((70, 130), (34, 50), (3, 7)), dtype, batch, channels, ((1, 1), (1, 1)))


@gpu
@settings(max_examples=60, deadline=None)
@given(layout=layouts(), dtype=st.sampled_from(cuda.DTYPES), channels=st.integers(1, 9), data=st.data())
def test_random_layouts(layout, dtype, channels, data):
    pad = tuple(data.draw(st.tuples(st.integers(0, 9), st.integers(0, 9))) for _ in layout.size)
    check(layout, dtype, 2, channels, pad)


@gpu
def test_offsets_are_64_bit():
    layout, apart = ta.TileLayout((2, 8), (1, 8)), (1 << 31) + 8
    if torch.cuda.mem_get_info()[0] < 6 << 30:
        pytest.skip("less than 6 GiB are free")
    canvas = torch.empty(apart + 8, dtype=torch.float16, device=GPU).as_strided((1, 1, 2, 8), (0, 0, apart, 1))
    canvas.copy_(random((1, 1, 2, 8), torch.float16))
    tiles = canvas.view(2, 1, 1, 1, 8)
    near = tiles.contiguous()
    assert torch.equal(ta.extract_tiles(canvas, layout, backend="cuda"), near)
    assert torch.equal(ta.blend_tiles(tiles, layout, backend="cuda"), near.view(1, 1, 2, 8))
    assert torch.equal(ta.pad_tiles(tiles, layout, 0, backend="cuda"), near)


@gpu
def test_results_of_more_than_2_31_elements():
    layout = ta.TileLayout((1 << 16, 1 << 15), (1 << 15, 1 << 15))
    if torch.cuda.mem_get_info()[0] < 14 << 30:
        pytest.skip("less than 14 GiB are free")
    canvas = torch.zeros(1, 1, *layout.size, dtype=torch.float16, device=GPU)
    canvas[..., -1, -7:] = torch.arange(1, 8, device=GPU)
    tiles = ta.extract_tiles(canvas, layout, backend="cuda")
    assert torch.equal(tiles[1, 0, 0], canvas[0, 0, 1 << 15 :])
    del canvas
    blended = ta.blend_tiles(tiles, layout, "uniform", backend="cuda")
    assert torch.equal(blended[0, 0, 1 << 15 :], tiles[1, 0, 0])


@gpu
def test_nothing_to_do():
    tiles = torch.empty(LAYOUT.num_tiles, 0, 3, *LAYOUT.tile, device=GPU)
    assert ta.extract_tiles(torch.empty(0, 3, *LAYOUT.size, device=GPU), LAYOUT, backend="cuda").shape == tiles.shape
    assert ta.blend_tiles(tiles, LAYOUT, backend="cuda").shape == (0, 3, *LAYOUT.size)


@gpu
def test_what_would_touch_foreign_memory_is_refused():
    layout = ta.TileLayout((4, 4), 2)
    sizes, canvas, tiles = layout.as_ints(), torch.zeros(1, 1, 4, 4, device=GPU), torch.zeros(4, 1, 1, 2, 2, device=GPU)
    (places, unit), ones = cuda_tiles.extract_tables(layout, GPU), [torch.ones(2, 2, device=GPU)] * 2
    covers = list(cuda_tiles.blend_tables(layout, GPU).places)
    places = list(places)
    cases = [
        (lambda: OPS.extract_tiles_cuda(canvas, places, unit, tiles[:3], sizes), r"out: shape is \[3, 1, 1, 2, 2\]"),
        (lambda: OPS.extract_tiles_cuda(canvas, places, 0, tiles, sizes), "unit: got 0; expected at least 1"),
        (lambda: OPS.extract_tiles_cuda(canvas, places[:1], unit, tiles, sizes), "places: got 1 tensors; expected 2"),
        (lambda: OPS.extract_tiles_cuda(canvas, [p.cpu() for p in places], unit, tiles, sizes), "not on a CUDA device"),
        (
            lambda: OPS.extract_tiles_cuda(canvas, [p.long() for p in places], unit, tiles, sizes),
            "places: dtype is Long",
        ),
        (lambda: OPS.extract_tiles_cuda(canvas, [p[:1] for p in places], unit, tiles, sizes), "places: shape is"),
        (lambda: OPS.extract_tiles_cuda(canvas.int(), places, unit, tiles, sizes), "canvas: dtype is Int"),
        (lambda: OPS.blend_tiles_cuda(tiles, ones, covers, unit, canvas.cpu(), sizes), "out: not on a CUDA device"),
        (lambda: OPS.blend_tiles_cuda(tiles, ones[:1], covers, unit, canvas, sizes), "weights: got 1 tensors"),
        (
            lambda: OPS.blend_tiles_cuda(tiles, [w.double() for w in ones], covers, unit, canvas, sizes),
            "weights: dtype",
        ),
        (lambda: OPS.blend_tiles_cuda(tiles, ones, [covers[0][0]] * 2, unit, canvas, sizes), "covers: shape is"),
        (lambda: OPS.pad_tiles_cuda(tiles, places, unit, tiles, sizes, [1, 0, 0, 0]), "out: shape is"),
    ]
    for call, message in cases:
        with pytest.raises(RuntimeError, match=message):
            call()
