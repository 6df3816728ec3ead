"""Gradients of the native library: instruction sets, threads, memory, tables; the rest: tests/ops/test_gradients.py."""

import math
import subprocess
import sys
from functools import cache, partial
from types import SimpleNamespace

import pytest
import torch
from gradients import (
    assert_gradients_within_budget,
    exact_gradients,
    found_gradients,
    plain_gradients,
    random_gradients,
)
from support import attention_inputs, instruction_sets

import tiledattn as ta
from tiledattn.backends import native
from tiledattn.backends.native_attention import token_runs
from tiledattn.backends.tables import reverse_tables
from tiledattn.geometry import attention_plan

reason = native.probe()
pytestmark = pytest.mark.skipif(reason is not None, reason=str(reason))

DTYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(params=instruction_sets())
def instruction_set(request):
    yield native.instruction_set(request.param)
    native.instruction_set("auto")


def judges(tensors, lse, layout, halo, **arguments):
    """Gradients of plain PyTorch, and of the float64 reference."""
    grads = random_gradients(tensors[0], lse)
    return [make(tensors, grads, layout, halo, **arguments) for make in (plain_gradients, exact_gradients)]


def check(tensors, layout, halo, *, lse=False, judged=None, **arguments):
    """The budget per gradient, and equal bits when it is run again."""
    grads = random_gradients(tensors[0], lse)
    found = found_gradients(tensors, grads, layout, halo, backend="cpu", **arguments)
    assert_gradients_within_budget(found, *(judged or judges(tensors, lse, layout, halo, **arguments)))


@cache
def large_case(dtype, dim):
    """2 tiles of 768 canvas tokens, 2 heads on one key head: more than a chunk and a panel of each."""
    layout = ta.TileLayout((32, 48), (16, 48))
    tensors = attention_inputs(layout, prefix=19, heads=2, kv_heads=1, dim=dim, dtype=dtype, form="strided")
    mask = torch.rand(2, 1, 19, generator=torch.Generator().manual_seed(0)) < 0.5
    arguments = {"num_prefix_tokens": 19, "prefix_mask": mask, "halo_weight": 0.3}
    return (tensors, layout, "all"), arguments, judges(tensors, True, layout, "all", **arguments)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [40, 72])
def test_every_instruction_set_over_several_chunks_and_panels(instruction_set, dtype, dim):
    case, arguments, judged = large_case(dtype, dim)
    check(*case, lse=True, judged=judged, **arguments)


@cache
def few_rows(dtype):
    """16 tiles of 40 queries: less than 64, of which the kernels for narrower vectors make several blocks."""
    layout = ta.TileLayout(16 * 40, 40)
    tensors = attention_inputs(layout, heads=1, dim=256, dtype=dtype)
    return (tensors, layout, "all"), judges(tensors, False, layout, "all")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_few_rows_over_several_chunks(instruction_set, dtype):
    case, judged = few_rows(dtype)
    check(*case, judged=judged)


@pytest.mark.parametrize(("size", "far", "dim"), [(4, 30, 256), (6, 100, 256), (6, 100, 200)])
def test_slopes_that_are_small_differences_of_sums_over_many_dims(instruction_set, size, far, dim):
    layout = ta.TileLayout(size, 2, 0, True)
    q, k, v = attention_inputs(layout, batch=4, heads=2, dim=dim)
    check((q, k, v + far), layout, 1)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_instruction_set_with_wrap_and_overlap(instruction_set, dtype):
    layout = ta.TileLayout((20, 18), (8, 9), (3, 0), True)
    check(attention_inputs(layout, batch=2, heads=3, dim=16, dtype=dtype), layout, 3, lse=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_result_does_not_depend_on_the_number_of_threads(dtype):
    layout = ta.TileLayout((48, 48), 16, 0, True)
    tensors = attention_inputs(layout, prefix=3, heads=2, dim=64, dtype=dtype)
    grads, results = random_gradients(tensors[0], True), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            results.append(found_gradients(tensors, grads, layout, 6, num_prefix_tokens=3, backend="cpu"))
    finally:
        torch.set_num_threads(1)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_large_and_tiny_logits(instruction_set):
    layout = ta.TileLayout((6, 6), 3)
    for size in (1e-20, 30.0, 1e3):
        q, k, v = attention_inputs(layout)
        check((q * size, k, v), layout, 1)


def test_nan_stays_where_it_is_seen(instruction_set):
    layout = ta.TileLayout(12, 4)
    q, k, v = attention_inputs(layout, batch=2)
    q[1, 0, 2, 1, 3] = math.nan
    leaves = [x.detach().requires_grad_() for x in (q, k, v)]
    out = ta.cross_tile_attention(*leaves, layout, 2, backend="cpu")
    dq, dk, dv = torch.autograd.grad(out, leaves, random_gradients(q, False)[0])
    expected = torch.zeros(dq.shape, dtype=torch.bool)
    expected[1, 0, 2, 1] = True
    assert torch.equal(dq.isnan(), expected)
    seen = torch.zeros(dk.shape, dtype=torch.bool)
    seen[0, 0, 2:, 1] = seen[1, 0, :, 1] = seen[2, 0, :2, 1] = True
    assert torch.equal(dk.isnan(), seen)
    assert torch.equal(dv.isnan(), seen)


def test_without_the_lse_of_the_forward_it_is_made_again():
    layout = ta.TileLayout((6, 8), (3, 4), 1, (False, True))
    q, k, v = attention_inputs(layout)
    options = {"plan": attention_plan(layout, (2, 2)), "num_prefix_tokens": 0, "prefix_mask": None, "scale": 0.5}
    options |= {"halo_weight": 0.5, "return_lse": True}
    out, lse = native.cross_tile_attention(q, k, v, **options)
    backward = partial(native.cross_tile_attention_backward, random_gradients(q, False)[0], None, q, k, v, out)
    for a, b in zip(backward(lse, **options), backward(lse[:0], **options), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("dim", [1, 64, 128, 256])
def test_memory_is_bounded_by_keys_of_one_tile(dim):
    """Besides a number per row: packed rows of a chunk and sums of a panel, as much as K and V of a 64 x 64 tile."""
    for threads in (1, 8):
        limit = torch.ops.tiledattn.cross_tile_attention_backward_cpu_scratch(dim, threads)
        assert limit <= threads * (64 * 64 * 2 * 4 * max(dim, 64))


MEMORY = """
import torch, tiledattn as ta
from tiledattn.backends import native
from tiledattn.backends.pytorch import attention
native.probe()
attention.GATHER_BYTES["cpu"] = 1 << 40
torch.set_num_threads(2)
layout, dim = ta.TileLayout((64, 64), 16), 64
inputs = [torch.randn(layout.num_tiles, 1, 256, 4, dim, requires_grad=True) for _ in range(3)]
def attend(*tensors):
    return ta.cross_tile_attention(*tensors, layout, 16, backend="{backend}")
small = [x.detach()[..., :8].contiguous().requires_grad_() for x in inputs]
torch.autograd.grad(attend(*small), small, torch.ones_like(small[0]))  # what is made and imported once
out = attend(*inputs)
grad = torch.randn_like(out)
def kilobytes(name):
    return int(next(line for line in open("/proc/self/status") if line.startswith(name)).split()[1])
open("/proc/self/clear_refs", "w").write("5")  # the peak starts again from here
before = kilobytes("VmRSS")
found = torch.autograd.grad(out, inputs, grad)
limit = torch.ops.tiledattn.cross_tile_attention_backward_cpu_scratch(dim, 2) + out.numel() // dim * 4
print(1024 * (kilobytes("VmHWM") - before) - sum(x.nbytes for x in found) - limit)
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
    runs, reverse = token_runs(plan), reverse_tables(plan, torch.device("cpu"))
    return SimpleNamespace(
        grad_out=torch.ones_like(q),
        grad_lse=torch.zeros(4, 1, 2, 17),
        q=q,
        k=k,
        v=v,
        out=torch.zeros_like(q),
        lse=torch.zeros(4, 1, 2, 17),
        mask=None,
        classes=runs.class_of_tile,
        starts=runs.starts,
        runs=runs.runs,
        lenders=reverse.class_of_lender,
        cell_starts=reverse.cell_starts,
        cells=reverse.cells,
        tokens=reverse.tokens,
        borrowers=reverse.borrowers,
        prefix=1,
        weight=1.0,
        scale=0.5,
        grad_q=torch.empty_like(q),
        grad_k=torch.empty_like(k),
        grad_v=torch.empty_like(v),
    )


def changed(x, place, value):
    x = x.clone()
    x[place] = value
    return x


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: {"q": c.q.double()}, "q: dtype is Double"),
        (lambda c: {"grad_out": c.grad_out[:, :, :5]}, "grad_out: shape is"),
        (lambda c: {"grad_out": c.grad_out.half()}, "grad_out: dtype is Half"),
        (lambda c: {"grad_out": c.grad_out[:1, :1, :1, :1, :1].expand_as(c.q)}, "grad_out: the last dim is strided"),
        (lambda c: {"grad_lse": c.grad_lse[1:]}, "grad_lse: shape is"),
        (lambda c: {"grad_lse": c.grad_lse.double()}, "grad_lse: dtype is Double"),
        (lambda c: {"out": c.out[:2]}, "out: shape is"),
        (lambda c: {"lse": c.lse[..., :3]}, "lse: not contiguous"),
        (lambda c: {"lse": c.lse[:1]}, "lse: shape is"),
        (lambda c: {"v": c.v[:2]}, "v: shape is"),
        (lambda c: {"mask": torch.ones(4, 1, 2, dtype=torch.bool)}, "prefix_mask: shape is"),
        (lambda c: {"runs": changed(c.runs, (0, 0), 64)}, "a run leaves the pool"),
        (lambda c: {"lenders": c.lenders[:3]}, "class_of_lender: shape is"),
        (lambda c: {"lenders": changed(c.lenders, 3, 9)}, "a lender's class is out of range"),
        (lambda c: {"lenders": changed(c.lenders, 3, 0)}, "a borrower is no tile of q"),
        (lambda c: {"cell_starts": c.cell_starts[:0]}, "cell_starts: it is empty"),
        (lambda c: {"cell_starts": changed(c.cell_starts, 1, 99)}, "cell_starts must ascend"),
        (lambda c: {"cells": c.cells[:-1]}, "cells: shape is"),
        (lambda c: {"cells": changed(c.cells, (0, 0), -1)}, "a cell's tokens are out of range"),
        (lambda c: {"cells": changed(c.cells, (0, 1), 1 << 62)}, "a cell's tokens are out of range"),
        (lambda c: {"cells": changed(c.cells, (1, 2), 1 << 40)}, "a cell's borrowers are out of range"),
        (lambda c: {"cells": changed(c.cells, (1, 3), -2)}, "a cell's borrowers are out of range"),
        (lambda c: {"tokens": changed(c.tokens, 5, 16)}, "a cell's token leaves its tile"),
        (lambda c: {"tokens": changed(c.tokens, 5, -1)}, "a cell's token leaves its tile"),
        (lambda c: {"borrowers": changed(c.borrowers, 0, 0)}, "a lender borrows from itself"),
        (lambda c: {"borrowers": changed(c.borrowers, 0, 4)}, "a borrower is no tile of q"),
        (lambda c: {"prefix": 17}, "S must be larger than the number of prefix tokens"),
        (lambda c: {"grad_q": c.grad_q[:2]}, "grad_q: shape is"),
        (lambda c: {"grad_q": c.grad_q.bfloat16()}, "grad_q: dtype is BFloat16"),
        (lambda c: {"grad_k": torch.empty(17, 4, 1, 2, 8).movedim(0, 2)}, "grad_k: not contiguous"),
        (lambda c: {"grad_k": c.grad_k[:, :, :3].contiguous()}, "grad_k: shape is"),
        (lambda c: {"grad_v": c.grad_v.half()}, "grad_v: dtype is Half"),
    ],
)
def test_calls_that_would_touch_foreign_memory_raise(change, message):
    call = good_call()
    torch.ops.tiledattn.cross_tile_attention_backward_cpu(*vars(call).values())
    arguments = {**vars(call), **change(call)}
    with pytest.raises(RuntimeError, match=message):
        torch.ops.tiledattn.cross_tile_attention_backward_cpu(*arguments.values())


def test_cells_that_list_a_token_twice_stay_inside_their_memory():
    call = good_call()
    cells, tokens = call.cells.clone(), torch.arange(16, dtype=torch.int32).repeat_interleave(4)
    cells[:, 0], cells[:, 1] = 0, len(tokens)
    arguments = {**vars(call), "cells": cells, "tokens": tokens}
    torch.ops.tiledattn.cross_tile_attention_backward_cpu(*arguments.values())


def test_offsets_beyond_two_to_the_31():
    layout = ta.TileLayout(8, 4)
    stride = 2**31 + 64
    memory = torch.empty(stride + 4 * 2 * 8, dtype=torch.float16)  # only the pages that are written take memory
    far = memory.as_strided((2, 1, 4, 2, 8), (stride, 0, 16, 8, 1), 0)
    near = attention_inputs(layout, dtype=torch.float16)[0]
    far.copy_(near)
    found = []
    for x in (near, far):
        leaves = [x.detach().requires_grad_() for _ in range(3)]
        found.append(torch.autograd.grad(ta.cross_tile_attention(*leaves, layout, 2, backend="cpu"), leaves, [x]))
    for a, b in zip(*found, strict=True):
        assert torch.equal(a, b)
