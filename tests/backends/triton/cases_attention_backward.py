"""The backward kernels against float64: run by test_kernels.py in the interpreter, and on a GPU where there is one."""

import pytest
import torch
from backends.triton.cases_attention import DEVICE, DTYPES, SMALL, on_device, plan_of, strided_forms
from backends.triton.kernel_memory import address_space
from gradients import (
    assert_gradients_within_budget,
    exact_gradients,
    layouts_with_slopes,
    plain_gradients,
    random_gradients,
)
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from ops.rotary_by_hand import by_hand
from small_layer import assert_gradients_are_right, attention, losses, make_layer
from support import attention_inputs, halos, poison

import tiledattn as ta
from tiledattn.backends import triton as backend
from tiledattn.backends.tables import attention_tables
from tiledattn.backends.triton.attention import cross_tile_attention_fwd
from tiledattn.backends.triton.attention_backward import cross_tile_attention_bwd, work_items
from tiledattn.geometry import reversed_plan

FEW = settings(max_examples=8, deadline=None, derandomize=True, database=None, phases=(Phase.explicit, Phase.generate))


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch):
    poison(monkeypatch)


def run(tensors, grads, plan, *, prefix=0, mask=None, weight=1.0, scale=None, configs=(SMALL, SMALL), **primitive):
    """dq, dk, dv of the kernels, from the forward kernel's results."""
    tensors = [on_device(x) for x in tensors]
    options = {
        "num_prefix_tokens": prefix,
        "prefix_mask": None if mask is None else mask.to(DEVICE),
        "halo_weight": weight,
        "scale": tensors[0].shape[-1] ** -0.5 if scale is None else scale,
    }
    tables = attention_tables(plan, DEVICE) if weight else None
    out, lse = cross_tile_attention_fwd(*tensors, tables, return_lse=True, config=configs and configs[0], **options)
    grads = [None if x is None else x.to(DEVICE) for x in grads]
    found = cross_tile_attention_bwd(*grads, *tensors, out, lse, plan, configs=configs, **options, **primitive)
    assert all(x.is_contiguous() for x in found)
    return tuple(x.cpu() for x in found)


def check(tensors, layout, halo, *, lse=False, **options):
    """Gradients within the budget; returns them."""
    grads = random_gradients(tensors[0], lse)
    found = run(tensors, grads, plan_of(layout, halo), **options)
    names = {"prefix": "num_prefix_tokens", "mask": "prefix_mask", "weight": "halo_weight", "scale": "scale"}
    arguments = {names[key]: value for key, value in options.items() if key in names}
    plain, exact = (make(tensors, grads, layout, halo, **arguments) for make in (plain_gradients, exact_gradients))
    assert [x.dtype for x in found] == [tensors[0].dtype] * 3
    assert_gradients_within_budget(found, plain, exact)
    return found


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dim", [12, 40, 64, 128, 256])
def test_head_dims(dim, dtype):
    layout = ta.TileLayout((6, 9), (6, 5), (0, 1))
    tensors = attention_inputs(layout, prefix=3, heads=2, kv_heads=1, dim=dim, dtype=dtype, seed=dim)
    check(tensors, layout, 2, prefix=3, lse=True, configs=None)


@given(st.data())
@FEW
def test_random_layouts(data):
    layout = data.draw(layouts_with_slopes().filter(lambda x: x.num_tiles <= 6))
    prefix = data.draw(st.integers(0, 3))
    batch, groups, kv_heads = data.draw(st.sampled_from([(1, 1, 1), (2, 1, 1), (1, 2, 1), (1, 1, 2)]))
    tensors = attention_inputs(
        layout,
        batch=batch,
        prefix=prefix,
        heads=groups * kv_heads,
        kv_heads=kv_heads,
        dim=16,
        dtype=data.draw(st.sampled_from(DTYPES)),
        seed=data.draw(st.integers(0, 99)),
        form=data.draw(st.sampled_from(["contiguous", "strided", "fused"])),
    )
    generator = torch.Generator().manual_seed(1)
    shape = (layout.num_tiles, batch, prefix)
    mask = torch.rand(shape, generator=generator) < 0.5 if prefix and data.draw(st.booleans()) else None
    weight = data.draw(st.sampled_from([1.0, 0.3, 0.0]))
    lse = data.draw(st.booleans())
    check(tensors, layout, data.draw(halos(layout)), prefix=prefix, mask=mask, weight=weight, lse=lse)


@pytest.mark.parametrize(
    ("size", "tile", "overlap", "wrap", "halo"),
    [
        (60, 20, 4, False, 7),
        (60, 20, 0, True, "all"),
        ((6, 10), (3, 5), 0, (False, True), (1, 3)),
        ((4, 6, 4), (2, 3, 4), (1, 0, 0), (True, False, True), 1),
        ((7, 7), 7, 0, True, "all"),
    ],
    ids=["1-axis", "1-axis-wrap-all", "2-axes", "3-axes", "one-tile"],
)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_layouts_over_several_blocks(size, tile, overlap, wrap, halo, dtype):
    layout = ta.TileLayout(size, tile, overlap, wrap)
    check(attention_inputs(layout, heads=1, dim=16, dtype=dtype), layout, halo)


@pytest.mark.parametrize("prefix", [0, 5, 16, 37])
@pytest.mark.parametrize("fill", ["none", "some", "all"])
def test_prefix_rows_and_masks(prefix, fill):
    layout = ta.TileLayout((4, 10), (4, 5), 0, (False, True))
    tensors = attention_inputs(layout, batch=1, prefix=prefix, heads=1, dim=16, seed=prefix)
    mask = torch.full((layout.num_tiles, 1, prefix), fill != "none")
    if fill == "some":
        mask[..., ::3] = False
    _, dk, dv = check(tensors, layout, 2, prefix=prefix, mask=mask, lse=True)
    for grad in (dk, dv):  # nobody sees a masked key
        assert not grad[:, :, :prefix][~mask].any()


@pytest.mark.parametrize("scale", [-30.0, -0.4, 0.0, 3.0])
def test_scales(scale):
    layout = ta.TileLayout(70, 35)
    check(attention_inputs(layout, heads=1, dim=16), layout, 20, scale=scale)


def test_masked_keys_of_large_logits():
    layout = ta.TileLayout(40, 20)
    q, k, v = attention_inputs(layout, heads=1, dim=16, prefix=2)
    mask = torch.tensor([True, False]).expand(2, 1, 2)
    k[:, :, 1] *= 1e4  # its weights overflow
    check((q, k, v), layout, 5, prefix=2, mask=mask)


def test_results_do_not_depend_on_strides():
    layout = ta.TileLayout(36, 18, 0, True)
    tensors = attention_inputs(layout, prefix=2, heads=2, kv_heads=1, dim=24, dtype=torch.float16)
    grads, plan = random_gradients(tensors[0], True), plan_of(layout, 4)
    expected = run(tensors, grads, plan, prefix=2)
    for name, form in strided_forms(*tensors):
        for a, b in zip(run(form, grads, plan, prefix=2), expected, strict=True):
            assert torch.equal(a, b), name
    scattered = (grads[0].transpose(1, 4).contiguous().transpose(1, 4), grads[1].mT.contiguous().mT)
    for a, b in zip(run(tensors, scattered, plan, prefix=2), expected, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_wide_offsets_and_further_runs_change_nothing(dtype):
    layout = ta.TileLayout((5, 6), (5, 3), 0, (False, True))
    tensors = attention_inputs(layout, prefix=3, heads=2, kv_heads=1, dim=24, dtype=dtype)
    mask = torch.tensor([True, False, True]).expand(layout.num_tiles, 1, 3)
    grads, plan = random_gradients(tensors[0], True), plan_of(layout, 2)
    first, *others = (
        run(tensors, grads, plan, prefix=3, mask=mask, wide_offsets=wide) for wide in (False, False, True)
    )
    for again in others:
        assert all(torch.equal(a, b) for a, b in zip(again, first, strict=True))


def test_tiles_further_apart_than_32_bit_offsets():
    layout = ta.TileLayout(40, 20)
    q, k, v = attention_inputs(layout, heads=1, dim=16, dtype=torch.float16)
    gap = 2**31 + 64
    far = address_space(gap + 1000, DEVICE).as_strided(k.shape, (gap, 0, 16, 16, 1))
    far.copy_(k)
    grads, plan = random_gradients(q, False), plan_of(layout, 3)
    near = run((q, k, v), grads, plan)
    for a, b in zip(run((q, far, v), grads, plan), near, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(("wrap", "interleaved"), [(False, True), (True, False)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rotary(dtype, wrap, interleaved):
    layout = ta.TileLayout((4, 12), (2, 6), 0, (False, wrap))
    turn = ta.Rotary(torch.rand(2, 6, generator=torch.Generator().manual_seed(0)), interleaved)
    tensors = attention_inputs(layout, prefix=2, heads=2, kv_heads=1, dim=16, dtype=dtype)
    grads = random_gradients(tensors[0], True)
    exact = exact_gradients(tensors, grads, layout, 3, num_prefix_tokens=2, rotary=turn)
    leaves = [x.detach().requires_grad_() for x in tensors]
    plain = torch.autograd.grad(by_hand(*leaves, layout, 3, turn, 2), leaves, grads)
    leaves = [x.detach().to(DEVICE).requires_grad_() for x in tensors]
    outputs = ta.cross_tile_attention(
        *leaves,
        layout,
        3,
        num_prefix_tokens=2,
        rotary=ta.Rotary(turn.frequencies.to(DEVICE), interleaved),
        return_lse=True,
        backend="triton",
    )
    found = torch.autograd.grad(outputs, leaves, [x.to(DEVICE) for x in grads])
    assert_gradients_within_budget(tuple(x.cpu() for x in found), plain, exact)


def test_an_empty_lse_is_computed_anew():
    layout = ta.TileLayout(24, 12)
    tensors = [x.to(DEVICE) for x in attention_inputs(layout, heads=1, dim=16)]
    grad = random_gradients(tensors[0], False)[0].to(DEVICE)
    options = {"plan": plan_of(layout, 3), "num_prefix_tokens": 0, "prefix_mask": None, "halo_weight": 1.0}
    options |= {"scale": 0.25, "return_lse": True}
    out, lse = backend.cross_tile_attention(*tensors, **options)
    saved = backend.cross_tile_attention_backward(grad, None, *tensors, out, lse, **options)
    anew = backend.cross_tile_attention_backward(grad, None, *tensors, out, lse[:0, 0, 0, 0], **options)
    assert all(torch.equal(a, b) for a, b in zip(saved, anew, strict=True))


def test_empty_batches():
    layout = ta.TileLayout(24, 12)
    leaves = [x[:, :0].to(DEVICE).requires_grad_() for x in attention_inputs(layout, heads=1, dim=16)]
    out = ta.cross_tile_attention(*leaves, layout, 3, backend="triton")
    assert [g.shape for g in torch.autograd.grad(out.sum(), leaves)] == [x.shape for x in leaves]


def test_a_halo_that_is_left_out_is_noticed():
    layout = ta.TileLayout(24, 12)
    tensors = attention_inputs(layout, heads=1, dim=16)
    grads = random_gradients(tensors[0], False)
    found = run(tensors, grads, plan_of(layout, 0))
    plain, exact = (make(tensors, grads, layout, 3) for make in (plain_gradients, exact_gradients))
    with pytest.raises(AssertionError, match="over the budget"):
        assert_gradients_within_budget(found, plain, exact)


def there(q, k, v):
    """Attention of a layer on the CPU, by the kernels where they run."""
    return attention("triton")(*(x.to(DEVICE) for x in (q, k, v))).to(q.device)


def test_a_layer_learns():
    assert_gradients_are_right(there)
    before, after = losses(make_layer(there), 1)
    assert after < before


@pytest.mark.parametrize("block", [4, 16, 64])
@pytest.mark.parametrize("prefix", [0, 9])
def test_work_items_hold_every_token_once(prefix, block):
    layout = ta.TileLayout((12, 12), (6, 4), (1, 0), (False, True))
    plan = plan_of(layout, 2)
    most, starts, items, places = work_items(plan, prefix, block, torch.device("cpu"))
    assert most == int(starts.diff().max())
    assert int(items[:, 1].max()) <= block
    for kind in range(len(starts) - 1):
        held = [places[a : a + n] for a, n, _, _ in items[starts[kind] : starts[kind + 1]].tolist()]
        assert sorted(torch.cat(held).tolist()) == [*range(prefix + layout.tile_positions)]
    found = reversed_plan(plan).table
    assert {tuple(row) for row in items[:, 2:].tolist() if row[1]} == {tuple(r) for r in found.cells[:, 2:] if r[1]}
