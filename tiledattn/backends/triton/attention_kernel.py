"""The forward kernel of cross-tile attention and its parts.

Logits, peaks and biases are in base 2 inside the kernel. Optional pointers are None where there is nothing to load.
"""

# the kernel language has no types that mypy could check
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-calls, allow-untyped-decorators

from __future__ import annotations

import triton
import triton.language as tl

# integers whose values must not lead to a compilation each
INTEGERS = [f"{x}_stride_{axis}" for x in "qkv" for axis in "tbsh"] + [*"TBSHP", "group", "magic", "digits"]


@triton.jit
def _load_rows(base, offsets, inside, D: tl.constexpr, BLOCK_D: tl.constexpr, UNIT: tl.constexpr):
    """Rows [len(offsets), BLOCK_D], zeros where not `inside` (None: all are) and beyond D.

    Offsets are in units of UNIT elements, so that the compiler knows how far loads are aligned.
    """
    dims = tl.arange(0, BLOCK_D)
    pointers = base + offsets[:, None] * UNIT + dims[None, :]
    if D != BLOCK_D:
        if inside is not None:
            return tl.load(pointers, mask=inside[:, None] & (dims < D)[None, :], other=0.0)
        return tl.load(pointers, mask=(dims < D)[None, :], other=0.0)
    if inside is not None:
        return tl.load(pointers, mask=inside[:, None], other=0.0)
    return tl.load(pointers)


@triton.jit
def _weigh_block(acc, total, peak, q, k, scale, shift, bias, sees, PRECISION: tl.constexpr):
    """One step of the online softmax over a block of keys; the weights are left to be multiplied with the values.

    Logits are q.k * scale + bias per key (-inf allowed), or + shift (finite) where bias is None; scale >= 0.
    Rows not in `sees` stay as they are: their reference is +inf, which makes every weight 0 at no cost per logit.
    """
    logits = tl.dot(q, tl.trans(k), input_precision=PRECISION)  # [BLOCK_M, BLOCK_N]
    if bias is not None:
        logits = logits * scale + bias[None, :]
        new_peak = tl.where(sees, tl.maximum(peak, tl.max(logits, 1)), peak)
        # a row without any key yet: -inf - (-inf) would be NaN
        reference = tl.where(new_peak == float("-inf"), 0.0, new_peak)
        rescale = tl.exp2(peak - reference)
        weights = tl.exp2(logits - tl.where(sees, reference, float("inf"))[:, None])
    else:
        new_peak = tl.where(sees, tl.maximum(peak, tl.max(logits, 1) * scale + shift), peak)
        rescale = tl.exp2(peak - new_peak)
        weights = tl.exp2(logits * scale - tl.where(sees, new_peak - shift, float("inf"))[:, None])
    total = total * rescale + tl.sum(weights, 1)
    return acc * rescale[:, None], total, new_peak, weights.to(q.dtype)


@triton.jit
def _own_bias(mask_ptr, tokens, S, P):
    """0 for tokens of the sequence, -inf for prefix tokens that are masked out and beyond the end."""
    attends = tokens < S
    if mask_ptr is not None:
        attends = attends & (tl.load(mask_ptr + tokens, mask=tokens < P, other=1) != 0)
    return tl.where(attends, 0.0, float("-inf"))


@triton.jit
def _attend_own(
    acc,
    total,
    peak,
    q,
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
    PRECISION: tl.constexpr,
):
    """The tile's own sequence: prefix blocks under a mask, clean blocks, a last partial block."""
    columns = tl.arange(0, BLOCK_N)
    everyone = tl.full([q.shape[0]], True, tl.int1)
    full = S // BLOCK_N * BLOCK_N
    clean = 0
    if mask_ptr is not None:
        clean = tl.minimum(tl.cdiv(P, BLOCK_N) * BLOCK_N, full)
        for start in tl.range(0, clean, BLOCK_N, num_stages=1):
            places = (start + columns).to(tl.int64) if WIDE else start + columns
            k = _load_rows(k_tile, places * k_stride_s, None, D, BLOCK_D, UNIT)
            bias = _own_bias(mask_ptr, start + columns, S, P)
            acc, total, peak, weights = _weigh_block(acc, total, peak, q, k, scale, 0.0, bias, everyone, PRECISION)
            v = _load_rows(v_tile, places * v_stride_s, None, D, BLOCK_D, UNIT)
            acc = tl.dot(weights, v, acc, input_precision=PRECISION)
    for start in range(clean, full, BLOCK_N):
        places = (start + columns).to(tl.int64) if WIDE else start + columns
        k = _load_rows(k_tile, places * k_stride_s, None, D, BLOCK_D, UNIT)
        acc, total, peak, weights = _weigh_block(acc, total, peak, q, k, scale, 0.0, None, everyone, PRECISION)
        v = _load_rows(v_tile, places * v_stride_s, None, D, BLOCK_D, UNIT)
        acc = tl.dot(weights, v, acc, input_precision=PRECISION)
    if full < S:
        inside = full + columns < S
        places = (full + columns).to(tl.int64) if WIDE else full + columns
        k = _load_rows(k_tile, places * k_stride_s, inside, D, BLOCK_D, UNIT)
        bias = _own_bias(mask_ptr, full + columns, S, P)
        acc, total, peak, weights = _weigh_block(acc, total, peak, q, k, scale, 0.0, bias, everyone, PRECISION)
        v = _load_rows(v_tile, places * v_stride_s, inside, D, BLOCK_D, UNIT)
        acc = tl.dot(weights, v, acc, input_precision=PRECISION)
    return acc, total, peak


@triton.jit
def _locate(entries, t, N, P, magic, digits, WIDE: tl.constexpr):
    """Tile and sequence place of the flat tokens `t * N + entries`; magic and digits divide by N."""
    flat = t * N + entries
    tile = (tl.umulhi(flat.to(tl.uint32) * 2, magic.to(tl.uint32)) >> digits.to(tl.uint32)).to(tl.int32)
    token = flat - tile * N + P
    return tile.to(tl.int64) if WIDE else tile, token.to(tl.int64) if WIDE else token


@triton.jit
def _attend_halo(
    acc,
    total,
    peak,
    q,
    k_head,
    v_head,
    index_ptr,
    bias_ptr,
    count,
    sees,
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
    shift,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_N: tl.constexpr,
    UNIT: tl.constexpr,
    WIDE: tl.constexpr,
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
        if bias_ptr is not None:
            bias = tl.load(bias_ptr + start + columns) * 1.4426950408889634 + shift
            acc, total, peak, weights = _weigh_block(acc, total, peak, q, k, scale, shift, bias, sees, PRECISION)
            v = _load_rows(v_head, tile * v_stride_t + token * v_stride_s, None, D, BLOCK_D, UNIT)
            acc = tl.dot(weights, v, acc, input_precision=PRECISION)
        else:
            acc, total, peak, weights = _weigh_block(acc, total, peak, q, k, scale, shift, None, sees, PRECISION)
            v = _load_rows(v_head, tile * v_stride_t + token * v_stride_s, None, D, BLOCK_D, UNIT)
            acc = tl.dot(weights, v, acc, input_precision=PRECISION)
    if full < count:
        inside = full + columns < count
        entries = tl.load(index_ptr + full + columns, mask=inside, other=0)
        tile, token = _locate(entries, t, N, P, magic, digits, WIDE)
        k = _load_rows(k_head, tile * k_stride_t + token * k_stride_s, inside, D, BLOCK_D, UNIT)
        bias = tl.where(inside, shift, float("-inf"))
        if bias_ptr is not None:
            bias += tl.load(bias_ptr + full + columns, mask=inside, other=0.0) * 1.4426950408889634
        acc, total, peak, weights = _weigh_block(acc, total, peak, q, k, scale, shift, bias, sees, PRECISION)
        v = _load_rows(v_head, tile * v_stride_t + token * v_stride_s, inside, D, BLOCK_D, UNIT)
        acc = tl.dot(weights, v, acc, input_precision=PRECISION)
    return acc, total, peak


@triton.jit(do_not_specialize=INTEGERS)
def cross_tile_attention_fwd_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    out_ptr,  # [T, B, S, H, D]
    lse_ptr,  # float32 [T, B, H, S], natural log
    mask_ptr,  # uint8 [T, B, P], 1 = attend
    class_ptr,  # int32 [T]
    starts_ptr,  # int64 [classes + 1]
    index_ptr,  # int32 [starts[-1]]
    bias_ptr,  # float32 [starts[-1]], natural log
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
    scale,  # not negative
    shift,  # bias of all halo tokens
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    UNIT: tl.constexpr,
    WIDE: tl.constexpr,
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
    places = tl.minimum(lanes, S - first_row - 1)
    places = places.to(tl.int64) if WIDE else places
    q_head = q_ptr + (t64 * q_stride_t + b64 * q_stride_b + h64 * q_stride_h) * UNIT
    q_rows = q_head + first_row.to(tl.int64) * q_stride_s * UNIT
    q = _load_rows(q_rows, places * q_stride_s, None, D, BLOCK_D, UNIT)
    acc = tl.zeros([BLOCK_M, BLOCK_D], dtype=tl.float32)
    total = tl.zeros([BLOCK_M], dtype=tl.float32)
    peak = tl.full([BLOCK_M], float("-inf"), dtype=tl.float32)

    k_head = k_ptr + (b64 * k_stride_b + kv64 * k_stride_h) * UNIT
    v_head = v_ptr + (b64 * v_stride_b + kv64 * v_stride_h) * UNIT
    k_tile, v_tile = k_head + t64 * k_stride_t * UNIT, v_head + t64 * v_stride_t * UNIT
    if mask_ptr is not None:
        mask_ptr += (t64 * B + b64) * P
    acc, total, peak = _attend_own(
        acc, total, peak, q, k_tile, v_tile, mask_ptr, k_stride_s, v_stride_s, S, P, scale,
        D, BLOCK_D, BLOCK_N, UNIT, WIDE, PRECISION,
    )  # fmt: skip
    if index_ptr is not None:
        kind = tl.load(class_ptr + t)
        first = tl.load(starts_ptr + kind)
        count = (tl.load(starts_ptr + kind + 1) - first).to(tl.int32)
        # a block of prefix rows alone sees no halo
        count = tl.where(first_row + BLOCK_M <= P, 0, count)
        if bias_ptr is not None:
            bias_ptr += first
        acc, total, peak = _attend_halo(
            acc, total, peak, q, k_head, v_head, index_ptr + first, bias_ptr, count, lanes >= P - first_row,
            k_stride_t, k_stride_s, v_stride_t, v_stride_s, t, S - P, P, magic, digits, scale, shift,
            D, BLOCK_D, BLOCK_N, UNIT, WIDE, PRECISION, STAGES,
        )  # fmt: skip

    # a row without keys: zeros and lse = -inf
    out = acc / tl.where(total == 0.0, 1.0, total)[:, None]
    dims = tl.arange(0, BLOCK_D)
    inside = lanes < S - first_row
    out_rows = out_ptr + (((t64 * B + b64) * S + first_row) * H + h64) * D
    places = lanes.to(tl.int64) if WIDE else lanes
    pointers = out_rows + (places * H)[:, None] * D + dims[None, :]
    tl.store(pointers, out.to(out_ptr.dtype.element_ty), mask=inside[:, None] & (dims < D)[None, :])
    if lse_ptr is not None:
        lse = (peak + tl.log2(total)) * 0.6931471805599453
        tl.store(lse_ptr + ((t64 * B + b64) * H + h64) * S + first_row + lanes, lse, mask=inside)
