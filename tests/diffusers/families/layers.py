"""Layers of joint attention, fed alike: the stock layer over the whole canvas against the tiled one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import tiledattn as ta
import tiledattn.diffusers as td
from tiledattn.diffusers.families import family_of


@dataclass
class Streams(ABC):
    """How a family's self-attention layers are called. A layer's text is [B, P, C], its image [B, N, C].

    Attributes:
        model: the model.
        call: its arguments on the canvas.
    """

    model: Any
    call: dict[str, Any]

    @abstractmethod
    def split(self, name: str, kwargs: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Text (of no tokens where there is none) and image among a layer's arguments."""

    @abstractmethod
    def join(self, name: str, kwargs: dict[str, Any], text: Tensor, image: Tensor) -> dict[str, Any]:
        """A layer's arguments with other text and another image."""

    @abstractmethod
    def image_of(self, name: str, output: Any, text: int) -> Tensor:
        """The image in a layer's output, where `text` tokens of text were given."""

    def seen_from(self, name: str, kwargs: dict[str, Any], origin: tuple[int, ...]) -> dict[str, Any]:
        """A layer's arguments on the canvas, the text as far from the tile at `origin` (in tokens) as in training."""
        return kwargs


def layer_errors(streams: Streams, layout: ta.TileLayout, **options: Any) -> dict[str, float]:
    """How far each layer's image tokens are from attention over the whole canvas and one text.

    Every layer of the tiled model gets tiles of what the untiled model's layer got. The wanted output of tile t is
    that of the stock layer, for the whole canvas, its text where t has it.

    Args:
        streams: the model.
        layout: the layout, in tokens.
        options: of `enable_tiling`.

    Returns:
        The largest difference over the largest wanted value, by the layer's name.
    """
    model, patch = streams.model, family_of(streams.model).patch(streams.model)
    wanted: dict[str, Tensor] = {}
    fed: dict[str, tuple[Tensor, Tensor]] = {}
    with torch.no_grad():
        stock = watch(streams, {})
        for name, (kwargs, _) in stock.items():
            text, image = streams.split(name, kwargs)
            outputs = []
            for t, origin in enumerate(layout.origins):
                output = model.get_submodule(name)(**streams.seen_from(name, kwargs, origin))
                outputs.append(pieces(streams.image_of(name, output, text.shape[1]), layout)[t])
            wanted[name] = torch.stack(outputs).flatten(0, 1)
            fed[name] = (text.repeat(layout.num_tiles, 1, 1), pieces(image, layout).flatten(0, 1))
        tile, overlap = (tuple(n * p for n, p in zip(v, patch, strict=True)) for v in (layout.tile, layout.overlap))
        with td.enable_tiling(model, tile=tile, overlap=overlap, unit="latent", **options):
            tiled = watch(streams, fed)
    errors = {}
    for name, want in wanted.items():
        got = streams.image_of(name, tiled[name][1], fed[name][0].shape[1])
        assert got.shape == want.shape
        errors[name] = float((got - want).abs().max() / want.abs().max())
    return errors


def watch(streams: Streams, fed: dict[str, tuple[Tensor, Tensor]]) -> dict[str, tuple[dict[str, Any], Any]]:
    """A forward: arguments and output of its self-attention layers by name, with the streams of `fed` put in."""
    seen: dict[str, tuple[dict[str, Any], Any]] = {}
    handles = []
    for name, layer in family_of(streams.model).self_attentions(streams.model).items():

        def before(module: Any, args: Any, kwargs: dict[str, Any], name: str = name) -> Any:
            own = {**dict(zip(("hidden_states",), args, strict=False)), **kwargs}
            return (), streams.join(name, own, *fed[name]) if name in fed else own

        def after(module: Any, args: Any, kwargs: dict[str, Any], output: Any, name: str = name) -> None:
            seen[name] = (kwargs, output)

        handles.append(layer.register_forward_pre_hook(before, with_kwargs=True))
        handles.append(layer.register_forward_hook(after, with_kwargs=True))
    try:
        streams.model(**streams.call)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def pieces(tokens: Tensor, layout: ta.TileLayout) -> Tensor:
    """Tokens [B, canvas, C] -> [T, B, tile, C]."""
    tiles = ta.extract_tiles(tokens.transpose(1, 2).unflatten(2, layout.size), layout)
    return tiles.flatten(3).transpose(2, 3)
