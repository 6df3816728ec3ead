"""The cuda backend's attention, launched on the emulator instead of a GPU, and its judgement by the reference."""

import contextlib
import ctypes
import math
from unittest import mock

import torch
from emulation import call, emulated
from support import assert_within_budget, oracle, plain_attention, plain_lse

from tiledattn.backends import cuda_attention
from tiledattn.geometry import attention_plan, normalize_halo

ELEMENTS = [torch.float16, torch.bfloat16, torch.float32]  # AttentionElement of csrc/cuda/attention.h
SOURCES = {"sm80": "attention_sm80.cpp", "sm90": "attention_sm90.cpp"}


class Arguments(ctypes.Structure):
    """AttentionArguments of csrc/cuda/attention.h."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("q", "k", "v", "out", "lse", "mask", "class_of_tile", "starts", "halo")),
        *((f"{name}_stride", ctypes.c_int64 * 4) for name in "qkv"),
        *((name, ctypes.c_int32) for name in ("tiles", "batch", "sequence", "heads", "shared_by", "pool_tiles")),
        *((name, ctypes.c_int32) for name in ("head_dim", "prefix")),
        *((name, ctypes.c_float) for name in ("scale", "halo_shift")),
    ]


class Boxes(ctypes.Structure):
    """HaloBoxes of csrc/cuda/attention.h."""

    _fields_ = [
        ("boxes", ctypes.c_void_p),
        *((name, ctypes.c_int32) for name in ("tokens_per_box", "rows", "columns", "box_rows", "box_columns")),
        ("longest_first", ctypes.c_void_p),
    ]


def pointer(x):
    return None if x is None or x.numel() == 0 else x.data_ptr()


def arguments_of(q, k, v, mask, class_of_tile, starts, halo, prefix, scale, shift, out, lse):
    tiles, batch, sequence, heads, dim = q.shape
    return Arguments(
        *(pointer(x) for x in (q, k, v, out, lse, mask, class_of_tile, starts, halo)),
        *((ctypes.c_int64 * 4)(*x.stride()[:4]) for x in (q, k, v)),
        *(tiles, batch, sequence, heads, heads // k.shape[3], k.shape[0], dim, prefix),
        *(scale, shift),
    )


def launch_sm80(seed, q, *rest):
    """What the operator cross_tile_attention_cuda does, by the emulator."""
    library = emulated(SOURCES["sm80"])
    assert library.size_of_arguments() == ctypes.sizeof(Arguments)
    arguments = arguments_of(q, *rest)
    call(library.attention_sm80, ctypes.byref(arguments), ELEMENTS.index(q.dtype), ctypes.c_uint(seed))


def launch_sm90(seed, q, k, v, mask, class_of_tile, starts, boxes, longest_first, *rest):
    """What the operator cross_tile_attention_cuda_sm90 does, by the emulator."""
    rows, columns, box_rows, box_columns, *numbers, out, lse = rest
    library = emulated(SOURCES["sm90"])
    assert library.size_of_arguments() == ctypes.sizeof(Arguments)
    assert library.size_of_boxes() == ctypes.sizeof(Boxes)
    arguments = arguments_of(q, k, v, mask, class_of_tile, starts, None, *numbers, out, lse)
    halo = Boxes(pointer(boxes), box_rows * box_columns, rows, columns, box_rows, box_columns, pointer(longest_first))
    bfloat16 = int(q.dtype == torch.bfloat16)
    call(library.attention_sm90, ctypes.byref(arguments), ctypes.byref(halo), bfloat16, ctypes.c_uint(seed))


@contextlib.contextmanager
def emulation(kernel, seed, used=None):
    """Launches go to the emulator; results are poisoned with NaN before. Names of kernels are appended to `used`."""

    def to(name, launch):
        def emulate(*arguments):
            if used is not None:
                used.append(name)
            for result in arguments[-2:]:
                result.fill_(math.nan)
            launch(seed, *arguments)

        return emulate

    with (
        mock.patch.object(cuda_attention, "_launch", to("sm80", launch_sm80)),
        mock.patch.object(cuda_attention, "_launch_boxes", to("sm90", launch_sm90)),
        mock.patch.object(cuda_attention, "_asked_for_sm90", return_value=kernel == "sm90"),
    ):
        yield


def attend(
    kernel, q, k, v, layout, halo, seed=0, num_prefix_tokens=0, prefix_mask=None, halo_weight=1.0, scale=None, used=None
):
    """`cross_tile_attention` of the cuda backend with its lse."""
    with emulation(kernel, seed, used):
        return cuda_attention.cross_tile_attention(
            q,
            k,
            v,
            plan=attention_plan(layout, normalize_halo(layout, halo)),
            num_prefix_tokens=num_prefix_tokens,
            prefix_mask=prefix_mask,
            halo_weight=halo_weight,
            scale=q.shape[-1] ** -0.5 if scale is None else scale,
            return_lse=True,
        )


def check(kernel, q, k, v, layout, halo, seed=0, used=None, **arguments):
    """Result and lse err at most as the budget allows."""
    out, lse = attend(kernel, q, k, v, layout, halo, seed=seed, used=used, **arguments)
    exact, exact_lse = oracle(q, k, v, layout, halo, **arguments)
    # tfloat32 has float16's mantissa: inputs that float16 holds, and its error as the yardstick
    plainly = [x.half() if x.dtype == torch.float32 else x for x in (q, k, v)]
    assert all(torch.equal(x.to(q.dtype), y) for x, y in zip(plainly, (q, k, v), strict=True))
    assert_within_budget(out, plain_attention(*plainly, layout, halo, **arguments), exact)
    empty = exact_lse.isinf()
    assert torch.equal(lse.isinf(), empty)
    plain = plain_lse(q, k, layout, halo, **arguments)
    assert_within_budget(*(x.masked_fill(empty, 0.0) for x in (lse, plain, exact_lse)))
