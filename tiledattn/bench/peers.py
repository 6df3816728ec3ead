"""Attention without tiledattn: gathered keys and values, block masks, dense masks, the whole canvas.

Tensors are [T, B, S, H, D] with S = prefix + N. A *flat token* is t * S + s: token s of tile t.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

import tiledattn as ta
from tiledattn.geometry import attention_plan

from .ways import NotOfferedError

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]

FLEX_BLOCK = 128


@lru_cache(maxsize=8)
def gathered_rows(layout: ta.TileLayout, halo: tuple[int, ...], device: torch.device, prefix: int = 0) -> Tensor:
    """Flat tokens that the canvas queries of each tile see, own sequence first, [T, M].

    Raises:
        NotOfferedError: tiles see unequally many, as they do on a canvas that is not periodic.
    """
    plan = attention_plan(layout, halo)
    tokens = layout.tile_positions
    if len(set(plan.halo_lengths)) > 1:
        raise NotOfferedError("tiles at the canvas's border see fewer tokens; measured on periodic canvases")
    own = torch.arange(layout.num_tiles * (prefix + tokens)).view(layout.num_tiles, -1)
    tables = [torch.from_numpy(plan.class_table(int(c))) + t * tokens for t, c in enumerate(plan.class_of_tile)]
    of_canvas = torch.stack(tables)
    halos = of_canvas // tokens * (prefix + tokens) + prefix + of_canvas % tokens
    return torch.cat([own, halos], 1).to(device)


def of_batch(rows: Tensor, tokens: int, batch: int) -> Tensor:
    """Flat tokens [T, M] as places in tensors [T, B, S, ...] that are flattened to [T * B * S, ...]; [T * B, M]."""
    entries = torch.arange(batch, device=rows.device)[:, None] * tokens
    return ((rows // tokens * batch * tokens + rows % tokens)[:, None] + entries).flatten(0, 1)


def gather(x: Tensor, places: Tensor) -> Tensor:
    """[T, B, S, H, D] -> [T * B, M, H, D]: what each tile sees, by `of_batch`, copied once."""
    heads, dim = x.shape[3:]
    return x.reshape(-1, heads * dim).index_select(0, places.flatten()).view(*places.shape, heads, dim)


def attend_gathered(q: Tensor, keys: Tensor, values: Tensor, prefix: int = 0) -> Tensor:
    """SDPA of every tile's queries, [T, B, S, H, D], over what was gathered for it, [T * B, M, H, D].

    Queries of the prefix see their own sequence only, so theirs is a second call.
    """
    queries, keys, values = q.flatten(0, 1).transpose(1, 2), keys.transpose(1, 2), values.transpose(1, 2)
    out = F.scaled_dot_product_attention(queries[:, :, prefix:], keys, values)
    if prefix:
        own = q.shape[2]
        first = F.scaled_dot_product_attention(queries[:, :, :prefix], keys[:, :, :own], values[:, :, :own])
        out = torch.cat([first, out], 2)
    return out.transpose(1, 2).view(q.shape)


def gather_and_attend(q: Tensor, k: Tensor, v: Tensor, places: Tensor, prefix: int = 0) -> Tensor:
    """What one would write by hand."""
    return attend_gathered(q, gather(k, places), gather(v, places), prefix)


def without_halo(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Ordinary attention inside each tile."""
    queries, keys, values = (x.flatten(0, 1).transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(queries, keys, values).transpose(1, 2).view(q.shape)


def sees(tokens: int, rows: Tensor, prefix: int = 0) -> Tensor:
    """Bool [T, 2, T * S]: whether the prefix queries and the canvas queries of a tile see a flat token."""
    seen = torch.zeros(len(rows), 2, len(rows) * tokens, dtype=torch.bool, device=rows.device)
    seen[:, 1].scatter_(1, rows, True)
    if prefix:
        seen[:, 0].scatter_(1, rows[:, :tokens], True)
    return seen


def whole(x: Tensor) -> Tensor:
    """[T, B, S, H, D] -> [B, H, T * S, D]."""
    return x.transpose(0, 1).flatten(1, 2).transpose(1, 2)


def tiled(out: Tensor, tiles: int) -> Tensor:
    """[B, H, T * S, D] -> [T, B, S, H, D]."""
    batch, heads, tokens, dim = out.shape
    return out.transpose(1, 2).reshape(batch, tiles, tokens // tiles, heads, dim).transpose(0, 1)


def flex_attention(tokens: int, rows: Tensor, most: int | None = None, prefix: int = 0) -> Attend:
    """FlexAttention over all tiles' tokens at once, compiled, with the block mask made beforehand.

    Raises:
        NotOfferedError: a mask's block would lie across two tiles, or there are more than `most` tokens in all.
    """
    from torch.nn.attention import flex_attention as flex

    if most is not None and len(rows) * tokens > most:
        raise NotOfferedError(f"{len(rows) * tokens} tokens would take minutes; measured up to {most}")
    if tokens % FLEX_BLOCK or prefix % FLEX_BLOCK:
        raise NotOfferedError(f"tiles of {tokens} tokens are not whole blocks of {FLEX_BLOCK}")
    seen = sees(tokens, rows, prefix)
    blocks = seen.view(*seen.shape[:2], -1, FLEX_BLOCK)
    full, partial = blocks.all(-1), blocks.any(-1) & ~blocks.all(-1)
    of_canvas = (torch.arange(0, tokens, FLEX_BLOCK, device=rows.device) >= prefix).long()

    def listed(chosen: Tensor) -> tuple[Tensor, Tensor]:
        of_queries = chosen[:, of_canvas].flatten(0, 1)[None, None]
        order = torch.argsort(of_queries.to(torch.uint8), dim=-1, descending=True, stable=True)
        return of_queries.sum(-1, dtype=torch.int32), order.to(torch.int32)

    def plainly(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return seen[i // tokens, 1, j]

    def with_prefix(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return seen[i // tokens, (i % tokens >= prefix).long(), j]

    mask = flex.BlockMask.from_kv_blocks(
        *listed(partial), *listed(full), BLOCK_SIZE=FLEX_BLOCK, mask_mod=with_prefix if prefix else plainly
    )
    compiled = torch.compile(flex.flex_attention, dynamic=False)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return tiled(compiled(whole(q), whole(k), whole(v), block_mask=mask), len(rows))

    return attend


def dense_attention(tokens: int, rows: Tensor, most: int, prefix: int = 0) -> Attend:
    """SDPA over all tiles' tokens at once with a mask of all pairs.

    Raises:
        NotOfferedError: more than `most` tokens in all, for which the mask is too large to be worth it.
    """
    total = len(rows) * tokens
    if total > most:
        raise NotOfferedError(f"a mask of {total} x {total} tokens; measured up to {most}")
    of_canvas = (torch.arange(tokens, device=rows.device) >= prefix).long()
    mask = sees(tokens, rows, prefix)[:, of_canvas].flatten(0, 1)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return tiled(F.scaled_dot_product_attention(whole(q), whole(k), whole(v), mask), len(rows))

    return attend


def merged(x: Tensor, layout: ta.TileLayout) -> Tensor:
    """Tokens of tiles [T, B, N, H, D] on the canvas, averaged where tiles overlap, [B, *size, H, D]."""
    (batch, tokens), (heads, dim) = x.shape[1:3], x.shape[3:]
    canvas = x.new_zeros(batch, *layout.size, heads, dim)
    count = x.new_zeros(*layout.size, 1, 1)
    for tile, place in zip(x, places(layout), strict=True):
        canvas[_with_batch(place)] += tile.reshape(batch, *layout.tile, heads, dim)
        count[place] += 1
    return canvas.div_(count) if layout.num_tiles * tokens > count.numel() else canvas


def cut(canvas: Tensor, layout: ta.TileLayout) -> Tensor:
    """[B, *size, H, D] -> [T, B, N, H, D]."""
    axes = len(layout.size)
    return torch.stack([canvas[_with_batch(place)].flatten(1, axes) for place in places(layout)])


def _with_batch(place: tuple[slice, ...]) -> tuple[slice, ...]:
    return (slice(None), *place)


def places(layout: ta.TileLayout) -> list[tuple[slice, ...]]:
    """Every tile's place on the canvas.

    Raises:
        NotOfferedError: a tile continues on the other side of a wrap.
    """
    origins = layout.origins
    if any(o + w > n for origin in origins for o, w, n in zip(origin, layout.tile, layout.size, strict=True)):
        raise NotOfferedError("a tile that continues across a wrap is no slice of the canvas")
    return [tuple(slice(o, o + w) for o, w in zip(origin, layout.tile, strict=True)) for origin in origins]


def whole_canvas(layout: ta.TileLayout, most: int, prefix: int = 0) -> Attend:
    """Merge, attend over the whole canvas, split: what MAD does in its UNet's self-attention.

    Idea: Quattrini et al., "Merging and Splitting Diffusion Paths for Semantically Coherent Panoramas", ECCV 2024; the
    implementation is our own. Queries, keys and values of all tiles are averaged onto the canvas, every position sees
    every other, and each tile gets its part back. Its result is another one than that of a finite halo, and its work
    grows with the square of the canvas.

    Raises:
        NotOfferedError: tokens that lie on no canvas (MAD is for UNets), more than `most` positions, or a tile that
            continues across a wrap.
    """
    positions = math.prod(layout.size)
    if prefix:
        raise NotOfferedError("MAD merges canvas tokens only; it has no place for a prefix")
    if positions > most:
        raise NotOfferedError(f"attention over {positions} x {positions} positions; measured up to {most}")
    places(layout)
    axes = len(layout.size)

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        queries, keys, values = (merged(x, layout).flatten(1, axes).transpose(1, 2) for x in (q, k, v))
        out = F.scaled_dot_product_attention(queries, keys, values).transpose(1, 2)
        return cut(out.reshape(q.shape[1], *layout.size, *q.shape[3:]), layout)

    return attend
