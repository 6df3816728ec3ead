"""Cross-tile attention by the native library's CUDA kernels: tables of the plan, alignment, and the call."""

from __future__ import annotations

import itertools
import math
import os
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..geometry import AttentionPlan
from ..geometry.plan import Rectangle
from .rotary import make_pool, pool_turns, turn_queries
from .tables import cached

MAX_HEAD_DIM = {torch.float16: 256, torch.bfloat16: 256, torch.float32: 128}
SM90_VARIABLE = "TILEDATTN_SM90"  # 1: the sm_90a kernel on Hopper, though it has not been proven there
SM90_OPERATOR = "cross_tile_attention_cuda_sm90"  # only in a library that was built for sm_90a
CHUNK_BYTES = 16  # that a kernel moves at once


class HaloTokens(NamedTuple):
    """A plan's halo on a device: for tile t, entries starts[c] ... starts[c + 1] - 1 with c = class_of_tile[t].

    An entry (delta, token) names canvas token `token` of the pool's tile t + delta; the order is that of
    `AttentionPlan.class_table`.
    """

    class_of_tile: Tensor  # int32 [T]
    starts: Tensor  # int64 [classes + 1]
    halo: Tensor  # int32 [starts[-1], 2]


@cached(32)
def halo_tokens(plan: AttentionPlan, device: torch.device) -> HaloTokens:
    """The plan's halo on `device`, cached by value.

    Raises:
        ValueError: the tables would be larger than 2^28 entries, or the pool's tokens do not fit in int32.
    """
    starts, index = plan.table
    halo = np.stack(np.divmod(index, np.int32(plan.layout.tile_positions)), axis=-1)
    return HaloTokens(*(torch.from_numpy(table).to(device) for table in (plan.class_of_tile, starts, halo)))


class HaloBoxes(NamedTuple):
    """The halo as boxes of one shape, for the sm_90a kernel; classes as in `HaloTokens`, `starts` counts boxes.

    A tile's canvas tokens are `rows` rows of `columns`; a box (delta, row, column, 0) is `box_rows` x `box_columns` of
    them, of the pool's tile t + delta.
    """

    class_of_tile: Tensor  # int32 [T]
    starts: Tensor  # int64 [classes + 1]
    boxes: Tensor  # int32 [starts[-1], 4]
    longest_first: Tensor  # int32 [T]: all tiles, those that see most first
    rows: int
    columns: int
    box_rows: int
    box_columns: int


@cached(32)
def halo_boxes(plan: AttentionPlan, device: torch.device) -> HaloBoxes | None:
    """The plan's halo on `device` as boxes, cached by value; None where its rectangles don't consist of such boxes."""
    tile = plan.layout.tile
    columns, rows = tile[-1], math.prod(tile[:-1])
    of_class = [plan.rectangles(number) for number in range(plan.num_classes)]
    every = [rectangle for rectangles in of_class for rectangle in rectangles]
    box_columns = _power_of_two(math.gcd(0, *(n for r in every for n in (r.start[-1], r.shape[-1]))), 128)
    box_rows = 1
    if len(tile) > 1:
        common = math.gcd(0, *(n for r in every for n in (r.start[-2], r.shape[-2])))
        box_rows = _power_of_two(common, 128 // box_columns)
    if every and box_rows * box_columns < 8:
        return None
    boxes = [[box for r in rectangles for box in _cut(r, tile, box_rows, box_columns)] for rectangles in of_class]
    counts = np.asarray([len(found) for found in boxes], dtype=np.int64)
    flat = np.asarray([box for found in boxes for box in found], dtype=np.int32).reshape(-1, 4)
    order = np.argsort(-counts[plan.class_of_tile], kind="stable").astype(np.int32)
    tables = (plan.class_of_tile, np.concatenate(([0], np.cumsum(counts))), flat, order)
    class_of_tile, starts, found, longest_first = (torch.from_numpy(table).to(device) for table in tables)
    return HaloBoxes(class_of_tile, starts, found, longest_first, rows, columns, box_rows, box_columns)


def _power_of_two(number: int, most: int) -> int:
    """The largest power of two, at most `most`, that divides `number` (0 is divided by all)."""
    return math.gcd(number, 1 << (most.bit_length() - 1))


def _cut(
    rectangle: Rectangle, tile: tuple[int, ...], box_rows: int, box_columns: int
) -> list[tuple[int, int, int, int]]:
    """A rectangle's boxes (delta, row, column, 0), row-major."""
    ranges = [range(a, a + n) for a, n in zip(rectangle.start, rectangle.shape, strict=True)]
    ranges[-1] = ranges[-1][::box_columns]
    if len(tile) > 1:
        ranges[-2] = ranges[-2][::box_rows]
    found = []
    for place in itertools.product(*ranges):
        row = 0
        for position, width in zip(place[:-1], tile[:-1], strict=True):
            row = row * width + position
        found.append((rectangle.tile_delta, row, place[-1], 0))
    return found


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
    """q [T, B, S, H, D], k and v [T, B, S, Hkv, D] -> out like q, lse [T, B, H, S] (empty unless asked for).

    With `frequencies` the plan is an unwrapped one; without, k and v may be the pool that the plan's tables name.
    Rows that don't lie on 16 bytes (an odd head dim, an odd stride) are copied once. float32 is multiplied as tfloat32.
    """
    if frequencies is not None and q.numel():
        turns = pool_turns(plan, frequencies, interleaved, q)
        q, (k, v) = turn_queries(q, turns), make_pool(k, v, turns)
    tiles, batch, sequence, heads, dim = q.shape
    lse = q.new_empty((tiles, batch, heads, sequence) if return_lse else (0,), dtype=torch.float32)
    if q.numel() == 0:
        return q.new_empty(q.shape), lse.fill_(-math.inf)
    if scale < 0:
        q, scale = -q, -scale
    padding = -dim % (CHUNK_BYTES // q.element_size())
    q, k, v = (_on_chunks(x, padding) for x in (q, k, v))
    out = q.new_empty(q.shape)
    mask = None if prefix_mask is None or num_prefix_tokens == 0 else prefix_mask.contiguous()
    numbers = (num_prefix_tokens, scale * math.log2(math.e), math.log2(halo_weight) if halo_weight > 0 else 0.0)
    boxes = halo_boxes(plan, q.device) if _asked_for_sm90(q.device) and _takes_boxes(q, k, v) else None
    if boxes is not None:
        _launch_boxes(q, k, v, mask, *_without_halo(boxes, halo_weight), *numbers, out, lse)
    else:
        tables = halo_tokens(plan, q.device) if halo_weight > 0 else None
        if tables is not None and tables.halo.numel() == 0:
            tables = None
        _launch(q, k, v, mask, *(tables or (None, None, None)), *numbers, out, lse)
    return (out[..., :dim].contiguous() if padding else out), lse


def _asked_for_sm90(device: torch.device) -> bool:
    """Whether the sm_90a kernel is to be used: it has not been proven yet, so only where it is asked for."""
    if os.environ.get(SM90_VARIABLE) != "1" or device.type != "cuda":
        return False
    return torch.cuda.get_device_capability(device) == (9, 0) and hasattr(torch.ops.tiledattn, SM90_OPERATOR)


def _takes_boxes(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether the sm_90a kernel can take these tensors: the copy engine knows five dims, so tiles and batch are one."""
    batch = q.shape[1]
    return (
        q.dtype != torch.float32
        and q.shape[-1] <= 128
        and (batch == 1 or all(x.stride(0) == batch * x.stride(1) for x in (k, v)))
        and not any(0 in _strides(x) for x in (q, k, v))
    )


def _without_halo(tables: HaloBoxes, halo_weight: float) -> tuple[object, ...]:
    """The tables as arguments; no boxes where the halo is empty or weighs nothing."""
    class_of_tile, starts, boxes, longest_first, *numbers = tables
    halo = (class_of_tile, starts, boxes) if halo_weight > 0 and boxes.numel() else (None, None, None)
    return (*halo, longest_first, *numbers)


def _launch(*arguments: object) -> None:
    torch.ops.tiledattn.cross_tile_attention_cuda.default(*arguments)


def _launch_boxes(*arguments: object) -> None:
    getattr(torch.ops.tiledattn, SM90_OPERATOR)(*arguments)


def _strides(x: Tensor) -> list[int]:
    """Of its dims but the last, where they have more than one entry."""
    return [stride for size, stride in zip(x.shape[:-1], x.stride()[:-1], strict=True) if size > 1]


def _on_chunks(x: Tensor, padding: int) -> Tensor:
    """`x` with `padding` zeros after its last dim, every row of it on 16 bytes; itself where nothing is to be done."""
    if padding:
        return F.pad(x, (0, padding)).contiguous()
    starts = (x.data_ptr(), *(stride * x.element_size() for stride in _strides(x)))
    aligned = x.stride(-1) == 1 and not any(start % CHUNK_BYTES for start in starts)
    return x if aligned else x.clone(memory_format=torch.contiguous_format)
