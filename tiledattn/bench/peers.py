"""Attention without tiledattn: gathered keys and values, block masks, dense masks."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

import tiledattn as ta
from tiledattn.geometry import attention_plan

from .ways import NotOfferedError

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]

FLEX_BLOCK = 128


@cache
def gathered_rows(layout: ta.TileLayout, halo: tuple[int, ...], device: torch.device) -> Tensor:
    """Flat tokens that each tile sees, [T, M]: on a periodic canvas all tiles see equally many."""
    plan = attention_plan(layout, halo)
    tokens = layout.tile_positions
    own = torch.arange(layout.num_tiles * tokens).view(layout.num_tiles, tokens)
    tables = [torch.from_numpy(plan.class_table(int(c))) + t * tokens for t, c in enumerate(plan.class_of_tile)]
    return torch.cat([own, torch.stack(tables)], 1).to(device)


def gather(x: Tensor, rows: Tensor) -> Tensor:
    """[T, B, N, H, D] -> [T * B, H, M, D]: what each tile sees."""
    tiles, batch, tokens, heads, dim = x.shape
    flat = x.transpose(1, 2).reshape(tiles * tokens, batch, heads, dim)
    return flat[rows].permute(0, 2, 3, 1, 4).flatten(0, 1)


def attend_gathered(q: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """SDPA of every tile's queries, [T, B, N, H, D], over what was gathered for it."""
    out = F.scaled_dot_product_attention(q.flatten(0, 1).transpose(1, 2), keys, values)
    return out.transpose(1, 2).unflatten(0, q.shape[:2])


def gather_and_attend(q: Tensor, k: Tensor, v: Tensor, rows: Tensor) -> Tensor:
    """What one would write by hand."""
    return attend_gathered(q, gather(k, rows), gather(v, rows))


def without_halo(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Ordinary attention inside each tile."""
    out = F.scaled_dot_product_attention(*(x.flatten(0, 1).transpose(1, 2) for x in (q, k, v)))
    return out.transpose(1, 2).unflatten(0, q.shape[:2])


def sees(tokens: int, rows: Tensor) -> Tensor:
    """Bool [T, T * N]: whether a tile sees a flat token."""
    seen = torch.zeros(len(rows), len(rows) * tokens, dtype=torch.bool, device=rows.device)
    return seen.scatter_(1, rows, True)


def whole(x: Tensor) -> Tensor:
    """[T, B, N, H, D] -> [B, H, T * N, D]."""
    return x.transpose(0, 1).flatten(1, 2).transpose(1, 2)


def tiled(out: Tensor, tiles: int) -> Tensor:
    """[B, H, T * N, D] -> [T, B, N, H, D]."""
    return out.transpose(1, 2).unflatten(1, (tiles, -1)).transpose(0, 1)


def flex_attention(tokens: int, rows: Tensor, most: int | None = None) -> Attend:
    """FlexAttention over all tiles' tokens at once, compiled, with the block mask made beforehand.

    Raises:
        NotOfferedError: a mask's block would lie across two tiles, or there are more than `most` tokens in all.
    """
    from torch.nn.attention import flex_attention as flex

    if most is not None and len(rows) * tokens > most:
        raise NotOfferedError(f"{len(rows) * tokens} tokens would take minutes; measured up to {most}")
    if tokens % FLEX_BLOCK:
        raise NotOfferedError(f"tiles of {tokens} tokens are not whole blocks of {FLEX_BLOCK}")
    seen = sees(tokens, rows)
    blocks = seen.unflatten(1, (-1, FLEX_BLOCK))
    full, partial = blocks.all(-1), blocks.any(-1) & ~blocks.all(-1)

    def listed(chosen: Tensor) -> tuple[Tensor, Tensor]:
        of_queries = chosen.repeat_interleave(tokens // FLEX_BLOCK, 0)[None, None]
        order = torch.argsort(of_queries.int(), dim=-1, descending=True, stable=True)
        return of_queries.sum(-1, dtype=torch.int32), order.to(torch.int32)

    mask = flex.BlockMask.from_kv_blocks(
        *listed(partial), *listed(full), BLOCK_SIZE=FLEX_BLOCK, mask_mod=lambda b, h, i, j: seen[i // tokens, j]
    )
    compiled = torch.compile(flex.flex_attention, dynamic=False)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return tiled(compiled(whole(q), whole(k), whole(v), block_mask=mask), len(rows))

    return attend


def dense_attention(tokens: int, rows: Tensor, most: int) -> Attend:
    """SDPA over all tiles' tokens at once with a mask of all pairs.

    Raises:
        NotOfferedError: more than `most` tokens in all, for which the mask is too large to be worth it.
    """
    total = len(rows) * tokens
    if total > most:
        raise NotOfferedError(f"a mask of {total} x {total} tokens; measured up to {most}")
    mask = sees(tokens, rows).repeat_interleave(tokens, 0)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return tiled(F.scaled_dot_product_attention(whole(q), whole(k), whole(v), mask), len(rows))

    return attend
