"""Gradients of cross-tile attention by the native library: dq over the plan, dk and dv over the reversed plan."""

from __future__ import annotations

import torch
from torch import Tensor

from ..geometry import AttentionPlan
from .native_attention import cross_tile_attention, token_runs
from .rotary import fold_pool, make_pool, pool_turns, turn_queries, turn_queries_back
from .tables import reverse_tables

_CPU = torch.device("cpu")


def cross_tile_attention_backward(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    *,
    plan: AttentionPlan,
    num_prefix_tokens: int,
    prefix_mask: Tensor | None,
    halo_weight: float,
    scale: float,
    return_lse: bool,
    frequencies: Tensor | None = None,
    interleaved: bool = True,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q [T, B, S, H, D] and of k and v [T, B, S, Hkv, D], each in its dtype and contiguous.

    With p = exp(logit - lse), delta = sum_d dO O - dlse and ds = p (dO . v - delta):
    dq = scale sum ds k over keys, dk = scale sum ds q and dv = sum p dO over queries, all in float32.

    Args:
        grad_out: the gradient dO of `out`.
        grad_lse: the gradient dlse of the lse, float32 [T, B, H, S]; None is zeros. It counts with `return_lse` only.
        q, k, v: the forward's.
        out, lse: what the forward gave; both are made again where `lse` is empty.

    Others as for the forward. Besides the results it takes a number per query row, and memory for a chunk of packed
    rows per thread, which grows with neither the canvas nor the halo.
    """
    if q.numel() == 0:
        return torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)
    pool = (k, v)
    turns = None
    if frequencies is not None:
        turns = pool_turns(plan, frequencies, interleaved, q)
        q, pool = turn_queries(q, turns), make_pool(k, v, turns)
    q, keys, values, grad_out = (_dense_last(x) for x in (q, *pool, grad_out))
    if lse.numel() == 0:
        out, lse = cross_tile_attention(
            q,
            keys,
            values,
            plan=plan,
            num_prefix_tokens=num_prefix_tokens,
            prefix_mask=prefix_mask,
            halo_weight=halo_weight,
            scale=scale,
            return_lse=True,
        )
    wide = keys.dtype if turns is None else torch.float32
    grad_q = q.new_empty(q.shape)
    grad_k, grad_v = keys.new_empty(keys.shape, dtype=wide), values.new_empty(values.shape, dtype=wide)
    torch.ops.tiledattn.cross_tile_attention_backward_cpu.default(
        grad_out,
        grad_lse.contiguous() if return_lse and grad_lse is not None else None,
        q,
        keys,
        values,
        _dense_last(out),
        lse.contiguous(),
        prefix_mask,
        *token_runs(plan),
        *reverse_tables(plan, _CPU),
        num_prefix_tokens,
        halo_weight,
        scale,
        grad_q,
        grad_k,
        grad_v,
    )
    if turns is not None:
        grad_q, (grad_k, grad_v) = turn_queries_back(grad_q, turns), fold_pool(grad_k, grad_v, turns)
    return grad_q, grad_k.to(k.dtype), grad_v.to(v.dtype)


def _dense_last(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()
