"""Rotary positions across tiles: against attention over the canvas, and key by key from positions."""

import math

import pytest
import torch
import torch._dynamo.testing
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from ops.rotary_by_hand import by_hand, turned
from support import (
    all_positions,
    assert_within_budget,
    attention_inputs,
    canvas_from_tokens,
    halos,
    layouts,
    oracle,
    relative_error,
)

import tiledattn as ta
from tiledattn.backends import rotary
from tiledattn.geometry import normalize_halo
from tiledattn.ops.rotary import unchecked_rotary

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
few = settings(max_examples=30, deadline=None)


@st.composite
def rotaries(draw, layout, heads, dim):
    """Random frequencies, shared or per head, of all channels or some."""
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    shape = [len(layout.size), draw(st.integers(1, dim // 2))]
    if draw(st.booleans()):
        shape.insert(1, heads)
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    return ta.Rotary((torch.rand(shape, generator=generator, dtype=torch.float64) * 3).to(dtype), draw(st.booleans()))


def places(layout):
    return torch.tensor(all_positions(layout.tile), dtype=torch.float64)


def canvas_rows(layout):
    """Row-major canvas position of every token of every tile, [T, N]."""
    number = {x: i for i, x in enumerate(all_positions(layout.size))}
    return torch.tensor([
        [
            number[tuple((o + p) % n for o, p, n in zip(origin, place, layout.size, strict=True))]
            for place in all_positions(layout.tile)
        ]
        for origin in layout.origins
    ])  # fmt: skip


def nearest(layout, tile, position):
    """Offset of a canvas position from a tile's origin: inside the tile, or on the side of its nearer end."""
    found = []
    for x, origin, length, width, wrap in zip(
        position, layout.origins[tile], layout.size, layout.tile, layout.wrap, strict=True
    ):
        choices = [x - origin + turn * length for turn in ((-2, -1, 0, 1, 2) if wrap else (0,))]
        found.append(min(choices, key=lambda o: (max(-o, o - width + 1, 0), o < 0)))
    return found


@few
@given(st.data(), layouts(), st.sampled_from(["torch", "reference"]), st.sampled_from([torch.float32, torch.float64]))
def test_law_1_full_reach_is_attention_over_the_canvas_at_canvas_positions(data, layout, backend, dtype):
    layout = ta.TileLayout(layout.size, layout.tile, layout.overlap)
    heads, dim = 2, data.draw(st.sampled_from([4, 7]))
    turn = data.draw(rotaries(layout, heads, dim))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    shape = (3, 2, math.prod(layout.size), heads, dim)
    canvas = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
    where = torch.tensor(all_positions(layout.size))

    def over_the_canvas(raw):
        q, k, v = raw
        return F.scaled_dot_product_attention(
            *(x.transpose(1, 2) for x in (turned(q, where, turn), turned(k, where, turn), v))
        )

    exact, plain = over_the_canvas(canvas.double()), over_the_canvas(canvas)
    rows = canvas_rows(layout)
    q, k, v = (x[:, rows].transpose(0, 1) for x in canvas)  # [T, B, N, H, D]
    q, k = turned(q, places(layout), turn), turned(k, places(layout), turn)
    out = ta.cross_tile_attention(q, k, v, layout, "all", rotary=turn, backend=backend)
    found = canvas_from_tokens(out, layout).flatten(2).unflatten(1, (heads, dim)).transpose(2, 3)
    # q and k are rounded once more than on the canvas, and what is blended is rounded
    assert relative_error(found, exact) <= 2 * relative_error(plain, exact) + 8 * torch.finfo(dtype).eps


@few
@given(st.data(), layouts(), st.sampled_from(["torch", "reference"]))
def test_every_key_is_seen_at_its_offset_the_short_way_round(data, layout, backend):
    """All in the frame of a tile: a query at its place, a key at its offset, text where it is."""
    prefix, heads, dim = data.draw(st.integers(0, 2)), 2, 6
    turn = data.draw(rotaries(layout, heads, dim))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 99)))
    halo = data.draw(halos(layout))
    reach = normalize_halo(layout, halo)
    canvas = torch.randn(3, *layout.size, heads, dim, generator=generator, dtype=torch.float64)
    text = torch.randn(3, layout.num_tiles, prefix, heads, dim, generator=generator, dtype=torch.float64)
    raw = canvas.flatten(1, len(layout.size))[:, canvas_rows(layout)]  # [3, T, N, H, D]
    local = [turned(raw[0], places(layout), turn), turned(raw[1], places(layout), turn), raw[2]]
    q, k, v = (torch.cat([a, b], 1)[:, None] for a, b in zip(text, local, strict=True))
    out = ta.cross_tile_attention(q, k, v, layout, halo, num_prefix_tokens=prefix, rotary=turn, backend=backend)
    for t in range(layout.num_tiles):
        seen = [(x, nearest(layout, t, x)) for x in all_positions(layout.size)]
        seen = [
            (x, offset)
            for x, offset in seen
            if all(-h <= o < w + h for o, w, h in zip(offset, layout.tile, reach, strict=True))
        ]
        keys = torch.stack([canvas[1][x] for x, _ in seen])
        keys = torch.cat([text[1, t], turned(keys, torch.tensor([o for _, o in seen]), turn)])
        values = torch.cat([text[2, t], torch.stack([canvas[2][x] for x, _ in seen])])
        logits = torch.einsum("qhd,khd->hqk", q[t, 0, prefix:], keys) * dim**-0.5
        expected = torch.einsum("hqk,khd->qhd", logits.softmax(-1), values)
        torch.testing.assert_close(out[t, 0, prefix:], expected, rtol=1e-10, atol=1e-10)


@few
@given(st.data(), layouts(), st.sampled_from(DTYPES), st.sampled_from(["contiguous", "strided", "fused", "narrowed"]))
def test_every_call_stays_within_the_budget(data, layout, dtype, form):
    prefix, halo = data.draw(st.sampled_from([0, 2])), data.draw(halos(layout))
    heads, dim = 4, data.draw(st.sampled_from([2, 5, 8]))
    turn = data.draw(rotaries(layout, heads, dim))
    kv_heads = 4 if turn.frequencies.ndim == 3 else data.draw(st.sampled_from([1, 2, 4]))
    q, k, v = attention_inputs(
        layout,
        batch=data.draw(st.integers(1, 2)),
        prefix=prefix,
        heads=heads,
        kv_heads=kv_heads,
        dim=dim,
        dtype=dtype,
        seed=data.draw(st.integers(0, 99)),
        form=form,
    )
    before = [x.clone() for x in (q, k, v)]
    arguments = {"num_prefix_tokens": prefix, "rotary": turn}
    exact, exact_lse = oracle(q, k, v, layout, halo, **arguments)
    plain, plain_lse = by_hand(q, k, v, layout, halo, turn, prefix)
    out = ta.cross_tile_attention(q, k, v, layout, halo, **arguments)
    assert out.dtype == dtype
    assert out.is_contiguous()
    assert_within_budget(out, plain, exact)
    assert torch.equal(out, ta.cross_tile_attention(q, k, v, layout, halo, **arguments))
    with_lse, lse = ta.cross_tile_attention(q, k, v, layout, halo, return_lse=True, **arguments)
    assert_within_budget(with_lse, plain, exact)
    assert_within_budget(lse, plain_lse, exact_lse)
    assert all(torch.equal(a, b) for a, b in zip(before, (q, k, v), strict=True))


LAYOUT = ta.TileLayout((4, 6), (2, 3), 0, (False, True))
TURN = ta.Rotary(torch.tensor([[1.0, 0.3, 0.0], [0.0, 0.2, 0.7]]), True)


def test_without_rotary_the_borders_show():
    """The laws above would notice."""
    layout = ta.TileLayout(12, 4)
    turn = ta.Rotary(torch.tensor([[1.0, 0.2]]), True)
    raw = torch.randn(3, 1, 12, 2, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    q, k, v = (x.unflatten(1, (3, 4)).transpose(0, 1) for x in raw)
    local = turned(q, places(layout), turn), turned(k, places(layout), turn), v
    q, k = (turned(x, torch.arange(12)[:, None], turn) for x in raw[:2])
    exact = F.scaled_dot_product_attention(*(x.transpose(1, 2) for x in (q, k, raw[2]))).transpose(1, 2)
    exact = exact.unflatten(1, (3, 4)).transpose(0, 1)
    assert relative_error(ta.cross_tile_attention(*local, layout, "all", rotary=turn), exact) < 1e-14
    assert relative_error(ta.cross_tile_attention(*local, layout, "all"), exact) > 0.05
    other = ta.Rotary(turn.frequencies, False)
    assert relative_error(ta.cross_tile_attention(*local, layout, "all", rotary=other), exact) > 0.05


def test_the_first_and_the_last_tile_of_a_ring_are_neighbours():
    """Turning all tiles of a ring by one step changes nothing; on a line it would."""
    q, k, v = attention_inputs(LAYOUT, heads=2, dim=6, dtype=torch.float64)
    expected = ta.cross_tile_attention(q, k, v, LAYOUT, 1, rotary=TURN)
    rolled = [x.unflatten(0, LAYOUT.grid).roll(1, 1).flatten(0, 1) for x in (q, k, v)]
    found = ta.cross_tile_attention(*rolled, LAYOUT, 1, rotary=TURN).unflatten(0, LAYOUT.grid).roll(-1, 1)
    torch.testing.assert_close(found.flatten(0, 1), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("layout", "change"),
    [
        (ta.TileLayout((4, 6), (4, 6), 0, True), {"halo": "all"}),
        (LAYOUT, {"halo": 0}),
        (LAYOUT, {"halo": "all", "halo_weight": 0.0}),
        (ta.TileLayout((4, 6), (4, 3)), {"halo": (2, 0)}),
    ],
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_without_neighbours_it_changes_no_bit(layout, change, dtype):
    q, k, v = attention_inputs(layout, dim=6, dtype=dtype)
    found = ta.cross_tile_attention(q, k, v, layout, **change, rotary=TURN)
    assert torch.equal(found, ta.cross_tile_attention(q, k, v, layout, **change))


def test_frequencies_are_read_at_every_call():
    q, k, v = attention_inputs(LAYOUT, dim=6)
    turn = ta.Rotary(TURN.frequencies.clone(), True)
    before = ta.cross_tile_attention(q, k, v, LAYOUT, 1, rotary=turn)
    turn.frequencies.zero_()
    assert torch.equal(
        ta.cross_tile_attention(q, k, v, LAYOUT, 1, rotary=turn), ta.cross_tile_attention(q, k, v, LAYOUT, 1)
    )
    assert not torch.equal(before, ta.cross_tile_attention(q, k, v, LAYOUT, 1, rotary=turn))


def test_an_unchecked_rotary_is_the_same():
    q, k, v = attention_inputs(LAYOUT, dim=6)
    again = unchecked_rotary(TURN.frequencies, False)
    assert isinstance(again, ta.Rotary)
    expected = ta.cross_tile_attention(q, k, v, LAYOUT, 1, rotary=ta.Rotary(TURN.frequencies, False))
    assert torch.equal(ta.cross_tile_attention(q, k, v, LAYOUT, 1, rotary=again), expected)


def test_steps_of_a_rotation_do_not_change_it(monkeypatch):
    q, k, v = attention_inputs(LAYOUT, batch=2, dim=6)
    expected = ta.cross_tile_attention(q, k, v, LAYOUT, 2, rotary=TURN)
    monkeypatch.setitem(rotary.STEP_BYTES, "cpu", 1)
    assert torch.equal(ta.cross_tile_attention(q, k, v, LAYOUT, 2, rotary=TURN), expected)


def test_far_origins_lose_no_precision():
    layout = ta.TileLayout(1 << 20, 1 << 18, 0, True)
    turns = rotary.pool_turns(
        ta.geometry.attention_plan(layout, (1,), True), torch.tensor([[1.0]]), True, torch.zeros(1)
    )
    angles = [0, 1 << 18, 2 << 18, 3 << 18, -1 << 18, 1 << 20]
    assert sorted(turns.cos.flatten().tolist()) == sorted(torch.tensor(angles).double().cos().float().tolist())


def test_an_empty_batch():
    q, k, v = (x[:, :0].detach().requires_grad_() for x in attention_inputs(LAYOUT, dim=6))
    out = ta.cross_tile_attention(q, k, v, LAYOUT, 1, rotary=TURN)
    assert out.shape == q.shape
    out.sum().backward()
    assert q.grad.shape == q.shape


@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize("wrap", [False, True])
def test_gradients(interleaved, wrap):
    layout = ta.TileLayout((3, 2), (2, 1), (1, 0), wrap)
    q, k, v = attention_inputs(layout, prefix=1, heads=2, kv_heads=1, dim=3, dtype=torch.float64)
    turn = ta.Rotary(torch.tensor([[0.5], [1.5]]), interleaved)

    def call(q, k, v):
        return ta.cross_tile_attention(q, k, v, layout, 1, num_prefix_tokens=1, rotary=turn, return_lse=True)

    assert torch.autograd.gradcheck(call, [x.requires_grad_() for x in (q, k, v)])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gradients_in_low_precision(dtype):
    arguments = attention_inputs(LAYOUT, prefix=1, heads=2, dim=6, dtype=dtype)
    grads = []
    for kind in (dtype, torch.float64):
        leaves = [x.to(kind).requires_grad_() for x in arguments]
        out = ta.cross_tile_attention(*leaves, LAYOUT, 2, num_prefix_tokens=1, rotary=TURN)
        grads.append(torch.autograd.grad(out.sin().sum(), leaves))
    for found, exact in zip(*grads, strict=True):
        assert found.dtype == dtype
        assert relative_error(found, exact) < 8 * torch.finfo(dtype).eps


def test_one_graph_serves_all_calls():
    torch._dynamo.reset()
    q, k, v = (x.requires_grad_() for x in attention_inputs(LAYOUT, dim=6))
    counted = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")

    def call(q, k, v, turn):
        return ta.cross_tile_attention(q, k, v, LAYOUT, 1, rotary=turn).square().sum()

    compiled = torch.compile(call, fullgraph=True, backend=counted)
    for step in range(5):
        turn = ta.Rotary(TURN.frequencies * step, True)
        found, expected = (torch.autograd.grad(f(q, k, v, turn), (q, k, v)) for f in (compiled, call))
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b)
    assert counted.frame_count == 1


def test_a_rotary_made_inside_the_graph():
    torch._dynamo.reset()
    q, k, v = attention_inputs(LAYOUT, dim=6)

    def call(rates):
        return ta.cross_tile_attention(q, k, v, LAYOUT, 1, rotary=ta.Rotary(rates, False))

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(TURN.frequencies), call(TURN.frequencies))


def test_tables_made_in_inference_mode_serve_training():
    layout = ta.TileLayout((5, 7), (3, 3), (1, 1), True)  # a layout of its own: nothing is cached yet
    with torch.inference_mode():
        ta.cross_tile_attention(*attention_inputs(layout, dim=6), layout, 1, rotary=TURN)
    q, k, v = (x.requires_grad_() for x in attention_inputs(layout, dim=6))
    ta.cross_tile_attention(q, k, v, layout, 1, rotary=TURN).sum().backward()
    assert torch.isfinite(k.grad).all()


Q, K, V = attention_inputs(LAYOUT, heads=4, kv_heads=2, dim=6)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: "flux", TypeError, "rotary: got str; expected a tiledattn.Rotary or None"),
        (lambda: ta.Rotary([1.0], True), TypeError, "rotary.frequencies: got list; expected a torch.Tensor"),
        (lambda: ta.Rotary(torch.ones(2, 3).half(), True), TypeError, "dtype is torch.float16; expected float32 or"),
        (lambda: ta.Rotary(torch.ones(3), True), ValueError, r"shape is \[3\]; expected \[axes, D_rot / 2\] or"),
        (lambda: ta.Rotary(torch.ones(2, 0), True), ValueError, r"shape is \[2, 0\]; .* none of them 0"),
        (lambda: ta.Rotary(torch.ones(2, 3), 1), TypeError, r"rotary.interleaved: got 1 \(int\)"),
        (lambda: ta.Rotary(torch.tensor([[1.0, math.nan]] * 2), True), ValueError, "holds nan; every frequency must"),
        (lambda: ta.Rotary(torch.tensor([[math.inf, 0.0]] * 2), True), ValueError, "holds inf; every frequency must"),
        (lambda: ta.Rotary(torch.ones(2, 3, requires_grad=True), True), ValueError, "pass frequencies.detach()"),
        (lambda: ta.Rotary(torch.ones(3, 3), True), ValueError, r"shape is \[3, 3\], 3 axes; the layout has 2"),
        (lambda: ta.Rotary(torch.ones(2, 4), True), ValueError, "for 8 channels; q's D is 6, so at most 3 frequencies"),
        (lambda: ta.Rotary(torch.ones(2, 3, 3), True), ValueError, r"\[2, 3, 3\], 3 heads; q has 4"),
        (lambda: ta.Rotary(torch.ones(2, 4, 3), True), ValueError, "as many heads in k as in q; k has 2, q 4"),
        (lambda: ta.Rotary(torch.ones(2, 3, device="meta"), True), ValueError, "frequencies: on meta, but q is on cpu"),
    ],
)
def test_bad_arguments_are_named(make, error, message):
    ta.cross_tile_attention(Q, K, V, LAYOUT, 1, rotary=TURN)
    with pytest.raises(error, match=message):
        ta.cross_tile_attention(Q, K, V, LAYOUT, 1, rotary=make())


def test_odd_head_dims_keep_their_last_channel():
    with pytest.raises(ValueError, match="for 6 channels; q's D is 5, so at most 2 frequencies fit"):
        ta.cross_tile_attention(Q[..., :5], K[..., :5], V[..., :5], LAYOUT, 1, rotary=TURN)


def test_errors_come_even_where_no_rotation_is_needed():
    for halo in (0, 1):
        with pytest.raises(ValueError, match="3 axes; the layout has 2"):
            ta.cross_tile_attention(Q, K, V, LAYOUT, halo, rotary=ta.Rotary(torch.ones(3, 3), True))


def test_frequencies_of_fake_tensors_are_not_looked_at():
    from torch._subclasses import FakeTensorMode

    with FakeTensorMode():
        assert ta.Rotary(torch.ones(1, 4), interleaved=True).frequencies.shape == (1, 4)
