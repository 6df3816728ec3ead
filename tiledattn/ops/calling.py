"""The registered operators as functions: past torch's dispatcher, which takes 15 us, where nobody listens there."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import library
from .registering import no_forward_mode, without_autocast


def _nobody_listens(*tensors: Tensor) -> bool:
    """Whether a call could only come out at the operator's own function: no gradients, tracing, modes or transforms."""
    return not (
        torch.compiler.is_compiling()
        or any(type(x) is not Tensor or x.is_meta or x.is_neg() for x in tensors)
        or (torch.is_grad_enabled() and any(x.requires_grad for x in tensors))
        or torch._C._len_torch_dispatch_stack()
        or torch._C._is_torch_function_mode_enabled()
        or torch._C._functorch.peek_interpreter_stack() is not None
        or torch._C._get_tracing_state() is not None
        or torch._C._autograd._profiler_enabled()
    )


def _tell_of_change(out: Tensor) -> None:
    """Autograd hears that `out` changes, as of all that is changed in place: kernels write past it."""
    if not torch.compiler.is_compiling() and not out.is_inference():
        torch.autograd.graph.increment_version(out)


def _refuse_tangents(op: str, *tensors: Tensor | None) -> None:
    """The operators have no forward-mode derivatives, and torch would take them for zeros.

    Raises:
        NotImplementedError: a tensor carries a tangent.
    """
    if torch.compiler.is_compiling() or forward_ad._current_level < 0:
        return
    if any(x is not None and forward_ad.unpack_dual(x).tangent is not None for x in tensors):  # type: ignore[no-untyped-call]
        raise no_forward_mode(op)


_attention_directly = without_autocast(library._attention)
_extract_directly = without_autocast(library._extract)
_extract_out_directly = without_autocast(library._extract_out)
_blend_directly = without_autocast(library._blend)
_blend_out_directly = without_autocast(library._blend_out)
_pad_directly = without_autocast(library._pad)
_norm_directly = without_autocast(library._norm)


def cross_tile_attention(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    """The operator of that name."""
    _refuse_tangents("cross_tile_attention", q, k, v)
    op = _attention_directly if _nobody_listens(q, k, v) else torch.ops.tiledattn.cross_tile_attention.default
    found: tuple[Tensor, Tensor] = op(q, k, v, *rest)
    return found


def extract_tiles(canvas: Tensor, *rest: Any, out: Tensor | None = None) -> Tensor:
    """The operator of that name; with `out`, the one that writes there."""
    _refuse_tangents("extract_tiles", canvas, out)
    if out is not None:
        _tell_of_change(out)
        direct = _nobody_listens(canvas, out)
        write = _extract_out_directly if direct else torch.ops.tiledattn.extract_tiles_out.default
        write(canvas, *rest, out)
        return out
    op = _extract_directly if _nobody_listens(canvas) else torch.ops.tiledattn.extract_tiles.default
    found: Tensor = op(canvas, *rest)
    return found


def blend_tiles(tiles: Tensor, windows: list[Tensor], *rest: Any, out: Tensor | None = None) -> Tensor:
    """The operator of that name; with `out`, the one that writes there."""
    _refuse_tangents("blend_tiles", tiles, out)
    if out is not None:
        _tell_of_change(out)
        direct = _nobody_listens(tiles, out, *windows)
        write = _blend_out_directly if direct else torch.ops.tiledattn.blend_tiles_out.default
        write(tiles, windows, *rest, out)
        return out
    op = _blend_directly if _nobody_listens(tiles, *windows) else torch.ops.tiledattn.blend_tiles.default
    found: Tensor = op(tiles, windows, *rest)
    return found


def pad_tiles(tiles: Tensor, *rest: Any) -> Tensor:
    """The operator of that name."""
    _refuse_tangents("pad_tiles", tiles)
    op = _pad_directly if _nobody_listens(tiles) else torch.ops.tiledattn.pad_tiles.default
    found: Tensor = op(tiles, *rest)
    return found


def group_norm_tiles(tiles: Tensor, weight: Tensor | None, bias: Tensor | None, *rest: Any) -> Tensor:
    """The operator of that name."""
    _refuse_tangents("group_norm_tiles", tiles, weight, bias)
    given = [x for x in (tiles, weight, bias) if x is not None]
    op = _norm_directly if _nobody_listens(*given) else torch.ops.tiledattn.group_norm_tiles.default
    found: Tensor = op(tiles, weight, bias, *rest)
    return found
