"""Cross-tile attention and its gradients on a GPU, every backend against float64."""

import pytest
import torch
from gpu.judged import check, check_gradients, inputs
from gpu.where import ATTENTION_DTYPES, DEVICE, DTYPES, MARKS, offered
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from ops.rotary_by_hand import by_hand
from support import assert_within_budget, attention_inputs, halos, layouts

import tiledattn as ta
from tiledattn.dispatch import explain

pytestmark = MARKS
few = settings(
    max_examples=10,
    deadline=None,
    derandomize=True,
    database=None,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)

LAYOUTS = {
    "1 axis": (ta.TileLayout(300, 100, 20), 33),
    "1 axis, wrap, all": (ta.TileLayout(90, 30, 0, True), "all"),
    "2 axes": (ta.TileLayout((24, 40), (16, 16), (0, 4), (False, True)), (5, 3)),
    "3 axes": (ta.TileLayout((6, 10, 12), (3, 5, 6), 0, (True, False, True)), (1, 2, 2)),
    "one tile": (ta.TileLayout((12, 11), (12, 11), 0, True), 3),
}


@pytest.mark.parametrize("dtype", ATTENTION_DTYPES)
@pytest.mark.parametrize("case", LAYOUTS)
def test_layouts(backend, case, dtype):
    layout, halo = LAYOUTS[case]
    check(backend, *inputs(layout, dtype, batch=2, dim=64), layout, halo, dtype=dtype)


@pytest.mark.parametrize("dtype", ATTENTION_DTYPES)
@pytest.mark.parametrize("dim", [8, 40, 64, 80, 128, 256])
def test_head_dims_grouped_heads_and_prefix(backend, dim, dtype):
    layout, halo = LAYOUTS["2 axes"]
    q, k, v = inputs(layout, dtype, prefix=7, heads=4, kv_heads=2, dim=dim, seed=dim)
    mask = torch.rand(layout.num_tiles, 1, 7, generator=torch.Generator().manual_seed(1)) < 0.6
    check(backend, q, k, v, layout, halo, dtype=dtype, prefix=7, mask=mask, weight=0.5)


# two and more blocks of every kernel, none of them whole
@pytest.mark.parametrize("dtype", ["float32", "tf32", "bfloat16"])
@pytest.mark.parametrize("prefix", [0, 77])
@pytest.mark.parametrize("dim", [64, 128])
def test_many_blocks(backend, dim, prefix, dtype):
    layout = ta.TileLayout((19, 66), (19, 22), 0, (False, True))
    check(
        backend,
        *inputs(layout, dtype, prefix=prefix, heads=1, dim=dim),
        layout,
        5,
        dtype=dtype,
        prefix=prefix,
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_automatic_choice(dtype):
    layout, halo = LAYOUTS["2 axes"]
    check("auto", *attention_inputs(layout, dim=64, dtype=DTYPES[dtype]), layout, halo)
    reasons = explain("cross_tile_attention", DEVICE, DTYPES[dtype], 64)
    assert None in reasons.values(), reasons
    print(reasons)  # in the report of a run


@pytest.mark.parametrize("weight", [1.0, 0.3, 1e-30, 0.0])
def test_halo_weights(backend, weight):
    layout, halo = LAYOUTS["2 axes"]
    check(backend, *attention_inputs(layout, dim=64, dtype=torch.float16), layout, halo, weight=weight)


@pytest.mark.parametrize("fill", ["none", "first", "some"])
def test_masks(backend, fill):
    layout, halo = LAYOUTS["3 axes"]
    q, k, v = attention_inputs(layout, prefix=80, dim=64, dtype=torch.bfloat16)
    mask = torch.ones(layout.num_tiles, 1, 80, dtype=torch.bool)
    mask[..., {"none": slice(None), "first": slice(64), "some": slice(None, None, 3)}[fill]] = False
    check(backend, q, k, v, layout, halo, prefix=80, mask=mask)


def test_large_logits(backend):
    layout, halo = LAYOUTS["2 axes"]
    q, k, v = attention_inputs(layout, dim=64, dtype=torch.float16)
    check(backend, q * 40, k * 40, v, layout, halo)


@few
@given(
    st.data(), layouts(), st.sampled_from(list(DTYPES)), st.sampled_from(["contiguous", "strided", "fused", "narrowed"])
)
def test_random_calls(backend, data, layout, dtype, form):
    prefix = data.draw(st.sampled_from([0, 3]))
    inputs = attention_inputs(
        layout,
        batch=data.draw(st.integers(1, 2)),
        prefix=prefix,
        heads=4,
        kv_heads=data.draw(st.sampled_from([1, 4])),
        dim=16,
        dtype=DTYPES[dtype],
        form=form,
    )
    check(backend, *inputs, layout, data.draw(halos(layout)), prefix=prefix)


@pytest.mark.parametrize("dtype", ATTENTION_DTYPES)
def test_runs_and_strides_change_no_bit(backend, dtype):
    layout, halo = LAYOUTS["2 axes"]
    q, k, v = inputs(layout, dtype, batch=2, heads=2, dim=64)
    fused = torch.cat([q, k, v], 3).split(2, dim=3)
    heads_first = [x.transpose(2, 3).contiguous().transpose(2, 3) for x in (q, k, v)]
    forms = ((q, k, v), (q, k, v), fused, heads_first)
    results = [check(backend, *form, layout, halo, dtype=dtype) for form in forms]
    for other in results[1:]:
        assert torch.equal(results[0], other)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("interleaved", [True, False])
def test_rotary(backend, interleaved, dtype):
    layout = ta.TileLayout((6, 24), (6, 8), (0, 2), (False, True))
    rotary = ta.Rotary(torch.rand(2, 16, generator=torch.Generator().manual_seed(0)) * 2, interleaved)
    q, k, v = attention_inputs(layout, prefix=2, heads=2, dim=64, dtype=DTYPES[dtype])
    exact, _ = by_hand(q.double(), k.double(), v.double(), layout, 3, rotary, 2)
    plain, _ = by_hand(q, k, v, layout, 3, rotary, 2)
    turn = ta.Rotary(rotary.frequencies.to(DEVICE), interleaved)
    found = offered(
        ta.cross_tile_attention,
        *(x.to(DEVICE) for x in (q, k, v)),
        layout,
        3,
        num_prefix_tokens=2,
        rotary=turn,
        backend=backend,
    )
    assert_within_budget(found.cpu(), plain, exact)


@pytest.mark.parametrize("dtype", ATTENTION_DTYPES)
@pytest.mark.parametrize("case", LAYOUTS)
def test_gradients(backend, case, dtype):
    layout, halo = LAYOUTS[case]
    check_gradients(backend, layout, halo, dtype, prefix=5 if case == "2 axes" else 0)


def test_an_empty_batch_gives_empty_results(backend):
    layout = ta.TileLayout(40, 20)
    q, k, v = (x.to(DEVICE) for x in attention_inputs(layout, batch=0, dim=64, dtype=torch.float16))
    out, lse = offered(ta.cross_tile_attention, q, k, v, layout, 5, return_lse=True, backend=backend)
    assert out.shape == q.shape
    assert out.dtype == q.dtype
    assert lse.shape == (2, 0, 2, 20)
