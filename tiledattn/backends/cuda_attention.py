"""Cross-tile attention by the native library's CUDA kernels: tables of the plan, alignment, and the call."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..geometry import AttentionPlan
from .rotary import make_pool, pool_turns, turn_queries
from .tables import shared

MAX_HEAD_DIM = 256
CHUNK = 8  # elements of 16 bits in the 16 bytes that a kernel moves at once


class HaloTokens(NamedTuple):
    """A plan's halo on a device: for tile t, entries starts[c] ... starts[c + 1] - 1 with c = class_of_tile[t].

    An entry (delta, token) names canvas token `token` of the pool's tile t + delta; the order is that of
    `AttentionPlan.class_table`.
    """

    class_of_tile: Tensor  # int32 [T]
    starts: Tensor  # int64 [classes + 1]
    halo: Tensor  # int32 [starts[-1], 2]


@lru_cache(maxsize=32)
@shared
def halo_tokens(plan: AttentionPlan, device: torch.device) -> HaloTokens:
    """The plan's halo on `device`, cached by value.

    Raises:
        ValueError: the tables would be larger than 2^28 entries, or the pool's tokens do not fit in int32.
    """
    starts, index = plan.table
    halo = np.stack(np.divmod(index, np.int32(plan.layout.tile_positions)), axis=-1)
    return HaloTokens(*(torch.from_numpy(table).to(device) for table in (plan.class_of_tile, starts, halo)))


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
    Rows that don't lie on 16 bytes (an odd head dim, a stride that is not a multiple of 8 elements) are copied once.
    """
    if frequencies is not None and q.numel():
        turns = pool_turns(plan, frequencies, interleaved, q)
        q, (k, v) = turn_queries(q, turns), make_pool(k, v, turns)
    tiles, batch, sequence, heads, dim = q.shape
    lse = q.new_empty((tiles, batch, heads, sequence) if return_lse else (0,), dtype=torch.float32)
    if q.numel() == 0:
        return q.new_empty(q.shape), lse.fill_(-math.inf)
    if scale < 0:
        q, scale = -q, -scale
    padding = -dim % CHUNK
    q, k, v = (_on_chunks(x, padding) for x in (q, k, v))
    out = q.new_empty(q.shape)
    mask = None if prefix_mask is None or num_prefix_tokens == 0 else prefix_mask.contiguous()
    tables = halo_tokens(plan, q.device) if halo_weight > 0 else None
    if tables is not None and tables.halo.numel() == 0:
        tables = None
    shift = 0.0 if tables is None else math.log2(halo_weight)
    _launch(
        q, k, v, mask, *(tables or (None, None, None)), num_prefix_tokens, scale * math.log2(math.e), shift, out, lse
    )
    return (out[..., :dim].contiguous() if padding else out), lse


def _launch(*arguments: object) -> None:
    torch.ops.tiledattn.cross_tile_attention_cuda(*arguments)


def _on_chunks(x: Tensor, padding: int) -> Tensor:
    """`x` with `padding` zeros after its last dim, every row of it on 16 bytes; itself where nothing is to be done."""
    if padding:
        return F.pad(x, (0, padding)).contiguous()
    strides = [stride for size, stride in zip(x.shape[:-1], x.stride()[:-1], strict=True) if size > 1]
    aligned = x.stride(-1) == 1 and x.data_ptr() % 16 == 0 and not any(stride % CHUNK for stride in strides)
    return x if aligned else x.clone(memory_format=torch.contiguous_format)
