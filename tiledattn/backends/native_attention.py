"""Cross-tile attention by the native library: the plan as runs of consecutive tokens, and the call."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..geometry import AttentionPlan
from ..geometry.plan import MAX_BOXES
from .rotary import make_pool, pool_turns, turn_queries
from .tables import cached

MAX_RUNS = 1 << 26


class TokenRuns(NamedTuple):
    """A plan's halo as runs of consecutive canvas tokens, none across two tiles.

    The halo of tile t is, for every run of its class, the flat tokens t * N + start ... of that run; the order is
    that of `AttentionPlan.class_table`.
    """

    class_of_tile: Tensor  # int32 [T]
    starts: Tensor  # int64 [classes + 1]
    runs: Tensor  # int32 [starts[-1], 2], of (start, length)


@cached(32)
def token_runs(plan: AttentionPlan) -> TokenRuns:
    """The runs of a plan, cached by value.

    Raises:
        ValueError: the pool's tokens do not fit in int32, or the plan has more than 2^22 boxes or 2^26 runs (512 MiB).
    """
    tokens, tiles = plan.layout.tile_positions, plan.layout.num_tiles + len(plan.virtual)
    if tiles * tokens > np.iinfo(np.int32).max:
        raise ValueError(f"layout: {tiles} tiles of {tokens} tokens pass 2^31 - 1 tokens; split the canvas")
    plan.check_size("a list", plan.num_boxes, "boxes", MAX_BOXES)
    plan.check_size("a table", plan.num_runs, "runs of tokens", MAX_RUNS)
    starts = np.zeros(plan.num_classes + 1, dtype=np.int64)
    runs = np.empty((plan.num_runs, 2), dtype=np.int32)
    for number in range(plan.num_classes):
        found = plan.class_runs(number)
        starts[number + 1] = starts[number] + len(found)
        runs[starts[number] : starts[number + 1]] = found
    return TokenRuns(*map(torch.from_numpy, (plan.class_of_tile, starts, runs)))


def cross_tile_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    plan: AttentionPlan,
    num_prefix_tokens: int,
    prefix_mask: Tensor | None,
    halo_weight: float,
    scale: float,
    return_lse: bool,
    frequencies: Tensor | None = None,
    interleaved: bool = True,
) -> tuple[Tensor, Tensor]:
    """q [T, B, S, H, D], k and v [T, B, S, Hkv, D] -> out like q, lse [T, B, H, S] (empty unless asked for).

    With `frequencies` the plan is an unwrapped one; without, k and v may be the pool that the plan's tables name.
    Besides the results it takes memory for a chunk of packed keys per thread, which grows with neither the canvas nor
    the halo.
    """
    if frequencies is not None and q.numel():
        turns = pool_turns(plan, frequencies, interleaved, q)
        q, (k, v) = turn_queries(q, turns), make_pool(k, v, turns)
    tiles, batch, sequence, heads, _ = q.shape
    out = q.new_empty(q.shape)
    lse = q.new_empty((tiles, batch, heads, sequence) if return_lse else (0,), dtype=torch.float32)
    if q.numel() == 0:
        return out, lse.fill_(-math.inf)
    q, k, v = (x if x.stride(-1) == 1 else x.contiguous() for x in (q, k, v))
    torch.ops.tiledattn.cross_tile_attention_cpu.default(
        q, k, v, prefix_mask, *token_runs(plan), num_prefix_tokens, halo_weight, scale, out, lse
    )
    return out, lse
