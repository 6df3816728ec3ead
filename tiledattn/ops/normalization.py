"""Group normalisation whose statistics reach beyond a tile."""

from __future__ import annotations

from torch import Tensor

from ..dispatch import check_name
from ..geometry import TileLayout
from . import calling
from .checks import check_int, check_layout, check_number, check_same, check_tensor, check_tiles

SCOPES = ("tile", "neighbours", "canvas")


def group_norm_tiles(
    tiles: Tensor,
    layout: TileLayout,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    scope: str = "canvas",
    backend: str = "auto",
) -> Tensor:
    """Group normalisation of tiles with statistics over a scope of tiles.

    y = (x - mean) / sqrt(var + eps) * weight + bias, with mean and (biased) variance per batch entry and group over

    - "tile": the tile itself, as `torch.nn.functional.group_norm`;
    - "canvas": the whole canvas, each position once (in overlaps: from the tile in which it lies deepest);
    - "neighbours": the canvas, each tile's positions weighted by its nearness, the product over axes of
      max(0, 1 - distance / (2 * tile)) with the distance of the tiles' origins: 1 for the tile itself, 1/2 for an
      adjacent one without overlap, 0 beyond.

    Args:
        tiles: [T, B, C, *tile], any strides.
        layout: the layout, in the tiles' own positions.
        num_groups: groups of channels; divides C.
        weight: [C] or None.
        bias: [C] or None.
        eps: added to the variance.
        scope: "tile", "neighbours" or "canvas".
        backend: "auto", or a name from `tiledattn.backends()`.

    Returns:
        Like tiles, contiguous. Statistics are taken in float32 (float64 for float64).

    Raises:
        TypeError, ValueError: an argument of the wrong type, dtype or shape, naming it.

    Sharing statistics over tiles is known from tiled VAE decoding (pkuliyi2015) and from Video-Infinity's all-reduce.
    """
    check_layout(layout)
    x = check_tiles(tiles, layout)
    groups = check_int("num_groups", num_groups, 1)
    channels = x.shape[2]
    if channels % groups:
        raise ValueError(f"num_groups: got {groups}; it must divide the {channels} channels")
    for name, value in (("weight", weight), ("bias", bias)):
        if value is not None:
            check_same(name, check_tensor(name, value), "tiles", x)
            if tuple(value.shape) != (channels,):
                raise ValueError(f"{name}: shape is {list(value.shape)}; expected [{channels}], one per channel")
    if scope not in SCOPES:
        raise ValueError(f"scope: got {scope!r}; known are {', '.join(SCOPES)}")
    epsilon = check_number("eps", eps, 0.0, 1e30)
    return calling.group_norm_tiles(x, weight, bias, layout.as_ints(), groups, epsilon, scope, check_name(backend))
