import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tiledattn as ta


def attend(q, k, v):
    """[S, H, D] over [K, H, D] in float64, an empty key set allowed."""
    logits = torch.einsum("shd,khd->hsk", q, k)
    lse = torch.logsumexp(logits, -1)
    weights = torch.exp(logits - torch.where(lse.isneginf(), 0.0, lse)[..., None])
    return torch.einsum("hsk,khd->shd", weights, v), lse


@given(st.integers(0, 4), st.integers(0, 4), st.sampled_from([1.0, 60.0]))
def test_merge_is_attention_over_the_union(left, right, size):
    torch.manual_seed(left * 5 + right)
    q, k, v = (torch.randn(n, 2, 3, dtype=torch.float64) * size for n in (4, left + right, left + right))
    out, lse = ta.merge_attention(*attend(q, k[:left], v[:left]), *attend(q, k[left:], v[left:]))
    expected, expected_lse = attend(q, k, v)
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(lse, expected_lse)


def test_two_empty_sets_give_zeros_and_minus_infinity():
    out, lse = ta.merge_attention(*[torch.ones(2, 1, 3), torch.full((1, 2), -math.inf)] * 2)
    assert not out.any()
    assert lse.isneginf().all()


def test_gradients_pass_through_an_empty_state():
    a, b = (torch.randn(2, 1, 3, requires_grad=True) for _ in range(2))
    empty, some = torch.full((1, 2), -math.inf), torch.zeros(1, 2, requires_grad=True)
    out, lse = ta.merge_attention(a, empty, b, some)
    (out.sum() + lse.sum()).backward()
    assert not a.grad.any()
    assert torch.isfinite(some.grad).all()
    torch.testing.assert_close(b.grad, torch.ones_like(b))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"out_a": torch.ones(2)}, r"out_a: shape is \[2\]"),
        ({"out_b": torch.ones(3, 1, 3)}, "out_b: shape is"),
        ({"lse_a": torch.ones(2, 1)}, r"lse_a: shape is \[2, 1\]; expected \[..., H, S\] = \[1, 2\]"),
        ({"lse_b": torch.ones(1, 2).double()}, "lse_b: dtype is torch.float64"),
        ({"lse_b": None}, "lse_b: got NoneType"),
    ],
)
def test_bad_arguments_are_named(change, message):
    good = {"out_a": torch.ones(2, 1, 3), "lse_a": torch.ones(1, 2), "out_b": torch.ones(2, 1, 3)}
    with pytest.raises((TypeError, ValueError), match=message):
        ta.merge_attention(**{**good, "lse_b": torch.ones(1, 2), **change})
