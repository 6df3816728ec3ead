"""Gradients of attention for tests: float64 through the reference, plain PyTorch's own, and the budget per tensor."""

from __future__ import annotations

from typing import Any

import torch
from hypothesis import strategies as st
from support import assert_within_budget, layouts, plain_attention, plain_lse, relative_error
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import tiledattn as ta
from tiledattn.backends import reference
from tiledattn.geometry import attention_plan, normalize_halo

Grads = tuple[Tensor, ...]


def layouts_with_slopes(axes: tuple[int, int] = (1, 3), most_positions: int = 10) -> st.SearchStrategy[ta.TileLayout]:
    """Layouts whose queries see several keys: a softmax over one has no slope, and its gradient is rounding only."""
    return layouts(axes, most_positions).filter(lambda layout: layout.tile_positions > 1)


def random_gradients(q: Tensor, lse: bool, seed: int = 7) -> tuple[Tensor, Tensor | None]:
    """Gradients of the output and, or None, of the lse."""
    generator = torch.Generator().manual_seed(seed)
    grad_out = torch.randn(q.shape, generator=generator, dtype=torch.float64).to(q.dtype)
    tiles, batch, sequence, heads, _ = q.shape
    return grad_out, torch.randn(tiles, batch, heads, sequence, generator=generator) if lse else None


def _differentiate(outputs: tuple[Tensor, Tensor], inputs: list[Tensor], grads: tuple[Tensor, Tensor | None]) -> Grads:
    pairs = [(x, g.to(x.dtype)) for x, g in zip(outputs, grads, strict=True) if g is not None]
    return torch.autograd.grad([x for x, _ in pairs], inputs, [g for _, g in pairs])


def exact_gradients(
    tensors: tuple[Tensor, Tensor, Tensor],
    grads: tuple[Tensor, Tensor | None],
    layout: ta.TileLayout,
    halo: Any,
    *,
    num_prefix_tokens: int = 0,
    prefix_mask: Tensor | None = None,
    halo_weight: float = 1.0,
    scale: float | None = None,
    rotary: ta.Rotary | None = None,
) -> Grads:
    """dq, dk, dv in float64, by autograd through the reference itself."""
    inputs = [x.detach().double().requires_grad_() for x in tensors]
    found = reference.cross_tile_attention(
        *inputs,
        plan=attention_plan(layout, normalize_halo(layout, halo)),
        num_prefix_tokens=num_prefix_tokens,
        prefix_mask=prefix_mask,
        halo_weight=halo_weight,
        scale=inputs[0].shape[-1] ** -0.5 if scale is None else scale,
        return_lse=True,
        frequencies=None if rotary is None else rotary.frequencies,
        interleaved=rotary is None or rotary.interleaved,
    )
    return _differentiate(found, inputs, grads)


def plain_gradients(
    tensors: tuple[Tensor, Tensor, Tensor],
    grads: tuple[Tensor, Tensor | None],
    layout: ta.TileLayout,
    halo: Any,
    **arguments: Any,
) -> Grads:
    """dq, dk, dv as autograd gives them for what one would write by hand, in the inputs' precision, [2, ...] each: by
    PyTorch's fused attention and by its matrix products. On small tensors one of them may be right by luck.
    """
    ways = []
    for kernels in ([SDPBackend.FLASH_ATTENTION, SDPBackend.MATH], [SDPBackend.MATH]):
        q, k, v = (x.detach().requires_grad_() for x in tensors)
        with sdpa_kernel(kernels):
            out = plain_attention(q, k, v, layout, halo, **arguments)
            lse = out.new_zeros(()) if grads[1] is None else plain_lse(q, k, layout, halo, **arguments)
            ways.append(_differentiate((out, lse), [q, k, v], grads))
    return tuple(torch.stack(found) for found in zip(*ways, strict=True))


def found_gradients(
    tensors: tuple[Tensor, Tensor, Tensor],
    grads: tuple[Tensor, Tensor | None],
    layout: ta.TileLayout,
    halo: Any,
    **arguments: Any,
) -> Grads:
    """dq, dk, dv through the public function, twice: the same bits, of the inputs' shapes and dtypes."""
    leaves = [x.detach().requires_grad_() for x in tensors]
    runs = []
    for _ in range(2):
        found = ta.cross_tile_attention(*leaves, layout, halo, return_lse=grads[1] is not None, **arguments)
        outputs = found if isinstance(found, tuple) else (found,)
        given = [g.to(x.dtype) for x, g in zip(outputs, grads, strict=False) if g is not None]
        runs.append(torch.autograd.grad(outputs, leaves, given))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
    assert all((a.shape, a.dtype) == (b.shape, b.dtype) for a, b in zip(runs[0], tensors, strict=True))
    return runs[0]


def assert_gradients_within_budget(found: Grads, plain: Grads, exact: Grads) -> None:
    """Each of dq, dk and dv errs at most twice what plain PyTorch errs (of several ways [n, ...] the one that errs
    most), plus one rounding unit.
    """
    for a, b, c in zip(found, plain, exact, strict=True):
        ways = [b] if b.ndim == c.ndim else list(b)
        assert_within_budget(a, max(ways, key=lambda way: relative_error(way, c)), c)
