"""The registered operators: schemas, shapes for tracing, gradients. One registered boundary per public call.

A layout crosses a schema as `TileLayout.as_ints()`. Forward operators go to the dispatcher; the backward ones run the
PyTorch backend's mathematics once more under autograd and return its vector-Jacobian product.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from .. import dispatch
from ..backends import pytorch
from ..backends.tables import custom_window_tables, window_tables
from ..geometry import AttentionPlan, TileLayout, attention_plan

_LIB = torch.library.Library("tiledattn", "DEF")  # type: ignore[no-untyped-call]

Grads = tuple[Tensor | None, ...]


@lru_cache(maxsize=1024)
def _plan(layout: tuple[int, ...], halo: tuple[int, ...]) -> AttentionPlan:
    return attention_plan(TileLayout.from_ints(layout), halo)


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The dtype sums are kept in: float32, or float64 for float64."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _windows(tiles: Tensor, windows: list[Tensor], layout: TileLayout, kind: str) -> tuple[Tensor, ...]:
    dtype = accumulator(tiles.dtype)
    if kind:
        return window_tables(layout, kind, tiles.device, dtype)
    return custom_window_tables(layout, windows, tiles.device, dtype)


def _attention_kwargs(
    mask: Tensor | None,
    layout: list[int],
    halo: list[int],
    prefix: int,
    weight: float,
    scale: float,
    lse: bool,
) -> dict[str, Any]:
    return {
        "plan": _plan(tuple(layout), tuple(halo)),
        "num_prefix_tokens": prefix,
        "prefix_mask": mask,
        "halo_weight": weight,
        "scale": scale,
        "return_lse": lse,
    }


def _attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    prefix_mask: Tensor | None,
    layout: list[int],
    halo: list[int],
    num_prefix_tokens: int,
    halo_weight: float,
    scale: float,
    return_lse: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    module = dispatch.select("cross_tile_attention", backend, q.device, q.dtype, q.shape[-1])
    kwargs = _attention_kwargs(prefix_mask, layout, halo, num_prefix_tokens, halo_weight, scale, return_lse)
    result: tuple[Tensor, Tensor] = module.cross_tile_attention(q, k, v, **kwargs)
    return result


def _attention_fake(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return_lse = rest[-2]
    tiles, batch, sequence, heads, _ = q.shape
    lse = q.new_empty(
        (tiles, batch, heads, sequence) if return_lse else (0,),
        dtype=accumulator(q.dtype),
    )
    return torch.empty_like(q, memory_format=torch.contiguous_format), lse


def _attention_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, mask, *ctx.args = inputs
    ctx.save_for_backward(q, k, v, mask)


def _attention_backward(ctx: Any, grad_out: Tensor, grad_lse: Tensor) -> Grads:
    q, k, v, mask = ctx.saved_tensors
    *args, _backend = ctx.args
    op = torch.ops.tiledattn.cross_tile_attention_backward
    return (*op(grad_out, grad_lse, q, k, v, mask, *args), *(None,) * 8)


def _attention_vjp(
    grad_out: Tensor,
    grad_lse: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    prefix_mask: Tensor | None,
    layout: list[int],
    halo: list[int],
    num_prefix_tokens: int,
    halo_weight: float,
    scale: float,
    return_lse: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    kwargs = _attention_kwargs(prefix_mask, layout, halo, num_prefix_tokens, halo_weight, scale, return_lse)
    gq, gk, gv = _vjp(
        lambda a, b, c: pytorch.cross_tile_attention(a, b, c, **kwargs),
        (q, k, v),
        (grad_out, grad_lse) if return_lse else (grad_out,),
    )
    return gq, gk, gv


def _vjp(
    function: Callable[..., Tensor | tuple[Tensor, ...]], inputs: Sequence[Tensor], grads: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """Gradients of `function` at `inputs` for the output gradients, contiguous."""
    with torch.enable_grad():
        leaves = [x.detach().requires_grad_() for x in inputs]
        outputs = function(*leaves)
        outputs = (outputs,) if isinstance(outputs, Tensor) else outputs[: len(grads)]
        found = torch.autograd.grad(outputs, leaves, list(grads), allow_unused=True)
    return tuple(
        torch.zeros_like(x, memory_format=torch.contiguous_format) if g is None else g.contiguous()
        for g, x in zip(found, leaves, strict=True)
    )


def _extract(canvas: Tensor, layout: list[int], backend: str) -> Tensor:
    module = dispatch.select("extract_tiles", backend, canvas.device, canvas.dtype)
    result: Tensor = module.extract_tiles(canvas, layout=TileLayout.from_ints(layout))
    return result


def _extract_fake(canvas: Tensor, layout: list[int], backend: str) -> Tensor:
    shape = TileLayout.from_ints(layout)
    return canvas.new_empty((shape.num_tiles, *canvas.shape[:2], *shape.tile))


def _extract_vjp(grad: Tensor, layout: list[int]) -> Tensor:
    return pytorch.sum_tiles(grad, layout=TileLayout.from_ints(layout))


def _blend(tiles: Tensor, windows: list[Tensor], layout: list[int], window: str, backend: str) -> Tensor:
    module = dispatch.select("blend_tiles", backend, tiles.device, tiles.dtype)
    shape = TileLayout.from_ints(layout)
    result: Tensor = module.blend_tiles(tiles, layout=shape, weights=_windows(tiles, windows, shape, window))
    return result


def _blend_fake(tiles: Tensor, windows: list[Tensor], layout: list[int], window: str, backend: str) -> Tensor:
    return tiles.new_empty((*tiles.shape[1:3], *TileLayout.from_ints(layout).size))


def _blend_vjp(grad: Tensor, windows: list[Tensor], layout: list[int], window: str) -> Tensor:
    shape = TileLayout.from_ints(layout)
    tiles = pytorch.extract_tiles(grad, layout=shape)
    return pytorch.weigh_tiles(tiles, layout=shape, weights=_windows(tiles, windows, shape, window))


def _pairs(pad: Sequence[int]) -> tuple[tuple[int, int], ...]:
    return tuple((p, p) for p in pad)


def _pad(tiles: Tensor, layout: list[int], pad: list[int], backend: str) -> Tensor:
    module = dispatch.select("pad_tiles", backend, tiles.device, tiles.dtype)
    result: Tensor = module.pad_tiles(tiles, layout=TileLayout.from_ints(layout), pad=_pairs(pad))
    return result


def _pad_fake(tiles: Tensor, layout: list[int], pad: list[int], backend: str) -> Tensor:
    tile = TileLayout.from_ints(layout).tile
    return tiles.new_empty((*tiles.shape[:3], *(w + 2 * p for w, p in zip(tile, pad, strict=True))))


def _pad_vjp(grad: Tensor, layout: list[int], pad: list[int]) -> Tensor:
    shape = TileLayout.from_ints(layout)
    like = grad.new_zeros((*grad.shape[:3], *shape.tile))
    (found,) = _vjp(lambda x: pytorch.pad_tiles(x, layout=shape, pad=_pairs(pad)), (like,), (grad,))
    return found


def _norm(
    tiles: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    layout: list[int],
    num_groups: int,
    eps: float,
    scope: str,
    backend: str,
) -> Tensor:
    module = dispatch.select("group_norm_tiles", backend, tiles.device, tiles.dtype)
    result: Tensor = module.group_norm_tiles(
        tiles,
        layout=TileLayout.from_ints(layout),
        num_groups=num_groups,
        weight=weight,
        bias=bias,
        eps=eps,
        scope=scope,
    )
    return result


def _norm_fake(tiles: Tensor, *rest: Any) -> Tensor:
    return torch.empty_like(tiles, memory_format=torch.contiguous_format)


def _norm_vjp(
    grad: Tensor,
    tiles: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    layout: list[int],
    num_groups: int,
    eps: float,
    scope: str,
) -> tuple[Tensor, Tensor, Tensor]:
    channels = tiles.shape[2]
    scale = tiles.new_ones(channels) if weight is None else weight
    shift = tiles.new_zeros(channels) if bias is None else bias
    shape = TileLayout.from_ints(layout)
    gx, gw, gb = _vjp(
        lambda x, w, b: pytorch.group_norm_tiles(
            x, layout=shape, num_groups=num_groups, weight=w, bias=b, eps=eps, scope=scope
        ),
        (tiles, scale, shift),
        (grad,),
    )
    return gx, gw, gb


def _norm_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    tiles, weight, bias, *ctx.args, _backend = inputs
    ctx.save_for_backward(tiles, weight, bias)


def _norm_backward(ctx: Any, grad: Tensor) -> Grads:
    tiles, weight, bias = ctx.saved_tensors
    gx, gw, gb = torch.ops.tiledattn.group_norm_tiles_backward(grad, tiles, weight, bias, *ctx.args)
    return (gx, None if weight is None else gw, None if bias is None else gb, *(None,) * 5)


def _linear_setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    """Keeps all but the data and the backend's name; a list of tensors (blend windows) is saved as tensors."""
    tensors, *args = inputs[1:-1]
    ctx.lists = not tensors or isinstance(tensors[0], Tensor)
    ctx.save_for_backward(*(tensors if ctx.lists else ()))
    ctx.args = args if ctx.lists else inputs[1:-1]


def _linear_backward(name: str) -> Callable[[Any, Tensor], tuple[Any, ...]]:
    """The backward of a linear operator, which needs nothing of the data."""

    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        op = getattr(torch.ops.tiledattn, f"{name}_backward")
        windows = ([*ctx.saved_tensors],) if ctx.lists else ()
        nothing = tuple([None] * len(w) for w in windows)
        return (op(grad, *windows, *ctx.args), *nothing, *(None,) * (len(ctx.args) + 1))

    return backward


def _define(schema: str, function: Callable[..., Any], fake: Callable[..., Any]) -> str:
    name = schema.partition("(")[0]
    _LIB.define(schema, tags=(torch.Tag.pt2_compliant_tag,))  # type: ignore[no-untyped-call]
    _LIB.impl(name, function, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
    torch.library.register_fake(f"tiledattn::{name}", fake, lib=_LIB)
    return f"tiledattn::{name}"


def _like(*places: int) -> Callable[..., Any]:
    """A fake whose outputs are shaped like the arguments at `places`."""

    def fake(*args: Any) -> Any:
        found = tuple(torch.empty_like(args[i], memory_format=torch.contiguous_format) for i in places)
        return found if len(found) > 1 else found[0]

    return fake


def _norm_vjp_fake(grad: Tensor, tiles: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    channels = tiles.new_empty(tiles.shape[2])
    return _norm_fake(tiles), channels, torch.empty_like(channels)


_ATTENTION_ARGS = (
    "Tensor q, Tensor k, Tensor v, Tensor? prefix_mask, int[] layout, int[] halo, int num_prefix_tokens, "
    "float halo_weight, float scale, bool return_lse"
)
_NORM_ARGS = "Tensor tiles, Tensor? weight, Tensor? bias, int[] layout, int num_groups, float eps, str scope"


def _register() -> None:
    attention = _define(
        f"cross_tile_attention({_ATTENTION_ARGS}, str backend) -> (Tensor, Tensor)",
        _attention,
        _attention_fake,
    )
    _define(
        f"cross_tile_attention_backward(Tensor grad_out, Tensor grad_lse, {_ATTENTION_ARGS})"
        " -> (Tensor, Tensor, Tensor)",
        _attention_vjp,
        _like(2, 3, 4),
    )
    torch.library.register_autograd(attention, _attention_backward, setup_context=_attention_setup, lib=_LIB)

    norm = _define(f"group_norm_tiles({_NORM_ARGS}, str backend) -> Tensor", _norm, _norm_fake)
    _define(
        f"group_norm_tiles_backward(Tensor grad, {_NORM_ARGS}) -> (Tensor, Tensor, Tensor)",
        _norm_vjp,
        _norm_vjp_fake,
    )
    torch.library.register_autograd(norm, _norm_backward, setup_context=_norm_setup, lib=_LIB)

    linear = (
        ("extract_tiles", "Tensor canvas", "int[] layout", _extract, _extract_fake, _extract_vjp),
        (
            "blend_tiles",
            "Tensor tiles",
            "Tensor[] windows, int[] layout, str window",
            _blend,
            _blend_fake,
            _blend_vjp,
        ),
        ("pad_tiles", "Tensor tiles", "int[] layout, int[] pad", _pad, _pad_fake, _pad_vjp),
    )
    for name, data, args, function, fake, vjp in linear:
        op = _define(f"{name}({data}, {args}, str backend) -> Tensor", function, fake)
        _define(f"{name}_backward(Tensor grad, {args}) -> Tensor", vjp, _linear_fake(name))
        torch.library.register_autograd(op, _linear_backward(name), setup_context=_linear_setup, lib=_LIB)


def _linear_fake(name: str) -> Callable[..., Tensor]:
    """The shape of a linear operator's input from its output gradient."""

    def fake(grad: Tensor, *args: Any) -> Tensor:
        layout = TileLayout.from_ints(args[1] if name == "blend_tiles" else args[0])
        if name == "extract_tiles":
            return grad.new_empty((*grad.shape[1:3], *layout.size))
        lead = grad.shape[:3] if name == "pad_tiles" else (layout.num_tiles, *grad.shape[:2])
        return grad.new_empty((*lead, *layout.tile))

    return fake


_register()

cross_tile_attention: Callable[..., tuple[Tensor, Tensor]] = torch.ops.tiledattn.cross_tile_attention
extract_tiles: Callable[..., Tensor] = torch.ops.tiledattn.extract_tiles
blend_tiles: Callable[..., Tensor] = torch.ops.tiledattn.blend_tiles
pad_tiles: Callable[..., Tensor] = torch.ops.tiledattn.pad_tiles
group_norm_tiles: Callable[..., Tensor] = torch.ops.tiledattn.group_norm_tiles
