import math
import weakref
from collections import Counter
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from support import (
    assert_within_budget,
    attention_inputs,
    canvas_from_tokens,
    consistent_inputs,
    halos,
    layouts,
    oracle,
    plain_attention,
    plain_lse,
    relative_error,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import tiledattn as ta
from tiledattn.backends import pytorch
from tiledattn.backends.pytorch import attention
from tiledattn.geometry import attention_plan

FORMS = ["contiguous", "strided", "fused", "narrowed"]
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
BACKENDS = [name for name in ("torch", "cpu") if ta.backends()[name] is None]
few = settings(max_examples=30, deadline=None)


@few
@given(st.data(), layouts(), st.sampled_from(DTYPES), st.sampled_from(FORMS))
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_call_stays_within_the_budget(backend, data, layout, dtype, form):
    if backend == "cpu" and dtype == torch.float64:
        dtype = torch.float32
    prefix, batch = data.draw(st.sampled_from([0, 1, 3])), data.draw(st.integers(1, 2))
    halo = data.draw(halos(layout))
    q, k, v = attention_inputs(
        layout,
        batch=batch,
        prefix=prefix,
        heads=4,
        kv_heads=data.draw(st.sampled_from([1, 2, 4])),
        dim=data.draw(st.sampled_from([1, 5, 8])),
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
    call = partial(ta.cross_tile_attention, q, k, v, layout, halo, backend=backend, **arguments)
    exact, exact_lse = oracle(q, k, v, layout, halo, **arguments)
    plain = plain_attention(q, k, v, layout, halo, **arguments)
    out = call()
    assert out.dtype == dtype
    assert out.is_contiguous()
    assert_within_budget(out, plain, exact)
    assert torch.equal(out, call())
    with_lse, lse = call(return_lse=True)
    assert_within_budget(with_lse, plain, exact)
    assert lse.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert_within_budget(lse, plain_lse(q, k, layout, halo, **arguments), exact_lse)


@few
@given(layouts(), st.integers(1, 2), st.sampled_from([*BACKENDS, "reference"]))
def test_law_1_full_reach_is_attention_over_the_canvas(layout, batch, backend):
    (q, k, v), tiles = consistent_inputs(layout, batch=batch, heads=2, dim=4, dtype=torch.float32, seed=1)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # [B, H, L, D]
    exact = F.scaled_dot_product_attention(q.double(), k.double(), v.double())
    plain = F.scaled_dot_product_attention(q, k, v)
    out = canvas_from_tokens(ta.cross_tile_attention(*tiles, layout, "all", backend=backend), layout)
    found = out.flatten(2).unflatten(1, (2, 4)).transpose(2, 3)
    # one more rounding unit: `found` is blended in float64 from float32 tokens
    assert relative_error(found, exact) <= 2 * relative_error(plain, exact) + 2 * torch.finfo(torch.float32).eps


@few
@given(layouts(), st.sampled_from([torch.float32, torch.bfloat16]), st.integers(0, 2), st.sampled_from(BACKENDS))
def test_law_2_no_halo_is_attention_inside_each_tile(layout, dtype, prefix, backend):
    q, k, v = attention_inputs(layout, batch=2, prefix=prefix, dtype=dtype)
    a, b, c = (x.flatten(0, 1).transpose(1, 2) for x in (q, k, v))
    exact = F.scaled_dot_product_attention(a.double(), b.double(), c.double())
    plain = F.scaled_dot_product_attention(a, b, c)
    found = ta.cross_tile_attention(q, k, v, layout, 0, num_prefix_tokens=prefix, backend=backend)
    assert_within_budget(found.flatten(0, 1).transpose(1, 2), plain, exact)


@given(st.lists(st.integers(1, 4), min_size=1, max_size=3), st.booleans(), st.sampled_from([0, 2, "all"]))
@few
@pytest.mark.parametrize("backend", BACKENDS)
def test_law_3_one_tile_is_attention_whatever_the_halo(backend, size, wrap, halo):
    layout = ta.TileLayout(size, size, 0, wrap)
    q, k, v = attention_inputs(layout)
    expected = ta.cross_tile_attention(q, k, v, layout, 0, backend=backend)
    assert torch.equal(ta.cross_tile_attention(q, k, v, layout, halo, backend=backend), expected)


@few
@given(st.data(), layouts())
def test_merging_own_tile_and_halo_gives_the_whole(data, layout):
    halo = data.draw(halos(layout))
    q, k, v = attention_inputs(layout, dtype=torch.float64)
    whole, whole_lse = ta.cross_tile_attention(q, k, v, layout, halo, return_lse=True)
    own, own_lse = ta.cross_tile_attention(q, k, v, layout, 0, return_lse=True)
    # what remains of the whole when the own part is taken out of it again
    rest_share = -torch.expm1((own_lse - whole_lse).clamp(max=0))
    safe = torch.where(rest_share > 1e-9, rest_share, 1.0)
    own_share = torch.exp(own_lse - whole_lse)

    def spread(x):
        return x.transpose(-1, -2).unsqueeze(-1)

    rest = torch.where(spread(rest_share > 1e-9), (whole - spread(own_share) * own) / spread(safe), 0.0)
    rest_lse = torch.where(rest_share > 1e-9, whole_lse + torch.log(safe), -math.inf)
    merged, lse = ta.merge_attention(own, own_lse, rest, rest_lse)
    torch.testing.assert_close(merged, whole, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(lse, whole_lse, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_empty_batches(backend):
    layout = ta.TileLayout(8, 4)
    q, k, v = (x[:, :0] for x in attention_inputs(layout, batch=1))
    out, lse = ta.cross_tile_attention(q, k, v, layout, 2, return_lse=True, backend=backend)
    assert out.shape == q.shape
    assert lse.shape == (2, 0, 2, 4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_transposed_batches_take_the_other_gather(backend):
    layout = ta.TileLayout((6, 6), 3, 0, True)
    q, k, v = attention_inputs(layout, batch=3)
    expected = ta.cross_tile_attention(q, k, v, layout, 1, backend=backend)
    batch_major = [x.transpose(0, 1).contiguous().transpose(0, 1) for x in (q, k, v)]
    assert torch.equal(ta.cross_tile_attention(*batch_major, layout, 1, backend=backend), expected)
    scattered = [x.transpose(-1, -2).contiguous().transpose(-1, -2) for x in (q, k, v)]
    assert torch.equal(ta.cross_tile_attention(*scattered, layout, 1, backend=backend), expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("tail", [0, 2])
def test_the_image_part_of_longer_sequences(batch, tail, backend):
    layout = ta.TileLayout((8, 8), 4)
    longer = torch.randn(3, layout.num_tiles, batch, 5 + 16 + tail, 2, 8, generator=torch.Generator().manual_seed(0))
    q, k, v = longer[:, :, :, 5 : 5 + 16]  # with one batch entry T's stride is its own multiple of B's, but not of S's
    exact, _ = oracle(q, k, v, layout, 2)
    found = ta.cross_tile_attention(q, k, v, layout, 2, backend=backend)
    assert_within_budget(found, plain_attention(q, k, v, layout, 2), exact)
    dense = [x.contiguous() for x in (q, k, v)]
    assert torch.equal(found, ta.cross_tile_attention(*dense, layout, 2, backend=backend))


def test_groups_of_tiles_do_not_change_the_result(monkeypatch):
    layout = ta.TileLayout((16, 16), 4, 1)
    q, k, v = attention_inputs(layout, batch=2)
    expected = ta.cross_tile_attention(q, k, v, layout, 2, backend="torch")
    monkeypatch.setitem(attention.GATHER_BYTES, "cpu", 1)
    assert_within_budget(
        ta.cross_tile_attention(q, k, v, layout, 2, backend="torch"), expected, oracle(q, k, v, layout, 2)[0]
    )


class Allocations(TorchDispatchMode):
    """The most bytes alive at once in storages made inside: a storage lives as long as a tensor that views it."""

    def __init__(self, known):
        super().__init__()
        self.known = {x.untyped_storage()._cdata for x in known}
        self.users, self.bytes, self.most = Counter(), {}, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for x in tree_leaves(result):
            if isinstance(x, torch.Tensor) and x.untyped_storage()._cdata not in self.known:
                key = x.untyped_storage()._cdata
                self.users[key] += 1
                self.bytes[key] = x.untyped_storage().nbytes()
                weakref.finalize(x, self.release, key)
                self.most = max(self.most, sum(self.bytes.values()))
        return result

    def release(self, key):
        self.users[key] -= 1
        if self.users[key] == 0:
            del self.bytes[key]


def run_counted(budget, monkeypatch):
    """Bytes made beyond the output, and bytes of keys and values if all tiles' were gathered at once."""
    monkeypatch.setitem(attention.GATHER_BYTES, "cpu", budget)
    layout, heads, dim = ta.TileLayout((128, 128), 16), 2, 32
    q, k, v = attention_inputs(layout, heads=heads, dim=dim)
    plan = attention_plan(layout, (8, 8))
    with Allocations((q, k, v)) as counted:
        pytorch.cross_tile_attention(
            q, k, v, plan=plan, num_prefix_tokens=0, prefix_mask=None, halo_weight=1.0, scale=1.0, return_lse=False
        )
    tokens = sum(
        (layout.tile_positions + m) * len(tiles) for m, tiles in zip(plan.halo_lengths, plan.classes, strict=True)
    )
    return counted.most - q.nbytes, 2 * heads * dim * k.element_size() * tokens


def test_gathered_keys_of_all_tiles_never_exist_at_once(monkeypatch):
    budget = 2 << 20
    extra, gathered = run_counted(budget, monkeypatch)
    assert gathered > 16 << 20
    assert extra < 3 * budget


def test_the_count_would_see_a_gather_of_all_tiles(monkeypatch):
    extra, gathered = run_counted(1 << 40, monkeypatch)
    assert extra > gathered / 2  # tiles at borders are groups of their own


LAYOUT = ta.TileLayout((4, 4), 2)
Q, K, V = attention_inputs(LAYOUT, batch=2, prefix=1, heads=4, kv_heads=2)
GOOD = {"q": Q, "k": K, "v": V, "layout": LAYOUT, "halo": 1, "num_prefix_tokens": 1}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"q": None}, TypeError, "q: got NoneType; expected a torch.Tensor"),
        ({"q": Q.int()}, TypeError, "q: dtype is torch.int32"),
        ({"q": Q.to_sparse()}, TypeError, "q: layout is torch.sparse_coo"),
        ({"q": Q[0]}, ValueError, r"q: shape is .* expected \[T, B, S, H, D\]"),
        ({"q": Q[:3]}, ValueError, "q: T is 3; the layout has 4 tiles"),
        ({"q": Q[:, :, :4]}, ValueError, "q: S is 4; expected 5 = 1 prefix tokens"),
        ({"q": Q[..., :0]}, ValueError, "H and D must be at least 1"),
        ({"k": K.double()}, TypeError, "k: dtype is torch.float64, but q has torch.float32"),
        ({"k": K.to("meta")}, ValueError, "k: on meta, but q is on cpu"),
        ({"k": K[:, :1]}, ValueError, r"k: shape is .* to go with q"),
        ({"k": Q[..., :3, :], "v": Q[..., :3, :]}, ValueError, "k: Hkv is 3; it must divide q's H = 4"),
        ({"v": V[..., :1, :]}, ValueError, "v: shape is .*; it must be k's"),
        ({"v": V[..., :4]}, ValueError, "v: shape is"),
        ({"layout": (4, 4)}, TypeError, "layout: got tuple; expected a tiledattn.TileLayout"),
        ({"halo": -1}, ValueError, "halo: axis 0 is -1"),
        ({"num_prefix_tokens": -1}, ValueError, "num_prefix_tokens: got -1"),
        ({"num_prefix_tokens": 1.0}, TypeError, "num_prefix_tokens: got 1.0"),
        ({"num_prefix_tokens": 2}, ValueError, "q: S is 5; expected 6"),
        ({"prefix_mask": torch.ones(4, 2, 1)}, TypeError, "prefix_mask: dtype is torch.float32; expected bool"),
        ({"prefix_mask": torch.ones(4, 2, 2) > 0}, ValueError, r"prefix_mask: shape is .* \[T, B, P\] = \[4, 2, 1\]"),
        ({"prefix_mask": [True]}, TypeError, "prefix_mask: got list"),
        ({"halo_weight": 1.5}, ValueError, "halo_weight: got 1.5; it must be a finite number between 0 and 1"),
        ({"halo_weight": math.nan}, ValueError, "halo_weight: got nan; it must be a finite number"),
        ({"halo_weight": "1"}, TypeError, "halo_weight: got '1'"),
        ({"scale": math.inf}, ValueError, "scale: got inf"),
        ({"scale": 10**400}, ValueError, "scale: got 1000"),
        ({"far_pool": 2}, NotImplementedError, "far_pool: got 2"),
        ({"return_lse": 1}, TypeError, "return_lse: got 1"),
        ({"backend": "cuda9"}, ValueError, "backend: got 'cuda9'; known are auto"),
        ({"backend": None}, TypeError, "backend: got None"),
    ],
)
def test_bad_arguments_are_named(change, error, message):
    ta.cross_tile_attention(**GOOD)
    with pytest.raises(error, match=message):
        ta.cross_tile_attention(**{**GOOD, **change})


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("weight", [1e-300, 1e-46, 1e-44, 1e-30])
def test_halo_weights_below_what_float32_holds(backend, weight):
    """The only key that is near weighs next to nothing, and yet more than one that is far."""
    layout = ta.TileLayout((2,), (1,))
    q, k = torch.ones(2, 1, 1, 1, 1), torch.tensor([-150.0, 150.0]).view(2, 1, 1, 1, 1)
    v = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1, 1)
    options = {"halo_weight": weight, "scale": 1.0, "return_lse": True}
    expected = ta.cross_tile_attention(q, k, v, layout, 1, backend="reference", **options)
    found = ta.cross_tile_attention(q, k, v, layout, 1, backend=backend, **options)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, check_dtype=False)
