"""The CUDA attention kernels, run on a CPU by the emulator and judged by the float64 reference."""

import math

import pytest
import torch
import torch.nn.functional as F
from emulated_attention import SOURCES, attend, check, launch_sm80, launch_sm90
from emulation import emulated
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from support import assert_within_budget, attention_inputs, halos, layouts

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


def random_case(data, layout, dtype, seed, dims, one_stride=False):
    """Tensors and arguments; with `one_stride` only such as the copy engine takes, tiles and batch as one dim."""
    prefix = data.draw(st.integers(0, 5))
    batch, shared_by, kv_heads = data.draw(st.sampled_from([(1, 1, 1), (2, 1, 2), (1, 2, 1), (1, 2, 2)]))
    forms = ["contiguous", "strided", "fused", *(["narrowed"] if batch == 1 or not one_stride else [])]
    q, k, v = attention_inputs(
        layout,
        batch=batch,
        prefix=prefix,
        heads=kv_heads * shared_by,
        kv_heads=kv_heads,
        dim=data.draw(st.sampled_from(dims)),
        dtype=dtype,
        seed=seed,
        form=data.draw(st.sampled_from(forms)),
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


@settings(max_examples=60, deadline=None, phases=NO_SHRINKING)
@given(st.data(), layouts(), st.sampled_from(TYPES), st.integers(0, 2**16))
def test_random_layouts(data, layout, dtype, seed):
    tensors, arguments = random_case(data, layout, dtype, seed, [1, 8, 24, 64, 72])
    used: list[str] = []
    check("sm80", *tensors, layout, data.draw(halos(layout)), seed, used, **arguments)
    assert used == ["sm80"]


@settings(max_examples=40, deadline=None, phases=NO_SHRINKING)
@given(st.data(), layouts(), st.sampled_from(HALF_TYPES), st.integers(0, 2**16))
def test_random_layouts_without_halo_on_sm90(data, layout, dtype, seed):
    tensors, arguments = random_case(data, layout, dtype, seed, [1, 8, 24, 64, 72], one_stride=True)
    used: list[str] = []
    check("sm90", *tensors, layout, 0, seed, used, **arguments)
    assert used == ["sm90"]


@st.composite
def boxed_layouts(draw):
    """A layout and a halo that consists of boxes of 8 or 16: everything is a multiple of four (of eight on a single
    axis), middles of overlaps too, and no halo meets itself around a wrap.
    """
    axes = draw(st.integers(1, 3))
    unit = 8 if axes == 1 else 4
    size, tile, overlap, wrap = [], [], [], []
    for _ in range(min(axes, 2)):
        width = unit * draw(st.integers(1, 3))
        common = 2 * unit * draw(st.integers(0, (width - 1) // (2 * unit)))
        around = draw(st.booleans())
        least = -(-(width + 2 * unit) // (width - common)) if around else 1
        tiles = least + draw(st.integers(0, 1))
        size.append(tiles * (width - common) + (0 if around else common))
        tile.append(width)
        overlap.append(common)
        wrap.append(around)
    frames = [0] * (axes == 3)
    layout = ta.TileLayout(
        [2] * len(frames) + size, [1] * len(frames) + tile, frames + overlap, [True] * len(frames) + wrap
    )
    return layout, [draw(st.integers(0, 1)) for _ in frames] + [unit] * len(size)


@settings(max_examples=60, deadline=None, phases=NO_SHRINKING)
@given(st.data(), boxed_layouts(), st.sampled_from(HALF_TYPES), st.integers(0, 2**16))
def test_random_layouts_of_boxes_on_sm90(data, case, dtype, seed):
    layout, halo = case
    tensors, arguments = random_case(data, layout, dtype, seed, [8, 64, 72], one_stride=True)
    used: list[str] = []
    check("sm90", *tensors, layout, halo, seed, used, **arguments)
    assert used == ["sm90"]


@pytest.mark.parametrize(
    ("halo", "options"),
    [
        (3, {}),  # no boxes
        (8, {"batch": 2, "prefix": 1, "form": "narrowed"}),
        (8, {"dim": 136}),
        (8, {"dtype": torch.float32}),
    ],
    ids=["halo", "strides", "head-dim", "float32"],
)
def test_what_sm90_does_not_take_goes_to_sm80(halo, options):
    layout = ta.TileLayout(24, 8)
    tensors = attention_inputs(layout, **{"heads": 1, "dtype": torch.float16, **options})
    tensors = [x.copy_(x.half()) for x in tensors]
    used: list[str] = []
    check("sm90", *tensors, layout, halo, used=used, num_prefix_tokens=options.get("prefix", 0))
    assert used == ["sm80"]


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


LARGE = ta.TileLayout((32, 24), (16, 12), (0, 4), (False, True))  # 192 tokens a tile: several blocks of rows and keys


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


def test_a_prefix_that_is_masked_everywhere(kernel):
    layout = ta.TileLayout((4,), 2)
    q, k, v = attention_inputs(layout, prefix=3, dim=8, dtype=torch.float16)
    mask = torch.zeros(2, 1, 3, dtype=torch.bool)
    check(kernel, q, k, v, layout, 1, num_prefix_tokens=3, prefix_mask=mask)


def test_a_single_key_has_weight_one(kernel):
    (x, *_) = attention_inputs(ta.TileLayout(2, 1), dim=8, dtype=torch.float16)
    out, lse = attend(kernel, x, x, x, ta.TileLayout(2, 1), 0)
    assert torch.equal(out, x)
    assert lse.isfinite().all()


@pytest.mark.parametrize("tokens", [5, 150])
def test_rows_without_keys_are_zeros(kernel, tokens):
    """Tiles without canvas tokens, which only the primitive knows: tile 0 has all its keys masked, tile 1 none."""
    shape = (2, 1, tokens, 1, 8)
    q, k, v = (torch.randn(shape, generator=torch.Generator().manual_seed(i)).half() for i in range(3))
    mask = torch.tensor([False, True])[:, None, None].repeat(1, 1, tokens)
    out, lse = torch.full(shape, math.nan, dtype=torch.float16), torch.full((2, 1, 1, tokens), math.nan)
    rest = (tokens, 0.5 * math.log2(math.e), 0.0, out, lse)
    if kernel == "sm80":
        launch_sm80(0, q, k, v, mask, None, None, None, *rest)
    else:
        launch_sm90(0, q, k, v, mask, None, None, None, torch.arange(2, dtype=torch.int32), 1, 1, 1, 8, *rest)
    assert not out[0].any()
    assert torch.equal(lse[0], torch.full_like(lse[0], -math.inf))
    heads_first = [x[1].transpose(1, 2) for x in (q, k, v)]
    exact = F.scaled_dot_product_attention(*(x.double() for x in heads_first), scale=0.5)
    plain = F.scaled_dot_product_attention(*heads_first, scale=0.5)
    assert_within_budget(out[1].transpose(1, 2), plain, exact)


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
