"""Cross-tile attention: the public function and its checks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, overload

import torch
from torch import Tensor

from ..dispatch import check_name, saves_lse
from ..geometry import TileLayout, normalize_halo
from . import calling
from .checks import check_bool, check_int, check_layout, check_number, check_same, check_tensor
from .rotary import Rotary, check_rotary

Halo = int | Sequence[int] | Literal["all"]


@overload
def cross_tile_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: TileLayout,
    halo: Halo,
    *,
    num_prefix_tokens: int = ...,
    prefix_mask: Tensor | None = ...,
    halo_weight: float = ...,
    far_pool: int | None = ...,
    scale: float | None = ...,
    rotary: Rotary | None = ...,
    return_lse: Literal[False] = ...,
    backend: str = ...,
) -> Tensor: ...
@overload
def cross_tile_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: TileLayout,
    halo: Halo,
    *,
    num_prefix_tokens: int = ...,
    prefix_mask: Tensor | None = ...,
    halo_weight: float = ...,
    far_pool: int | None = ...,
    scale: float | None = ...,
    rotary: Rotary | None = ...,
    return_lse: Literal[True],
    backend: str = ...,
) -> tuple[Tensor, Tensor]: ...
def cross_tile_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    layout: TileLayout,
    halo: Halo,
    *,
    num_prefix_tokens: int = 0,
    prefix_mask: Tensor | None = None,
    halo_weight: float = 1.0,
    far_pool: int | None = None,
    scale: float | None = None,
    rotary: Rotary | None = None,
    return_lse: bool = False,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Attention of every tile over its own tokens and its neighbours' within `halo`.

    For a query i of tile t,

        out_i = sum_j softmax_j(scale * q_i . k_j + b_j) v_j,

    where j runs over the prefix tokens of t, its own canvas tokens and, if i is a canvas token, the halo: every canvas
    position up to `halo` beyond the tile's ends per axis, once, clipped to the canvas or taken modulo its size on
    periodic axes. Halo keys and values come from the position's owner: the tile in which it lies deepest, axis by
    axis. b_j is log(halo_weight) for halo keys, -inf for masked prefix keys, 0 otherwise. Where tiles agree in their
    overlaps and the halo is "all", this is attention over the untiled canvas; with halo 0 it is attention inside each
    tile.

    Args:
        q: queries [T, B, S, H, D]: T tiles in row-major order of `layout.grid`, S = P prefix tokens followed by the
            N = prod(layout.tile) canvas tokens in row-major order. Any strides.
        k: keys [T, B, S, Hkv, D]; Hkv divides H (grouped queries). Any strides.
        v: values, shaped like k.
        layout: the layout, in tokens.
        halo: reach beyond the tile's ends, in tokens: an int, one int per axis, or "all".
        num_prefix_tokens: P, leading tokens that lie on no canvas position (text). They see prefix and own tile only.
        prefix_mask: bool [T, B, P], True where a prefix token may be attended to.
        halo_weight: w in [0, 1], adds log w to the halo's logits; 0 removes the halo.
        far_pool: pooled far field; not implemented yet.
        scale: factor of the logits; default 1 / sqrt(D).
        rotary: for q and k with rotary positions counted from each tile's origin: their frequencies. Halo keys are
            then seen at their place on the canvas, across a wrap the short way round; see `Rotary`.
        return_lse: also return lse, the natural-log sum of exponentials of the scaled, biased logits.
        backend: "auto", or a name from `tiledattn.backends()`, which then never falls back.

    Returns:
        out like q (contiguous), float16, bfloat16 and float32 accumulated in float32; with `return_lse` also lse,
        float32 [T, B, H, S] (float64 for float64 inputs).

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype, device, shape or range, naming it.
        NotImplementedError: `far_pool` is given.
        BackendUnavailableError: the named backend can't take this call, with the reason.

    The idea of letting views attend to one another is MAD's (Quattrini et al., ECCV 2024), there over the whole canvas;
    local reach, owners and the fused form are this package's.
    """
    check_layout(layout)
    reach = normalize_halo(layout, halo)
    prefix = check_int("num_prefix_tokens", num_prefix_tokens, 0)
    _check_qkv(q, k, v, layout, prefix)
    _check_prefix_mask(prefix_mask, q, prefix)
    weight = check_number("halo_weight", halo_weight, 0.0, 1.0)
    if far_pool is not None:
        raise NotImplementedError(f"far_pool: got {far_pool!r}; the pooled far field is not implemented yet, pass None")
    factor = q.shape[-1] ** -0.5 if scale is None else check_number("scale", scale, -1e30, 1e30)
    check_bool("return_lse", return_lse)
    if weight == 0.0:
        reach = (0,) * len(reach)
    # a tensor, so that a weight that changes from step to step does not recompile a traced graph
    step_weight = None if weight == 1.0 else torch.full((), weight, dtype=torch.float64, device="cpu")
    ints = layout.as_ints()
    frequencies, interleaved = check_rotary(rotary, q, k, layout)
    if not any(h and n > 1 for h, n in zip(reach, layout.grid, strict=True)):
        frequencies = None  # offsets inside a tile are right as they are
    # the backward of some backends reads the lse
    with_lse = return_lse or (_needs_gradient(q, k, v) and saves_lse(check_name(backend), q.device.type, q.dtype))
    numbers = (prefix, step_weight, factor, with_lse)
    out, lse = calling.cross_tile_attention(
        q, k, v, prefix_mask, ints, list(reach), *numbers, frequencies, interleaved, check_name(backend)
    )
    return (out, lse) if return_lse else out


def _needs_gradient(*tensors: Tensor) -> bool:
    return torch.is_grad_enabled() and any(x.requires_grad for x in tensors)


def _check_qkv(q: object, k: object, v: object, layout: TileLayout, prefix: int) -> None:
    query = check_tensor("q", q)
    sequence = prefix + layout.tile_positions
    if query.ndim != 5:
        raise ValueError(f"q: shape is {list(query.shape)}; expected [T, B, S, H, D] (5 dimensions)")
    if query.shape[0] != layout.num_tiles:
        raise ValueError(f"q: T is {query.shape[0]}; the layout has {layout.num_tiles} tiles (grid {layout.grid})")
    if query.shape[2] != sequence:
        raise ValueError(
            f"q: S is {query.shape[2]}; expected {sequence} = {prefix} prefix tokens + {layout.tile_positions} "
            f"canvas tokens of a {layout.tile} tile (q, k and v are [T, B, S, H, D])"
        )
    if query.shape[3] < 1 or query.shape[4] < 1:
        raise ValueError(f"q: shape is {list(query.shape)}; H and D must be at least 1")
    for name, value in (("k", k), ("v", v)):
        x = check_tensor(name, value)
        check_same(name, x, "q", query)
        fits = x.ndim == 5 and tuple(x.shape[:3]) == tuple(query.shape[:3]) and x.shape[4] == query.shape[4]
        if not fits:
            raise ValueError(
                f"{name}: shape is {list(x.shape)}; expected [{query.shape[0]}, {query.shape[1]}, {query.shape[2]}, "
                f"Hkv, {query.shape[4]}] to go with q"
            )
        if x.shape[3] < 1 or query.shape[3] % x.shape[3]:
            raise ValueError(f"{name}: Hkv is {x.shape[3]}; it must divide q's H = {query.shape[3]}")
    if k.shape != v.shape:  # type: ignore[attr-defined]  # both were just checked to be tensors
        raise ValueError(f"v: shape is {list(v.shape)}; it must be k's {list(k.shape)}")  # type: ignore[attr-defined]


def _check_prefix_mask(mask: object, q: Tensor, prefix: int) -> None:
    if mask is None:
        return
    if not isinstance(mask, Tensor):
        raise TypeError(f"prefix_mask: got {type(mask).__name__}; expected a bool tensor [T, B, P] or None")
    if mask.dtype != torch.bool:
        raise TypeError(f"prefix_mask: dtype is {mask.dtype}; expected bool, True where a token may be attended to")
    expected = (q.shape[0], q.shape[1], prefix)
    if tuple(mask.shape) != expected:
        raise ValueError(
            f"prefix_mask: shape is {list(mask.shape)}; expected [T, B, P] = {list(expected)}, "
            "where P is num_prefix_tokens"
        )
    if mask.device != q.device:
        raise ValueError(f"prefix_mask: on {mask.device}, but q is on {q.device}; move one to the other")
