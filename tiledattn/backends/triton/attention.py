"""Launcher of the fused cross-tile attention."""

from __future__ import annotations

import math

import torch
import triton
from torch import Tensor

from ..tables import AttentionTables
from .attention_kernel import cross_tile_attention_fwd_kernel
from .config import AttentionConfig, arithmetic, attention_config, device_family
from .launch import needs_wide_offsets, on_device, shared_unit

LOG2E = math.log2(math.e)


def divider(n: int) -> tuple[int, int]:
    """(magic, digits) such that x // n == umulhi(2 * x, magic) >> digits for 0 <= x < 2^31."""
    digits = (n - 1).bit_length()
    return -(-(1 << (31 + digits)) // n), digits


def cross_tile_attention_fwd(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    tables: AttentionTables | None,
    *,
    num_prefix_tokens: int,
    prefix_mask: Tensor | None,
    halo_weight: float,
    scale: float,
    return_lse: bool,
    bias: Tensor | None = None,
    wide_offsets: bool | None = None,
    config: AttentionConfig | None = None,
) -> tuple[Tensor, Tensor]:
    """The primitive under `cross_tile_attention`: own tokens, and the tokens that a table lists.

    Args:
        q: [T, B, S, H, D], any strides.
        k: [T', B, S, Hkv, D], any strides; own keys of tile t are k[t], others (T' > T too) are listed only.
        v: like k.
        tables: the listed tokens of each tile; None for none.
        num_prefix_tokens: leading tokens P that lie on no canvas position.
        prefix_mask: bool [T, B, P], True = attend, or None.
        halo_weight: in (0, 1]; its logarithm is added to every listed token's logits.
        scale: factor on q.k.
        return_lse: whether to compute the log-sum-exp.
        bias: float32 [len(index)], added to each listed token's logits (natural log), -inf allowed; or None.
        wide_offsets: 64-bit memory offsets; None decides by the tensors' extents.
        config: block sizes; None takes the table's.

    Returns:
        As `cross_tile_attention`.
    """
    T, B, S, H, D = q.shape
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    lse = torch.empty((T, B, H, S) if return_lse else 0, dtype=torch.float32, device=q.device)
    if out.numel() == 0:
        return out, lse.fill_(-math.inf)
    if scale < 0:
        q, scale = -q, -scale
    q, k, v = (x if x.stride(-1) == 1 or D == 1 else x.contiguous() for x in (q, k, v))
    if prefix_mask is not None and num_prefix_tokens:
        mask = prefix_mask.contiguous().view(torch.uint8)
    else:
        mask = None
    if tables is not None and tables.index.numel() == 0:
        tables = None
    family = device_family(q.device)
    kind = arithmetic(family, q.dtype)
    if config is None:
        config = attention_config(family, kind, D, S)
    strides = [0 if x.shape[axis] == 1 else x.stride(axis) for x in (q, k, v) for axis in range(4)]
    unit = shared_unit(16 // q.element_size(), strides)
    wide = needs_wide_offsets(q, k, v, out) if wide_offsets is None else wide_offsets
    grid = (triton.cdiv(S, config.block_m) * T * B * H,)
    with on_device(q):
        cross_tile_attention_fwd_kernel[grid](
            q, k, v, out, lse if return_lse else None, mask,
            *(tables if tables is not None else (None, None, None)),
            bias if tables is not None else None,
            *(stride // unit for stride in strides),
            T, B, S, H, num_prefix_tokens, H // k.shape[3],
            *divider(S - num_prefix_tokens),
            scale * LOG2E,
            math.log2(halo_weight) if tables is not None else 0.0,
            D=D,
            BLOCK_D=max(16, triton.next_power_of_2(D)),
            BLOCK_M=config.block_m,
            BLOCK_N=config.block_n,
            UNIT=unit,
            WIDE=wide,
            PRECISION="tf32" if kind == "tf32" else "ieee",
            STAGES=config.num_stages,
            num_warps=config.num_warps,
            num_stages=config.num_stages,
        )  # fmt: skip
    return out, lse
