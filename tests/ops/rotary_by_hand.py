"""Rotary attention as one would write it by hand, and the rotation itself by complex numbers."""

import math

import torch
import torch.nn.functional as F

from tiledattn.backends import reference
from tiledattn.geometry import normalize_halo

WIDE = {torch.float64: (torch.float64, torch.complex128)}


def turned(x, positions, turn):
    """x [..., H, D] rotated to positions, float64 [..., axes], by complex multiplication; rounded to x's dtype."""
    rates = turn.frequencies.double()
    rates = rates if rates.ndim == 3 else rates[:, None]
    angles = torch.einsum("...a,ahj->...hj", positions.double(), rates)
    half, (wide, pair) = angles.shape[-1], WIDE.get(x.dtype, (torch.float32, torch.complex64))
    pairs = x[..., : 2 * half].to(wide)
    pairs = pairs.unflatten(-1, (half, 2)) if turn.interleaved else pairs.unflatten(-1, (2, half)).transpose(-1, -2)
    spin = torch.polar(torch.ones_like(angles), angles).to(pair)
    pairs = torch.view_as_real(torch.view_as_complex(pairs.contiguous()) * spin)
    pairs = pairs if turn.interleaved else pairs.transpose(-1, -2)
    return torch.cat([pairs.flatten(-2).to(x.dtype), x[..., 2 * half :]], -1)


def by_hand(q, k, v, layout, halo, turn, prefix):
    """Plain PyTorch in the inputs' precision: q, own and halo keys at canvas positions, then SDPA, tile by tile."""
    axes, tiles = reference._tiles(layout)
    number = {index: t for t, index in enumerate(tiles)}
    k, v = (x.repeat_interleave(q.shape[3] // x.shape[3], dim=3) for x in (k, v))
    out, lse = torch.zeros_like(q), []
    wide, _ = WIDE.get(q.dtype, (torch.float32, None))
    for t, index in enumerate(tiles):
        origin = torch.tensor(layout.origins[t])
        queries, keys, values = turned(q[t], origin, turn), [turned(k[t], origin, turn)], [v[t]]
        for tile, place, offset in reference._seen(axes, index, normalize_halo(layout, halo)):
            row = prefix + reference._row_major(place, layout.tile)
            moved = origin + torch.tensor(offset) - torch.tensor(place)
            keys.append(turned(k[number[tile], :, row], moved, turn)[:, None])
            values.append(v[number[tile], :, row][:, None])
        queries, keys, values = (x.transpose(1, 2) for x in (queries, torch.cat(keys, 1), torch.cat(values, 1)))
        bias = torch.zeros(q.shape[2], keys.shape[2], dtype=q.dtype)
        bias[:prefix, q.shape[2] :] = -math.inf
        out[t] = F.scaled_dot_product_attention(queries, keys, values, bias).transpose(1, 2)
        logits = queries.to(wide) @ keys.to(wide).transpose(-1, -2) * q.shape[-1] ** -0.5 + bias.to(wide)
        lse.append(torch.logsumexp(logits, -1))
    return out, torch.stack(lse)
