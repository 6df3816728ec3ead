"""The registered operators: schemas, shapes for tracing, gradients. One registered boundary per public call.

A layout crosses a schema as `TileLayout.as_ints()`. Forward operators and attention's backward go to the dispatcher;
the other backward ones are the PyTorch backend's. Linear operators are differentiable any number of times, the others
once.
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
from .registering import LIB, define, like

Grads = tuple[Tensor | None, ...]


@lru_cache(maxsize=1024)
def _plan(layout: tuple[int, ...], halo: tuple[int, ...], unwrapped: bool) -> AttentionPlan:
    return attention_plan(TileLayout.from_ints(layout), halo, unwrapped)


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
    weight: Tensor | None,
    scale: float,
    lse: bool,
    frequencies: Tensor | None,
    interleaved: bool,
) -> dict[str, Any]:
    return {
        "plan": _plan(tuple(layout), tuple(halo), frequencies is not None),
        "num_prefix_tokens": prefix,
        "prefix_mask": mask,
        "halo_weight": 1.0 if weight is None else float(weight),
        "scale": scale,
        "return_lse": lse,
        "frequencies": frequencies,
        "interleaved": interleaved,
    }


def _attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    prefix_mask: Tensor | None,
    layout: list[int],
    halo: list[int],
    num_prefix_tokens: int,
    halo_weight: Tensor | None,
    scale: float,
    return_lse: bool,
    frequencies: Tensor | None,
    interleaved: bool,
    backend: str,
) -> tuple[Tensor, Tensor]:
    module = dispatch.select("cross_tile_attention", backend, q.device, q.dtype, q.shape[-1])
    kwargs = _attention_kwargs(
        prefix_mask, layout, halo, num_prefix_tokens, halo_weight, scale, return_lse, frequencies, interleaved
    )
    result: tuple[Tensor, Tensor] = module.cross_tile_attention(q, k, v, **kwargs)
    return result


def _attention_fake(q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    return_lse = rest[-4]
    tiles, batch, sequence, heads, _ = q.shape
    lse = q.new_empty(
        (tiles, batch, heads, sequence) if return_lse else (0,),
        dtype=accumulator(q.dtype),
    )
    return torch.empty_like(q, memory_format=torch.contiguous_format), lse


def _attention_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, mask, layout, halo, prefix, weight, scale, return_lse, frequencies, interleaved, backend = inputs
    ctx.places, ctx.numbers, ctx.interleaved = (layout, halo, prefix), (scale, return_lse), interleaved
    # asked for here: gradients of a GPU's tensors are computed in a thread with surroundings of its own; a graph that
    # is being traced asks when it runs, or the surroundings of the first call would stay in it
    traced = torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0
    ctx.backend = backend if traced else dispatch.preferred("cross_tile_attention_backward", backend)
    ctx.set_materialize_grads(False)
    # without the lse nobody reads them: the result may then be changed in place
    ctx.save_for_backward(q, k, v, mask, weight, frequencies, *(output if return_lse else (None, None)))


def _first_derivative_only(op: str) -> None:
    if torch.is_grad_enabled():
        raise RuntimeError(f"{op}: second derivatives are not supported; call backward without create_graph=True")


def _attention_backward(ctx: Any, grad_out: Tensor | None, grad_lse: Tensor | None) -> Grads:
    _first_derivative_only("cross_tile_attention")
    if grad_out is None and grad_lse is None:
        return (None,) * 13
    q, k, v, mask, weight, frequencies, out, lse = ctx.saved_tensors
    if out is None:
        out, lse = q.new_empty(0), q.new_empty(0, dtype=accumulator(q.dtype))
    grad_out = torch.zeros_like(q) if grad_out is None else grad_out
    op = torch.ops.tiledattn.cross_tile_attention_backward
    rest = (*ctx.places, weight, *ctx.numbers, frequencies, ctx.interleaved, ctx.backend)
    return (*op(grad_out, grad_lse, out, lse, q, k, v, mask, *rest), *(None,) * 10)


def _attention_gradients(
    grad_out: Tensor,
    grad_lse: Tensor | None,
    out: Tensor,
    lse: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    prefix_mask: Tensor | None,
    layout: list[int],
    halo: list[int],
    num_prefix_tokens: int,
    halo_weight: Tensor | None,
    scale: float,
    return_lse: bool,
    frequencies: Tensor | None,
    interleaved: bool,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    name = dispatch.preferred("cross_tile_attention_backward", backend)
    module = dispatch.select("cross_tile_attention_backward", name, q.device, q.dtype, q.shape[-1])
    kwargs = _attention_kwargs(
        prefix_mask, layout, halo, num_prefix_tokens, halo_weight, scale, return_lse, frequencies, interleaved
    )
    grads: tuple[Tensor, Tensor, Tensor] = module.cross_tile_attention_backward(
        grad_out, grad_lse if return_lse else None, q, k, v, out, lse, **kwargs
    )
    return grads


def _extract(canvas: Tensor, layout: list[int], backend: str) -> Tensor:
    module = dispatch.select("extract_tiles", backend, canvas.device, canvas.dtype)
    result: Tensor = module.extract_tiles(canvas, layout=TileLayout.from_ints(layout))
    return result


def _extract_out(canvas: Tensor, layout: list[int], backend: str, out: Tensor) -> None:
    module = dispatch.select("extract_tiles", backend, canvas.device, canvas.dtype)
    module.extract_tiles(canvas, layout=TileLayout.from_ints(layout), out=out)


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


def _blend_out(tiles: Tensor, windows: list[Tensor], layout: list[int], window: str, backend: str, out: Tensor) -> None:
    module = dispatch.select("blend_tiles", backend, tiles.device, tiles.dtype)
    shape = TileLayout.from_ints(layout)
    module.blend_tiles(tiles, layout=shape, weights=_windows(tiles, windows, shape, window), out=out)


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
    return pytorch.fold_rings(grad, layout=TileLayout.from_ints(layout), pad=_pairs(pad))


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
    leaves = [x.detach().clone(memory_format=torch.contiguous_format) for x in (tiles, scale, shift)]
    if tiles.numel() == 0:
        return leaves[0], torch.zeros_like(scale), torch.zeros_like(shift)
    with torch.enable_grad():
        x, w, b = (leaf.requires_grad_() for leaf in leaves)
        shape = TileLayout.from_ints(layout)
        out = pytorch.group_norm_tiles(x, layout=shape, num_groups=num_groups, weight=w, bias=b, eps=eps, scope=scope)
        gx, gw, gb = (g.contiguous() for g in torch.autograd.grad(out, (x, w, b), grad))
    return gx, gw, gb


def _norm_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    tiles, weight, bias, *ctx.args, _backend = inputs
    ctx.save_for_backward(tiles, weight, bias)


def _norm_backward(ctx: Any, grad: Tensor) -> Grads:
    _first_derivative_only("group_norm_tiles")
    tiles, weight, bias = ctx.saved_tensors
    gx, gw, gb = torch.ops.tiledattn.group_norm_tiles_backward(grad, tiles, weight, bias, *ctx.args)
    return (gx, None if weight is None else gw, None if bias is None else gb, *(None,) * 5)


def _linear_setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    """Keeps all but the data; a list of tensors (blend windows) is saved as tensors."""
    args = inputs[1:]
    ctx.lists = isinstance(args[0], list) and (not args[0] or isinstance(args[0][0], Tensor))
    ctx.save_for_backward(*(args[0] if ctx.lists else ()))
    ctx.args = args[1:] if ctx.lists else args


def _linear_backward(name: str, forward: bool) -> Callable[[Any, Tensor], tuple[Any, ...]]:
    """The backward of a linear operator: its transpose; that of the transpose is the operator again."""

    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        op = getattr(torch.ops.tiledattn, f"{name}_backward" if forward else name)
        windows = ([*ctx.saved_tensors],) if ctx.lists else ()
        args = ctx.args[:-1] if forward else (*ctx.args, "auto")  # only the operator itself takes a backend
        nothing = tuple([None] * len(w) for w in windows)
        return (op(grad, *windows, *args), *nothing, *(None,) * len(ctx.args))

    return backward


def _norm_vjp_fake(grad: Tensor, tiles: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    channels = tiles.new_empty(tiles.shape[2])
    return _norm_fake(tiles), channels, torch.empty_like(channels)


_ATTENTION_ARGS = (
    "Tensor q, Tensor k, Tensor v, Tensor? prefix_mask, int[] layout, int[] halo, int num_prefix_tokens, "
    "Tensor? halo_weight, float scale, bool return_lse, Tensor? frequencies, bool interleaved"
)
_NORM_ARGS = "Tensor tiles, Tensor? weight, Tensor? bias, int[] layout, int num_groups, float eps, str scope"


def _register() -> None:
    attention = define(
        f"cross_tile_attention({_ATTENTION_ARGS}, str backend) -> (Tensor, Tensor)",
        _attention,
        _attention_fake,
    )
    define(
        "cross_tile_attention_backward(Tensor grad_out, Tensor? grad_lse, Tensor out, Tensor lse, "
        f"{_ATTENTION_ARGS}, str backend) -> (Tensor, Tensor, Tensor)",
        _attention_gradients,
        like(4, 5, 6),
    )
    torch.library.register_autograd(attention, _attention_backward, setup_context=_attention_setup, lib=LIB)

    norm = define(f"group_norm_tiles({_NORM_ARGS}, str backend) -> Tensor", _norm, _norm_fake)
    define(
        f"group_norm_tiles_backward(Tensor grad, {_NORM_ARGS}) -> (Tensor, Tensor, Tensor)",
        _norm_vjp,
        _norm_vjp_fake,
    )
    torch.library.register_autograd(norm, _norm_backward, setup_context=_norm_setup, lib=LIB)

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
        op = define(f"{name}({data}, {args}, str backend) -> Tensor", function, fake)
        transpose = define(f"{name}_backward(Tensor grad, {args}) -> Tensor", vjp, _linear_fake(name))
        register = torch.library.register_autograd
        register(op, _linear_backward(name, True), setup_context=_linear_setup, lib=LIB)
        register(transpose, _linear_backward(name, False), setup_context=_linear_setup, lib=LIB)

    extract, blend = (f"{data}, {args}, str backend, Tensor(a!) out" for _, data, args, *_ in linear[:2])
    define(f"extract_tiles_out({extract}) -> ()", _extract_out, _nothing)
    define(f"blend_tiles_out({blend}) -> ()", _blend_out, _nothing)


def _nothing(*args: Any) -> None:
    """The shape of no result."""


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
