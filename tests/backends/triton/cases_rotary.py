"""Rotary positions and pools of more tiles than queries, in the fused kernel."""

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from ops.rotary_by_hand import by_hand
from support import assert_within_budget, attention_inputs, halos, layouts, oracle, poison

import tiledattn as ta
from tiledattn.backends import triton as backend
from tiledattn.backends.tables import AttentionTables
from tiledattn.backends.triton.attention import cross_tile_attention_fwd

DEVICE = torch.device("cpu" if backend.interpreted() else "cuda")
DTYPES = [torch.float32, torch.float16] if backend.interpreted() else [torch.float32, torch.float16, torch.bfloat16]
FEW = settings(max_examples=8, deadline=None, derandomize=True, database=None, phases=(Phase.explicit, Phase.generate))


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch):
    poison(monkeypatch)


def check(layout, halo, turn, *, prefix=0, dtype=torch.float32, **shape):
    q, k, v = attention_inputs(layout, prefix=prefix, dtype=dtype, **shape)
    arguments = {"num_prefix_tokens": prefix, "rotary": turn}
    exact, exact_lse = oracle(q, k, v, layout, halo, **arguments)
    plain, plain_lse = by_hand(q, k, v, layout, halo, turn, prefix)
    arguments["rotary"] = ta.Rotary(turn.frequencies.to(DEVICE), turn.interleaved)
    q, k, v = (x.to(DEVICE) for x in (q, k, v))
    out, lse = ta.cross_tile_attention(q, k, v, layout, halo, return_lse=True, backend="triton", **arguments)
    assert_within_budget(out.cpu(), plain, exact)
    assert_within_budget(lse.cpu(), plain_lse, exact_lse)


@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize("wrap", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rotary(dtype, wrap, interleaved):
    layout = ta.TileLayout((4, 12), (2, 6), 0, (False, wrap))
    rates = torch.rand(2, 6, generator=torch.Generator().manual_seed(0))
    check(layout, 3, ta.Rotary(rates, interleaved), prefix=2, dtype=dtype, heads=2, kv_heads=1, dim=16)


@given(st.data())
@FEW
def test_random_layouts(data):
    layout = data.draw(layouts(most_positions=9).filter(lambda x: x.num_tiles <= 6))
    shape = data.draw(st.sampled_from([(8,), (2, 8), (2, 3)]))
    rates = torch.rand(len(layout.size), *shape, generator=torch.Generator().manual_seed(data.draw(st.integers(0, 9))))
    turn = ta.Rotary(rates, data.draw(st.booleans()))
    check(layout, data.draw(halos(layout)), turn, prefix=data.draw(st.integers(0, 2)), heads=2, dim=16)


@pytest.mark.parametrize("wide", [False, True])
def test_a_pool_of_more_tiles_than_queries(wide):
    """One tile of queries whose table lists tokens of the two other tiles of the pool."""
    generator = torch.Generator().manual_seed(1)
    tokens, listed = 20, torch.tensor([25, 59, 40, *range(21, 38)], dtype=torch.int32)
    q = torch.randn(1, 1, tokens, 1, 16, generator=generator)
    k, v = torch.randn(2, 3, 1, tokens, 1, 16, generator=generator)
    tables = AttentionTables(torch.zeros(1, dtype=torch.int32), torch.tensor([0, len(listed)]), listed)
    out, _ = cross_tile_attention_fwd(
        *(x.to(DEVICE) for x in (q, k, v)),
        AttentionTables(*(x.to(DEVICE) for x in tables)),
        num_prefix_tokens=0,
        prefix_mask=None,
        halo_weight=1.0,
        scale=0.25,
        return_lse=False,
        wide_offsets=wide,
    )
    rows = torch.cat([torch.arange(tokens), listed.long()])
    keys, values = (x[:, 0, :, 0].flatten(0, 1)[rows] for x in (k, v))
    weights = (q[0, 0, :, 0] @ keys.T * 0.25).softmax(-1)
    exact = (q[0, 0, :, 0].double() @ keys.double().T * 0.25).softmax(-1) @ values.double()
    assert_within_budget(out[0, 0, :, 0].cpu(), weights @ values, exact)
