"""Joint attention of text and video, layer by layer: the stock layer over the whole canvas against the tiled one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

import tiledattn as ta
import tiledattn.diffusers as td
from tiledattn.diffusers.families import family_of

Table = Callable[[Any, ta.TileLayout, tuple[int, ...]], tuple[Tensor, Tensor]]
STREAMS = ("hidden_states", "encoder_hidden_states")

# In tokens. The canvas in latents is as many times larger as the model's patches say.
LAYOUTS = {
    "spatial": ta.TileLayout((3, 4, 6), (3, 2, 3), 0),
    "temporal": ta.TileLayout((5, 2, 4), (2, 2, 4), 0),
    "mixed": ta.TileLayout((4, 4, 4), (2, 2, 4), 0),
    "overlapping": ta.TileLayout((5, 4, 4), (3, 2, 4), (1, 1, 0)),
}


@contextmanager
def watched(model: Any, replaced: dict[str, dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Arguments and outputs of the self-attention layers by name, while it is entered; `replaced` takes their place."""
    seen: dict[str, Any] = {}
    handles = []
    for name, layer in family_of(model).self_attentions(model).items():

        def before(module: Any, args: Any, kwargs: dict[str, Any], name: str = name) -> Any:
            return args, {**kwargs, **replaced.get(name, {})}

        def after(module: Any, args: Any, kwargs: dict[str, Any], output: Any, name: str = name) -> None:
            seen[name] = (kwargs, output)

        handles.append(layer.register_forward_pre_hook(before, with_kwargs=True))
        handles.append(layer.register_forward_hook(after, with_kwargs=True))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def tiles_of(tokens: Tensor, layout: ta.TileLayout) -> Tensor:
    """Tokens [B, canvas, C] -> [T, B, tile, C]."""
    canvas = tokens.transpose(1, 2).unflatten(2, layout.size)
    return ta.extract_tiles(canvas, layout).flatten(3).transpose(2, 3)


def layer_errors(
    model: Any, call: dict[str, Any], layout: ta.TileLayout, table: Table, **options: Any
) -> dict[str, float]:
    """How far each layer's video tokens are from attention over the whole canvas with one text stream.

    The wanted output of tile t is the stock layer's, for text and the whole canvas, with rotary positions that leave
    text as far from t as it is in a video of t's size.

    Args:
        model: the model, untiled.
        call: the forward's arguments.
        layout: the tiling, in tokens.
        table: gives the layers' rotary table of (model, layout, origin of t).
        options: of the tiling.

    Returns:
        The largest difference over the largest wanted value, by the layer's name; every layer is fed the same.
    """
    patch = family_of(model).patch(model)
    with torch.no_grad():
        with watched(model, {}) as stock:
            model(**call)
        wanted, inputs = {}, {}
        for name, (kwargs, _) in stock.items():
            layer, out = model.get_submodule(name), []
            for t, origin in enumerate(layout.origins):
                own = {**kwargs, "image_rotary_emb": table(model, layout, origin)}
                out.append(tiles_of(layer(**own)[0], layout)[t])
            wanted[name] = torch.stack(out).flatten(0, 1)
            video, text = (kwargs[stream] for stream in STREAMS)
            fed = (tiles_of(video, layout).flatten(0, 1), text.repeat(layout.num_tiles, 1, 1))
            inputs[name] = dict(zip(STREAMS, fed, strict=True))
        tile, overlap = (tuple(n * p for n, p in zip(x, patch, strict=True)) for x in (layout.tile, layout.overlap))
        tiling = {"tile": tile, "overlap": overlap, "unit": "latent"}
        with td.enable_tiling(model, **tiling, **options), watched(model, inputs) as tiled:
            model(**call)
    errors = {}
    for name, want in wanted.items():
        got = tiled[name][1][0]
        assert got.shape == want.shape
        errors[name] = float((got - want).abs().max() / want.abs().max())
    return errors


def canvas_size(model: Any, layout: ta.TileLayout) -> tuple[int, ...]:
    """The canvas of a layout in tokens, in latents."""
    return tuple(n * p for n, p in zip(layout.size, family_of(model).patch(model), strict=True))


def positions(layout: ta.TileLayout, origin: tuple[int, ...]) -> Tensor:
    """Places of the canvas's tokens as the tile at `origin` counts them, [tokens, 3]."""
    axes = [torch.arange(n, dtype=torch.float64) - o for n, o in zip(layout.size, origin, strict=True)]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flatten(0, 2)


def axial_table(dims: tuple[int, ...], theta: float, places: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines and sines [tokens, D] of axial rotary positions, each twice for a pair of neighbouring channels."""
    angles = [
        places[:, axis, None] * theta ** (-torch.arange(0, dim, 2, dtype=torch.float64) / dim)
        for axis, dim in enumerate(dims)
    ]
    both = torch.cat(angles, 1).repeat_interleave(2, 1)
    return both.cos().float(), both.sin().float()
