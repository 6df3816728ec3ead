"""ProcessorSwap: keeps the attention processors of a tiled model such that tiles attend as they should."""

from __future__ import annotations

from typing import Any

from diffusers.models.attention_processor import (
    AttnProcessor,
    AttnProcessor2_0,
    AttnProcessorNPU,
    FusedAttnProcessor2_0,
    IPAdapterAttnProcessor,
    IPAdapterAttnProcessor2_0,
    IPAdapterXFormersAttnProcessor,
    SlicedAttnProcessor,
    XFormersAttnProcessor,
    XLAFlashAttnProcessor2_0,
)
from torch import nn

from .frame import CurrentFrame
from .processors import CrossTileAttnProcessor
from .weak import Weak

_STOCK = (
    AttnProcessor,
    AttnProcessor2_0,
    FusedAttnProcessor2_0,
    XFormersAttnProcessor,
    SlicedAttnProcessor,
    AttnProcessorNPU,
    XLAFlashAttnProcessor2_0,
)
_IP_ADAPTER = (IPAdapterAttnProcessor, IPAdapterAttnProcessor2_0, IPAdapterXFormersAttnProcessor)


class ProcessorSwap:
    """Puts `CrossTileAttnProcessor` on self-attention layers, and refuses processors that nobody knows on any layer.

    The batch of a tiled model is `[T*B, ...]`, the tile index slow: a processor that tells the guidance copies apart by
    their place in the batch would take tiles for copies.

    Args:
        self_attentions: the self-attention layers, by name.
        cross_attentions: the layers that attend to conditioning, by name.
        halo: whether self-attention layers get the halo; False leaves their processors alone.
        current: where processors find the forward pass under way.
    """

    def __init__(
        self, self_attentions: dict[str, Any], cross_attentions: dict[str, Any], halo: bool, current: CurrentFrame
    ) -> None:
        layers: dict[str, nn.Module] = {**self_attentions, **cross_attentions}
        self._layers = {name: Weak(layer) for name, layer in layers.items()}
        self._crossing = tuple(self_attentions) if halo else ()
        self._cross_attentions = tuple(cross_attentions)
        self._current = current
        self._accepted: dict[str, Any] = {}

    def check(self) -> None:
        """Raises TypeError for layers whose processors aren't known."""
        for name, layer in self._living():
            allowed = _STOCK + _IP_ADAPTER if name in self._cross_attentions else _STOCK
            if not _is_known(layer.processor, allowed):
                raise TypeError(
                    f"{name}: its processor {type(layer.processor).__name__} can't run on tiles: only diffusers' stock "
                    "processors (and IP-Adapter's) are known to work on rows [T*B], the tile index slow, where a "
                    "guidance copy is no half of the batch; reset it with set_attn_processor(AttnProcessor2_0())"
                )

    def adopt(self) -> None:
        """Takes on processors that somebody has set since; what is refused is taken off again.

        Raises:
            TypeError: a processor that isn't known.
        """
        if all(layer.processor is self._accepted.get(name) for name, layer in self._living()):
            return
        try:
            self.check()
        except TypeError:
            for name, layer in self._living():
                if name in self._accepted and layer.processor is not self._accepted[name]:
                    layer.set_processor(self._accepted[name])
            raise
        for name, layer in self._living():
            if name in self._crossing and not self._is_mine(layer.processor):
                layer.set_processor(CrossTileAttnProcessor(self._current, layer.processor))
            self._accepted[name] = layer.processor

    def restore(self, model: nn.Module) -> None:
        """Puts the original processors back, also those that diffusers keeps for `unfuse_qkv_projections`."""
        for _, layer in self._living():
            if self._is_mine(layer.processor):
                layer.set_processor(layer.processor.original)
        kept = getattr(model, "original_attn_processors", None)
        if isinstance(kept, dict):
            kept.update({name: p.original for name, p in kept.items() if self._is_mine(p)})
        self._layers, self._accepted = {}, {}

    def _living(self) -> list[tuple[str, Any]]:
        return [(name, layer) for name, layer in ((n, r()) for n, r in self._layers.items()) if layer is not None]

    def _is_mine(self, processor: Any) -> bool:
        return isinstance(processor, CrossTileAttnProcessor) and processor.tiling is self._current


def _is_known(processor: Any, allowed: tuple[type, ...]) -> bool:
    """Whether every row's output depends on that row alone, by plain scaled dot products."""
    while type(processor) is CrossTileAttnProcessor:
        processor = processor.original
    return type(processor) in allowed
