"""The attention kernel for sm_90a: halos of boxes on 1 to 3 axes; that no other kernel is used is watched."""

import pytest
import torch
from gpu.judged import check, check_gradients, inputs
from gpu.where import DEVICE, MARKS, sm90  # noqa: F401  # a fixture
from support import attention_inputs

import tiledattn as ta
from tiledattn.bench.ways import NotOfferedError

pytestmark = MARKS
HALVES = ["bfloat16", "float16"]
LAYOUTS = {
    "1 axis": (ta.TileLayout(96, 32, 0, True), 8),
    "2 axes": (ta.TileLayout((48, 32), 16, 0, (False, True)), 4),
    "2 axes, overlap": (ta.TileLayout((16, 40), 16, (0, 8)), (0, 4)),
    "3 axes": (ta.TileLayout((4, 8, 48), (2, 8, 16), 0, (False, False, True)), (1, 0, 4)),
    "one tile": (ta.TileLayout((16, 16), 16), 4),
}


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("case", LAYOUTS)
def test_layouts(sm90, case, dtype):  # noqa: F811
    layout, halo = LAYOUTS[case]
    check(sm90, *inputs(layout, dtype, batch=2, heads=1, dim=64), layout, halo)


@pytest.mark.parametrize("case", ["1 axis", "2 axes, overlap", "3 axes"])
@pytest.mark.parametrize("dim", [8, 40, 64, 72, 128])
def test_head_dims_grouped_heads_and_prefix(sm90, case, dim):  # noqa: F811
    layout, halo = LAYOUTS[case]
    q, k, v = inputs(layout, HALVES[dim % 3 % 2], prefix=7, heads=2, kv_heads=1, dim=dim, seed=dim)
    mask = torch.rand(layout.num_tiles, 1, 7, generator=torch.Generator().manual_seed(1)) < 0.6
    check(sm90, q, k, v, layout, halo, prefix=7, mask=mask, weight=0.5)


@pytest.mark.parametrize("weight", [0.3, 1e-30, 0.0])
def test_halo_weights(sm90, weight):  # noqa: F811
    layout, halo = LAYOUTS["1 axis"]
    check(sm90, *inputs(layout, "float16", dim=64), layout, halo, weight=weight)


@pytest.mark.parametrize("fill", ["none", "first", "some"])
def test_masks_of_several_blocks(sm90, fill):  # noqa: F811
    layout, halo = LAYOUTS["1 axis"]
    mask = torch.ones(layout.num_tiles, 1, 200, dtype=torch.bool)
    mask[..., {"none": slice(None), "first": slice(150), "some": slice(None, None, 3)}[fill]] = False
    q, k, v = inputs(layout, "bfloat16", prefix=200, heads=1, dim=64)
    check(sm90, q, k, v, layout, halo, prefix=200, mask=mask)


def test_strides_change_no_bit(sm90):  # noqa: F811
    layout, halo = LAYOUTS["1 axis"]
    q, k, v = attention_inputs(layout, batch=2, heads=2, dim=64, dtype=torch.bfloat16)
    fused = torch.cat([q, k, v], 3).split(2, dim=3)
    heads_first = [x.transpose(2, 3).contiguous().transpose(2, 3) for x in (q, k, v)]
    results = [check(sm90, *form, layout, halo) for form in ((q, k, v), (q, k, v), fused, heads_first)]
    for other in results[1:]:
        assert torch.equal(results[0], other)


@pytest.mark.parametrize("case", ["1 axis", "2 axes, overlap"])
def test_gradients(sm90, case):  # noqa: F811
    check_gradients(sm90, *LAYOUTS[case], "bfloat16", prefix=5)


def test_that_another_kernel_is_used_is_noticed(sm90):  # noqa: F811
    layout, halo = LAYOUTS["1 axis"]
    q, k, v = (x.to(DEVICE) for x in inputs(layout, "float16", heads=1, dim=8))
    ta.cross_tile_attention(q, k, v, layout, halo, backend=sm90)
    with pytest.raises(NotOfferedError, match="does not take"):
        ta.cross_tile_attention(q, k, v, layout, 3, backend=sm90)
