"""The backward kernel of cross-tile attention's queries, which goes over the plan, and what all backward kernels share.

A row's weights are exp(q.k * scale + bias - reference), its reference being its lse: +inf for a row without keys.
Scale, bias and reference are in base 2 for half precisions; for float32 in base e, as the lse is, whose rounding in
another base would show. Optional pointers are None where there is nothing to load.
"""

# the kernel language has no types that mypy could check
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

from __future__ import annotations

import triton
import triton.language as tl

from .attention_kernel import _load_rows, _locate, _own_bias

# integers whose values must not lead to a compilation each
SHARED_INTEGERS = [*(f"{x}_stride_{axis}" for x in "qkv" for axis in "tbsh"), *"TBSHP", "group"]
INTEGERS = [*SHARED_INTEGERS, "magic", "digits"]


@triton.jit
def attention_delta_kernel(
    grad_ptr,  # [T, B, S, H, D], contiguous
    out_ptr,  # like grad
    grad_lse_ptr,  # float32 [T, B, H, S]
    delta_ptr,  # float32 [T, B, H, S]
    S,
    H,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """delta = sum_d grad * out - grad_lse, which the softmax takes off a row's slopes; BLOCK rows a program."""
    pid = tl.program_id(0)
    blocks = tl.cdiv(S, BLOCK)
    rows = pid % blocks * BLOCK + tl.arange(0, BLOCK)
    head = pid // blocks % H
    sequence = (pid // blocks // H).to(tl.int64)
    inside = rows < S
    dims = tl.arange(0, BLOCK_D)
    places = ((sequence * S + rows) * H + head)[:, None] * D + dims[None, :]
    held = inside[:, None] & (dims < D)[None, :]
    grad = tl.load(grad_ptr + places, mask=held, other=0.0).to(tl.float32)
    out = tl.load(out_ptr + places, mask=held, other=0.0).to(tl.float32)
    delta = tl.sum(grad * out, 1)
    target = (sequence * H + head) * S + rows
    if grad_lse_ptr is not None:
        delta -= tl.load(grad_lse_ptr + target, mask=inside, other=0.0)
    tl.store(delta_ptr + target, delta, mask=inside)


@triton.jit
def _reference(lse_ptr, rows, inside, BASE_2: tl.constexpr):
    """The lse; +inf, which makes every weight 0, for rows without keys and rows that do not exist."""
    lse = tl.load(lse_ptr + rows, mask=inside, other=float("inf"))
    lse = tl.where(lse == float("-inf"), float("inf"), lse)
    return lse * 1.4426950408889634 if BASE_2 else lse


@triton.jit
def _power(exponents, BASE_2: tl.constexpr):
    return tl.exp2(exponents) if BASE_2 else tl.exp(exponents)


@triton.jit
def _add_keys(acc, q, grad, k, v, scale, bias, reference, delta, BASE_2: tl.constexpr, PRECISION: tl.constexpr):
    """What a block of keys adds to the gradient of q (but for the scale)."""
    logits = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale  # [BLOCK_M, BLOCK_N]
    if bias is not None:
        logits += bias[None, :]
    weights = _power(logits - reference[:, None], BASE_2)
    slopes = weights * (tl.dot(grad, tl.trans(v), input_precision=PRECISION) - delta[:, None])
    return tl.dot(slopes.to(k.dtype), k, acc, input_precision=PRECISION)


@triton.jit
def _add_own(
    acc,
    q,
    grad,
    reference,
    delta,
    k_tile,
    v_tile,
    mask_ptr,
    k_stride_s,
    v_stride_s,
    S,
    P,
    scale,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    UNIT: tl.constexpr,
    WIDE: tl.constexpr,
    BASE_2: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The tile's own sequence: prefix blocks under a mask, clean blocks, a last partial block."""
    columns = tl.arange(0, BLOCK_N)
    full = S // BLOCK_N * BLOCK_N
    clean = 0
    if mask_ptr is not None:
        clean = tl.minimum(tl.cdiv(P, BLOCK_N) * BLOCK_N, full)
        for start in tl.range(0, clean, BLOCK_N, num_stages=1):
            places = (start + columns).to(tl.int64) if WIDE else start + columns
            k = _load_rows(k_tile, places * k_stride_s, None, D, BLOCK_D, UNIT)
            v = _load_rows(v_tile, places * v_stride_s, None, D, BLOCK_D, UNIT)
            bias = _own_bias(mask_ptr, start + columns, S, P)
            acc = _add_keys(acc, q, grad, k, v, scale, bias, reference, delta, BASE_2, PRECISION)
    for start in range(clean, full, BLOCK_N):
        places = (start + columns).to(tl.int64) if WIDE else start + columns
        k = _load_rows(k_tile, places * k_stride_s, None, D, BLOCK_D, UNIT)
        v = _load_rows(v_tile, places * v_stride_s, None, D, BLOCK_D, UNIT)
        acc = _add_keys(acc, q, grad, k, v, scale, None, reference, delta, BASE_2, PRECISION)
    if full < S:
        inside = full + columns < S
        places = (full + columns).to(tl.int64) if WIDE else full + columns
        k = _load_rows(k_tile, places * k_stride_s, inside, D, BLOCK_D, UNIT)
        v = _load_rows(v_tile, places * v_stride_s, inside, D, BLOCK_D, UNIT)
        bias = _own_bias(mask_ptr, full + columns, S, P)
        acc = _add_keys(acc, q, grad, k, v, scale, bias, reference, delta, BASE_2, PRECISION)
    return acc


@triton.jit
def _add_halo(
    acc,
    q,
    grad,
    reference,
    delta,
    k_head,
    v_head,
    index_ptr,
    count,
    k_stride_t,
    k_stride_s,
    v_stride_t,
    v_stride_s,
    t,
    N,
    P,
    magic,
    digits,
    scale,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    UNIT: tl.constexpr,
    WIDE: tl.constexpr,
    BASE_2: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
):
    """The `count` tokens that the index names: clean blocks and a last partial one."""
    columns = tl.arange(0, BLOCK_N)
    full = count // BLOCK_N * BLOCK_N
    # half of the stages go to the index that the loads depend on
    for start in tl.range(0, full, BLOCK_N, num_stages=2 * STAGES - 1):
        entries = tl.load(index_ptr + start + columns)
        tile, token = _locate(entries, t, N, P, magic, digits, WIDE)
        k = _load_rows(k_head, tile * k_stride_t + token * k_stride_s, None, D, BLOCK_D, UNIT)
        v = _load_rows(v_head, tile * v_stride_t + token * v_stride_s, None, D, BLOCK_D, UNIT)
        acc = _add_keys(acc, q, grad, k, v, scale, None, reference, delta, BASE_2, PRECISION)
    if full < count:
        inside = full + columns < count
        entries = tl.load(index_ptr + full + columns, mask=inside, other=0)
        tile, token = _locate(entries, t, N, P, magic, digits, WIDE)
        k = _load_rows(k_head, tile * k_stride_t + token * k_stride_s, inside, D, BLOCK_D, UNIT)
        v = _load_rows(v_head, tile * v_stride_t + token * v_stride_s, inside, D, BLOCK_D, UNIT)
        bias = tl.where(inside, 0.0, float("-inf"))
        acc = _add_keys(acc, q, grad, k, v, scale, bias, reference, delta, BASE_2, PRECISION)
    return acc


@triton.jit(do_not_specialize=INTEGERS)
def cross_tile_attention_bwd_q_kernel(
    q_ptr,  # [T, B, S, H, D]
    k_ptr,  # [T', B, S, H // group, D]
    v_ptr,  # [T', B, S, H // group, D]
    grad_ptr,  # [T, B, S, H, D], contiguous: the gradient of the output
    lse_ptr,  # float32 [T, B, H, S], natural log
    delta_ptr,  # float32 [T, B, H, S]
    dq_ptr,  # [T, B, S, H, D], contiguous
    mask_ptr,  # uint8 [T, B, P], 1 = attend
    class_ptr,  # int32 [T]
    starts_ptr,  # int64 [classes + 1]
    index_ptr,  # int32 [starts[-1]]
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
    magic,
    digits,  # with magic: division by S - P
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
    """A program serves BLOCK_M query rows of one tile, batch entry and head."""
    pid = tl.program_id(0)
    blocks = tl.cdiv(S, BLOCK_M)
    t = pid // blocks % T
    h = pid // blocks // T % H
    b = pid // blocks // T // H
    t64, b64, h64, kv64 = t.to(tl.int64), b.to(tl.int64), h.to(tl.int64), (h // group).to(tl.int64)

    first_row = pid % blocks * BLOCK_M
    lanes = tl.arange(0, BLOCK_M)
    inside = lanes < S - first_row
    places = tl.minimum(lanes, S - first_row - 1)  # a row that does not exist repeats the last one, at no weight
    places = places.to(tl.int64) if WIDE else places
    q_head = q_ptr + (t64 * q_stride_t + b64 * q_stride_b + h64 * q_stride_h) * UNIT
    q_rows = q_head + first_row.to(tl.int64) * q_stride_s * UNIT
    q = _load_rows(q_rows, places * q_stride_s, None, D, BLOCK_D, UNIT)
    first_dense = (((t64 * B + b64) * S + first_row) * H + h64) * D
    grad = _load_rows(grad_ptr + first_dense, places * H * D, None, D, BLOCK_D, 1)
    rows = ((t64 * B + b64) * H + h64) * S + first_row + lanes
    reference = _reference(lse_ptr, rows, inside, BASE_2)
    delta = tl.load(delta_ptr + rows, mask=inside, other=0.0)
    acc = tl.zeros([BLOCK_M, BLOCK_D], dtype=tl.float32)

    k_head = k_ptr + (b64 * k_stride_b + kv64 * k_stride_h) * UNIT
    v_head = v_ptr + (b64 * v_stride_b + kv64 * v_stride_h) * UNIT
    k_tile, v_tile = k_head + t64 * k_stride_t * UNIT, v_head + t64 * v_stride_t * UNIT
    if mask_ptr is not None:
        mask_ptr += (t64 * B + b64) * P
    acc = _add_own(
        acc, q, grad, reference, delta, k_tile, v_tile, mask_ptr, k_stride_s, v_stride_s, S, P, scale,
        D, BLOCK_D, BLOCK_N, UNIT, WIDE, BASE_2, PRECISION,
    )  # fmt: skip
    if index_ptr is not None:
        kind = tl.load(class_ptr + t)
        first = tl.load(starts_ptr + kind)
        count = (tl.load(starts_ptr + kind + 1) - first).to(tl.int32)
        # a block of prefix rows alone sees no halo
        count = tl.where(first_row + BLOCK_M <= P, 0, count)
        reference = tl.where(lanes >= P - first_row, reference - shift, float("inf"))
        acc = _add_halo(
            acc, q, grad, reference, delta, k_head, v_head, index_ptr + first, count,
            k_stride_t, k_stride_s, v_stride_t, v_stride_s, t, S - P, P, magic, digits, scale,
            D, BLOCK_D, BLOCK_N, UNIT, WIDE, BASE_2, PRECISION, STAGES,
        )  # fmt: skip

    dims = tl.arange(0, BLOCK_D)
    places = lanes.to(tl.int64) if WIDE else lanes
    pointers = dq_ptr + first_dense + (places * H)[:, None] * D + dims[None, :]
    dq = acc * factor
    tl.store(pointers, dq.to(dq_ptr.dtype.element_ty), mask=inside[:, None] & (dims < D)[None, :])
