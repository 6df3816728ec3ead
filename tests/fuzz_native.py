"""Random layouts, strides, dtypes and instruction sets on the native library: `python tests/fuzz_native.py`.

The reference judges. Meant for a library with sanitizers (`make fuzz`). Prints the seed of a call before it is made.
"""

from __future__ import annotations

import argparse
import random
import time
from typing import Any

import torch
from gradients import exact_gradients, found_gradients, plain_gradients, random_gradients
from support import instruction_sets, oracle, relative_error
from torch import Tensor

import tiledattn as ta
from tiledattn.backends import native, reference
from tiledattn.backends.tables import window_tables
from tiledattn.geometry import WINDOWS


def random_layout(rng: random.Random) -> ta.TileLayout:
    axes = rng.randint(1, 3)
    longest = {1: 300, 2: 40, 3: 9}[axes]
    size = [rng.randint(1, longest) for _ in range(axes)]
    tile = [rng.randint(max(1, n // 6), n) for n in size]
    overlap = [rng.randint(0, w - 1) if rng.random() < 0.3 else rng.randint(0, w // 2 - (w > 1)) for w in tile]
    return ta.TileLayout(size, tile, [max(0, o) for o in overlap], [rng.random() < 0.5 for _ in size])


def random_tensor(rng: random.Random, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A corner of a larger tensor with its dims in any order, every other element of it on some of them."""
    order = rng.sample(range(len(shape)), len(shape))
    steps = [rng.choice((1, 1, 2)) for _ in shape]
    before, after = ([rng.randint(0, 2) * (rng.random() < 0.3) for _ in shape] for _ in range(2))
    sizes = [b + n * s + a for b, n, s, a in zip(before, shape, steps, after, strict=True)]
    wide = torch.randn([sizes[d] for d in order]).to(dtype).permute([order.index(d) for d in range(len(shape))])
    return wide[tuple(slice(b, b + n * s, s) for b, n, s in zip(before, shape, steps, strict=True))]


def check_tiles(rng: random.Random, layout: ta.TileLayout, dtype: torch.dtype) -> None:
    lead = (rng.randint(0, 2), rng.randint(1, 3))
    canvas = random_tensor(rng, (*lead, *layout.size), dtype)
    tiles = random_tensor(rng, (layout.num_tiles, *lead, *layout.tile), dtype)
    pad = tuple((rng.randint(0, n), rng.randint(0, n)) for n in layout.size)
    assert torch.equal(native.extract_tiles(canvas, layout=layout), reference.extract_tiles(canvas, layout=layout))
    padded = reference.pad_tiles(tiles, layout=layout, pad=pad)
    assert torch.equal(native.pad_tiles(tiles, layout=layout, pad=pad), padded)
    sums = torch.float64 if dtype == torch.float64 else torch.float32
    weights = window_tables(layout, rng.choice(WINDOWS), tiles.device, sums)
    exact = reference.blend_tiles(tiles.double(), layout=layout, weights=tuple(w.double() for w in weights))
    found = native.blend_tiles(tiles, layout=layout, weights=weights)
    assert not tiles.numel() or relative_error(found, exact) <= 2 * torch.finfo(dtype).eps


def check_norm(rng: random.Random, layout: ta.TileLayout, dtype: torch.dtype) -> None:
    """Of groups whose variance is about 1: that of few numbers is a matter of luck."""
    groups, depth = rng.randint(1, 2), rng.randint(1, 3)
    tiles = random_tensor(rng, (layout.num_tiles, rng.randint(1, 2), groups * depth, *layout.tile), dtype)
    weight, bias = (torch.randn(groups * depth).to(dtype) if rng.random() < 0.5 else None for _ in range(2))
    arguments = {"layout": layout, "num_groups": groups, "eps": 1.0, "scope": rng.choice(("neighbours", "canvas"))}
    found = native.group_norm_tiles(tiles, weight=weight, bias=bias, **arguments)
    assert torch.equal(native.group_norm_tiles(tiles.contiguous(), weight=weight, bias=bias, **arguments), found)
    weight, bias = (None if x is None else x.double() for x in (weight, bias))
    exact = reference.group_norm_tiles(tiles.double(), weight=weight, bias=bias, **arguments)
    assert relative_error(found, exact) <= 4 * torch.finfo(dtype).eps


def check_attention(rng: random.Random, layout: ta.TileLayout, dtype: torch.dtype) -> None:
    kv_heads, prefix, dim = rng.randint(1, 2), rng.choice((0, 0, 1, 5)), rng.choice((1, 3, 8, 16, 40, 64, 80, 256))
    shape = (layout.num_tiles, rng.randint(1, 2), prefix + layout.tile_positions)
    q, k, v = (random_tensor(rng, (*shape, h, dim), dtype) for h in (kv_heads * rng.randint(1, 3), kv_heads, kv_heads))
    halo = rng.choice(("all", rng.randint(0, 1 + max(layout.size) // 4)))
    mask = torch.rand(*shape[:2], prefix) < 0.7 if prefix and rng.random() < 0.5 else None
    arguments = {"num_prefix_tokens": prefix, "prefix_mask": mask, "halo_weight": rng.choice((1.0, 0.5, 0.0))}
    exact, exact_lse = oracle(q, k, v, layout, halo, **arguments)
    found, lse = ta.cross_tile_attention(q, k, v, layout, halo, return_lse=True, backend="cpu", **arguments)
    assert relative_error(found, exact) <= 16 * torch.finfo(dtype).eps
    assert torch.equal(lse.isinf(), exact_lse.isinf())
    if q.shape[0] * q.shape[2] <= 300:  # the plain way is slow
        check_gradients(q, k, v, layout, halo, arguments)


def check_gradients(
    q: Tensor, k: Tensor, v: Tensor, layout: ta.TileLayout, halo: int | str, arguments: dict[str, Any]
) -> None:
    """Of q, k and v, whatever their strides. Tensors of a few numbers are allowed more than the budget, which is luck
    there: as much as the forward, beyond what plain PyTorch errs.
    """
    grads = random_gradients(q, False)
    exact = exact_gradients((q, k, v), grads, layout, halo, **arguments)
    plain = plain_gradients((q, k, v), grads, layout, halo, **arguments)
    found = found_gradients((q, k, v), grads, layout, halo, backend="cpu", **arguments)
    size = grads[0].double().norm()
    eps = torch.finfo(q.dtype).eps
    for f, ways, e in zip(found, plain, exact, strict=True):
        if e.norm() > 1e-6 * size:
            assert relative_error(f, e) <= 16 * eps + 2 * max(relative_error(way, e) for way in ways)
        else:  # a query that sees one key: zero but for rounding
            assert f.norm() <= 64 * eps * size


def check(seed: int) -> None:
    rng = random.Random(seed)
    torch.manual_seed(seed)
    layout = random_layout(rng)
    dtype = rng.choice([torch.float32, torch.float16, torch.bfloat16, torch.float64])
    chosen = native.instruction_set(rng.choice(instruction_sets()))
    print(f"seed {seed}: {layout} {dtype} {chosen}", flush=True)
    check_tiles(rng, layout, dtype)
    if layout.num_tiles * layout.tile_positions <= 500:  # the reference is slow
        check_norm(rng, layout, dtype)
    if dtype != torch.float64 and layout.num_tiles * layout.tile_positions <= 1500:
        check_attention(rng, layout, dtype)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--seed", type=int, help="only this call")
    arguments = parser.parse_args()
    assert native.probe() is None, native.probe()
    if arguments.seed is not None:
        check(arguments.seed)
        return
    began, seed = time.monotonic(), int(time.time()) % 1_000_000 * 1000
    first = seed
    while time.monotonic() - began < arguments.seconds:
        check(seed)
        seed += 1
    print(f"{seed - first} calls, clean")


if __name__ == "__main__":
    main()
