"""Joint attention of text and tokens, layer by layer: the stock layer over the whole canvas against the tiled one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

import tiledattn as ta
import tiledattn.diffusers as td
from tiledattn.diffusers.families import family_of

Rotary = Callable[[Any, dict[str, Any], ta.TileLayout, tuple[int, ...]], Any]


@contextmanager
def watched(model: Any, replaced: dict[str, dict[str, Any]] | None = None) -> Iterator[dict[str, Any]]:
    """Arguments and outputs of the self-attention layers by name, (arguments, output), while it is entered.

    Args:
        model: the model.
        replaced: arguments to give the layers instead of their own.
    """
    seen: dict[str, Any] = {}
    handles = []
    for name, layer in family_of(model).self_attentions(model).items():

        def before(module: Any, args: Any, kwargs: dict[str, Any], name: str = name) -> Any:
            return args, {**kwargs, **(replaced or {}).get(name, {})}

        def after(module: Any, args: Any, kwargs: dict[str, Any], output: Any, name: str = name) -> None:
            seen[name] = (kwargs, output)

        handles.append(layer.register_forward_pre_hook(before, with_kwargs=True))
        handles.append(layer.register_forward_hook(after, with_kwargs=True))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def pieces(tokens: Tensor, layout: ta.TileLayout) -> Tensor:
    """Tokens [B, n * canvas, C] of n images -> [T, B, n * tile, C]."""
    images = tokens.unflatten(1, (-1, *layout.size)).permute(0, 1, 4, 2, 3)  # [B, n, C, h, w]
    tiles = ta.extract_tiles(images.flatten(1, 2), layout)
    tiles = tiles.unflatten(2, images.shape[1:3]).flatten(4)  # [T, B, n, C, tile]
    return tiles.transpose(3, 4).flatten(2, 3)


def image_part(output: Any, text: int) -> Tensor:
    """Tokens of images in a layer's output: the first of two streams, or what stands behind the text."""
    return output[0] if isinstance(output, tuple) else output[:, text:]


def run(model: Any, call: dict[str, Any]) -> Tensor:
    """A forward without gradients: the prediction [B, tokens, C]."""
    with torch.no_grad():
        return model(**call).sample


def layer_errors(
    model: Any, call: dict[str, Any], layout: ta.TileLayout, rotary: Rotary, fed: bool = True, **options: Any
) -> dict[str, float]:
    """How far each layer's canvas tokens are from attention over the whole canvas with one text stream.

    The wanted output of tile t is the stock layer's, for text, the whole canvas and t's crops of reference images, with
    `rotary(model, call, layout, origin of t)`, which leaves text where t has it.

    Args:
        model: the model, untiled.
        call: the forward's arguments.
        layout: the tiling.
        rotary: gives the layers' rotary tables.
        fed: every layer gets tiles of what the untiled model's layer got; False: what comes in a tiled run.
        options: of the tiling.

    Returns:
        The largest difference over the largest wanted value, by the layer's name.
    """
    canvas = layout.size[0] * layout.size[1]
    with torch.no_grad():
        with watched(model) as stock:
            model(**call)
        wanted, inputs = {}, {}
        for name, (kwargs, _) in stock.items():
            text, images = streams(kwargs, call)
            cut = pieces(images, layout)  # [T, B, n * tile, C]
            out = []
            for t, origin in enumerate(layout.origins):
                sequence = torch.cat([images[:, :canvas], cut[t][:, layout.tile_positions :]], 1)
                own = {
                    **kwargs,
                    **joined(kwargs, text, sequence),
                    "image_rotary_emb": rotary(model, call, layout, origin),
                }
                layer = model.get_submodule(name)
                whole = image_part(layer(**own), text.shape[1])[:, :canvas]
                out.append(pieces(whole, layout)[t])
            wanted[name] = torch.stack(out).flatten(0, 1)
            inputs[name] = joined(kwargs, text.repeat(layout.num_tiles, 1, 1), cut.flatten(0, 1))
        tile = {"tile": layout.tile, "overlap": layout.overlap, "unit": "latent"}
        with td.enable_tiling(model, **tile, **options), watched(model, inputs if fed else None) as tiled:
            model(**call)
    errors = {}
    for name, want in wanted.items():
        text = streams(stock[name][0], call)[0].shape[1]
        got = image_part(tiled[name][1], text)[:, : layout.tile_positions]
        assert got.shape == want.shape
        errors[name] = float((got - want).abs().max() / want.abs().max())
    return errors


def streams(kwargs: dict[str, Any], call: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Text and images among a layer's arguments."""
    hidden, text = kwargs["hidden_states"], kwargs.get("encoder_hidden_states")
    length = call["encoder_hidden_states"].shape[1]
    return (hidden[:, :length], hidden[:, length:]) if text is None else (text, hidden)


def joined(kwargs: dict[str, Any], text: Tensor, images: Tensor) -> dict[str, Any]:
    """A layer's arguments with other text and images."""
    if kwargs.get("encoder_hidden_states") is None:
        return {"hidden_states": torch.cat([text, images], 1)}
    return {"hidden_states": images, "encoder_hidden_states": text}
