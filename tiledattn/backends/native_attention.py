"""Cross-tile attention by the native library: the plan as runs of consecutive tokens, and the call."""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..geometry import AttentionPlan
from ..geometry.plan import Rectangle
from .rotary import make_pool, pool_turns, turn_queries
from .tables import cached


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
        ValueError: the pool's tokens do not fit in int32.
    """
    tokens, tiles = plan.layout.tile_positions, plan.layout.num_tiles + len(plan.virtual)
    if tiles * tokens > np.iinfo(np.int32).max:
        raise ValueError(f"layout: {tiles} tiles of {tokens} tokens pass 2^31 - 1 tokens; split the canvas")
    of_class = [
        [_box_runs(box, plan.layout.tile) for box in plan.rectangles(number)] for number in range(plan.num_classes)
    ]
    counts = [sum(len(part) for part in parts) for parts in of_class]
    runs = np.concatenate([np.zeros((0, 2), dtype=np.int64), *itertools.chain.from_iterable(of_class)])
    return TokenRuns(
        torch.from_numpy(plan.class_of_tile),
        torch.from_numpy(np.concatenate(([0], np.cumsum(counts, dtype=np.int64))).astype(np.int64)),
        torch.from_numpy(runs.astype(np.int32)),
    )


def _box_runs(box: Rectangle, tile: tuple[int, ...]) -> NDArray[np.int64]:
    """A box's runs [n, 2]: its last axis, or several axes at once where the later ones are whole."""
    axis = len(tile) - 1
    while axis > 0 and box.shape[axis] == tile[axis]:
        axis -= 1
    inner = math.prod(tile[axis + 1 :])
    first = box.start[axis] * inner
    starts = np.zeros(1, dtype=np.int64)
    for number in range(axis):
        places = np.arange(box.start[number], box.start[number] + box.shape[number], dtype=np.int64)
        starts = (starts[:, None] + places * math.prod(tile[number + 1 :])).ravel()
    starts += box.tile_delta * math.prod(tile) + first
    return np.stack([starts, np.full_like(starts, box.shape[axis] * inner)], axis=1)


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
