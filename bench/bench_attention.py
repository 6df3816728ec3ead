"""Cross-tile attention against what one would write by hand: gather keys and values, then one SDPA call."""

from __future__ import annotations

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


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("way", ["tiledattn", "gather + SDPA", "SDPA, no halo"])
def test_attention(benchmark, way, case, dtype):
    layout, halo, heads, dim, batch = CASES[case]
    q, k, v = attention_inputs(layout, batch=batch, heads=heads, dim=dim, dtype=DTYPES[dtype])
    rows = gathered_rows(layout, halo)
    exact = gather_and_attend(q.double(), k.double(), v.double(), rows)
    plain = gather_and_attend(q, k, v, rows)
    assert_within_budget(ta.cross_tile_attention(q, k, v, layout, halo), plain, exact)
    ways = {
        "tiledattn": lambda: ta.cross_tile_attention(q, k, v, layout, halo),
        "gather + SDPA": lambda: gather_and_attend(q, k, v, rows),
        "SDPA, no halo": lambda: F.scaled_dot_product_attention(*(x.flatten(0, 1).transpose(1, 2) for x in (q, k, v))),
    }
    benchmark.group = f"attention, {case}, {dtype}"
    benchmark.pedantic(ways[way], rounds=7, warmup_rounds=1)
