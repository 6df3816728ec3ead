"""Launcher of the backward of cross-tile attention: three kernels, no atomics, the same sums in the same order."""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import numpy as np
import torch
import triton
from torch import Tensor

from ...geometry import AttentionPlan, reversed_plan
from ..tables import attention_tables, cached, reverse_tables
from .attention import LOG2E, divider
from .attention_backward_kernel import attention_delta_kernel, cross_tile_attention_bwd_q_kernel
from .attention_backward_keys_kernel import cross_tile_attention_bwd_kv_kernel
from .config import AttentionConfig, arithmetic, backward_configs, device_family
from .launch import needs_wide_offsets, on_device, shared_unit

DELTA_ROWS = 32  # of a program


class WorkItems(NamedTuple):
    """Blocks of keys that the same tiles see: items[starts[c] : starts[c + 1]] of every lender of class c.

    An item is (first place, places, first borrower, borrowers), ranges of `places` and of the reversed plan's
    borrowers. `most` is the largest number of items of a class.
    """

    most: int
    starts: Tensor  # int64 [classes + 1]
    items: Tensor  # int64 [n, 4]
    places: Tensor  # int32, places in a sequence


@cached(64)
def work_items(plan: AttentionPlan, prefix: int, block: int, device: torch.device) -> WorkItems:
    """The reversed plan's cells, and the prefix, cut into blocks of `block` keys."""
    cell_starts, cells, tokens, _ = reversed_plan(plan).table
    whole = cells + np.asarray([prefix, 0, 0, 0])
    before = np.asarray([[0, prefix, 0, 0]] if prefix else np.zeros((0, 4)), dtype=np.int64)
    parts, counts = [], []
    for first, last in itertools.pairwise(cell_starts):
        found = np.concatenate([before, whole[first:last]])
        repeats = -(-found[:, 1] // block)
        skipped = np.arange(repeats.sum()) - np.repeat(np.cumsum(repeats) - repeats, repeats)
        blocks = np.repeat(found, repeats, axis=0)
        blocks[:, 0] += skipped * block
        blocks[:, 1] = np.minimum(block, blocks[:, 1] - skipped * block)
        parts.append(blocks)
        counts.append(len(blocks))
    places = np.concatenate([np.arange(prefix), tokens.astype(np.int64) + prefix]).astype(np.int32)
    starts = np.concatenate(([0], np.cumsum(counts))).astype(np.int64)
    tables = (torch.from_numpy(x).to(device) for x in (starts, np.concatenate(parts), places))
    return WorkItems(max(counts), *tables)


def cross_tile_attention_bwd(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    plan: AttentionPlan,
    *,
    num_prefix_tokens: int,
    prefix_mask: Tensor | None,
    halo_weight: float,
    scale: float,
    grad_dtype: torch.dtype | None = None,
    wide_offsets: bool | None = None,
    configs: tuple[AttentionConfig, AttentionConfig] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of `cross_tile_attention_fwd` over a plan's halo.

    Args:
        grad_out: gradient of the output, [T, B, S, H, D], any strides.
        grad_lse: gradient of the lse, float32 [T, B, H, S], any strides; or None for zeros.
        q: [T, B, S, H, D], any strides.
        k: [T', B, S, Hkv, D], any strides; T' counts the plan's virtual tiles.
        v: like k.
        out: what the forward returned.
        lse: what the forward returned, float32 [T, B, H, S].
        plan: which tokens of which tiles each tile sees besides its own.
        num_prefix_tokens: leading tokens P that lie on no canvas position.
        prefix_mask: bool [T, B, P], True = attend, or None.
        halo_weight: in [0, 1]; 0 leaves the halo out.
        scale: factor on q.k.
        grad_dtype: of the results; None takes the inputs'.
        wide_offsets: 64-bit memory offsets; None decides by the tensors' extents.
        configs: block sizes for queries, and for keys; None takes the table's.

    Returns:
        Gradients of q, k and v, contiguous.
    """
    T, B, S, H, D = q.shape
    dtype = q.dtype if grad_dtype is None else grad_dtype
    dq, dk, dv = (torch.empty(x.shape, dtype=dtype, device=x.device) for x in (q, k, v))
    if dq.numel() == 0:
        return dq, dk.zero_(), dv.zero_()
    P = num_prefix_tokens
    grad_out, out, lse = grad_out.contiguous(), out.contiguous(), lse.contiguous()
    q, k, v = (x if x.stride(-1) == 1 or D == 1 else x.contiguous() for x in (q, k, v))
    mask = prefix_mask.contiguous().view(torch.uint8) if prefix_mask is not None and P else None
    family = device_family(q.device)
    kind = arithmetic(family, q.dtype)
    for_rows, for_keys = configs or backward_configs(family, kind, D)
    strides = [0 if x.shape[axis] == 1 else x.stride(axis) for x in (q, k, v) for axis in range(4)]
    unit = shared_unit(16 // q.element_size(), strides)
    shapes = {
        "D": D,
        "BLOCK_D": max(16, triton.next_power_of_2(D)),
        "UNIT": unit,
        "WIDE": needs_wide_offsets(q, k, v, dq, dk) if wide_offsets is None else wide_offsets,
        "BASE_2": q.dtype != torch.float32,
        "PRECISION": "tf32" if kind == "tf32" else "ieee",
    }
    numbers = (*(stride // unit for stride in strides), T, B, S, H, P, H // k.shape[3])
    base_2 = LOG2E if shapes["BASE_2"] else 1.0
    factors = (scale, scale * base_2, math.log(halo_weight) * base_2 if halo_weight > 0 else 0.0)
    listed = plan if halo_weight > 0 and any(plan.halo_lengths) else None
    delta = torch.empty_like(lse)
    with on_device(q):
        attention_delta_kernel[(triton.cdiv(S, DELTA_ROWS) * T * B * H,)](
            grad_out, out, None if grad_lse is None else grad_lse.contiguous(), delta, S, H,
            D=D, BLOCK_D=shapes["BLOCK_D"], BLOCK=DELTA_ROWS,
        )  # fmt: skip
        cross_tile_attention_bwd_q_kernel[(triton.cdiv(S, for_rows.block_m) * T * B * H,)](
            q, k, v, grad_out, lse, delta, dq, mask,
            *((None, None, None) if listed is None else attention_tables(listed, q.device)),
            *numbers, *divider(S - P), *factors, **shapes, **_options(for_rows),
        )  # fmt: skip
        work, tables = work_items(plan, P, for_keys.block_n, q.device), reverse_tables(plan, q.device)
        cross_tile_attention_bwd_kv_kernel[(work.most * len(k) * B * k.shape[3],)](
            q, k, v, grad_out, lse, delta, dk, dv, mask,
            tables.class_of_lender, *work[1:], None if listed is None else tables.borrowers,
            *numbers, len(k), work.most, *factors, **shapes, **_options(for_keys),
        )  # fmt: skip
    return dq, dk, dv


def _options(config: AttentionConfig) -> dict[str, int]:
    return {
        "BLOCK_M": config.block_m,
        "BLOCK_N": config.block_n,
        "STAGES": config.num_stages,
        "num_warps": config.num_warps,
        "num_stages": config.num_stages,
    }
