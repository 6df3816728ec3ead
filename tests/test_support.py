"""The helpers that assert, seen to fail."""

import math

import pytest
import torch
from support import assert_within_budget, plain_attention, poison, relative_error

import tiledattn as ta


def test_budget_passes_what_is_as_good_as_plain_and_fails_what_is_not():
    exact = torch.randn(100, dtype=torch.float64)
    plain = exact.float()
    assert_within_budget(plain, plain, exact)
    with pytest.raises(AssertionError, match="over the budget"):
        assert_within_budget(plain * (1 + 1e-5), plain, exact)
    with pytest.raises(AssertionError, match="error inf"):
        assert_within_budget(plain * math.nan, plain, exact)
    with pytest.raises(AssertionError, match="error inf"):
        assert_within_budget(plain[:5], plain, exact)


def test_relative_error_of_zeros():
    assert relative_error(torch.zeros(3), torch.zeros(3)) == 0
    assert relative_error(torch.ones(1), torch.zeros(1)) == 1


def test_poison_reaches_every_empty(monkeypatch):
    poison(monkeypatch)
    x = torch.ones(2)
    made = (torch.empty(2), torch.empty_like(x), x.new_empty(2), torch.empty_strided((2,), (1,)))
    assert all(bool(torch.isnan(m).all()) for m in made)
    assert torch.empty(2, dtype=torch.int32).dtype == torch.int32


def test_plain_attention_agrees_with_the_reference():
    layout = ta.TileLayout((4, 6), (2, 4), (0, 1), (True, False))
    q, k, v = torch.randn(3, layout.num_tiles, 2, 9, 2, 4, dtype=torch.float64)
    arguments = {"num_prefix_tokens": 1, "halo_weight": 0.3}
    expected = ta.cross_tile_attention(q, k, v, layout, 1, backend="reference", **arguments)
    torch.testing.assert_close(plain_attention(q, k, v, layout, 1, **arguments), expected)
