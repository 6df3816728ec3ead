"""Rotary positions of tiled attention: what `cross_tile_attention` has to know about them, and its checks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch._subclasses import FakeTensor

from ..geometry import TileLayout
from .checks import check_bool


@dataclass(frozen=True, eq=False)
class Rotary:
    """Rotary positions of already rotated, tile-local q and k.

    A model rotates its queries and keys by their positions: pair j of a token's channels, (a, b), at position x (one
    coordinate per axis, counted from the tile's origin) becomes

        (a cos w - b sin w, a sin w + b cos w),    w = sum over axes of x[axis] * frequencies[axis, (h,) j].

    With the frequencies, `cross_tile_attention` continues this rotation to canvas positions: all tokens of tile t,
    prefix tokens too, are turned by t's origin, so that offsets between tiles are those on the canvas, and offsets
    inside a tile (text to image, too) stay. Across a wrap an offset is the short way round: a position lies on the
    side of the tile's nearer end, behind the tile where both ends are as near.

    Attributes:
        frequencies: radians per position of the layout, float32 or float64 [axes, D_rot / 2], or [axes, H, D_rot / 2]
            with rows of their own for every head (k then needs as many heads as q). D_rot <= D; channels from D_rot
            on are left as they are. On the device of q. A frequency of 0 stands for an axis that a pair does not
            encode. No gradient flows to it.
        interleaved: True: pairs are channels (2j, 2j + 1) (Flux, Wan, Qwen-Image, LTX, Lumina); False: pairs are
            channels (j, j + D_rot / 2).

    Raises:
        TypeError, ValueError: not such a tensor, values that are not finite, or an `interleaved` that is not a bool.

    Making one reads the values (on a GPU: waits for it); using one does not. Angles are computed in float64, the
    rotation in float32 (float64 for float64 inputs), and q and k are rounded once.

    Examples:
        >>> rates = 10000.0 ** -(torch.arange(0, 32, 2) / 32)  # a head of 64 channels, half of them for each axis
        >>> both = torch.stack([torch.cat([rates, 0 * rates]), torch.cat([0 * rates, rates])])  # [2, 32]
        >>> out = ta.cross_tile_attention(q, k, v, layout, 8, rotary=ta.Rotary(both, interleaved=True))
    """

    frequencies: Tensor
    interleaved: bool

    def __post_init__(self) -> None:
        x = self.frequencies
        if not isinstance(x, Tensor):
            raise TypeError(f"rotary.frequencies: got {type(x).__name__}; expected a torch.Tensor")
        if x.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"rotary.frequencies: dtype is {x.dtype}; expected float32 or float64")
        if x.ndim not in (2, 3) or 0 in x.shape:
            raise ValueError(
                f"rotary.frequencies: shape is {list(x.shape)}; expected [axes, D_rot / 2] or [axes, H, D_rot / 2], "
                "none of them 0"
            )
        if x.requires_grad:
            raise ValueError("rotary.frequencies: requires grad; no gradient flows to it, pass frequencies.detach()")
        # values of a traced or meta tensor can't be looked at
        known = not (torch.compiler.is_compiling() or x.is_meta or isinstance(x, FakeTensor))
        if known and not torch.isfinite(x).all():
            wrong = x[~torch.isfinite(x)][0]
            raise ValueError(f"rotary.frequencies: holds {float(wrong)}; every frequency must be finite")
        check_bool("rotary.interleaved", self.interleaved)


def unchecked_rotary(frequencies: Tensor, interleaved: bool) -> Rotary:
    """A Rotary of frequencies that were one before: its values aren't read again, which would wait for the device."""
    rotary = object.__new__(Rotary)
    object.__setattr__(rotary, "frequencies", frequencies)
    object.__setattr__(rotary, "interleaved", interleaved)
    return rotary


def check_rotary(rotary: object, q: Tensor, k: Tensor, layout: TileLayout) -> tuple[Tensor | None, bool]:
    """The frequencies and the pairing of `rotary`, which fit q [T, B, S, H, D], k [T, B, S, Hkv, D] and the layout."""
    if rotary is None:
        return None, True
    if not isinstance(rotary, Rotary):
        raise TypeError(f"rotary: got {type(rotary).__name__}; expected a tiledattn.Rotary or None")
    x, (heads, dim) = rotary.frequencies, q.shape[3:]
    if x.shape[0] != len(layout.size):
        raise ValueError(
            f"rotary.frequencies: shape is {list(x.shape)}, {x.shape[0]} axes; the layout has {len(layout.size)}"
        )
    if 2 * x.shape[-1] > dim:
        raise ValueError(
            f"rotary.frequencies: shape is {list(x.shape)}, for {2 * x.shape[-1]} channels; q's D is {dim}, so at "
            f"most {dim // 2} frequencies fit"
        )
    if x.ndim == 3 and x.shape[1] != heads:
        raise ValueError(
            f"rotary.frequencies: shape is {list(x.shape)}, {x.shape[1]} heads; q has {heads} "
            "(or leave the dimension out to share frequencies)"
        )
    if x.ndim == 3 and k.shape[3] != heads:
        raise ValueError(
            f"rotary.frequencies: one row per head needs as many heads in k as in q; k has {k.shape[3]}, q {heads}. "
            "Repeat k's and v's heads, or share frequencies: [axes, D_rot / 2]"
        )
    if x.device != q.device:
        raise ValueError(f"rotary.frequencies: on {x.device}, but q is on {q.device}; move one to the other")
    return x, rotary.interleaved
