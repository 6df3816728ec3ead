"""Cross-tile attention for graphs that outlive a canvas: the layout is data, so that a larger canvas is no new graph.

`tiledattn.cross_tile_attention` takes a layout of ints, which torch.compile bakes into its graph. Layers compiled on
their own (`compile_repeated_blocks`) are run by canvases of every size; for them the layout travels in a tensor.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor

from ..geometry import TileLayout, normalize_halo
from ..ops import Rotary, cross_tile_attention
from ..ops.rotary import unchecked_rotary

_LIB = torch.library.Library("tiledattn", "FRAGMENT")  # type: ignore[no-untyped-call]
_ARGS = (
    "Tensor q, Tensor k, Tensor v, Tensor? prefix_mask, Tensor places, int num_prefix_tokens, Tensor? halo_weight, "
    "float? scale, Tensor? frequencies, bool interleaved, str backend"
)


def pack_places(layout: TileLayout, halo: tuple[int, ...] | Literal["all"]) -> Tensor:
    """A layout and a halo as int64 numbers [5 per axis] on the CPU."""
    return torch.tensor([*layout.as_ints(), *normalize_halo(layout, halo)], dtype=torch.int64, device="cpu")


@lru_cache(maxsize=256)
def _unpack_places(numbers: tuple[int, ...]) -> tuple[TileLayout, tuple[int, ...]]:
    axes = len(numbers) // 5
    return TileLayout.from_ints(numbers[: 4 * axes]), numbers[4 * axes :]


def _attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    prefix_mask: Tensor | None,
    places: Tensor,
    num_prefix_tokens: int,
    halo_weight: Tensor | None,
    scale: float | None,
    frequencies: Tensor | None,
    interleaved: bool,
    backend: str,
) -> Tensor:
    """`cross_tile_attention` on rows [T*B, S, H, D]."""
    layout, halo = _unpack_places(tuple(places.tolist()))
    rows = (layout.num_tiles, len(q) // layout.num_tiles)
    q, k, v = (torch.unflatten(x, 0, rows) for x in (q, k, v))  # [T, B, S, H, D]
    out = cross_tile_attention(
        q,
        k,
        v,
        layout,
        halo,
        num_prefix_tokens=num_prefix_tokens,
        prefix_mask=None if prefix_mask is None else torch.unflatten(prefix_mask, 0, rows),
        halo_weight=1.0 if halo_weight is None else float(halo_weight),
        scale=scale,
        backend=backend,
        rotary=None if frequencies is None else unchecked_rotary(frequencies, interleaved),
    )
    assert isinstance(out, Tensor)
    return out.flatten(0, 1)


def _attend_backward(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    """Gradients of q, k and v; the forward is computed once more."""
    with torch.enable_grad():
        leaves = tuple(x.detach().requires_grad_() for x in (q, k, v))
        out = _attend(leaves[0], leaves[1], leaves[2], *rest)
    return torch.autograd.grad(out, leaves, grad)


def _fake(q: Tensor, *rest: Any) -> Tensor:
    return torch.empty_like(q, memory_format=torch.contiguous_format)


def _backward_fake(grad: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
    return tuple(torch.empty_like(x, memory_format=torch.contiguous_format) for x in inputs[:3])


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    tensors = tuple(x if isinstance(x, Tensor) else None for x in inputs)
    ctx.save_for_backward(*tensors)
    ctx.others = tuple(None if isinstance(x, Tensor) else x for x in inputs)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    inputs = [other if x is None else x for x, other in zip(ctx.saved_tensors, ctx.others, strict=True)]
    return (*torch.ops.tiledattn.attend_rows_backward(grad, *inputs), *(None,) * 8)


def _register() -> None:
    for schema, function, fake in (
        (f"attend_rows({_ARGS}) -> Tensor", _attend, _fake),
        (f"attend_rows_backward(Tensor grad, {_ARGS}) -> (Tensor, Tensor, Tensor)", _attend_backward, _backward_fake),
    ):
        name = schema.partition("(")[0]
        _LIB.define(schema, tags=(torch.Tag.pt2_compliant_tag,))  # type: ignore[no-untyped-call]
        _LIB.impl(name, function, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
        torch.library.register_fake(f"tiledattn::{name}", fake, lib=_LIB)
    torch.library.register_autograd("tiledattn::attend_rows", _backward, setup_context=_setup, lib=_LIB)


_register()


def attend_rows(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    prefix_mask: Tensor | None,
    places: Tensor,
    num_prefix_tokens: int,
    halo_weight: Tensor | None,
    scale: float | None,
    rotary: Rotary | None,
    backend: str,
) -> Tensor:
    """`cross_tile_attention` of rows whose layout and halo are data.

    Args:
        q, k, v: [T*B, S, H or Hkv, D], the tile index slow.
        prefix_mask: bool [T*B, P], or None.
        places: what `pack_places` gives.
        num_prefix_tokens: P.
        halo_weight: 0-d, or None for 1.
        scale: factor of the logits; None: 1 / sqrt(D).
        rotary: how positions turn, or None.
        backend: as everywhere.

    Returns:
        [T*B, S, H, D].
    """
    frequencies, interleaved = (None, True) if rotary is None else (rotary.frequencies, rotary.interleaved)
    out: Tensor = torch.ops.tiledattn.attend_rows(
        q, k, v, prefix_mask, places, num_prefix_tokens, halo_weight, scale, frequencies, interleaved, backend
    )
    return out
