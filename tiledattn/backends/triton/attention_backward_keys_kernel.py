"""The backward kernel of cross-tile attention's keys and values, which goes over the reversed plan."""

# the kernel language has no types that mypy could check
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

from __future__ import annotations

import triton
import triton.language as tl

from .attention_backward_kernel import SHARED_INTEGERS, _power, _reference
from .attention_kernel import _load_rows

# integers whose values must not lead to a compilation each
INTEGERS = [*SHARED_INTEGERS, "lenders", "most_items"]


@triton.jit
def _add_rows(
    dk,
    dv,
    k,
    v,
    q_head,
    grad_head,
    lse_head,
    delta_head,
    first,
    S,
    H,
    q_stride_s,
    scale,
    shift,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    UNIT: tl.constexpr,
    WIDE: tl.constexpr,
    BASE_2: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
):
    """What query rows first .. S of one head add to the gradients of a block of keys and values."""
    lanes = tl.arange(0, BLOCK_M)
    for start in tl.range(first, S, BLOCK_M, num_stages=STAGES):
        rows = start + lanes
        inside = rows < S
        places = tl.minimum(rows, S - 1)
        places = places.to(tl.int64) if WIDE else places
        q = _load_rows(q_head, places * q_stride_s, None, D, BLOCK_D, UNIT)
        reference = _reference(lse_head, rows, inside, BASE_2) - shift
        logits = tl.dot(k, tl.trans(q), input_precision=PRECISION)  # [BLOCK_N, BLOCK_M]
        weights = _power(logits * scale - reference[None, :], BASE_2)
        grad = _load_rows(grad_head, places * H * D, None, D, BLOCK_D, 1)
        dv = tl.dot(weights.to(grad.dtype), grad, dv, input_precision=PRECISION)
        delta = tl.load(delta_head + rows, mask=inside, other=0.0)
        slopes = weights * (tl.dot(v, tl.trans(grad), input_precision=PRECISION) - delta[None, :])
        dk = tl.dot(slopes.to(q.dtype), q, dk, input_precision=PRECISION)
    return dk, dv


@triton.jit(do_not_specialize=INTEGERS)
def cross_tile_attention_bwd_kv_kernel(
    q_ptr,  # [T, B, S, H, D]
    k_ptr,  # [T', B, S, H // group, D]
    v_ptr,  # [T', B, S, H // group, D]
    grad_ptr,  # [T, B, S, H, D], contiguous: the gradient of the output
    lse_ptr,  # float32 [T, B, H, S], natural log
    delta_ptr,  # float32 [T, B, H, S]
    dk_ptr,  # [T', B, S, H // group, D], contiguous
    dv_ptr,  # like dk
    mask_ptr,  # uint8 [T, B, P], 1 = attend
    class_ptr,  # int32 [T']
    starts_ptr,  # int64 [classes + 1]
    items_ptr,  # int64 [starts[-1], 4]: first place, places, first borrower, borrowers
    places_ptr,  # int32, places in a sequence
    borrowers_ptr,  # int32, tile deltas; None where halo tokens have no weight
    q_stride_t,  # strides are in units of UNIT elements
    q_stride_b,
    q_stride_s,
    q_stride_h,
    k_stride_t,
    k_stride_b,
    k_stride_s,
    k_stride_h,
    v_stride_t,
    v_stride_b,
    v_stride_s,
    v_stride_h,
    T,
    B,
    S,
    H,
    P,
    group,  # query heads that share a key head
    lenders,  # T'
    most_items,  # of a class
    factor,  # of q.k
    scale,  # the same, in the exponents' base
    shift,  # bias of all halo tokens, in that base
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    UNIT: tl.constexpr,
    WIDE: tl.constexpr,
    BASE_2: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,  # as num_stages
):
    """A program serves up to BLOCK_N keys that the same tiles see, of one lender, batch entry and key head.

    It goes through the lender's own rows, then the canvas rows of each borrower, for all query heads of the key head.
    """
    pid = tl.program_id(0)
    u = pid // most_items % lenders
    kv = pid // most_items // lenders % (H // group)
    b = pid // most_items // lenders // (H // group)
    kind = tl.load(class_ptr + u)
    item = tl.load(starts_ptr + kind) + pid % most_items
    if item >= tl.load(starts_ptr + kind + 1):
        return
    first = tl.load(items_ptr + item * 4)
    count = tl.load(items_ptr + item * 4 + 1).to(tl.int32)
    u64, b64, kv64 = u.to(tl.int64), b.to(tl.int64), kv.to(tl.int64)

    lanes = tl.arange(0, BLOCK_N)
    place = tl.load(places_ptr + first + tl.minimum(lanes, count - 1))
    places = place.to(tl.int64) if WIDE else place
    k_head = k_ptr + (u64 * k_stride_t + b64 * k_stride_b + kv64 * k_stride_h) * UNIT
    v_head = v_ptr + (u64 * v_stride_t + b64 * v_stride_b + kv64 * v_stride_h) * UNIT
    k = _load_rows(k_head, places * k_stride_s, None, D, BLOCK_D, UNIT)
    v = _load_rows(v_head, places * v_stride_s, None, D, BLOCK_D, UNIT)
    dk = tl.zeros([BLOCK_N, BLOCK_D], dtype=tl.float32)
    dv = tl.zeros([BLOCK_N, BLOCK_D], dtype=tl.float32)

    turns = group
    if borrowers_ptr is not None:
        borrower = tl.load(items_ptr + item * 4 + 2)
        turns += tl.load(items_ptr + item * 4 + 3).to(tl.int32) * group
    # a virtual tile has no rows of its own
    for turn in range(tl.where(u < T, 0, group), turns):
        t64, first_row, bias = u64, 0, 0.0
        if borrowers_ptr is not None:
            borrowed = turn >= group
            t64 += tl.load(borrowers_ptr + borrower + turn // group - 1, mask=borrowed, other=0)
            first_row, bias = tl.where(borrowed, P, 0), tl.where(borrowed, shift, 0.0)
        h64 = kv64 * group + turn % group
        heads = ((t64 * B + b64) * H + h64) * S
        dk, dv = _add_rows(
            dk, dv, k, v,
            q_ptr + (t64 * q_stride_t + b64 * q_stride_b + h64 * q_stride_h) * UNIT,
            grad_ptr + ((t64 * B + b64) * S * H + h64) * D,
            lse_ptr + heads, delta_ptr + heads, first_row, S, H, q_stride_s, scale, bias,
            D, BLOCK_D, BLOCK_M, UNIT, WIDE, BASE_2, PRECISION, STAGES,
        )  # fmt: skip

    dk *= factor
    if mask_ptr is not None:
        # a masked key weighs nothing, whatever its logits
        prefix = (place < P) & (u < T)
        hidden = tl.load(mask_ptr + (u64 * B + b64) * P + place, mask=prefix, other=1) == 0
        dk, dv = tl.where(hidden[:, None], 0.0, dk), tl.where(hidden[:, None], 0.0, dv)
    dims = tl.arange(0, BLOCK_D)
    held = (lanes < count)[:, None] & (dims < D)[None, :]
    rows = ((u64 * B + b64) * S + place) * (H // group) + kv64
    pointers = rows[:, None] * D + dims[None, :]
    tl.store(dk_ptr + pointers, dk.to(dk_ptr.dtype.element_ty), mask=held)
    tl.store(dv_ptr + pointers, dv.to(dv_ptr.dtype.element_ty), mask=held)
