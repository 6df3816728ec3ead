"""The PyTorch backend: any device and dtype that torch has, forward and (through autograd) backward.

Tiles that see equally many tokens are attended to together, a bounded number at a time, so that few SDPA calls serve
many tiles and the gathered keys and values of all tiles never exist at once.
"""

from __future__ import annotations

import itertools
import math
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ..geometry import AttentionPlan, TileLayout
from ..geometry.axis import Axis, axis_distances, axis_owned, axis_ring
from .tables import class_table, shared

NAME = "torch"
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
RUNS_ON = "every device that torch has"
PROVEN_ON = ("x86-64 CPU, 2026-11-20",)

GATHER_BYTES = {"cpu": 16 << 20}
GATHER_BYTES_ELSEWHERE = 256 << 20


def probe() -> str | None:
    """None: it runs wherever torch does."""
    return None


def rejects(op: str, device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    """None: it takes every call."""
    return None


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
) -> tuple[Tensor, Tensor]:
    """q [T, B, S, H, D], k and v [T, B, S, Hkv, D] -> out like q, lse [T, B, H, S] (empty unless asked for)."""
    tiles, batch, sequence, heads, _ = q.shape
    out = q.new_empty(q.shape)
    lse_dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    lse = q.new_empty((tiles, batch, heads, sequence) if return_lse else (0,), dtype=lse_dtype)
    if q.numel() == 0:
        return out, lse.fill_(-math.inf)
    prefix = num_prefix_tokens
    q, k, v = (_dense_last(x) for x in (q, k, v))
    for seen, members in plan.groups:
        halo = seen if halo_weight > 0 else 0
        bytes_per_tile = 2 * batch * (sequence + halo) * k.shape[3] * k.shape[4] * k.element_size()
        at_once = max(1, GATHER_BYTES.get(q.device.type, GATHER_BYTES_ELSEWHERE) // bytes_per_tile)
        for start in range(0, len(members), at_once):
            group = members[start : start + at_once]
            picked = _pick(group, q.device)
            keys, values = (_gather(x, group, plan, prefix, halo) for x in (k, v))
            mask = _column_bias(q, prefix_mask, picked, prefix, sequence, halo, halo_weight)
            queries = q[picked].flatten(0, 1)
            shape = (len(group), batch, -1, *q.shape[3:])
            for rows, columns in ((slice(0, prefix), sequence), (slice(prefix, sequence), sequence + halo)):
                if rows.start == rows.stop:
                    continue
                part = None if mask is None else mask[..., :columns]
                found, found_lse = _attend(
                    queries[:, rows], keys[:, :columns], values[:, :columns], part, scale, return_lse
                )
                out[picked, :, rows] = found.view(shape)
                if found_lse is not None:
                    lse[picked, :, :, rows] = found_lse.view(len(group), batch, heads, -1)
    return out, lse


def _dense_last(x: Tensor) -> Tensor:
    """SDPA on the CPU misreads a last dim that is not contiguous (pytorch#187506)."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def _pick(group: NDArray[np.int64], device: torch.device) -> slice | Tensor:
    """Tiles as a slice (a view) where they are consecutive, else as an index."""
    first, last = int(group[0]), int(group[-1])
    if last - first + 1 == len(group):
        return slice(first, last + 1)
    return torch.from_numpy(group).to(device)


def _gather(x: Tensor, group: NDArray[np.int64], plan: AttentionPlan, prefix: int, halo: int) -> Tensor:
    """Own and halo tokens of a group of tiles, [group * B, S + halo, Hkv, D]; a view where nothing is borrowed."""
    tiles, batch, sequence = x.shape[:3]
    if halo == 0:
        return x[_pick(group, x.device)].flatten(0, 1)
    kinds, kind_of = np.unique(plan.class_of_tile[group], return_inverse=True)
    tables = [_relative_rows(plan, int(kind), batch, sequence, prefix, x.device) for kind in kinds]
    relative = torch.stack(tables)[torch.from_numpy(kind_of).to(x.device), None]
    members = torch.from_numpy(group).to(x.device)
    first = (members[:, None] * batch + torch.arange(batch, device=x.device)) * sequence
    rows = first[:, :, None] + relative  # [group, B, S + halo]
    outer, inner, token = x.stride()[:3]
    one_stride = (tiles == 1 or outer == batch * inner) and (batch == 1 or inner == sequence * token)
    if one_stride:
        flat = x.as_strided((tiles * batch * sequence, *x.shape[3:]), (token, *x.stride()[3:]))
        return flat.index_select(0, rows.flatten()).view(len(group) * batch, -1, *x.shape[3:])
    where = (rows // (batch * sequence), rows // sequence % batch, rows % sequence)
    return x[where].flatten(0, 1)


@lru_cache(maxsize=256)
@shared
def _relative_rows(
    plan: AttentionPlan, class_index: int, batch: int, sequence: int, prefix: int, device: torch.device
) -> Tensor:
    """Rows of [T * B * S] that a tile sees, relative to its own first row: its sequence, then its halo."""
    table = class_table(plan, class_index, device)
    tokens = plan.layout.tile_positions
    delta = torch.div(table, tokens, rounding_mode="floor")
    halo = delta * (batch * sequence) + prefix + (table - delta * tokens)
    return torch.cat([torch.arange(sequence, device=device), halo])


def _column_bias(
    q: Tensor,
    prefix_mask: Tensor | None,
    picked: slice | Tensor,
    prefix: int,
    sequence: int,
    halo: int,
    halo_weight: float,
) -> Tensor | None:
    """The additive bias per key, [1 or group * B, 1, 1, S + halo], or None where there is none."""
    weighed = halo > 0 and halo_weight != 1.0
    if prefix_mask is None and not weighed:
        return None
    # CPU kernels take a float32 bias with half inputs, others want the inputs' dtype
    half = q.dtype in (torch.float16, torch.bfloat16)
    dtype = torch.float32 if half and q.device.type == "cpu" else q.dtype
    entries = 1 if prefix_mask is None else prefix_mask[picked].shape[0] * prefix_mask.shape[1]
    bias = torch.zeros(entries, 1, 1, sequence + halo, dtype=dtype, device=q.device)
    if prefix_mask is not None:
        hidden = ~prefix_mask[picked].flatten(0, 1)
        bias[:, 0, 0, :prefix].masked_fill_(hidden, -math.inf)
    if weighed:
        bias[..., sequence:] = math.log(halo_weight)
    return bias


def _attend(
    q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float, return_lse: bool
) -> tuple[Tensor, Tensor | None]:
    """q [E, Q, H, D] over k, v [E, K, Hkv, D] with a bias [1 or E, 1, 1, K] -> [E, Q, H, D], lse [E, H, Q]."""
    entries, rows, heads, dim = q.shape
    shared_by = heads // k.shape[2]
    # the bias depends on the key only, so heads that share keys become more queries of one head
    folded = q.transpose(1, 2) if shared_by == 1 else _fold_heads(q, k.shape[2])
    keys, values = k.transpose(1, 2), v.transpose(1, 2)
    if return_lse:
        out, lse = _attend_by_rows(folded, keys, values, bias, scale)
        lse = lse.reshape(entries, heads, rows)
    else:
        out, lse = F.scaled_dot_product_attention(folded, keys, values, attn_mask=bias, scale=scale), None
    out = out.reshape(entries, heads, rows, dim)
    return out.transpose(1, 2).contiguous(), lse


def _fold_heads(q: Tensor, kv_heads: int) -> Tensor:
    """[E, Q, H, D] -> [E, Hkv, (H / Hkv) * Q, D]."""
    entries, rows, heads, dim = q.shape
    return q.view(entries, rows, kv_heads, heads // kv_heads, dim).permute(0, 2, 3, 1, 4).flatten(2, 3)


def _attend_by_rows(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float) -> tuple[Tensor, Tensor]:
    """Attention with its lse, in float32 (float64 for float64), a bounded number of query rows at a time."""
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    keys, values = k.to(dtype).transpose(-1, -2), v.to(dtype)
    row_bytes = max(1, q.shape[0] * q.shape[1] * k.shape[2] * keys.element_size())
    outs, lses = [], []
    for rows in torch.split(q, max(1, GATHER_BYTES["cpu"] // row_bytes), dim=2):
        logits = (rows.to(dtype) * scale) @ keys
        if bias is not None:
            logits = logits + bias.to(dtype)
        lse = torch.logsumexp(logits, dim=-1)
        outs.append((torch.exp(logits - lse[..., None]) @ values).to(q.dtype))
        lses.append(lse)
    return torch.cat(outs, 2), torch.cat(lses, 2)


def _on_grid(tiles: Tensor, layout: TileLayout) -> Tensor:
    """[T, B, C, *tile] -> [*grid, B, C, *tile]."""
    return tiles.reshape(*layout.grid, *tiles.shape[1:])


def _even_runs(origins: tuple[int, ...]) -> list[tuple[int, int, int]]:
    """Origins as runs of one step: (first tile, number of tiles, step)."""
    runs, first = [], 0
    while first < len(origins):
        step = origins[first + 1] - origins[first] if first + 1 < len(origins) else 1
        last = first
        while last + 1 < len(origins) and origins[last + 1] - origins[last] == step:
            last += 1
        runs.append((first, last - first + 1, step))
        first = last + 1
    return runs


def extract_tiles(canvas: Tensor, *, layout: TileLayout) -> Tensor:
    """[B, C, *size] -> [T, B, C, *tile]: one strided copy per run of evenly spaced tiles."""
    axes = len(layout.size)
    for d, (axis, origins) in enumerate(zip(layout.axes, layout.axis_origins, strict=True)):
        beyond = origins[-1] + axis.tile - axis.length
        if beyond > 0:
            canvas = torch.cat([canvas, canvas.narrow(2 + d, 0, beyond)], 2 + d)
    out = canvas.new_empty((*layout.grid, *canvas.shape[:2], *layout.tile))
    order = (*range(2, 2 + axes), 0, 1, *range(2 + axes, 2 + 2 * axes))
    for runs in itertools.product(*(_even_runs(origins) for origins in layout.axis_origins)):
        view = canvas
        for d, (first, count, step) in enumerate(runs):
            width, origin = layout.tile[d], layout.axis_origins[d][first]
            view = view.narrow(2 + d, origin, (count - 1) * step + width).unfold(2 + d, width, step)
        out[tuple(slice(first, first + count) for first, count, _ in runs)] = view.permute(order)
    return out.flatten(0, axes - 1)


def blend_tiles(tiles: Tensor, *, layout: TileLayout, weights: tuple[Tensor, ...]) -> Tensor:
    """[T, B, C, *tile] -> [B, C, *size], weights per axis [tiles on the axis, tile], summing to 1 everywhere."""
    return _add_up(tiles, layout, weights).to(tiles.dtype)


def sum_tiles(tiles: Tensor, *, layout: TileLayout) -> Tensor:
    """The transpose of `extract_tiles`: [T, B, C, *tile] -> [B, C, *size], overlaps added."""
    return _add_up(tiles, layout, None).to(tiles.dtype)


def weigh_tiles(tiles: Tensor, *, layout: TileLayout, weights: tuple[Tensor, ...]) -> Tensor:
    """Each tile times its blend weights."""
    axes = len(layout.size)
    x = _on_grid(tiles, layout)
    for d, table in enumerate(weights):
        shape = [1] * x.ndim
        shape[d], shape[axes + 2 + d] = table.shape
        x = x * table.view(shape)
    return x.flatten(0, axes - 1).to(tiles.dtype).contiguous()


def _add_up(tiles: Tensor, layout: TileLayout, weights: tuple[Tensor, ...] | None) -> Tensor:
    """Weighted overlap-add, one axis after the other from the last, in the order of the tiles."""
    dtype = torch.float64 if tiles.dtype == torch.float64 else torch.float32
    x = _on_grid(tiles, layout)
    for d in reversed(range(len(layout.size))):
        axis, origins = layout.axes[d], layout.axis_origins[d]
        dim = 2 * d + 2  # of the canvas axis, once the grid's dim d is gone
        shape = [*x.shape[:d], *x.shape[d + 1 :]]
        shape[dim] = axis.length
        canvas = x.new_zeros(shape, dtype=dtype)
        for i, origin in enumerate(origins):
            piece = x.select(d, i).to(dtype)
            fits = min(axis.tile, axis.length - origin)
            for start, length, place in ((0, fits, origin), (fits, axis.tile - fits, 0)):
                if length == 0:
                    continue
                part, target = piece.narrow(dim, start, length), canvas.narrow(dim, place, length)
                if weights is None:
                    target.add_(part)
                else:
                    spread = weights[d][i, start : start + length].view(-1, *(1,) * (part.ndim - dim - 1))
                    target.addcmul_(part, spread)
        x = canvas
    return x


def pad_tiles(tiles: Tensor, *, layout: TileLayout, pad: tuple[tuple[int, int], ...]) -> Tensor:
    """[T, B, C, *tile] -> [T, B, C, *(before + tile + after)]: one axis after the other, a few copies each."""
    x = _on_grid(tiles, layout)
    for d, (axis, (before, after)) in enumerate(zip(layout.axes, pad, strict=True)):
        if before or after:
            x = _pad_axis(x, d, axis, before, after)
    x = x.flatten(0, len(layout.grid) - 1)
    return x.clone(memory_format=torch.contiguous_format) if not any(map(any, pad)) else x


def _pad_axis(x: Tensor, d: int, axis: Axis, before: int, after: int) -> Tensor:
    dim = x.ndim // 2 + 1 + d
    shape = list(x.shape)
    shape[dim] += before + after
    out = x.new_zeros(shape)
    for (delta, start, length, offset), first, last in _ring_copies(axis, before, after):
        target = out.narrow(d, first, last - first).narrow(dim, before + offset, length)
        target.copy_(x.narrow(d, first + delta, last - first).narrow(dim, start, length))
    return out


@lru_cache(maxsize=1024)
def _ring_copies(axis: Axis, before: int, after: int) -> list[tuple[tuple[int, int, int, int], int, int]]:
    """`axis_ring` as ((source - tile, start, length, offset), first tile, last tile + 1), alike neighbours together."""
    runs: list[tuple[tuple[int, int, int, int], int, int]] = []
    latest: dict[tuple[int, int, int, int], int] = {}
    for tile, segments in enumerate(axis_ring(axis, before, after)):
        for s in segments:
            key = (s.source - tile, s.start, s.length, s.offset)
            number = latest.get(key)
            if number is not None and runs[number][2] == tile:
                runs[number] = (key, runs[number][1], tile + 1)
            else:
                latest[key] = len(runs)
                runs.append((key, tile, tile + 1))
    return runs


def group_norm_tiles(
    tiles: Tensor,
    *,
    layout: TileLayout,
    num_groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    scope: str,
) -> Tensor:
    """Group normalisation with statistics over "tile", "neighbours" or "canvas", in float32 or float64."""
    if scope == "tile" or tiles.numel() == 0:
        return F.group_norm(tiles.flatten(0, 1), num_groups, weight, bias, eps).view(tiles.shape).contiguous()
    count, batch, channels = tiles.shape[:3]
    dtype = torch.float64 if tiles.dtype == torch.float64 else torch.float32
    x = tiles.to(dtype)
    mean, var, share = _tile_moments(x.reshape(count, batch, num_groups, -1), layout)
    mean, var = _merge_moments(mean, var, share, layout, scope)
    per_group = torch.rsqrt(var + eps)
    per_channel = (-1, batch, num_groups, channels // num_groups)
    factor = per_group[..., None].expand(per_channel).reshape(-1, batch, channels)
    shift = (-mean * per_group)[..., None].expand(per_channel).reshape(-1, batch, channels)
    if weight is not None:
        factor, shift = factor * weight, shift * weight
    if bias is not None:
        shift = shift + bias
    spread = (...,) + (None,) * len(layout.tile)
    return torch.addcmul(shift[spread], x, factor[spread]).to(tiles.dtype).contiguous()


def _tile_moments(x: Tensor, layout: TileLayout) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and variance [T, B, G] of each tile's owned positions, and how many those are [T]; x is [T, B, G, ...]."""
    owned = _owned_positions(layout, x.device)
    positions = owned.sum(-1).to(x.dtype)
    if bool((positions == layout.tile_positions).all()):
        var, mean = torch.var_mean(x, dim=-1, correction=0)
        return mean, var, positions
    x = x.view(*x.shape[:3], -1, layout.tile_positions)
    mask = owned.to(x.dtype)[:, None, None, None, :]
    total = (positions * x.shape[3]).clamp(min=1)[:, None, None]
    mean = (x * mask).sum((-1, -2)) / total
    var = ((x - mean[..., None, None]).square() * mask).sum((-1, -2)) / total
    return mean, var, positions


@lru_cache(maxsize=256)
@shared
def _owned_positions(layout: TileLayout, device: torch.device) -> Tensor:
    """Bool [T, N]: the positions of each tile that it owns."""
    owned = np.ones((1, 1), dtype=np.bool_)
    for axis in layout.axes:
        table = axis_owned(axis)
        owned = owned[:, None, :, None] & table[None, :, None, :]
        owned = owned.reshape(owned.shape[0] * owned.shape[1], -1)
    return torch.from_numpy(owned).to(device)


def _merge_moments(mean: Tensor, var: Tensor, share: Tensor, layout: TileLayout, scope: str) -> tuple[Tensor, Tensor]:
    """Moments over the scope, [T or 1, B, G], from each tile's moments and number of positions."""
    kept = mean.dtype
    # the few moments are merged in float64, where the device has it: their differences may cancel
    dtype = torch.float32 if mean.device.type == "mps" else torch.float64
    mean, var, share = mean.to(dtype), var.to(dtype), share.to(dtype)
    near = share[None] if scope == "canvas" else _nearness(layout, mean.device, dtype) * share
    near = near / near.sum(1, keepdim=True)
    merged = torch.einsum("tu,ubg->tbg", near, mean)
    square = torch.einsum("tu,ubg->tbg", near, var + mean.square()) - merged.square()
    return merged.to(kept), square.clamp(min=0).to(kept)


@lru_cache(maxsize=256)
@shared
def _nearness(layout: TileLayout, device: torch.device, dtype: torch.dtype) -> Tensor:
    """What each tile counts for in each other's statistics, [T, T]."""
    table = np.ones((1, 1))
    for axis in layout.axes:
        hat = np.maximum(0.0, 1.0 - axis_distances(axis) / (2.0 * axis.tile))
        table = np.asarray(np.kron(table, hat), dtype=np.float64)
    return torch.from_numpy(table).to(device=device, dtype=dtype)
