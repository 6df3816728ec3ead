"""Merging attention over disjoint key sets."""

from __future__ import annotations

import torch
from torch import Tensor

from .checks import check_same, check_tensor


def merge_attention(out_a: Tensor, lse_a: Tensor, out_b: Tensor, lse_b: Tensor) -> tuple[Tensor, Tensor]:
    """The attention over the union of two disjoint key sets from the attention over each.

    lse = log(exp(lse_a) + exp(lse_b)); out = exp(lse_a - lse) out_a + exp(lse_b - lse) out_b. An empty key set is
    (anything finite, -inf); two empty ones give zeros and -inf, never NaN.

    Args:
        out_a: [..., S, H, D].
        lse_a: [..., H, S], natural log, as `cross_tile_attention` returns it.
        out_b: like out_a.
        lse_b: like lse_a.

    Returns:
        out like out_a and lse like lse_a.

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, device or shape, naming it.

    The rule is that of flash-decoding and ring attention; guarding the empty state follows flashinfer.
    """
    check_tensor("out_a", out_a)
    if out_a.ndim < 3:
        raise ValueError(f"out_a: shape is {list(out_a.shape)}; expected [..., S, H, D]")
    check_same("out_b", check_tensor("out_b", out_b), "out_a", out_a)
    if out_b.shape != out_a.shape:
        raise ValueError(f"out_b: shape is {list(out_b.shape)}; it must be out_a's {list(out_a.shape)}")
    expected = (*out_a.shape[:-3], out_a.shape[-2], out_a.shape[-3])
    for name, lse in (("lse_a", lse_a), ("lse_b", lse_b)):
        check_tensor(name, lse)
        if tuple(lse.shape) != expected:
            raise ValueError(f"{name}: shape is {list(lse.shape)}; expected [..., H, S] = {list(expected)}")
        if lse.device != out_a.device:
            raise ValueError(f"{name}: on {lse.device}, but out_a is on {out_a.device}; move one to the other")
    check_same("lse_b", lse_b, "lse_a", lse_a)
    top = torch.maximum(lse_a, lse_b)
    safe = torch.where(torch.isneginf(top), torch.zeros_like(top), top)
    share_a, share_b = torch.exp(lse_a - safe), torch.exp(lse_b - safe)
    total = share_a + share_b
    empty = total == 0
    lse = torch.where(empty, top, safe + torch.log(torch.where(empty, torch.ones_like(total), total)))
    total = torch.where(empty, torch.ones_like(total), total)
    part_a, part_b = ((share / total).transpose(-1, -2).unsqueeze(-1) for share in (share_a, share_b))
    out = part_a * out_a + part_b * out_b
    return out.to(out_a.dtype), lse
