"""Gradients of attention: within the budget, how they find their backend, and what the forward keeps for them."""

import types

import pytest
import torch
from gradients import (
    assert_gradients_within_budget,
    exact_gradients,
    found_gradients,
    layouts_with_slopes,
    plain_gradients,
    random_gradients,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from ops.rotary_by_hand import by_hand
from support import BACKENDS, attention_inputs, halos

import tiledattn as ta
from tiledattn import dispatch, selfcheck
from tiledattn.backends import pytorch

LAYOUT = ta.TileLayout((6, 8), (3, 4), 1, (False, True))
OP = "cross_tile_attention_backward"
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


# (batch, kv_heads, dim); what plain PyTorch errs over a handful of numbers is luck: rows of one number are many
SIZES = [*((batch, heads, dim) for batch in (2, 3) for heads in (1, 2, 4) for dim in (5, 8)), (1, 4, 8)]
SIZES += [(9, 4, 1), (15, 2, 1)]
few = settings(max_examples=20, deadline=None)
many = settings(max_examples=40, deadline=None)


@many
@given(
    st.data(),
    layouts_with_slopes(),
    st.sampled_from(DTYPES),
    st.sampled_from(["contiguous", "strided", "fused", "narrowed"]),
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_stay_within_the_budget(backend, data, layout, dtype, form):
    prefix, halo = data.draw(st.sampled_from([0, 1, 3])), data.draw(halos(layout))
    batch, kv_heads, dim = data.draw(st.sampled_from(SIZES))
    tensors = attention_inputs(
        layout,
        batch=batch,
        prefix=prefix,
        heads=4,
        kv_heads=kv_heads,
        dim=dim,
        dtype=dtype,
        seed=data.draw(st.integers(0, 99)),
        form=form,
    )
    mask = None
    if prefix and data.draw(st.booleans()):
        mask = torch.rand(layout.num_tiles, batch, prefix, generator=torch.Generator().manual_seed(2)) < data.draw(
            st.sampled_from([0.0, 0.5])
        )
    arguments = {
        "num_prefix_tokens": prefix,
        "prefix_mask": mask,
        "halo_weight": data.draw(st.sampled_from([1.0, 0.4, 0.0])),
        "scale": data.draw(st.sampled_from([None, 0.7, -0.3])),
    }
    grads = random_gradients(tensors[0], data.draw(st.booleans()))
    plain, exact = (make(tensors, grads, layout, halo, **arguments) for make in (plain_gradients, exact_gradients))
    found = found_gradients(tensors, grads, layout, halo, backend=backend, **arguments)
    assert_gradients_within_budget(found, plain, exact)


@few
@given(st.data(), layouts_with_slopes(most_positions=8), st.sampled_from(DTYPES))
@pytest.mark.parametrize("backend", BACKENDS)
def test_rotary_gradients_stay_within_the_budget(backend, data, layout, dtype):
    halo, prefix = data.draw(halos(layout)), data.draw(st.integers(0, 2))
    rates = torch.rand(len(layout.size), 3, generator=torch.Generator().manual_seed(data.draw(st.integers(0, 9))))
    turn = ta.Rotary(rates, data.draw(st.booleans()))
    tensors = attention_inputs(layout, batch=2, prefix=prefix, heads=2, kv_heads=1, dim=8, dtype=dtype)
    grads = random_gradients(tensors[0], True)
    leaves = [x.detach().requires_grad_() for x in tensors]
    out, lse = by_hand(*leaves, layout, halo, turn, prefix)
    plain = torch.autograd.grad((out, lse), leaves, (grads[0], grads[1].to(lse.dtype)))
    exact = exact_gradients(tensors, grads, layout, halo, num_prefix_tokens=prefix, rotary=turn)
    found = found_gradients(tensors, grads, layout, halo, num_prefix_tokens=prefix, rotary=turn, backend=backend)
    assert_gradients_within_budget(found, plain, exact)


def test_gradients_of_another_halo_are_noticed():
    tensors = attention_inputs(LAYOUT, heads=2, kv_heads=1)
    grads = random_gradients(tensors[0], True)
    plain, exact = (make(tensors, grads, LAYOUT, 2) for make in (plain_gradients, exact_gradients))
    with pytest.raises(AssertionError, match="over the budget"):
        assert_gradients_within_budget(found_gradients(tensors, grads, LAYOUT, 1), plain, exact)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_single_key_has_weight_one(backend):
    layout = ta.TileLayout(4, 1)
    tensors = attention_inputs(layout, dim=8)
    grads = random_gradients(tensors[0], False)
    dq, dk, dv = found_gradients(tensors, grads, layout, 0, backend=backend)
    torch.testing.assert_close(dv, grads[0])
    size = 8**-0.5 * torch.finfo(torch.float32).eps * 8  # of a rounding error of dp or delta, times k or q
    assert dq.abs().max() <= size * grads[0].abs().max() * tensors[2].abs().max() * tensors[1].abs().max()
    assert dk.abs().max() <= size * grads[0].abs().max() * tensors[2].abs().max() * tensors[0].abs().max()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_gradient_that_is_one_number_everywhere(backend):
    tensors = [x.requires_grad_() for x in attention_inputs(LAYOUT)]
    found = torch.autograd.grad(ta.cross_tile_attention(*tensors, LAYOUT, 2, backend=backend).sum(), tensors)
    out = ta.cross_tile_attention(*tensors, LAYOUT, 2, backend=backend)
    for one, other in zip(found, torch.autograd.grad(out, tensors, torch.ones_like(out)), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("backend", BACKENDS)
def test_empty_batches(backend):
    layout = ta.TileLayout(8, 4)
    tensors = [x[:, :0].requires_grad_() for x in attention_inputs(layout)]
    out = ta.cross_tile_attention(*tensors, layout, 2, backend=backend)
    for x, grad in zip(tensors, torch.autograd.grad(out.sum(), tensors), strict=True):
        assert grad.shape == x.shape


@pytest.fixture
def spy(monkeypatch):
    """A backend "spy" in front of the others: PyTorch's, writing down what its forward and backward get."""
    module = types.ModuleType("spy")
    module.NAME, module.probe, module.rejects = "spy", lambda: None, lambda *_: None
    module.forwards, module.backwards = [], []

    def forward(q, k, v, *, return_lse, **options):
        module.forwards.append(return_lse)
        return pytorch.cross_tile_attention(q, k, v, return_lse=return_lse, **options)

    def backward(grad_out, grad_lse, q, k, v, out, lse, **options):
        module.backwards.append((grad_lse, out, lse))
        return pytorch.cross_tile_attention_backward(grad_out, grad_lse, q, k, v, out, lse, **options)

    module.cross_tile_attention, module.cross_tile_attention_backward = forward, backward
    find = dispatch._module
    monkeypatch.setattr(dispatch, "_module", lambda name: module if name == "spy" else find(name))
    monkeypatch.setattr(dispatch, "_MODULES", {"spy": "", **dispatch._MODULES})
    monkeypatch.setattr(dispatch, "_AUTOMATIC", ("spy", *dispatch._AUTOMATIC))
    monkeypatch.setattr(dispatch, "failed_self_check", lambda *_: None)
    return module


def leaves(dtype=torch.float32):
    return [x.contiguous().requires_grad_() for x in attention_inputs(LAYOUT, heads=2, kv_heads=1, dtype=dtype)]


def test_the_forward_keeps_its_lse_for_a_backward_that_reads_it(spy):
    q, k, v = leaves()
    out = ta.cross_tile_attention(q, k, v, LAYOUT, 1)
    assert spy.forwards == [True]
    out.sum().backward()
    ((grad_lse, saved, lse),) = spy.backwards
    assert grad_lse is None
    assert torch.equal(saved, out)
    assert torch.equal(lse, ta.cross_tile_attention(q, k, v, LAYOUT, 1, return_lse=True, backend="torch")[1])


def test_no_lse_is_computed_where_nothing_is_differentiated(spy):
    q, k, v = leaves()
    with torch.no_grad():
        ta.cross_tile_attention(q, k, v, LAYOUT, 1)
    ta.cross_tile_attention(*(x.detach() for x in (q, k, v)), LAYOUT, 1)
    assert spy.forwards == [False, False]


def test_an_explicit_backend_is_that_of_the_gradients_too(spy):
    q, k, v = leaves()
    ta.cross_tile_attention(q, k, v, LAYOUT, 1, backend="torch").sum().backward()
    with ta.use_backend("torch"):
        out = ta.cross_tile_attention(q, k, v, LAYOUT, 1)
    out.sum().backward()  # outside: what was asked for goes with the graph
    assert spy.backwards == []
    assert not dispatch.saves_lse("torch", "cpu", torch.float32)
    assert dispatch.saves_lse("auto", "cpu", torch.float32)


def test_a_backend_without_a_backward_leaves_it_to_the_automatic_choice(spy):
    q, k, v = leaves()
    out = ta.cross_tile_attention(q, k, v, LAYOUT, 1, backend="reference")
    out.sum().backward()
    ((_, _, lse),) = spy.backwards
    assert lse.numel() > 0
    assert dispatch.preferred(OP, "reference") == "auto"
    assert dispatch.preferred(OP, "torch") == "torch"


@pytest.mark.parametrize("used", ["out", "lse", "both"])
def test_gradients_of_either_output(spy, used):
    arguments = leaves(torch.float64)
    grads = []
    for backend in ("spy", "torch"):
        out, lse = ta.cross_tile_attention(*arguments, LAYOUT, 1, return_lse=True, backend=backend)
        loss = {"out": out.square().sum(), "lse": lse.sin().sum(), "both": out.square().sum() + lse.sin().sum()}[used]
        grads.append(torch.autograd.grad(loss, arguments, allow_unused=True))
    for a, b in zip(*grads, strict=True):
        assert torch.equal(a, b)
    assert (spy.backwards[0][0] is None) == (used == "out")


def test_lse_is_kept_inside_a_compiled_function(spy):
    torch._dynamo.reset()

    def loss(q, k, v):
        return ta.cross_tile_attention(q, k, v, LAYOUT, 1).square().sum()

    arguments = leaves()
    expected = torch.autograd.grad(loss(*arguments), arguments)
    found = torch.autograd.grad(torch.compile(loss, fullgraph=True, backend="aot_eager")(*arguments), arguments)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)
    assert len(spy.backwards) == 2
    for grad_lse, _, lse in spy.backwards:
        assert lse.numel() > 0
        assert grad_lse is None or not grad_lse.any()


def wrong(grad_out, grad_lse, q, *rest, **options):
    dq, dk, dv = pytorch.cross_tile_attention_backward(grad_out, grad_lse, q, *rest, **options)
    return dq, dk * 1.01, dv


def test_a_wrong_backward_fails_the_self_check(spy):
    device = torch.device("cpu")
    assert selfcheck._compare(spy, pytorch, OP, device, torch.float32, 16, torch.float32) is None
    spy.cross_tile_attention_backward = wrong
    assert "erred by" in selfcheck._compare(spy, pytorch, OP, device, torch.float32, 16, torch.float32)
