"""The oracle: float64, eager, slow, and written from the definitions alone.

It finds origins, owners and visible positions one integer at a time and shares no code with the other backends, so it
can judge them. Results come back in the inputs' dtype; pass float64 tensors to judge in float64.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..geometry import AttentionPlan, TileLayout

NAME = "reference"
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
RUNS_ON = "every device with float64; slow by design"
PROVEN_ON = ("x86-64 CPU, 2026-11-20",)


def probe() -> str | None:
    """None: it runs wherever torch does."""
    return None


def rejects(op: str, device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    """None: it takes every call."""
    return None


class _Axis:
    """One axis, by brute force."""

    def __init__(self, layout: TileLayout, axis: int) -> None:
        self.length, self.tile = layout.size[axis], layout.tile[axis]
        self.wrap, overlap = layout.wrap[axis], layout.overlap[axis]
        step = self.tile - overlap
        if self.tile == self.length:
            self.origins = [0]
        elif self.wrap:
            count = math.ceil(self.length / step)
            unit = math.gcd(math.gcd(self.length, self.tile), overlap)
            self.origins = [unit * ((i * (self.length // unit)) // count) for i in range(count)]
        else:
            self.origins, origin = [], 0
            while origin + self.tile <= self.length:
                self.origins.append(origin)
                origin += step
            if self.origins[-1] + self.tile < self.length:
                self.origins.append(self.length - self.tile)

    def local(self, tile: int, position: int) -> int | None:
        """Where a canvas position lies in a tile, or None outside it."""
        place = position - self.origins[tile]
        if self.wrap:
            place %= self.length
        return place if 0 <= place < self.tile else None

    def deepest(self, position: int) -> int:
        """The tile in which a position lies farthest from the nearer end; the lower index wins ties."""
        best, best_depth = -1, -1
        for tile in range(len(self.origins)):
            place = self.local(tile, position)
            if place is not None and min(place, self.tile - 1 - place) > best_depth:
                best, best_depth = tile, min(place, self.tile - 1 - place)
        return best

    def source(self, tile: int, position: int) -> tuple[int, int]:
        """The tile whose features stand for a position as seen from `tile`, and the place in it."""
        place = self.local(tile, position)
        if place is not None:
            return tile, place
        owner = self.deepest(position)
        place = self.local(owner, position)
        assert place is not None
        return owner, place

    def offset(self, tile: int, position: int) -> int:
        """Where a position that a tile sees lies relative to the tile's origin.

        Outside the tile on a periodic axis, that is on the side of the nearer end; behind it where both are as near.
        """
        behind = position - self.origins[tile]
        if not self.wrap:
            return behind
        behind %= self.length
        ahead = behind - self.length
        return behind if behind < self.tile or behind - (self.tile - 1) <= -ahead else ahead

    def visible(self, tile: int, halo: int) -> list[int]:
        """Canvas positions that a tile sees, each once."""
        origin, seen = self.origins[tile], []
        for position in range(origin - halo, origin + self.tile + halo):
            if self.wrap:
                position %= self.length
            if 0 <= position < self.length and position not in seen:
                seen.append(position)
        return seen


def _tiles(layout: TileLayout) -> tuple[list[_Axis], list[tuple[int, ...]]]:
    axes = [_Axis(layout, a) for a in range(len(layout.size))]
    return axes, list(itertools.product(*(range(len(a.origins)) for a in axes)))


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
    """Softmax attention of each tile over prefix, own tile and halo; of the plan it reads layout and halo only.

    With rotary frequencies a halo key, turned by its place in its own tile, is turned on to its offset from this tile.
    """
    layout, prefix, heads = plan.layout, num_prefix_tokens, q.shape[3]
    axes, tiles = _tiles(layout)
    number = {index: t for t, index in enumerate(tiles)}
    q64, k64, v64 = (x.to(torch.float64) for x in (q, k, v))
    k64, v64 = (x.repeat_interleave(heads // x.shape[3], dim=3) for x in (k64, v64))
    out = torch.zeros(q.shape, dtype=torch.float64, device=q.device)
    lse = torch.full((*q.shape[:2], heads, q.shape[2]), -math.inf, dtype=torch.float64, device=q.device)
    for t, index in enumerate(tiles):
        own_keys, own_values = k64[t], v64[t]
        own_bias = torch.zeros(q.shape[1], q.shape[2], dtype=torch.float64, device=q.device)
        if prefix_mask is not None:
            own_bias[:, :prefix].masked_fill_(~prefix_mask[t], -math.inf)
        outside = list(_seen(axes, index, plan.halo)) if halo_weight > 0 else []
        where = [(number[src], prefix + _row_major(place, layout.tile)) for src, place, _ in outside]
        halo_keys = [k64[u][:, s] for u, s in where]
        if frequencies is not None:
            moved = [[o - p for o, p in zip(offset, place, strict=True)] for _, place, offset in outside]
            halo_keys = [_rotate(x, m, frequencies, interleaved) for x, m in zip(halo_keys, moved, strict=True)]
        keys = torch.stack([own_keys[:, s] for s in range(own_keys.shape[1])] + halo_keys, 1)
        values = torch.cat([own_values] + [v64[u][:, s : s + 1] for u, s in where], 1)
        halo_bias = own_bias.new_full((q.shape[1], len(where)), math.log(halo_weight or 1.0))
        bias = torch.cat([own_bias, halo_bias], 1)
        n_own = q.shape[2]
        out[t, :, :prefix], lse[t, :, :, :prefix] = _softmax(
            q64[t, :, :prefix], keys[:, :n_own], values[:, :n_own], bias[:, :n_own], scale
        )
        out[t, :, prefix:], lse[t, :, :, prefix:] = _softmax(q64[t, :, prefix:], keys, values, bias, scale)
    lse = lse.to(torch.float64 if q.dtype == torch.float64 else torch.float32)
    return out.to(q.dtype), lse if return_lse else lse.new_empty(0)


def _rotate(x: Tensor, moved: list[int], frequencies: Tensor, interleaved: bool) -> Tensor:
    """x [B, H, D] turned by `moved` positions per axis, channel pair by channel pair."""
    x = x.clone()
    for j in range(frequencies.shape[-1]):
        a, b = (2 * j, 2 * j + 1) if interleaved else (j, j + frequencies.shape[-1])
        angle = sum(m * rate[..., j].to(torch.float64) for m, rate in zip(moved, frequencies, strict=True))
        cos, sin = torch.cos(torch.as_tensor(angle)), torch.sin(torch.as_tensor(angle))
        x[..., a], x[..., b] = x[..., a] * cos - x[..., b] * sin, x[..., a] * sin + x[..., b] * cos
    return x


def _outside(
    axes: list[_Axis], index: tuple[int, ...], halo: tuple[int, ...]
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Source tile and place of every visible position that is not the tile's own."""
    for tile, place, _ in _seen(axes, index, halo):
        yield tile, place


def _seen(
    axes: list[_Axis], index: tuple[int, ...], halo: tuple[int, ...]
) -> Iterator[tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]]:
    """Source tile, place in it, and offset from this tile, of every visible position that is not the tile's own."""
    for position in itertools.product(*(a.visible(i, h) for a, i, h in zip(axes, index, halo, strict=True))):
        sources = [a.source(i, x) for a, i, x in zip(axes, index, position, strict=True)]
        tile = tuple(s for s, _ in sources)
        if tile != index:
            offsets = tuple(a.offset(i, x) for a, i, x in zip(axes, index, position, strict=True))
            yield tile, tuple(p for _, p in sources), offsets


def _at(place: Sequence[int | slice], *tile: int) -> Any:
    """Index of a position in all channels, of a canvas or of one tile of a batch."""
    return (*tile, slice(None), slice(None), *place)


def _row_major(place: tuple[int, ...], shape: tuple[int, ...]) -> int:
    flat = 0
    for p, n in zip(place, shape, strict=True):
        flat = flat * n + p
    return flat


def _softmax(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """Attention of [B, Q, H, D] over [B, K, H, D] with a bias per key [B, K]; an empty key set gives 0 and -inf."""
    logits = torch.einsum("bqhd,bkhd->bhqk", q, k) * scale + bias[:, None, None, :]
    lse = torch.logsumexp(logits, dim=-1)
    weights = torch.exp(logits - torch.where(lse == -math.inf, 0.0, lse)[..., None])
    return torch.einsum("bhqk,bkhd->bqhd", weights, v), lse


def extract_tiles(canvas: Tensor, *, layout: TileLayout, out: Tensor | None = None) -> Tensor:
    """Tile t holds the canvas at origin + r, modulo the size on periodic axes."""
    axes, tiles = _tiles(layout)
    if out is None:
        out = canvas.new_zeros((len(tiles), *canvas.shape[:2], *layout.tile))
    for t, index in enumerate(tiles):
        for place in itertools.product(*(range(w) for w in layout.tile)):
            position = tuple((a.origins[i] + p) % a.length for a, i, p in zip(axes, index, place, strict=True))
            out[_at(place, t)] = canvas[_at(position)]
    return out


def blend_tiles(tiles: Tensor, *, layout: TileLayout, weights: tuple[Tensor, ...], out: Tensor | None = None) -> Tensor:
    """Sum over the tiles that cover a position of value times the product of the axes' normalised weights."""
    axes, indices = _tiles(layout)
    found = torch.zeros((*tiles.shape[1:3], *layout.size), dtype=torch.float64, device=tiles.device)
    for t, index in enumerate(indices):
        for place in itertools.product(*(range(w) for w in layout.tile)):
            position = tuple((a.origins[i] + p) % a.length for a, i, p in zip(axes, index, place, strict=True))
            weight = math.prod(float(w[i, p]) for w, i, p in zip(weights, index, place, strict=True))
            value = tiles[_at(place, t)].to(torch.float64)
            found[_at(position)] += weight * value
    return found.to(tiles.dtype) if out is None else out.copy_(found)


def pad_tiles(tiles: Tensor, *, layout: TileLayout, pad: tuple[tuple[int, int], ...]) -> Tensor:
    """Each tile with a ring of positions from their owners, zeros outside a canvas that is not periodic."""
    axes, indices = _tiles(layout)
    number = {index: t for t, index in enumerate(indices)}
    shape = tuple(w + a + b for w, (a, b) in zip(layout.tile, pad, strict=True))
    out = tiles.new_zeros((*tiles.shape[:3], *shape))
    for t, index in enumerate(indices):
        for place in itertools.product(*(range(n) for n in shape)):
            position = [a.origins[i] + p - lo for a, i, p, (lo, _) in zip(axes, index, place, pad, strict=True)]
            if any(not a.wrap and not 0 <= x < a.length for a, x in zip(axes, position, strict=True)):
                continue
            sources = [a.source(i, x % a.length) for a, i, x in zip(axes, index, position, strict=True)]
            lender = number[tuple(s for s, _ in sources)]
            out[_at(place, t)] = tiles[_at([p for _, p in sources], lender)]
    return out


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
    """Group normalisation with statistics over the scope's positions, each canvas position from its owner, once."""
    axes, indices = _tiles(layout)
    x = tiles.to(torch.float64)
    out = torch.zeros_like(x)
    groups = x.reshape(*x.shape[:2], num_groups, x.shape[2] // num_groups, *layout.tile)
    for t, index in enumerate(indices):
        counted: list[tuple[float, Tensor]] = []  # how much a position counts, and its channels by group
        for u, other in enumerate(indices):
            nearness = _nearness(axes, index, other, scope)
            for place in itertools.product(*(range(w) for w in layout.tile)):
                position = [(a.origins[i] + p) % a.length for a, i, p in zip(axes, other, place, strict=True)]
                owned = all(a.deepest(p) == i for a, i, p in zip(axes, other, position, strict=True))
                share = nearness * (1.0 if scope == "tile" or owned else 0.0)
                if share:
                    counted.append((share, groups[_at((slice(None), *place), u)]))
        count = sum(share * value.shape[-1] for share, value in counted)
        mean = sum((share * value.sum(-1) for share, value in counted), x.new_zeros(())) / count
        square = ((share * (value - mean[..., None]).square().sum(-1)) for share, value in counted)
        deviation = torch.sqrt(sum(square, x.new_zeros(())) / count + eps)
        spread = (...,) + (None,) * (1 + len(layout.tile))
        out[t] = ((groups[t] - mean[spread]) / deviation[spread]).reshape(x[t].shape)
    channel = (slice(None),) + (None,) * len(layout.tile)
    if weight is not None:
        out = out * weight.to(torch.float64)[channel]
    if bias is not None:
        out = out + bias.to(torch.float64)[channel]
    return out.to(tiles.dtype)


def _nearness(axes: list[_Axis], a: tuple[int, ...], b: tuple[int, ...], scope: str) -> float:
    """What tile b counts for in tile a's statistics."""
    if scope == "canvas":
        return 1.0
    if scope == "tile":
        return float(a == b)
    share = 1.0
    for axis, i, j in zip(axes, a, b, strict=True):
        apart = abs(axis.origins[i] - axis.origins[j])
        if axis.wrap:
            apart = min(apart, axis.length - apart)
        share *= max(0.0, 1.0 - apart / (2 * axis.tile))
    return share
