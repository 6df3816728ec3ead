"""Cross-tile attention of the native library: what the tests of every backend can't see."""

import math
import subprocess
import sys
import time
from functools import cache
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import (
    assert_within_budget,
    attention_inputs,
    halos,
    instruction_sets,
    layouts,
    oracle,
    plain_attention,
    plain_lse,
)

import tiledattn as ta
from tiledattn.backends import native, native_attention
from tiledattn.backends.native_attention import token_runs
from tiledattn.geometry import attention_plan, normalize_halo

reason = native.probe()
pytestmark = pytest.mark.skipif(reason is not None, reason=str(reason))

HALF_TYPES = [torch.float16, torch.bfloat16]


@pytest.fixture(params=instruction_sets())
def instruction_set(request):
    yield native.instruction_set(request.param)
    native.instruction_set("auto")


def tables(plan):
    """What the runs name, per class."""
    found = token_runs(plan)
    for number in range(plan.num_classes):
        runs = found.runs[int(found.starts[number]) : int(found.starts[number + 1])]
        yield number, [token for start, length in runs.tolist() for token in range(start, start + length)]


@settings(max_examples=100, deadline=None)
@given(st.data(), layouts(), st.booleans())
def test_runs_name_the_tokens_of_the_plan(data, layout, unwrapped):
    plan = attention_plan(layout, normalize_halo(layout, data.draw(halos(layout))), unwrapped)
    for number, tokens in tables(plan):
        assert tokens == plan.class_table(number).tolist()
    size = layout.tile_positions
    for start, length in token_runs(plan).runs.tolist():
        assert start // size == (start + length - 1) // size


def test_rows_of_a_whole_axis_are_one_run():
    plan = attention_plan(ta.TileLayout((12, 4), (4, 4)), (2, 0))
    assert token_runs(plan).runs.tolist() == [[16, 8], [-8, 8], [16, 8], [-8, 8]]


@pytest.mark.parametrize("backend", ["cpu", "auto"])
def test_plans_that_would_fill_memory_are_refused_at_once(backend):
    layout = ta.TileLayout((1024, 1024), 16)
    q = torch.randn(4096, 1, 256, 1, 1)
    began = time.perf_counter()
    with pytest.raises(
        ValueError, match=r"halo: a reach of .* over 4096 tiles needs a list of 16,773,120 boxes.* smaller halo"
    ):
        ta.cross_tile_attention(q, q, q, layout, "all", backend=backend)
    assert time.perf_counter() - began < 5


def test_runs_that_would_fill_memory_are_refused_before_they_are_listed(monkeypatch):
    plan = attention_plan(ta.TileLayout((1 << 14, 1 << 14), (1 << 10, 1 << 10)), (1, 1 << 9))
    runs = token_runs(plan)
    monkeypatch.setattr(native_attention, "MAX_RUNS", len(runs.runs) - 1)
    make = token_runs.__wrapped__
    with pytest.raises(
        ValueError, match=rf"needs a table of {len(runs.runs):,} runs of tokens, more than .* larger tiles"
    ):
        make(plan)
    monkeypatch.setattr(native_attention, "MAX_RUNS", len(runs.runs))
    assert torch.equal(make(plan).runs, runs.runs)


def test_the_largest_table_is_well_under_a_gigabyte():
    assert native_attention.MAX_RUNS * 2 * 4 <= 1 << 29


@pytest.mark.parametrize("wrap", [False, True])
def test_a_thousand_tiles_that_all_see_each_other_are_listed_in_seconds(wrap):
    plan = attention_plan(ta.TileLayout(4096, 4, 0, wrap), "all")
    began = time.perf_counter()
    runs = token_runs.__wrapped__(plan)
    assert time.perf_counter() - began < 5
    assert len(runs.runs) == 1024 * (1023 + wrap)  # round a periodic axis the tile opposite is half on either side


def judged(call, arguments):
    """A call, its keyword arguments, and the output and lse of plain PyTorch and of the float64 reference."""
    plain = plain_attention(*call, **arguments), plain_lse(*call[:2], *call[3:], **arguments)
    return call, arguments, plain, oracle(*call, **arguments)


def check_judged(call, arguments, plain, exact):
    found = ta.cross_tile_attention(*call, return_lse=True, backend="cpu", **arguments)
    for triple in zip(found, plain, exact, strict=True):
        assert_within_budget(*triple)


@cache
def chunks_and_panels(dtype, dim):
    """16 x 48 = 768 queries of 2 heads on one key head; 1536 + 19 keys and more than a chunk of them."""
    layout = ta.TileLayout((48, 48), (16, 48))
    q, k, v = attention_inputs(layout, prefix=19, heads=2, kv_heads=1, dim=dim, dtype=dtype, form="strided")
    mask = torch.rand(3, 1, 19, generator=torch.Generator().manual_seed(0)) < 0.5
    return judged((q, k, v, layout, "all"), {"num_prefix_tokens": 19, "prefix_mask": mask, "halo_weight": 0.3})


@pytest.mark.parametrize("dtype", [torch.float32, *HALF_TYPES])
@pytest.mark.parametrize("dim", [40, 64, 72, 128, 200])
def test_every_instruction_set_over_several_chunks_and_panels(instruction_set, dtype, dim):
    check_judged(*chunks_and_panels(dtype, dim))


@cache
def few_rows(dtype):
    """16 tiles of 40 queries, one or several blocks of them, whose sums must be kept apart from chunk to chunk."""
    layout = ta.TileLayout(16 * 40, 40)
    return judged((*attention_inputs(layout, heads=1, dim=256, dtype=dtype), layout, "all"), {})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_few_rows_over_several_chunks(instruction_set, dtype):
    check_judged(*few_rows(dtype))


@pytest.mark.parametrize("keys", [1, 31, 33, 127, 129, 160, 257])
@pytest.mark.parametrize("dim", [33, 64, 256, 264])
def test_blocks_that_are_not_full(instruction_set, keys, dim):
    layout = ta.TileLayout(2 * keys, keys)
    q, k, v = attention_inputs(layout, dim=dim, dtype=torch.bfloat16)
    out, lse = ta.cross_tile_attention(q, k, v, layout, 0, return_lse=True, backend="cpu")
    exact, exact_lse = oracle(q, k, v, layout, 0)
    assert_within_budget(out, plain_attention(q, k, v, layout, 0), exact)
    assert_within_budget(lse, plain_lse(q, k, layout, 0), exact_lse)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_result_does_not_depend_on_the_number_of_threads(dtype):
    layout = ta.TileLayout((48, 48), 16, 0, True)
    q, k, v = attention_inputs(layout, heads=2, dim=64, dtype=dtype)
    results = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        results.append(ta.cross_tile_attention(q, k, v, layout, 6, backend="cpu"))
    torch.set_num_threads(1)
    assert all(torch.equal(results[0], other) for other in results[1:])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_large_and_tiny_logits(instruction_set, dtype):
    layout = ta.TileLayout((6, 6), 3)
    for size in (1e-20, 30.0, 1e4):
        check_logits(layout, size, dtype, halo=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_that_leave_one_key_over_full_blocks(instruction_set, dtype):
    check_logits(ta.TileLayout((16, 16), (4, 8)), 1e12, dtype, halo="all")


def check_logits(layout, size, dtype, halo):
    q, k, v = attention_inputs(layout, dtype=dtype)
    q = q * size
    exact, exact_lse = oracle(q, k, v, layout, halo)
    out, lse = ta.cross_tile_attention(q, k, v, layout, halo, return_lse=True, backend="cpu")
    assert_within_budget(out, plain_attention(q, k, v, layout, halo), exact)
    assert_within_budget(lse, plain_lse(q, k, layout, halo), exact_lse)


@cache
def rising_logits(dtype, scale, rise):
    """The largest logit so far moves little or much from one block of keys to the next, upwards or downwards."""
    layout = ta.TileLayout(1024, 512)
    q, k, v = attention_inputs(layout, heads=2, dim=32, dtype=dtype)
    q[..., 0] = 1.0
    q[:, :, ::3, :, 0] = -1.0
    k[..., 0] += torch.linspace(0, rise, 512, dtype=torch.float32).to(dtype)[:, None]
    return judged((q, k, v, layout, "all"), {"scale": scale, "halo_weight": 0.5})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scale", [0.2, -0.2, 0.0])
@pytest.mark.parametrize("rise", [0.5, 5.0, 40.0, 4000.0])
def test_logits_that_rise_from_key_to_key(instruction_set, dtype, scale, rise):
    check_judged(*rising_logits(dtype, scale, rise))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_all_keys_far_below_zero_after_hidden_ones(instruction_set, dtype):
    """Whole blocks of keys that nobody may see come first, and then only logits whose powers of two are all 0."""
    layout = ta.TileLayout(200, 100)
    q, k, v = attention_inputs(layout, prefix=300, dtype=dtype)
    q[..., 0], k[..., 0] = 80.0, -80.0
    arguments = {"num_prefix_tokens": 300, "prefix_mask": torch.zeros(2, 1, 300, dtype=torch.bool)}
    exact, exact_lse = oracle(q, k, v, layout, 20, **arguments)
    assert exact_lse.max() < -1000
    out, lse = ta.cross_tile_attention(q, k, v, layout, 20, return_lse=True, backend="cpu", **arguments)
    assert_within_budget(out, plain_attention(q, k, v, layout, 20, **arguments), exact)
    assert_within_budget(lse, plain_lse(q, k, layout, 20, **arguments), exact_lse)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nan_stays_where_it_is_seen(instruction_set, dtype):
    layout = ta.TileLayout(12, 4)
    q, k, v = attention_inputs(layout, batch=2, dtype=dtype)
    q[1, 0, 2, 1, 3] = math.nan
    k[0, 1, 0] = math.nan  # seen by tile 0 only: out of the others' reach
    out, lse = ta.cross_tile_attention(q, k, v, layout, 2, return_lse=True, backend="cpu")
    expected = torch.zeros(out.shape, dtype=torch.bool)
    expected[1, 0, 2, 1] = True
    expected[0, 1] = True
    assert torch.equal(out.isnan(), expected)
    assert torch.equal(lse.isnan(), expected[..., 0].transpose(-1, -2))


def test_offsets_beyond_two_to_the_31():
    layout = ta.TileLayout(8, 4)
    stride = 2**31 + 64
    memory = torch.empty(stride + 4 * 2 * 8, dtype=torch.float16)  # only the pages that are written take memory
    far = [memory.as_strided((2, 1, 4, 2, 8), (stride, 0, 16, 8, 1), 0) for _ in range(3)]
    near = attention_inputs(layout, dtype=torch.float16)[0]
    far[0].copy_(near)
    expected = ta.cross_tile_attention(near, near, near, layout, 2, backend="cpu")
    assert torch.equal(ta.cross_tile_attention(*far, layout, 2, backend="cpu"), expected)


@pytest.mark.parametrize("dim", [1, 64, 128, 256])
def test_memory_is_bounded_by_keys_of_one_tile(dim):
    """Packed keys and values of a chunk, and sums of a panel: as much as K and V of a 64 x 64 tile, all told."""
    for threads in (1, 8):
        limit = torch.ops.tiledattn.cross_tile_attention_cpu_scratch(dim, threads)
        assert limit <= threads * (64 * 64 * 2 * 4 * max(dim, 64))


MEMORY = """
import torch, tiledattn as ta
from tiledattn.backends import native, native_attention
from tiledattn.backends.pytorch import attention
native.probe()
attention.GATHER_BYTES["cpu"] = 1 << 40
torch.set_num_threads(2)
layout, dim = ta.TileLayout((128, 128), 32), 64
q, k, v = (torch.randn(layout.num_tiles, 1, 1024, 2, dim) for _ in range(3))
small = [x[..., :8].contiguous() for x in (q, k, v)]
ta.cross_tile_attention(*small, layout, 32, backend="{backend}")  # what is made once
def kilobytes(name):
    return int(next(line for line in open("/proc/self/status") if line.startswith(name)).split()[1])
open("/proc/self/clear_refs", "w").write("5")  # the peak starts again from here
before = kilobytes("VmRSS")
out = ta.cross_tile_attention(q, k, v, layout, 32, backend="{backend}")
limit = torch.ops.tiledattn.cross_tile_attention_cpu_scratch(dim, 2)
print(1024 * (kilobytes("VmHWM") - before) - out.nbytes - limit)
"""


def memory_beyond_the_limit(backend):
    code = MEMORY.format(backend=backend)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


def test_memory_of_the_process_does_not_grow_beyond_it():
    assert memory_beyond_the_limit("cpu") < 2 << 20


def test_the_memory_test_would_see_gathered_keys():
    assert memory_beyond_the_limit("torch") > 32 << 20


def good_call():
    plan = attention_plan(ta.TileLayout((8, 8), 4), (2, 2))
    q, k, v = attention_inputs(plan.layout, prefix=1)
    runs = token_runs(plan)
    return SimpleNamespace(
        q=q,
        k=k,
        v=v,
        mask=None,
        classes=runs.class_of_tile,
        starts=runs.starts,
        runs=runs.runs,
        prefix=1,
        weight=1.0,
        scale=0.5,
        out=torch.empty_like(q),
        lse=torch.empty(4, 1, 2, 17),
    )


def changed(x, place, value):
    x = x.clone()
    x[place] = value
    return x


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: {"q": c.q.double()}, "q: dtype is Double"),
        (lambda c: {"q": c.q[0]}, "q: shape is .* expected 5 dims"),
        (lambda c: {"k": c.k[..., ::2]}, "k: the last dim is strided"),
        (lambda c: {"k": c.k[:, :, :5]}, "k: shape is"),
        (lambda c: {"k": c.k.half()}, "k: dtype is Half"),
        (lambda c: {"v": c.v[:2]}, "v: shape is"),
        (lambda c: {"k": c.k[:2], "v": c.v[:2]}, "the pool must have at least as many tiles as q"),
        (lambda c: {"mask": torch.ones(4, 1, 2, dtype=torch.bool)}, "prefix_mask: shape is"),
        (lambda c: {"classes": changed(c.classes, 3, 9)}, "a tile's class is out of range"),
        (lambda c: {"starts": changed(c.starts, 1, 99)}, "run_starts must ascend"),
        (lambda c: {"starts": c.starts[:0]}, "run_starts: it is empty"),
        (lambda c: {"runs": c.runs[:-1]}, "runs: shape is"),
        (lambda c: {"runs": changed(c.runs, (0, 0), 64)}, "a run leaves the pool"),
        (lambda c: {"runs": changed(c.runs, (0, 0), -16)}, "a run leaves the pool"),
        (lambda c: {"runs": changed(c.runs, (0, 1), 17)}, "a run crosses from one tile to the next"),
        (lambda c: {"prefix": 17}, "S must be larger than the number of prefix tokens"),
        (lambda c: {"out": c.out[:2]}, "out: shape is"),
        (lambda c: {"out": torch.empty(17, 4, 1, 2, 8).movedim(0, 2)}, "out: not contiguous"),
        (lambda c: {"lse": c.lse[:2]}, "lse: shape is"),
    ],
)
def test_calls_that_would_touch_foreign_memory_raise(change, message):
    call = good_call()
    torch.ops.tiledattn.cross_tile_attention_cpu(*vars(call).values())
    arguments = {**vars(call), **change(call)}
    with pytest.raises(RuntimeError, match=message):
        torch.ops.tiledattn.cross_tile_attention_cpu(*arguments.values())


def test_float64_is_left_to_others():
    q, k, v = attention_inputs(ta.TileLayout(8, 4), dtype=torch.float64)
    with pytest.raises(ta.BackendUnavailableError, match="float64 is not supported"):
        ta.cross_tile_attention(q, k, v, ta.TileLayout(8, 4), 2, backend="cpu")
    assert ta.cross_tile_attention(q, k, v, ta.TileLayout(8, 4), 2).dtype == torch.float64
