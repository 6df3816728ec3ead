"""What the tests share: random layouts, inputs, plain PyTorch as the yardstick, and the error budget."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from hypothesis import strategies as st
from torch import Tensor

import tiledattn as ta
from tiledattn.backends import native, reference
from tiledattn.geometry import normalize_halo

BACKENDS = [name for name in ("torch", "cpu") if ta.backends()[name] is None]
"""Those that run on a CPU here and are judged by the reference."""


def instruction_sets() -> list[str]:
    """Those of the native library that this processor runs, from the slowest on; "auto" where there is no library."""
    if native.probe() is not None:
        return ["auto"]
    found = []
    for name in ("portable", "avx2", "avx512", "avx512_bf16", "amx"):
        with contextlib.suppress(RuntimeError):  # not on this processor
            found.append(native.instruction_set(name))
    native.instruction_set("auto")
    return found


@st.composite
def layouts(draw: st.DrawFn, axes: tuple[int, int] = (1, 3), most_positions: int = 10) -> ta.TileLayout:
    """Layouts of a few small tiles, any overlap, each axis periodic or not."""
    count = draw(st.integers(*axes))
    longest = {1: most_positions, 2: 6, 3: 3}[count]
    size = [draw(st.integers(1, longest)) for _ in range(count)]
    tile = [draw(st.integers(1, n)) for n in size]
    overlap = [draw(st.integers(0, w - 1)) for w in tile]
    wrap = [draw(st.booleans()) for _ in range(count)]
    return ta.TileLayout(size, tile, overlap, wrap)


def halos(layout: ta.TileLayout) -> st.SearchStrategy[Any]:
    """Halos as users write them."""
    one = st.integers(0, max(layout.size) + 1)
    return st.one_of(one, st.just("all"), st.tuples(*(st.integers(0, n + 1) for n in layout.size)))


def relative_error(found: Tensor, exact: Tensor) -> float:
    """Norm of the difference over the norm of the exact value; infinite for NaN or a wrong shape."""
    if found.shape != exact.shape:
        return math.inf
    norm = float(torch.linalg.vector_norm(exact.double())) or 1.0
    error = float(torch.linalg.vector_norm(found.double() - exact.double())) / norm
    return math.inf if math.isnan(error) else error


def assert_within_budget(found: Tensor, plain: Tensor, exact: Tensor) -> None:
    """`found` errs at most twice what plain PyTorch errs in the same precision, plus one rounding unit.

    The judge's own error, a handful of float64 operations, is allowed for: it matters for float64 results only.
    """
    judge = 8 * torch.finfo(torch.float64).eps
    allowed = 2 * relative_error(plain, exact) + torch.finfo(found.dtype).eps + judge
    error = relative_error(found, exact)
    assert error <= allowed, f"error {error:.3e} is over the budget of {allowed:.3e}"


def poison(monkeypatch: Any) -> None:
    """Makes memory that torch leaves uninitialised hold NaN."""

    def poisoned(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def wrapper(*args: Any, **kwargs: Any) -> Tensor:
            x = make(*args, **kwargs)
            return x.fill_(math.nan) if x.is_floating_point() else x

        return wrapper

    for owner, name in (
        (torch, "empty"),
        (torch, "empty_like"),
        (torch, "empty_strided"),
        (Tensor, "new_empty"),
        (Tensor, "new_empty_strided"),
    ):
        monkeypatch.setattr(owner, name, poisoned(getattr(owner, name)))


def attention_inputs(
    layout: ta.TileLayout,
    *,
    batch: int = 1,
    prefix: int = 0,
    heads: int = 2,
    kv_heads: int | None = None,
    dim: int = 8,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    form: str = "contiguous",
) -> tuple[Tensor, Tensor, Tensor]:
    """Random q, k, v; `form` "contiguous", "strided" (every other element), "fused" (slices of one QKV tensor) or
    "narrowed" (a corner of a larger, transposed tensor).
    """
    generator = torch.Generator().manual_seed(seed)
    kv_heads = heads if kv_heads is None else kv_heads
    shape = (layout.num_tiles, batch, prefix + layout.tile_positions)

    def random(*tail: int) -> Tensor:
        return torch.randn(*shape, *tail, generator=generator, dtype=torch.float64).to(dtype)

    if form == "fused":
        fused = random(heads + 2 * kv_heads, dim)
        q, k, v = fused.split([heads, kv_heads, kv_heads], dim=3)
        return q, k, v
    if form == "strided":
        return tuple(random(2 * h, dim + 3)[..., ::2, 1 : dim + 1] for h in (heads, kv_heads, kv_heads))  # type: ignore[return-value]
    if form == "narrowed":  # a corner of a larger tensor, on every dim
        return tuple(narrowed((*shape, h, dim), generator, dtype) for h in (heads, kv_heads, kv_heads))  # type: ignore[return-value]
    return random(heads, dim), random(kv_heads, dim), random(kv_heads, dim)


def narrowed(shape: tuple[int, ...], generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    """A random tensor that is a slice of a larger, transposed one on every dim but the last, which is dense."""
    order = [2, 0, 3, 1, 4]
    wide = torch.randn([shape[d] + (d < 4) for d in order], generator=generator, dtype=torch.float64).to(dtype)
    x = wide.permute([order.index(d) for d in range(5)])
    return x[tuple(slice(n - s, n) for n, s in zip(x.shape, shape, strict=True))]


def consistent_inputs(
    layout: ta.TileLayout, *, batch: int, heads: int, dim: int, dtype: torch.dtype, seed: int
) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]:
    """q, k, v of an untiled canvas [B, L, H, D], and the same cut into tiles [T, B, N, H, D]."""
    generator = torch.Generator().manual_seed(seed)
    whole, cut = [], []
    for _ in range(3):
        canvas = torch.randn(batch, heads * dim, *layout.size, generator=generator, dtype=torch.float64).to(dtype)
        whole.append(canvas.flatten(2).transpose(1, 2).unflatten(-1, (heads, dim)))
        tiles = reference.extract_tiles(canvas, layout=layout)
        cut.append(tiles.flatten(3).transpose(2, 3).unflatten(-1, (heads, dim)))
    return tuple(whole), tuple(cut)  # type: ignore[return-value]


def canvas_from_tokens(tokens: Tensor, layout: ta.TileLayout) -> Tensor:
    """[T, B, N, H, D] -> [B, H * D, *size] by uniform blending in float64."""
    tiles = tokens.double().flatten(3).transpose(2, 3).unflatten(-1, layout.tile)
    return ta.blend_tiles(tiles, layout, "uniform", backend="reference")


def oracle(q: Tensor, k: Tensor, v: Tensor, layout: ta.TileLayout, halo: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
    """The float64 reference on upcast inputs, with its lse."""
    return ta.cross_tile_attention(
        q.double(), k.double(), v.double(), layout, halo, return_lse=True, backend="reference", **kwargs
    )


def halo_rows(layout: ta.TileLayout, halo: Any, prefix: int) -> list[list[tuple[int, int]]]:
    """Per tile: (tile, place in the sequence) of every token of its halo, found by brute force."""
    axes, tiles = reference._tiles(layout)
    number = {index: t for t, index in enumerate(tiles)}
    reach = normalize_halo(layout, halo)
    return [
        [(number[s], prefix + reference._row_major(p, layout.tile)) for s, p in reference._outside(axes, index, reach)]
        for index in tiles
    ]


def plain_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: ta.TileLayout,
    halo: Any,
    *,
    num_prefix_tokens: int = 0,
    prefix_mask: Tensor | None = None,
    halo_weight: float = 1.0,
    scale: float | None = None,
) -> Tensor:
    """What one would write by hand: tile by tile, gather, then SDPA in the inputs' precision."""
    prefix, repeat = num_prefix_tokens, q.shape[3] // k.shape[3]
    k, v = (x.repeat_interleave(repeat, dim=3) for x in (k, v))
    out = torch.zeros_like(q, memory_format=torch.contiguous_format)
    for t, rows in enumerate(halo_rows(layout, halo if halo_weight > 0 else 0, prefix)):
        keys, values = (
            torch.cat([x[t]] + [x[u][:, s : s + 1] for u, s in rows], 1).transpose(1, 2).contiguous() for x in (k, v)
        )
        bias = q.new_zeros(q.shape[1], 1, 1, keys.shape[2])
        if prefix_mask is not None:
            bias[:, 0, 0, :prefix].masked_fill_(~prefix_mask[t], -math.inf)
        if rows:
            bias[..., q.shape[2] :] = math.log(halo_weight)
        own = q.shape[2]
        queries = q[t].transpose(1, 2).contiguous()
        for part, cols in ((slice(0, prefix), own), (slice(prefix, own), keys.shape[2])):
            if part.start < part.stop:
                found = F.scaled_dot_product_attention(
                    queries[:, :, part], keys[:, :, :cols], values[:, :, :cols], bias[..., :cols], scale=scale
                )
                out[t, :, part] = found.transpose(1, 2)
    return out


def plain_lse(
    q: Tensor,
    k: Tensor,
    layout: ta.TileLayout,
    halo: Any,
    *,
    num_prefix_tokens: int = 0,
    prefix_mask: Tensor | None = None,
    halo_weight: float = 1.0,
    scale: float | None = None,
) -> Tensor:
    """The lse by hand: logits of gathered keys in float32 (float64 for float64), then logsumexp; [T, B, H, S]."""
    prefix, own = num_prefix_tokens, q.shape[2]
    wide = torch.float64 if q.dtype == torch.float64 else torch.float32
    q, k = q.to(wide), k.repeat_interleave(q.shape[3] // k.shape[3], dim=3).to(wide)
    lse = torch.zeros(*q.shape[:2], q.shape[3], own, dtype=wide)
    for t, rows in enumerate(halo_rows(layout, halo if halo_weight > 0 else 0, prefix)):
        keys = torch.cat([k[t]] + [k[u][:, s : s + 1] for u, s in rows], 1)
        logits = torch.einsum("bqhd,bkhd->bhqk", q[t], keys) * (q.shape[4] ** -0.5 if scale is None else scale)
        if prefix_mask is not None:
            logits[..., :prefix].masked_fill_(~prefix_mask[t, :, None, None], -math.inf)
        if rows:
            logits[..., own:] += math.log(halo_weight)
            logits[:, :, :prefix, own:] = -math.inf
        lse[t] = torch.logsumexp(logits, -1)
    return lse


def plain_group_norm(
    tiles: Tensor,
    layout: ta.TileLayout,
    num_groups: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    scope: str,
) -> Tensor:
    """Weighted sums, then one multiply-add with scale and shift per channel, as PyTorch's own group norm does it."""
    axes, indices = reference._tiles(layout)
    x = tiles if tiles.dtype == torch.float64 else tiles.float()
    x = x.reshape(*x.shape[:2], num_groups, -1, layout.tile_positions)
    places = all_positions(layout.tile)
    owned = torch.tensor(
        [
            [
                all(a.deepest((a.origins[i] + p) % a.length) == i for a, i, p in zip(axes, t, r, strict=True))
                for r in places
            ]
            for t in indices
        ]
    )
    out = []
    scale = torch.ones(tiles.shape[2]) if weight is None else weight
    shift = torch.zeros(tiles.shape[2]) if bias is None else bias
    scale, shift = (c.to(x.dtype).view(num_groups, -1, 1) for c in (scale, shift))
    for t, index in enumerate(indices):
        near = torch.tensor([reference._nearness(axes, index, other, scope) for other in indices], dtype=x.dtype)
        share = near[:, None] * (torch.ones_like(owned) if scope == "tile" else owned)
        share = (share / (share.sum() * x.shape[3]))[:, None, None, None, :]
        mean = (x * share).sum((0, 3, 4))[..., None, None]
        var = ((x - mean).square() * share).sum((0, 3, 4))[..., None, None]
        factor = scale * torch.rsqrt(var + eps)
        out.append(x[t] * factor + (shift - mean * factor))
    return torch.stack(out).view(tiles.shape).to(tiles.dtype)


def all_positions(shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Every position of a box, row-major."""
    return list(itertools.product(*(range(n) for n in shape)))
