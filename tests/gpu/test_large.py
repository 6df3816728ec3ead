"""Tensors of more than 2^31 elements: offsets are 64 bits wide."""

import pytest
import torch
from gpu.where import DEVICE, MARKS, offered, skip_unless_free, sm90  # noqa: F401  # a fixture

import tiledattn as ta
from tiledattn.bench.attention_cases import AttentionJudge
from tiledattn.bench.ways import Way

pytestmark = MARKS
LARGE = DEVICE.type == "cuda"  # a rehearsal on a CPU is small


@pytest.mark.timeout(120)
def test_tiles(backend):
    skip_unless_free(24)
    side, channels = (4096, 130) if LARGE else (64, 3)
    half = side // 2
    layout = ta.TileLayout((side, side), half, 0)
    canvas = torch.empty(1, channels, side, side, dtype=torch.float16, device=DEVICE)
    assert not LARGE or canvas.numel() > 2**31
    places = torch.arange(side, device=DEVICE, dtype=torch.int32)
    for channel in range(channels):  # whole numbers that float16 holds
        canvas[0, channel] = (places + 3 * places[:, None] + 7 * channel) % 1021
    tiles = offered(ta.extract_tiles, canvas, layout, backend=backend)
    for tile, (y, x) in zip(tiles, layout.origins, strict=True):
        assert torch.equal(tile, canvas[:, :, y : y + half, x : x + half])
    assert torch.equal(ta.blend_tiles(tiles, layout, "uniform", backend=backend), canvas)
    del canvas
    padded = ta.pad_tiles(tiles, layout, 1, backend=backend)
    assert torch.equal(padded[..., 1:-1, 1:-1], tiles)
    assert torch.equal(padded[0, :, :, 1:-1, -1], tiles[1, :, :, :, 0])
    assert torch.equal(padded[3, :, :, 0, 1:-1], tiles[1, :, :, -1, :])
    assert not padded[3, :, :, -1].any()


@pytest.mark.timeout(120)
def test_attention(backend):
    if LARGE and backend == "torch":
        pytest.skip("plain PyTorch: its offsets are not ours")
    check_attention(backend)


@pytest.mark.skipif(not LARGE, reason="the emulator would take minutes")
@pytest.mark.timeout(120)
def test_attention_by_the_kernel_for_sm90(sm90):  # noqa: F811
    check_attention(sm90)


def check_attention(backend):
    skip_unless_free(48)
    batch, heads = (17, 64) if LARGE else (2, 3)
    layout, halo = ta.TileLayout((64, 256) if LARGE else (64, 64), (32, 32), 0, True), (4, 4)
    shape = (layout.num_tiles, batch, layout.tile_positions, heads, 128)
    generator = torch.Generator(DEVICE).manual_seed(0)
    q, k, v = (torch.randn(shape, dtype=torch.float16, device=DEVICE, generator=generator) for _ in range(3))
    assert not LARGE or q.numel() > 2**31
    out = offered(ta.cross_tile_attention, q, k, v, layout, halo, backend=backend)
    some = (slice(None), slice(-1, None), slice(None), slice(-2, None))  # the far end, and heads are independent
    judge = AttentionJudge(layout, halo, tuple(x[some] for x in (q, k, v)))
    assert judge.verdict(out[some], Way(backend, "ours", lambda inputs: lambda: out)).passed
    assert bool(out.isfinite().all())
    near = ta.cross_tile_attention(*(x[:, :1].contiguous() for x in (q, k, v)), layout, halo, backend=backend)
    assert torch.equal(out[:, :1], near)
