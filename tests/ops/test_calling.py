"""Who may listen to a call, and what gradients save."""

import pytest
import torch
from support import attention_inputs
from torch.autograd import forward_ad

import tiledattn as ta

LAYOUT = ta.TileLayout((6, 6), 3)

CALLS = {
    "extract_tiles": lambda x: ta.extract_tiles(x[0, :, 0].unsqueeze(1).expand(-1, 2, -1, -1), LAYOUT),
    "cross_tile_attention": lambda x: ta.cross_tile_attention(*(x.reshape(4, 1, 9, 2, 2) for _ in "qkv"), LAYOUT, 1),
    "blend_tiles": lambda x: ta.blend_tiles(x.reshape(4, 1, 4, 3, 3), LAYOUT),
    "pad_tiles": lambda x: ta.pad_tiles(x.reshape(4, 1, 4, 3, 3), LAYOUT, 1),
    "group_norm_tiles": lambda x: ta.group_norm_tiles(x.reshape(4, 1, 4, 3, 3), LAYOUT, 2),
}


@pytest.mark.parametrize("op", CALLS)
def test_forward_mode_derivatives_are_refused(op):
    """Silent zeros would be the alternative."""
    x, tangent = torch.randn(2, 2, 1, 6, 6), torch.randn(2, 2, 1, 6, 6)
    with pytest.raises(NotImplementedError, match=f"{op}: forward-mode"):
        torch.func.jvp(CALLS[op], (x,), (tangent,))
    with forward_ad.dual_level(), pytest.raises(NotImplementedError, match=f"{op}: forward-mode"):
        CALLS[op](forward_ad.make_dual(x, tangent))
    with forward_ad.dual_level():
        assert CALLS[op](x).isfinite().all()


def test_forward_mode_derivatives_are_refused_while_tracing():
    def traced(x, tangent):
        return torch.func.jvp(CALLS["pad_tiles"], (x,), (tangent,))

    x = torch.randn(2, 2, 1, 6, 6)
    with pytest.raises(Exception, match="pad_tiles: forward-mode"):
        torch.compile(traced, fullgraph=True, backend="eager")(x, x)


@pytest.mark.parametrize("op", CALLS)
def test_meta_tensors_give_shapes(op):
    x = torch.randn(2, 2, 1, 6, 6)
    found = CALLS[op](x.to("meta"))
    assert found.is_meta
    assert found.shape == CALLS[op](x).shape


def leaves(dtype=torch.float32):
    return [x.requires_grad_() for x in attention_inputs(LAYOUT, dtype=dtype)]


@pytest.mark.parametrize(("backend", "dtype"), [("torch", torch.float32), ("auto", torch.float64)])
def test_a_result_that_nobody_reads_again_may_change_in_place(backend, dtype):
    q, k, v = leaves(dtype)
    out = ta.cross_tile_attention(q, k, v, LAYOUT, 1, backend=backend)
    out += 1
    out.sum().backward()
    again = leaves(dtype)
    ta.cross_tile_attention(*again, LAYOUT, 1, backend=backend).sum().backward()
    for x, y in zip((q, k, v), again, strict=True):
        assert torch.equal(x.grad, y.grad)


def test_a_backward_without_the_lse_makes_it_again():
    if ta.backends()["cpu"] is not None:
        pytest.skip(str(ta.backends()["cpu"]))
    q, k, v = leaves()
    with ta.use_backend("torch"):
        out = ta.cross_tile_attention(q, k, v, LAYOUT, 1)  # keeps no lse
    empty = out.new_empty(0)
    grad = torch.randn_like(out)
    options = ([*LAYOUT.as_ints()], [1, 1], 0, None, 0.5, False, None, True)
    op = torch.ops.tiledattn.cross_tile_attention_backward
    with torch.no_grad():
        found = op(grad, None, empty, empty, q, k, v, None, *options, "cpu")
        expected = op(grad, None, empty, empty, q, k, v, None, *options, "torch")
    for x, y in zip(found, expected, strict=True):
        torch.testing.assert_close(x, y)


def test_a_compiled_backward_asks_for_the_backend_when_it_runs(monkeypatch):
    from tiledattn import dispatch

    if ta.backends()["cpu"] is not None:
        pytest.skip(str(ta.backends()["cpu"]))
    taken = []
    select = dispatch.select

    def spy(op, name, *rest):
        module = select(op, name, *rest)
        taken.append((op, module.NAME))
        return module

    monkeypatch.setattr(dispatch, "select", spy)
    compiled = torch.compile(lambda q, k, v: ta.cross_tile_attention(q, k, v, LAYOUT, 1), backend="aot_eager")
    with ta.use_backend("torch"):
        compiled(*leaves()).sum().backward()
    assert taken[-1] == ("cross_tile_attention_backward", "torch")
    compiled(*leaves()).sum().backward()
    assert taken[-1] == ("cross_tile_attention_backward", "cpu")


@pytest.mark.parametrize("op", CALLS)
def test_a_default_device_changes_nothing(op):
    x = torch.randn(2, 2, 1, 6, 6)
    expected = CALLS[op](x)
    with torch.device("meta"):
        found = CALLS[op](x)
    assert torch.equal(found, expected)


def test_a_halo_weight_is_no_matter_of_the_default_device():
    q, k, v = attention_inputs(LAYOUT)
    expected = ta.cross_tile_attention(q, k, v, LAYOUT, 1, halo_weight=0.5)
    with torch.device("meta"):
        found = ta.cross_tile_attention(q, k, v, LAYOUT, 1, halo_weight=0.5)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("op", CALLS)
def test_tensors_with_a_negative_bit(op):
    negative = torch.randn(2, 2, 1, 6, 6, dtype=torch.complex64).conj().imag
    assert negative.is_neg()
    assert torch.equal(CALLS[op](negative), CALLS[op](negative.resolve_neg()))
