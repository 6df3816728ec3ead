"""Group normalisation whose statistics reach beyond a tile: each tile's moments, merged over the scope."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from ...geometry import TileLayout
from ...geometry.axis import axis_nearness, axis_owned
from ..tables import cached


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
        batch = tiles.contiguous().flatten(0, 1)
        return torch.group_norm(batch, num_groups, weight, bias, eps).view(tiles.shape)
    count, batch_size, channels = tiles.shape[:3]
    x = tiles.to(torch.float64 if tiles.dtype == torch.float64 else torch.float32)
    learning = torch.is_grad_enabled() and any(p is not None and p.requires_grad for p in (tiles, weight, bias))
    if x.device.type == "cpu" and not learning and (_owns_all(layout) or scope == "canvas"):
        return _by_cpu_kernels(x, layout, num_groups, weight, bias, eps, scope).to(tiles.dtype)
    mean, var = _tile_moments(x.reshape(count, batch_size, num_groups, -1), layout)
    mean, var = _merge_moments(mean, var, layout, scope)
    per_group = torch.rsqrt(var + eps)
    per_channel = (-1, batch_size, num_groups, channels // num_groups)
    factor = per_group[..., None].expand(per_channel).reshape(-1, batch_size, channels)
    shift = (-mean * per_group)[..., None].expand(per_channel).reshape(-1, batch_size, channels)
    if weight is not None:
        factor, shift = factor * weight, shift * weight
    if bias is not None:
        shift = shift + bias
    spread = (...,) + (None,) * len(layout.tile)
    return torch.addcmul(shift[spread], x, factor[spread]).to(tiles.dtype).contiguous()


def _by_cpu_kernels(
    x: Tensor,
    layout: TileLayout,
    num_groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    scope: str,
) -> Tensor:
    """The same in two passes of PyTorch's vectorised kernels, for float32 or float64, without gradients.

    Its group norm tells moments, its batch norm scales channels by given ones. Not for the scope "neighbours" of tiles
    that overlap.
    """
    count, batch_size, channels = x.shape[:3]
    x = x.contiguous()
    if scope == "canvas" and not _owns_all(layout):
        mean, spread = _moments(_owned_canvas(x, layout), num_groups, eps)
    else:
        tiles = _moments(x.flatten(0, 1), num_groups, eps)
        mean, spread = (m.view(count, batch_size, num_groups) for m in tiles)
        if scope == "canvas":
            centre = mean.mean(0, keepdim=True)
            mean, spread = centre, (mean - centre).square_().add_(spread).mean(0, keepdim=True)
        else:
            mean, spread = _merge_moments(mean, spread, layout, scope)
    length = channels // num_groups
    mean, spread = (m.flatten()[:, None].expand(-1, length).flatten() for m in (mean, spread))
    factor, shift = (None if p is None else p.to(x.dtype).repeat(len(mean) // channels) for p in (weight, bias))
    by_moments = x.view(-1, len(mean), layout.tile_positions)
    return torch.batch_norm(by_moments, factor, shift, mean, spread, False, 0.0, 0.0, False).view(x.shape)


def _moments(x: Tensor, num_groups: int, eps: float) -> tuple[Tensor, Tensor]:
    """Mean, and variance + eps (which shares that sum to 1 keep), of the groups of [rows, C, ...]: [rows, G] each."""
    rows, channels = x.shape[:2]
    flat = x.reshape(rows, channels, -1)
    _, mean, rstd = torch.native_group_norm(flat, None, None, rows, channels, flat.shape[2], num_groups, eps)
    return mean, rstd.reciprocal_().square_()


def _owned_canvas(x: Tensor, layout: TileLayout) -> Tensor:
    """[B, C, ...]: every position of the canvas once, from its owner, in the order of tiles."""
    canvas = x.view(*layout.grid, *x.shape[1:])
    for d in reversed(range(len(layout.grid))):  # the axis's tiles lie along d, their positions along the last but -d
        place = d - len(layout.grid)
        owned = _owned_intervals(layout, d)
        canvas = torch.cat([canvas.select(d, i).narrow(place, *owned[i]) for i in range(len(owned))], place)
    return canvas


@lru_cache(maxsize=256)
def _owned_intervals(layout: TileLayout, d: int) -> tuple[tuple[int, int], ...]:
    """Along axis d: where a tile's own positions begin in it, and how many there are; they lie together."""
    table = axis_owned(layout.axes[d])
    return tuple((int(row.argmax()), int(row.sum())) for row in table)


@lru_cache(maxsize=256)
def _owns_all(layout: TileLayout) -> bool:
    """Whether every tile owns all its positions, as without overlap."""
    return all(bool(axis_owned(axis).all()) for axis in layout.axes)


def _tile_moments(x: Tensor, layout: TileLayout) -> tuple[Tensor, Tensor]:
    """Mean and variance [T, B, G] of each tile's owned positions; x is [T, B, G, ...]."""
    if _owns_all(layout):
        if x.device.type == "cpu":  # where var_mean goes number by number, 20 times as slow as two vectorised passes
            mean = x.mean(-1, keepdim=True)
            return mean.squeeze(-1), (x - mean).square().mean(-1)
        var, mean = torch.var_mean(x, dim=-1, correction=0)
        return mean, var
    x = x.reshape(*x.shape[:3], -1, layout.tile_positions)
    owned = _owned_positions(layout, x.device)[:, None, None, None, :]
    total = (owned.sum((-1, -2)) * x.shape[3]).clamp(min=1)
    mean = x.where(owned, 0).sum((-1, -2)) / total
    var = (x - mean[..., None, None]).where(owned, 0).square().sum((-1, -2)) / total
    return mean, var


@cached(64)
def _owned_positions(layout: TileLayout, device: torch.device) -> Tensor:
    """Bool [T, N]: the positions of each tile that it owns."""
    owned = np.ones((1, 1), dtype=np.bool_)
    for axis in layout.axes:
        table = axis_owned(axis)
        owned = owned[:, None, :, None] & table[None, :, None, :]
        owned = owned.reshape(owned.shape[0] * owned.shape[1], -1)
    return torch.from_numpy(owned).to(device)


def _merge_moments(mean: Tensor, var: Tensor, layout: TileLayout, scope: str) -> tuple[Tensor, Tensor]:
    """Moments over the scope, [T or 1, B, G], from each tile's.

    Both scopes are products over the axes, so one axis is merged after the other. Means are taken from that of their
    own scope before they are squared, and from one in it before they are weighed: equal ones stay what they are.
    """
    mean, var = (x.reshape(*layout.grid, *x.shape[1:]) for x in (mean, var))
    for d in range(len(layout.grid)):
        places, shares = _axis_shares(layout, d, scope, mean.device, mean.dtype)
        shares = shares.view(*shares.shape, *(1,) * (mean.ndim - d - 1))
        means, variances = (_pick(x, d, places).where(shares > 0, 0) for x in (mean, var))
        one = means.narrow(d + 1, 0, 1)
        merged = one + ((means - one) * shares).sum(d + 1, keepdim=True)
        mean, var = merged.squeeze(d + 1), (((means - merged).square() + variances) * shares).sum(d + 1)
    return mean.flatten(0, len(layout.grid) - 1), var.flatten(0, len(layout.grid) - 1)


def _pick(x: Tensor, d: int, places: Tensor) -> Tensor:
    """Along dim d: entry [i, k] is entry places[i, k] of x."""
    return x.index_select(d, places.flatten()).view(*x.shape[:d], *places.shape, *x.shape[d + 1 :])


@cached(256)
def _axis_shares(
    layout: TileLayout, d: int, scope: str, device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Along axis d: which tiles count [n or 1, K], and their shares, nearness times the positions they own."""
    axis = layout.axes[d]
    owned = axis_owned(axis).sum(1)
    if scope == "canvas":
        places, near = np.arange(len(owned))[None], np.ones((1, len(owned)))
    else:
        places, near = axis_nearness(axis)
    shares = near * owned[places]
    shares /= shares.sum(1, keepdims=True)
    return torch.from_numpy(places).to(device), torch.from_numpy(shares).to(device=device, dtype=dtype)
