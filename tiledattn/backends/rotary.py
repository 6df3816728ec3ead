"""Rotary positions across tiles: q and k at tile-local positions turned to canvas ones, for any backend's primitive.

Rotary positions are relative: turning all tokens of tile t by t's origin makes offsets between tiles those on the
canvas and leaves every offset inside the tile as it was. Tiles seen across a wrap enter the pool as copies, turned by
the axis's length as well.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..geometry import AttentionPlan
from .tables import cached

# what one step of a rotation may hold besides its result
STEP_BYTES = {"cpu": 4 << 20}
STEP_BYTES_ELSEWHERE = 256 << 20


class Turns(NamedTuple):
    """The rotation of every tile of a pool: the layout's tiles, then copies of `virtual`."""

    cos: Tensor  # [T', 1, 1, H or 1, D_rot / 2], float32 (float64 for float64)
    sin: Tensor
    virtual: Tensor  # int64 [T' - T], which tiles the copies are of
    interleaved: bool


@cached(32)
def _pool(plan: AttentionPlan, device: torch.device) -> tuple[Tensor, Tensor]:
    """Canvas positions of the pool's tiles, float64 [T', axes], and which tiles its copies are of, int64 [T' - T]."""
    layout = plan.layout
    copies = [
        [x + turn * length for x, turn, length in zip(layout.origins[tile], turns, layout.size, strict=True)]
        for tile, turns in plan.virtual
    ]
    positions = torch.tensor([*layout.origins, *copies], dtype=torch.float64, device=_home(device))
    return positions, torch.tensor([tile for tile, _ in plan.virtual], dtype=torch.int64, device=device)


def _home(device: torch.device) -> torch.device:
    """Where angles are computed: MPS has no float64."""
    return torch.device("cpu") if device.type == "mps" else device


def pool_turns(plan: AttentionPlan, frequencies: Tensor, interleaved: bool, like: Tensor) -> Turns:
    """The rotations of an unwrapped plan's pool, for tensors of the dtype and device of `like`.

    `frequencies` is [axes, J] or [axes, H, J]; angles are computed in float64.
    """
    positions, virtual = _pool(plan, like.device)
    rates = frequencies.detach().to(positions.device, torch.float64)
    rates = rates if rates.ndim == 3 else rates[:, None]
    angles = (positions[:, :, None, None] * rates).sum(1)[:, None, None]
    wide = _wide(like.dtype)
    return Turns(torch.cos(angles).to(like.device, wide), torch.sin(angles).to(like.device, wide), virtual, interleaved)


def turn_queries(q: Tensor, turns: Turns) -> Tensor:
    """q [T, B, S, H, D] at canvas positions, contiguous."""
    return _turn(q, turns.cos[: len(q)], turns.sin[: len(q)], turns.interleaved)


def make_pool(k: Tensor, v: Tensor, turns: Turns) -> tuple[Tensor, Tensor]:
    """k and v [T, B, S, Hkv, D] as a pool [T', B, S, Hkv, D]: keys at canvas positions; v itself without copies."""
    tiles, copies = len(k), len(turns.virtual)
    if not copies:
        return _turn(k, turns.cos, turns.sin, turns.interleaved), v
    keys = torch.empty((tiles + copies, *k.shape[1:]), dtype=k.dtype, device=k.device)
    _turn(k, turns.cos[:tiles], turns.sin[:tiles], turns.interleaved, keys[:tiles])
    _turn(k[turns.virtual], turns.cos[tiles:], turns.sin[tiles:], turns.interleaved, keys[tiles:])
    return keys, torch.cat([v, v[turns.virtual]])


def turn_queries_back(grad: Tensor, turns: Turns) -> Tensor:
    """The gradient of q from that of `turn_queries`."""
    return _turn(grad, turns.cos[: len(grad)], -turns.sin[: len(grad)], turns.interleaved)


def fold_pool(grad_k: Tensor, grad_v: Tensor, turns: Turns) -> tuple[Tensor, Tensor]:
    """The gradients of k and v [T, ...] from those of `make_pool`'s results [T', ...]."""
    grad_k = _turn(grad_k, turns.cos, -turns.sin, turns.interleaved)
    if not len(turns.virtual):
        return grad_k, grad_v
    tiles = len(turns.cos) - len(turns.virtual)
    folded_k, folded_v = (x[:tiles].index_add(0, turns.virtual, x[tiles:]) for x in (grad_k, grad_v))
    return folded_k, folded_v


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _turn(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool, out: Tensor | None = None) -> Tensor:
    """(a, b) -> (a cos - b sin, a sin + b cos) for the pairs of every tile of x, rounded once, in bounded steps."""
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device) if out is None else out
    if out.numel() == 0:
        return out
    half = cos.shape[-1]
    first, second = slice(half), slice(half, 2 * half)
    if interleaved:
        first, second = slice(0, 2 * half, 2), slice(1, 2 * half, 2)
    row_bytes = 2 * x[0, 0, 0].numel() * cos.element_size()
    budget = STEP_BYTES.get(x.device.type, STEP_BYTES_ELSEWHERE)
    tiles = max(1, budget // (row_bytes * x.shape[1] * x.shape[2]))
    for t in range(0, len(x), tiles):
        step = slice(t, t + tiles)
        a, b = (x[step, ..., part].to(cos.dtype) for part in (first, second))
        out[step, ..., first] = torch.addcmul(a * cos[step], b, sin[step], value=-1)
        out[step, ..., second] = torch.addcmul(a * sin[step], b, cos[step])
        out[step, ..., 2 * half :] = x[step, ..., 2 * half :]
    return out
