"""The CUDA attention kernels, run on a CPU by the emulator and judged by the float64 reference."""

import math

import pytest
import torch
from emulated_attention import SOURCES, attend, check
from emulation import emulated
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from support import attention_inputs, halos, layouts

import tiledattn as ta
from tiledattn.backends.cuda_attention import halo_boxes, halo_tokens
from tiledattn.geometry import attention_plan, normalize_halo

HALF_TYPES = [torch.float16, torch.bfloat16]
TYPES = [*HALF_TYPES, torch.float32]
CPU = torch.device("cpu")
NO_SHRINKING = tuple(phase for phase in Phase if phase not in (Phase.shrink, Phase.explain))  # it would take hours


@pytest.fixture(scope="module", params=SOURCES)
def kernel(request):
    emulated(SOURCES[request.param])
    return request.param


def random_case(data, layout, dtype, seed, dims):
    prefix, kv_heads = data.draw(st.integers(0, 5)), data.draw(st.integers(1, 2))
    q, k, v = attention_inputs(
        layout,
        batch=data.draw(st.integers(1, 2)),
        prefix=prefix,
        heads=kv_heads * data.draw(st.integers(1, 2)),
        kv_heads=kv_heads,
        dim=data.draw(st.sampled_from(dims)),
        dtype=dtype,
        seed=seed,
        form=data.draw(st.sampled_from(["contiguous", "strided", "fused", "narrowed"])),
    )
    if dtype == torch.float32:
        q, k, v = (x.copy_(x.half()) for x in (q, k, v))
    mask = torch.rand(*q.shape[:2], prefix, generator=torch.Generator().manual_seed(seed)) < 0.7
    arguments = {
        "num_prefix_tokens": prefix,
        "prefix_mask": mask if prefix else None,
        "halo_weight": data.draw(st.sampled_from([1.0, 0.3, 0.0])),
        "scale": data.draw(st.sampled_from([None, 0.5, -0.2, 0.0])),
    }
    return (q, k, v), arguments


@settings(max_examples=25, deadline=None, phases=NO_SHRINKING)
@given(st.data(), layouts(), st.sampled_from(TYPES), st.integers(0, 2**16))
def test_random_layouts(kernel, data, layout, dtype, seed):
    tensors, arguments = random_case(data, layout, dtype, seed, [1, 8, 24, 64, 72])
    check(kernel, *tensors, layout, data.draw(halos(layout)), seed, **arguments)


@settings(max_examples=15, deadline=None, phases=NO_SHRINKING)
@given(st.data(), st.sampled_from(HALF_TYPES), st.integers(0, 2**16))
def test_random_layouts_of_boxes(data, dtype, seed):
    """Everything is a multiple of four along two axes, middles of overlaps too, and no halo meets itself around a
    wrap: it consists of boxes of 16.
    """
    tile = [4 * data.draw(st.integers(1, 3)) for _ in range(2)]
    overlap = [8 * data.draw(st.integers(0, w // 12)) for w in tile]
    tiles = [-(-(w + 8) // (w - o)) + data.draw(st.integers(0, 2)) for w, o in zip(tile, overlap, strict=True)]
    size = [n * (w - o) for n, w, o in zip(tiles, tile, overlap, strict=True)]
    frames = data.draw(st.sampled_from([(), (2,)]))
    layout = ta.TileLayout([*frames, *size], [*(1 for _ in frames), *tile], [*(0 for _ in frames), *overlap], True)
    (q, k, v), arguments = random_case(data, layout, dtype, seed, [8, 64, 72])
    used: list[str] = []
    check("sm90", q, k, v, layout, [*(1 for _ in frames), 4, 4], seed, used, **arguments)
    assert used == ["sm90"] or not all(x.stride(0) == x.shape[1] * x.stride(1) for x in (k, v))


@settings(max_examples=100, deadline=None)
@given(st.data(), layouts(most_positions=40))
def test_boxes_and_tokens_name_what_the_plan_names(data, layout):
    scaled = ta.TileLayout(*([8 * n for n in x] for x in (layout.size, layout.tile, layout.overlap)), layout.wrap)
    layout = data.draw(st.sampled_from([layout, scaled]))
    plan = attention_plan(layout, normalize_halo(layout, data.draw(halos(layout))))
    tokens, boxes, size = halo_tokens(plan, CPU), halo_boxes(plan, CPU), layout.tile_positions
    assert sorted((boxes or tokens).class_of_tile.tolist()) == sorted(plan.class_of_tile.tolist())
    for number in range(plan.num_classes):
        named = tokens.halo[int(tokens.starts[number]) : int(tokens.starts[number + 1])]
        assert [d * size + n for d, n in named.tolist()] == plan.class_table(number).tolist()
        if boxes is None:
            continue
        inside = [
            delta * size + (row + i) * boxes.columns + column + j
            for delta, row, column, _ in boxes.boxes[int(boxes.starts[number]) : int(boxes.starts[number + 1])].tolist()
            for i in range(boxes.box_rows)
            for j in range(boxes.box_columns)
        ]
        assert sorted(inside) == sorted(plan.class_table(number).tolist())
    if boxes is not None:
        assert sorted(boxes.longest_first.tolist()) == list(range(layout.num_tiles))
        lengths = [plan.halo_lengths[c] for c in plan.class_of_tile[boxes.longest_first.numpy()]]
        assert lengths == sorted(lengths, reverse=True)


LARGE = ta.TileLayout((32, 36), (16, 12), (0, 4), (False, True))  # 192 tokens a tile: several blocks of rows and keys


@pytest.mark.parametrize(
    ("kernel", "dtype", "dim"),
    [
        *(("sm80", dtype, dim) for dtype in HALF_TYPES for dim in (64, 128, 160)),
        *(("sm80", torch.float32, dim) for dim in (60, 128)),
        *(("sm90", dtype, dim) for dtype in HALF_TYPES for dim in (64, 128)),
    ],
)
@pytest.mark.parametrize("prefix", [0, 3, 130])
def test_several_blocks(kernel, dim, dtype, prefix):
    q, k, v = attention_inputs(LARGE, prefix=prefix, heads=1, dim=dim, dtype=dtype)
    if dtype == torch.float32:
        q, k, v = (x.half().float() for x in (q, k, v))
    mask = (torch.arange(prefix).expand(*q.shape[:2], prefix) % 3 > 0).clone() if prefix == 130 else None
    if mask is not None:
        mask[1::2] = False  # whole blocks of keys are hidden, the first one too
    used: list[str] = []
    check(kernel, q, k, v, LARGE, 4, used=used, num_prefix_tokens=prefix, prefix_mask=mask, halo_weight=0.7)
    assert used == [kernel]


def test_any_order_of_threads_gives_the_same_bits(kernel):
    q, k, v = attention_inputs(LARGE, prefix=2, heads=1, dim=64, dtype=torch.bfloat16)
    first = attend(kernel, q, k, v, LARGE, 4, seed=1, num_prefix_tokens=2)
    for seed in range(2, 5):
        for found, expected in zip(attend(kernel, q, k, v, LARGE, 4, seed, num_prefix_tokens=2), first, strict=True):
            assert torch.equal(found, expected)


def test_rows_without_keys_are_zeros(kernel):
    layout = ta.TileLayout((4,), 2)
    q, k, v = attention_inputs(layout, prefix=3, dim=8, dtype=torch.float16)
    mask = torch.zeros(2, 1, 3, dtype=torch.bool)
    check(kernel, q, k, v, layout, 1, num_prefix_tokens=3, prefix_mask=mask)
    one = q[:, :, :1]
    out, lse = attend(kernel, one, one, one, ta.TileLayout((2,), 1), 0)
    assert torch.equal(out, one)
    assert lse.isfinite().all()


def test_large_logits_stay_finite(kernel):
    q, k, v = attention_inputs(LARGE, heads=1, dim=64, dtype=torch.float16)
    out, _ = attend(kernel, q * 100, k * 100, v, LARGE, 4, scale=1.0)
    assert out.isfinite().all()


def test_nan_stays_nan(kernel):
    q, k, v = attention_inputs(LARGE, heads=1, dim=64, dtype=torch.float16)
    k[0, 0, 5] = math.nan
    out, _ = attend(kernel, q, k, v, LARGE, 0)
    assert out[0].isnan().all()
    assert not out[1:].isnan().any()


def test_a_tensor_without_batch_or_tiles(kernel):
    q, k, v = attention_inputs(LARGE, batch=0, heads=1, dim=8, dtype=torch.float16)
    out, lse = attend(kernel, q, k, v, LARGE, 4)
    assert out.shape == q.shape
    assert lse.shape == (LARGE.num_tiles, 0, 1, LARGE.tile_positions)
