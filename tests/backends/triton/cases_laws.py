"""The laws through the public functions, against PyTorch's own attention on the untiled canvas."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from support import assert_within_budget, attention_inputs, canvas_from_tokens, consistent_inputs, layouts, poison

import tiledattn as ta
from tiledattn.backends import triton as backend

DEVICE = torch.device("cpu" if backend.interpreted() else "cuda")
DTYPES = [torch.float32, torch.float16] if backend.interpreted() else [torch.float32, torch.float16, torch.bfloat16]
FEW = settings(max_examples=8, deadline=None, derandomize=True, database=None, phases=(Phase.explicit, Phase.generate))
SMALL = layouts(most_positions=9).filter(lambda layout: layout.num_tiles <= 6)


@pytest.fixture(autouse=True)
def _poisoned(monkeypatch):
    poison(monkeypatch)


def attend(q, k, v, layout, halo, **arguments):
    out = ta.cross_tile_attention(*(x.to(DEVICE) for x in (q, k, v)), layout, halo, backend="triton", **arguments)
    return out.cpu()


@FEW
@given(SMALL, st.sampled_from(DTYPES))
def test_law_1_full_reach_is_attention_over_the_canvas(layout, dtype):
    (q, k, v), tiles = consistent_inputs(layout, batch=1, heads=2, dim=16, dtype=dtype, seed=1)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # [B, H, L, D]
    exact = F.scaled_dot_product_attention(q.double(), k.double(), v.double())
    plain = F.scaled_dot_product_attention(q, k, v)
    blended = canvas_from_tokens(attend(*tiles, layout, "all"), layout)
    assert_within_budget(blended.flatten(2).unflatten(1, (2, 16)).transpose(2, 3).to(dtype), plain, exact)


@FEW
@given(SMALL, st.sampled_from(DTYPES), st.integers(0, 2))
def test_law_2_no_halo_is_attention_inside_each_tile(layout, dtype, prefix):
    q, k, v = attention_inputs(layout, prefix=prefix, dim=16, dtype=dtype)
    a, b, c = (x.flatten(0, 1).transpose(1, 2) for x in (q, k, v))
    exact = F.scaled_dot_product_attention(a.double(), b.double(), c.double())
    found = attend(q, k, v, layout, 0, num_prefix_tokens=prefix).flatten(0, 1).transpose(1, 2)
    assert_within_budget(found, F.scaled_dot_product_attention(a, b, c), exact)


@FEW
@given(st.lists(st.integers(1, 3), min_size=1, max_size=3), st.booleans(), st.sampled_from([0, 2, "all"]))
def test_law_3_one_tile_is_attention_whatever_the_halo(size, wrap, halo):
    layout = ta.TileLayout(size, size, 0, wrap)
    q, k, v = attention_inputs(layout, dim=16)
    assert torch.equal(attend(q, k, v, layout, halo), attend(q, k, v, layout, 0))


@FEW
@given(SMALL, st.sampled_from(["uniform", "hann", "linear", "gaussian"]))
def test_blend_inverts_extract(layout, window):
    canvas = torch.randn(1, 2, *layout.size, generator=torch.Generator().manual_seed(0))
    tiles = ta.extract_tiles(canvas.to(DEVICE), layout, backend="triton")
    blended = ta.blend_tiles(tiles, layout, window, backend="triton").cpu()
    torch.testing.assert_close(blended, canvas, rtol=1e-6, atol=1e-6)


def test_everything_in_one_graph():
    layout = ta.TileLayout((4, 6), (2, 3), (1, 0), True)
    q, k, v = (x.to(DEVICE) for x in attention_inputs(layout, dim=16))

    def call(q, k, v):
        return ta.cross_tile_attention(q, k, v, layout, 1, backend="triton")

    assert torch.equal(torch.compile(call, fullgraph=True, backend="aot_eager")(q, k, v), call(q, k, v))
