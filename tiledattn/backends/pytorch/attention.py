"""Cross-tile attention by gathering and SDPA.

Tiles that see equally many tokens are attended to together, a bounded number at a time, so that few SDPA calls serve
many tiles and the gathered keys and values of all tiles never exist at once. The backward goes group by group too.
Keys and values may be a pool of more tiles than there are queries: tile t's own are number t, others are listed only.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ...geometry import AttentionPlan
from ..rotary import fold_pool, make_pool, pool_turns, turn_queries, turn_queries_back
from ..tables import attention_tables, group_members

GATHER_BYTES = {"cpu": 16 << 20}
GATHER_BYTES_ELSEWHERE = 256 << 20


@dataclass(frozen=True)
class _Call:
    """The plain arguments of one call, and the sizes that follow from its tensors."""

    plan: AttentionPlan
    prefix: int
    mask: Tensor | None
    halo_weight: float
    scale: float
    return_lse: bool
    batch: int
    sequence: int


@dataclass(frozen=True)
class _Group:
    """Tiles attended to at once.

    `picked` selects them, as a slice where they are consecutive; `rows` int64 [g * B * (S + halo)] are the rows of
    [T' * B * S] that hold the tokens they see, own ones first, or None where a tile sees its own only.
    """

    picked: slice | Tensor
    count: int
    halo: int
    rows: Tensor | None


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
    """
    if frequencies is not None and q.numel():
        turns = pool_turns(plan, frequencies, interleaved, q)
        q, (k, v) = turn_queries(q, turns), make_pool(k, v, turns)
    tiles, batch, sequence, heads, _ = q.shape
    call = _Call(plan, num_prefix_tokens, prefix_mask, halo_weight, scale, return_lse, batch, sequence)
    out = q.new_empty(q.shape)
    lse = q.new_empty((tiles, batch, heads, sequence) if return_lse else (0,), dtype=_wide(q.dtype))
    if q.numel() == 0:
        return out, lse.fill_(-math.inf)
    q, k, v = (_dense_last(x) for x in (q, k, v))
    for group in _groups(call, k):
        found, found_lse = _attend_group(
            q[group.picked].flatten(0, 1), _gather(k, group), _gather(v, group), group, call
        )
        out[group.picked] = _per_tile(found, group.count)
        if found_lse is not None:
            lse[group.picked] = _per_tile(found_lse, group.count)
    return out, lse


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
    """Gradients of q, k and v, each group of tiles recomputed on its own (`out` and `lse` are not read) and added up.

    `grad_lse` counts with `return_lse` only; None is zeros.
    """
    if q.numel() == 0:
        grads = tuple(torch.zeros_like(x, memory_format=torch.contiguous_format) for x in (q, k, v))
        return grads[0], grads[1], grads[2]
    batch, sequence = q.shape[1:3]
    weighs_lse = return_lse and grad_lse is not None
    call = _Call(plan, num_prefix_tokens, prefix_mask, halo_weight, scale, weighs_lse, batch, sequence)
    if frequencies is None:
        grad_q, grad_k, grad_v = _pool_backward(grad_out, grad_lse, q, k, v, call)
    else:
        turns = pool_turns(plan, frequencies, interleaved, q)
        turned = turn_queries(q, turns), *make_pool(k, v, turns)
        grad_q, grad_k, grad_v = _pool_backward(grad_out, grad_lse, *turned, call)
        grad_q, (grad_k, grad_v) = turn_queries_back(grad_q, turns), fold_pool(grad_k, grad_v, turns)
    return grad_q, grad_k.to(k.dtype), grad_v.to(v.dtype)


def _pool_backward(
    grad_out: Tensor, grad_lse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, call: _Call
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q, in its dtype, and of a pool k, v [T', B, S, Hkv, D], in float32 (float64 for float64)."""
    sums = [torch.zeros(x.shape, dtype=_wide(x.dtype), device=x.device) for x in (k, v)]
    grad_q = torch.zeros_like(q, memory_format=torch.contiguous_format)
    q, k, v = (_dense_last(x) for x in (q, k, v))
    for group in _groups(call, k):
        leaves = [x.detach() for x in (q[group.picked].flatten(0, 1), _gather(k, group), _gather(v, group))]
        grads = [grad_out[group.picked].flatten(0, 1)]
        if call.return_lse and grad_lse is not None:
            grads.append(grad_lse[group.picked].flatten(0, 1))
        with torch.enable_grad():
            leaves = [x.requires_grad_() for x in leaves]
            queries, keys, values = leaves
            out, lse = _attend_group(queries, keys, values, group, call)
            outputs = (out,) if lse is None else (out, lse)
            found = torch.autograd.grad(outputs, leaves, grads)
        grad_q[group.picked] = _per_tile(found[0], group.count)
        for total, part in zip(sums, found[1:], strict=True):
            if group.rows is None:
                total[group.picked] += _per_tile(part, group.count)
            else:
                total.flatten(0, 2).index_add_(0, group.rows, part.flatten(0, 1).to(total.dtype))
    return grad_q, sums[0], sums[1]


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _per_tile(x: Tensor, count: int) -> Tensor:
    """[g * B, ...] -> [g, B, ...]."""
    return x.view(count, -1, *x.shape[1:])


def _dense_last(x: Tensor) -> Tensor:
    """SDPA on the CPU misreads a last dim that is not contiguous (pytorch#187506)."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def _budget(device: torch.device) -> int:
    return GATHER_BYTES.get(device.type, GATHER_BYTES_ELSEWHERE)


def _groups(call: _Call, k: Tensor) -> Iterator[_Group]:
    """The plan's groups, cut so that a group's gathered keys and values stay within the budget."""
    token_bytes = 2 * call.batch * k.shape[3] * k.shape[4] * k.element_size()
    for (seen, numbers), members in zip(call.plan.groups, group_members(call.plan, k.device), strict=True):
        halo = seen if call.halo_weight > 0 else 0
        at_once = max(1, _budget(k.device) // (token_bytes * (call.sequence + halo)))
        for start in range(0, len(numbers), at_once):
            part = members[start : start + at_once]
            first, last = int(numbers[start]), int(numbers[start + len(part) - 1])
            together = last - first + 1 == len(part)
            rows = _rows(call, part, halo) if halo else None
            yield _Group(slice(first, last + 1) if together else part, len(part), halo, rows)


def _rows(call: _Call, members: Tensor, halo: int) -> Tensor:
    """Rows of [T' * B * S] of what each of the tiles sees: its sequence, then its halo."""
    device, tokens = members.device, call.plan.layout.tile_positions
    tables = attention_tables(call.plan, device)
    entries = tables.starts[tables.class_of_tile[members].long()][:, None] + torch.arange(halo, device=device)
    flat = tables.index[entries] + members[:, None] * tokens  # [g, halo]
    source = torch.div(flat, tokens, rounding_mode="floor")
    borrowed = source * (call.batch * call.sequence) + call.prefix + (flat - source * tokens)
    own = members[:, None] * (call.batch * call.sequence) + torch.arange(call.sequence, device=device)
    entry = torch.arange(call.batch, device=device)[:, None] * call.sequence
    return (torch.cat([own, borrowed], 1)[:, None] + entry).flatten()


def _gather(x: Tensor, group: _Group) -> Tensor:
    """Own and halo tokens of a group of tiles, [g * B, S + halo, Hkv, D]; a view where nothing is borrowed."""
    if group.rows is None:
        return x[group.picked].flatten(0, 1)
    tiles, batch, sequence = x.shape[:3]
    outer, inner, token = x.stride()[:3]
    one_stride = (tiles == 1 or outer == batch * sequence * token) and (batch == 1 or inner == sequence * token)
    if one_stride:
        flat = x.as_strided((tiles * batch * sequence, *x.shape[3:]), (token, *x.stride()[3:]))
        found = flat.index_select(0, group.rows)
    else:
        rows = group.rows
        found = x[rows // (batch * sequence), rows // sequence % batch, rows % sequence]
    return found.view(group.count * batch, -1, *x.shape[3:])


def _attend_group(
    q: Tensor, keys: Tensor, values: Tensor, group: _Group, call: _Call
) -> tuple[Tensor, Tensor] | tuple[Tensor, None]:
    """q [E, S, H, D] over keys, values [E, S + halo, Hkv, D] -> [E, S, H, D], lse [E, H, S]; E = g * B.

    Prefix rows see their own sequence only.
    """
    bias = _column_bias(q, group, call)
    outs, lses = [], []
    for rows, columns in ((slice(0, call.prefix), call.sequence), (slice(call.prefix, call.sequence), keys.shape[1])):
        if rows.start == rows.stop:
            continue
        part = None if bias is None else bias[..., :columns]
        out, lse = _attend(q[:, rows], keys[:, :columns], values[:, :columns], part, call)
        outs.append(out)
        lses.append(lse)
    whole = outs[0] if len(outs) == 1 else torch.cat(outs, 1)
    return (whole, torch.cat(lses, 2)) if call.return_lse else (whole, None)


def _column_bias(q: Tensor, group: _Group, call: _Call) -> Tensor | None:
    """The additive bias per key, [1 or E, 1, 1, S + halo], or None where there is none."""
    weighed = group.halo > 0 and call.halo_weight != 1.0
    if call.mask is None and not weighed:
        return None
    # CPU kernels take a float32 bias with half inputs, others want the inputs' dtype
    half = q.dtype in (torch.float16, torch.bfloat16)
    dtype = torch.float32 if half and q.device.type == "cpu" else q.dtype
    entries = 1 if call.mask is None else q.shape[0]
    bias = torch.zeros(entries, 1, 1, call.sequence + group.halo, dtype=dtype, device=q.device)
    if call.mask is not None:
        hidden = ~call.mask[group.picked].flatten(0, 1)
        bias[:, 0, 0, : call.prefix].masked_fill_(hidden, -math.inf)
    if weighed:
        bias[..., call.sequence :] = math.log(call.halo_weight)
    return bias


def _attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, call: _Call) -> tuple[Tensor, Tensor]:
    """q [E, Q, H, D] over k, v [E, K, Hkv, D], bias [1 or E, 1, 1, K] -> [E, Q, H, D], lse [E, H, Q] (or empty)."""
    entries, rows, heads, dim = q.shape
    shared_by = heads // k.shape[2]
    # the bias depends on the key only, so heads that share keys become more queries of one head
    folded = q.transpose(1, 2) if shared_by == 1 else _fold_heads(q, k.shape[2])
    keys, values = k.transpose(1, 2), v.transpose(1, 2)
    if call.return_lse:
        out, lse = _InParts.apply(folded, keys, values, bias, call.scale)  # type: ignore[no-untyped-call]
        lse = lse.reshape(entries, heads, rows)
    else:
        out = F.scaled_dot_product_attention(folded, keys, values, attn_mask=bias, scale=call.scale)
        lse = out.new_empty(0)
    return out.reshape(entries, heads, rows, dim).transpose(1, 2), lse


def _fold_heads(q: Tensor, kv_heads: int) -> Tensor:
    """[E, Q, H, D] -> [E, Hkv, (H / Hkv) * Q, D]."""
    entries, rows, heads, dim = q.shape
    return q.reshape(entries, rows, kv_heads, heads // kv_heads, dim).permute(0, 2, 3, 1, 4).flatten(2, 3)


class _InParts(torch.autograd.Function):
    """Attention with its lse, out [E, H, Q, D] and lse [E, H, Q], of which neither direction keeps all logits."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
        """q [E, H, Q, D] over k, v [E, H, K, D] and a bias [1 or E, 1, 1, K]."""
        ctx.save_for_backward(q, k, v, bias)
        ctx.scale = scale
        return _attend_in_parts(q, k, v, bias, scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor, grad_lse: Tensor) -> tuple[Tensor | None, ...]:
        """With weights P = softmax(S): dS = P * (dP - sum(P * dP) + dlse), dP = dO V^T."""
        q, k, v, bias = ctx.saved_tensors
        wide = _wide(q.dtype)
        grad_q = torch.empty_like(q)
        grad_k, grad_v = (torch.zeros(x.shape, dtype=wide, device=x.device) for x in (k, v))
        for part, rows in _parts(q, k):
            at = (part, slice(None), rows)
            keys, values, queries = k[part].to(wide), v[part].to(wide), q[at].to(wide) * ctx.scale
            weights = torch.softmax(_logits(queries, keys, bias, part), dim=-1)
            grad = grad_out[at].to(wide)
            slopes = grad @ values.transpose(-1, -2)
            slopes += grad_lse[at][..., None] - (weights * slopes).sum(-1, keepdim=True)
            slopes *= weights
            grad_q[at] = (slopes @ keys) * ctx.scale
            grad_k[part] += slopes.transpose(-1, -2) @ queries
            grad_v[part] += weights.transpose(-1, -2) @ grad
        return grad_q, grad_k.to(k.dtype), grad_v.to(v.dtype), None, None


def _parts(q: Tensor, k: Tensor) -> Iterator[tuple[slice, slice]]:
    """Entries and rows of q [E, H, Q, D] whose logits over k [E, H, K, D] stay within the budget."""
    budget = _budget(q.device)
    row_bytes = q.shape[1] * k.shape[2] * _wide(q.dtype).itemsize
    entries, rows = max(1, budget // (row_bytes * q.shape[2])), max(1, budget // row_bytes)
    for first in range(0, q.shape[0], entries):
        for row in range(0, q.shape[2], rows):
            yield slice(first, first + entries), slice(row, row + rows)


def _attend_in_parts(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """Attention with its lse in float32 (float64 for float64), as many entries or rows at once as the budget holds."""
    wide = _wide(q.dtype)
    out, lse = torch.empty_like(q), q.new_empty(q.shape[:3], dtype=wide)
    for part, rows in _parts(q, k):
        at = (part, slice(None), rows)
        logits = _logits(q[at].to(wide) * scale, k[part].to(wide), bias, part)
        # not exp(logits - lse): a large lse is rounded, and the weights would no longer sum to 1
        out[at] = (torch.softmax(logits, dim=-1) @ v[part].to(wide)).to(q.dtype)
        lse[at] = torch.logsumexp(logits, dim=-1)
    return out, lse


def _logits(queries: Tensor, keys: Tensor, bias: Tensor | None, part: slice) -> Tensor:
    """Scaled queries times keys, and the bias of these entries."""
    logits = queries @ keys.transpose(-1, -2)
    return logits if bias is None else logits.add_(bias[part if bias.shape[0] > 1 else slice(None)])
