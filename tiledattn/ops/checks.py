"""Checks at the public edge: each names the argument, what it got and what would work."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..geometry import TileLayout
from ..geometry.numbers import is_real, is_whole

FLOATING = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_layout(layout: object) -> TileLayout:
    """`layout` is a TileLayout."""
    if not isinstance(layout, TileLayout):
        raise TypeError(f"layout: got {type(layout).__name__}; expected a tiledattn.TileLayout")
    return layout


def check_tensor(name: str, value: object) -> Tensor:
    """`value` is a tensor of a floating dtype that the operations know, of ordinary (strided) layout."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: got {type(value).__name__}; expected a torch.Tensor")
    if value.dtype not in FLOATING:
        raise TypeError(f"{name}: dtype is {value.dtype}; expected float16, bfloat16, float32 or float64")
    if value.layout != torch.strided or value.is_nested:
        kind = "nested" if value.is_nested else value.layout
        raise TypeError(f"{name}: layout is {kind}; expected a dense (strided) tensor")
    return value


def check_bool(name: str, value: object) -> bool:
    """`value` is a bool."""
    if not isinstance(value, bool):
        raise TypeError(f"{name}: got {value!r} ({type(value).__name__}); expected True or False")
    return value


def check_int(name: str, value: object, low: int) -> int:
    """`value` is an int of at least `low`."""
    if not (is_whole(value) or isinstance(value, torch.SymInt)):
        raise TypeError(f"{name}: got {value!r} ({type(value).__name__}); expected an int of at least {low}")
    if value < low:
        raise ValueError(f"{name}: got {value}; it must be at least {low}")
    # a SymInt stands for an int under torch.compile
    return value if isinstance(value, (int, torch.SymInt)) else int(value)  # type: ignore[return-value]


def check_number(name: str, value: object, low: float, high: float) -> float:
    """`value` is a finite real number in [low, high]."""
    if not (is_real(value) or isinstance(value, torch.SymFloat)):
        raise TypeError(f"{name}: got {value!r} ({type(value).__name__}); expected a number")
    if not low <= value <= high:  # false for NaN, too
        raise ValueError(f"{name}: got {value}; it must be a finite number between {low:g} and {high:g}")
    return float(value)


def check_tiles(tiles: object, layout: TileLayout, name: str = "tiles") -> Tensor:
    """`tiles` is [T, B, C, *tile] of the layout."""
    x = check_tensor(name, tiles)
    expected = (layout.num_tiles, "B", "C", *layout.tile)
    if x.ndim != len(expected) or x.shape[0] != layout.num_tiles or tuple(x.shape[3:]) != layout.tile:
        raise ValueError(f"{name}: shape is {_shape(x)}; the layout needs {_spell(expected)}")
    return x


def check_canvas(canvas: object, layout: TileLayout) -> Tensor:
    """`canvas` is [B, C, *size] of the layout."""
    x = check_tensor("canvas", canvas)
    expected = ("B", "C", *layout.size)
    if x.ndim != len(expected) or tuple(x.shape[2:]) != layout.size:
        raise ValueError(f"canvas: shape is {_shape(x)}; the layout needs {_spell(expected)}")
    return x


def check_same(name: str, x: Tensor, like_name: str, like: Tensor) -> None:
    """`x` lies on the device of `like` and has its dtype."""
    if x.device != like.device:
        raise ValueError(f"{name}: on {x.device}, but {like_name} is on {like.device}; move one to the other")
    if x.dtype != like.dtype:
        raise TypeError(f"{name}: dtype is {x.dtype}, but {like_name} has {like.dtype}; cast one to the other")


def check_out(out: object, shape: tuple[int, ...], name: str, like: Tensor) -> Tensor:
    """`out` can take a result of that shape, with the device and dtype of the input `like`, and shares no memory."""
    x = check_tensor("out", out)
    check_same("out", x, name, like)
    if tuple(x.shape) != shape:
        raise ValueError(f"out: shape is {_shape(x)}; the result needs {_spell(shape)}")
    if not x.is_contiguous():
        raise ValueError("out: not contiguous; the result needs a contiguous tensor")
    if not torch.compiler.is_compiling() and x.is_inference() and not torch.is_inference_mode_enabled():
        raise RuntimeError(
            "out: an inference tensor can be written to in inference mode only; pass one made outside it"
        )
    if torch.is_grad_enabled() and (x.requires_grad or like.requires_grad):
        raise RuntimeError(
            f"out: no gradients flow through it, but {name if like.requires_grad else 'out'} requires "
            "grad; leave out away, or call inside torch.no_grad()"
        )
    if _shares_memory(x, like):
        raise ValueError(f"out: shares memory with {name}, which is read while it is written; pass another tensor")
    return x


def _shares_memory(x: Tensor, y: Tensor) -> bool:
    """Whether two tensors' first to last elements overlap in memory; never said of traced ones, which have none."""
    if torch.compiler.is_compiling() or x.is_meta or not x.numel() or not y.numel():
        return False
    try:
        first = x.data_ptr(), y.data_ptr()
    except RuntimeError:
        return False
    return first[0] < first[1] + _bytes_spanned(y) and first[1] < first[0] + _bytes_spanned(x)


def _bytes_spanned(x: Tensor) -> int:
    """From the first to the last element."""
    if x.is_contiguous():
        return x.numel() * x.itemsize
    return (1 + sum((n - 1) * s for n, s in zip(x.shape, x.stride(), strict=True))) * x.itemsize


def _shape(x: Tensor) -> str:
    return _spell(tuple(x.shape))


def _spell(shape: Sequence[object]) -> str:
    return "[" + ", ".join(str(n) for n in shape) + "]"
