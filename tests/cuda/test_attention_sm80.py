"""The sm_80 attention kernel, run on a CPU by the emulator and judged by the float64 reference."""

import ctypes
import math
from unittest import mock

import pytest
import torch
from emulation import call, emulated
from hypothesis import given, settings
from hypothesis import strategies as st
from support import assert_within_budget, attention_inputs, halos, layouts, oracle, plain_attention, plain_lse

import tiledattn as ta
from tiledattn.backends import cuda_attention
from tiledattn.geometry import attention_plan, normalize_halo


@pytest.fixture(scope="module", autouse=True)
def _compiled():
    emulated("attention_sm80.cpp")


HALF_TYPES = [torch.float16, torch.bfloat16]


class Arguments(ctypes.Structure):
    """AttentionArguments of csrc/cuda/attention.h."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("q", "k", "v", "out", "lse", "mask", "class_of_tile", "starts", "halo")),
        *((f"{name}_stride", ctypes.c_int64 * 4) for name in "qkv"),
        *(
            (name, ctypes.c_int32)
            for name in ("tiles", "batch", "sequence", "heads", "shared_by", "head_dim", "prefix")
        ),
        ("scale", ctypes.c_float),
        ("halo_shift", ctypes.c_float),
    ]


def launch(seed, q, k, v, mask, class_of_tile, starts, halo, prefix, scale, shift, out, lse):
    """What the operator cross_tile_attention_cuda does, by the emulator."""
    library = emulated("attention_sm80.cpp")
    assert library.size_of_arguments() == ctypes.sizeof(Arguments)

    def pointer(x):
        return None if x is None or x.numel() == 0 else x.data_ptr()

    strides = [(ctypes.c_int64 * 4)(*x.stride()[:4]) for x in (q, k, v)]
    tiles, batch, sequence, heads, dim = q.shape
    arguments = Arguments(
        *(pointer(x) for x in (q, k, v, out, lse, mask, class_of_tile, starts, halo)),
        *strides,
        *(tiles, batch, sequence, heads, heads // k.shape[3], dim, prefix),
        scale,
        shift,
    )
    call(library.attention_sm80, ctypes.byref(arguments), int(q.dtype == torch.bfloat16), ctypes.c_uint(seed))


def attend(q, k, v, layout, halo, seed=0, num_prefix_tokens=0, prefix_mask=None, halo_weight=1.0, scale=None):
    """cross_tile_attention of the cuda backend, launched on the emulator; results are poisoned with NaN before."""

    def emulate(*arguments):
        for result in arguments[-2:]:
            result.fill_(math.nan)
        launch(seed, *arguments)

    with mock.patch.object(cuda_attention, "_launch", emulate):
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


def check(q, k, v, layout, halo, seed=0, **arguments):
    out, lse = attend(q, k, v, layout, halo, seed=seed, **arguments)
    exact, exact_lse = oracle(q, k, v, layout, halo, **arguments)
    assert_within_budget(out, plain_attention(q, k, v, layout, halo, **arguments), exact)
    empty = exact_lse.isinf()
    assert torch.equal(lse.isinf(), empty)
    plain = plain_lse(q, k, layout, halo, **arguments)
    assert_within_budget(*(x.masked_fill(empty, 0.0) for x in (lse, plain, exact_lse)))


@settings(max_examples=30, deadline=None)
@given(st.data(), layouts(), st.sampled_from(HALF_TYPES), st.integers(0, 2**16))
def test_random_layouts(data, layout, dtype, seed):
    prefix = data.draw(st.integers(0, 5))
    kv_heads = data.draw(st.integers(1, 2))
    q, k, v = attention_inputs(
        layout,
        batch=data.draw(st.integers(1, 2)),
        prefix=prefix,
        heads=kv_heads * data.draw(st.integers(1, 2)),
        kv_heads=kv_heads,
        dim=data.draw(st.sampled_from([1, 8, 24, 64, 72])),
        dtype=dtype,
        seed=seed,
        form=data.draw(st.sampled_from(["contiguous", "strided", "fused", "narrowed"])),
    )
    mask = torch.rand(*q.shape[:2], prefix, generator=torch.Generator().manual_seed(seed)) < 0.7
    check(
        q,
        k,
        v,
        layout,
        data.draw(halos(layout)),
        seed,
        num_prefix_tokens=prefix,
        prefix_mask=mask if prefix else None,
        halo_weight=data.draw(st.sampled_from([1.0, 0.3, 0.0])),
        scale=data.draw(st.sampled_from([None, 0.5, -0.2, 0.0])),
    )


LARGE = ta.TileLayout((32, 36), (16, 12), (0, 4), (False, True))  # 192 tokens a tile: several blocks of rows and keys


@pytest.mark.parametrize("dtype", HALF_TYPES)
@pytest.mark.parametrize("dim", [64, 128, 160])
@pytest.mark.parametrize("prefix", [0, 3, 130])
def test_several_blocks(dim, dtype, prefix):
    q, k, v = attention_inputs(LARGE, prefix=prefix, heads=2, kv_heads=1, dim=dim, dtype=dtype)
    mask = torch.arange(prefix).expand(*q.shape[:2], prefix) % 3 > 0 if prefix == 130 else None
    check(q, k, v, LARGE, 5, num_prefix_tokens=prefix, prefix_mask=mask, halo_weight=0.7)


def test_any_order_of_threads_gives_the_same_bits():
    q, k, v = attention_inputs(LARGE, prefix=2, heads=1, dim=64, dtype=torch.bfloat16)
    first = attend(q, k, v, LARGE, 6, seed=1, num_prefix_tokens=2)
    for seed in range(2, 6):
        for found, expected in zip(attend(q, k, v, LARGE, 6, seed=seed, num_prefix_tokens=2), first, strict=True):
            assert torch.equal(found, expected)


def test_rows_without_keys_are_zeros():
    layout = ta.TileLayout((4,), 2)
    q, k, v = attention_inputs(layout, prefix=3, dim=8, dtype=torch.float16)
    mask = torch.zeros(2, 1, 3, dtype=torch.bool)
    check(q, k, v, layout, 1, num_prefix_tokens=3, prefix_mask=mask)
    one = q[:, :, :1]
    out, lse = attend(one, one, one, ta.TileLayout((2,), 1), 0, num_prefix_tokens=0)
    assert torch.equal(out, one)
    assert lse.isfinite().all()


def test_large_logits_stay_finite():
    q, k, v = attention_inputs(LARGE, heads=1, dim=64, dtype=torch.float16)
    out, _ = attend(q * 100, k * 100, v, LARGE, 4, scale=1.0)
    assert out.isfinite().all()


def test_nan_stays_nan():
    q, k, v = attention_inputs(LARGE, heads=1, dim=64, dtype=torch.float16)
    k[0, 0, 5] = math.nan
    out, _ = attend(q, k, v, LARGE, 0)
    assert out[0].isnan().all()
    assert not out[1:].isnan().any()
