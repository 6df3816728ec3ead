"""How gradients find their backend, and what the forward keeps for them."""

import types

import pytest
import torch
from support import attention_inputs

import tiledattn as ta
from tiledattn import dispatch, selfcheck
from tiledattn.backends import pytorch

LAYOUT = ta.TileLayout((6, 8), (3, 4), 1, (False, True))
OP = "cross_tile_attention_backward"


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
    assert selfcheck._compare(spy, pytorch, OP, device, torch.float32, 16) is None
    spy.cross_tile_attention_backward = wrong
    assert "erred by" in selfcheck._compare(spy, pytorch, OP, device, torch.float32, 16)
