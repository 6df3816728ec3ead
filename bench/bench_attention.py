"""Cross-tile attention against what one would write by hand: gather keys and values, then one SDPA call.

Every way is checked against float64 before its figure is taken; heads are independent, so one of many is enough.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from support import assert_within_budget, attention_inputs
from torch import Tensor

import tiledattn as ta
from tiledattn.geometry import attention_plan

CASES = {
    "3x3 of 32x32, halo 8, H4 D64 B2": (ta.TileLayout((96, 96), 32, 0, True), 8, 4, 64, 2),
    "4x4 of 16x16, halo 4, H8 D64 B2": (ta.TileLayout((64, 64), 16, 0, True), 4, 8, 64, 2),
    "2x2 of 64x64, halo 16, H24 D128 B1": (ta.TileLayout((128, 128), 64, 0, True), 16, 24, 128, 1),
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def gathered_rows(layout: ta.TileLayout, halo: int) -> Tensor:
    """Flat tokens that each tile sees, [T, M]: on a periodic canvas all tiles see equally many."""
    plan = attention_plan(layout, (halo, halo))
    tokens = layout.tile_positions
    own = torch.arange(layout.num_tiles * tokens).view(layout.num_tiles, tokens)
    tables = [torch.from_numpy(plan.class_table(int(c))) + t * tokens for t, c in enumerate(plan.class_of_tile)]
    return torch.cat([own, torch.stack(tables)], 1)


def gather_and_attend(q: Tensor, k: Tensor, v: Tensor, rows: Tensor) -> Tensor:
    tiles, batch, tokens, heads, dim = q.shape

    def gather(x: Tensor) -> Tensor:
        flat = x.transpose(1, 2).reshape(tiles * tokens, batch, heads, dim)
        return flat[rows].permute(0, 2, 3, 1, 4).flatten(0, 1)

    out = F.scaled_dot_product_attention(q.flatten(0, 1).transpose(1, 2), gather(k), gather(v))
    return out.transpose(1, 2).unflatten(0, (tiles, batch))


def sees(layout: ta.TileLayout, rows: Tensor) -> Tensor:
    """Bool [T, T * N]: whether a tile sees a flat token."""
    seen = torch.zeros(layout.num_tiles, layout.num_tiles * layout.tile_positions, dtype=torch.bool)
    return seen.scatter_(1, rows, True)


def flex(layout: ta.TileLayout, rows: Tensor) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """FlexAttention over all tiles' tokens at once, compiled, with the block mask made beforehand."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    seen, size = sees(layout, rows), layout.tile_positions
    tokens = layout.num_tiles * size
    mask = create_block_mask(lambda b, h, i, j: seen[i // size, j], None, None, tokens, tokens, device="cpu")
    compiled = torch.compile(flex_attention, dynamic=False)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        whole = (x.transpose(0, 1).flatten(1, 2).transpose(1, 2) for x in (q, k, v))
        out = compiled(*whole, block_mask=mask)
        return out.transpose(1, 2).unflatten(1, (layout.num_tiles, size)).transpose(0, 1)

    return attend


def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    out = F.scaled_dot_product_attention(*(x.flatten(0, 1).transpose(1, 2) for x in (q, k, v)))
    return out.transpose(1, 2).unflatten(0, q.shape[:2])


def ways_to(layout: ta.TileLayout, halo: int) -> dict[str, Callable[[], Callable[[Tensor, Tensor, Tensor], Tensor]]]:
    """By name: makes a function of q, k and v."""
    rows = gathered_rows(layout, halo)
    ours = partial(ta.cross_tile_attention, layout=layout, halo=halo)
    return {
        "cpu": lambda: partial(ours, backend="cpu"),
        "torch": lambda: partial(ours, backend="torch"),
        "gather + SDPA": lambda: partial(gather_and_attend, rows=rows),
        "FlexAttention": lambda: flex(layout, rows),
        "SDPA, no halo": lambda: plain,
    }


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("way", ["cpu", "torch", "gather + SDPA", "FlexAttention", "SDPA, no halo"])
@torch.no_grad()
def test_attention(benchmark, way, case, dtype):
    layout, halo, heads, dim, batch = CASES[case]
    large = layout.num_tiles * layout.tile_positions > 10000
    if way == "FlexAttention" and large:
        pytest.skip("its mask is made from a table of all pairs of tokens")
    if way == "cpu" and ta.backends()["cpu"] is not None:
        pytest.skip(str(ta.backends()["cpu"]))
    q, k, v = attention_inputs(layout, batch=batch, heads=heads, dim=dim, dtype=DTYPES[dtype])
    attend = ways_to(layout, halo)[way]()
    found, one = attend(q, k, v), [x[:, :1, :, :1] for x in (q, k, v)]
    by_hand = plain if way == "SDPA, no halo" else partial(gather_and_attend, rows=gathered_rows(layout, halo))
    assert_within_budget(found[:, :1, :, :1], by_hand(*one), by_hand(*(x.double() for x in one)))
    pairs = attention_plan(layout, (halo * (way != "SDPA, no halo"),) * 2).num_pairs
    benchmark.group = f"attention, {case}, {dtype}"
    benchmark.extra_info["gflop"] = 4e-9 * pairs * batch * heads * dim
    benchmark.pedantic(attend, args=(q, k, v), rounds=3 if large else 9, warmup_rounds=0 if large else 1)


TINY = ta.TileLayout((8, 8), 4)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("way", ["cpu", "SDPA, no halo"])
@torch.no_grad()
def test_overhead_of_a_call(benchmark, way, dtype):
    q, k, v = attention_inputs(TINY, dim=16, dtype=DTYPES[dtype])
    attend = ways_to(TINY, 2)[way]()
    benchmark.group = f"attention, overhead: 2x2 tiles of 4x4, H2 D16, {dtype}"
    benchmark.pedantic(attend, args=(q, k, v), rounds=50, iterations=50, warmup_rounds=2)
