"""Self-attention of transformers crosses tile borders, whatever processor a layer has.

Each family names its self-attention layers; hooks on them say which one is under way. The layer's own processor runs
as it is (projections, norms, rotary positions, LoRA, fused or quantised weights), and where it calls
`F.scaled_dot_product_attention`, a `TorchFunctionMode` around the model's forward gives it attention over tiles.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .caches import may_skip
from .frame import CurrentFrame, Frame, Layer
from .traced import attend_rows
from .turning import turn_rows
from .weak import Weak


class CrossTileMode(TorchFunctionMode):
    """Lets the first attention call of each marked layer cross tile borders; others pass.

    Args:
        frame: the forward pass, of a transformer.

    Raises (inside, from the model's calls):
        ValueError: sequences that are no tokens of the tiles.
        NotImplementedError: causal attention, or dropout.
    """

    def __init__(self, frame: Frame) -> None:
        super().__init__()
        self.frame = frame

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Sends the attention of a marked layer over the tiles."""
        kwargs = {} if kwargs is None else kwargs
        frame = self.frame
        if func is F.scaled_dot_product_attention and frame.layer is not None and not frame.paused:
            return _attend(frame, *args, **kwargs) if frame.rows is None else _attend_row(frame, *args, **kwargs)
        if func is F.pad and frame.rows is not None and not frame.paused:
            return frame.rows.pad(*args, **kwargs)
        if func is Tensor.unflatten:
            return torch.unflatten(*args, **kwargs)  # the method calls super(), which torch.compile can't trace here
        return func(*args, **kwargs)


def _attend(
    frame: Frame,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """[T*B, H, S, D] -> [T*B, H, S, D]; attention to something else than the layer's own sequence passes."""
    length, layer = query.shape[2], frame.layer
    if key.shape[2] != length:
        return F.scaled_dot_product_attention(
            query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
        )
    assert layer is not None
    if is_causal or dropout_p:
        raise NotImplementedError(f"{layer.name}: causal attention and dropout can't cross tiles; use halo=0")
    prefix = length - frame.tile_tokens
    behind = prefix if frame.text == "last" else frame.behind
    shift = behind if frame.text_lengths is None or prefix == 0 else prefix - frame.text_lengths
    if prefix < behind or (prefix > behind and frame.text == "none"):
        raise ValueError(
            f"{layer.name}: got sequences of {length} tokens; tiles have {frame.tile_tokens}; something merges or "
            "drops tokens: turn it off, or use halo=0"
        )
    frame.layer = None
    mask = _prefix_mask(attn_mask, layer, query.shape[0], prefix, shift)
    query, key, value = _autocast(query, key, value)
    q, k, v = (_moved(x, shift, 2).transpose(1, 2) for x in (query, key, value))  # [T*B, S, H, D]
    if frame.turns is not None:
        q, k = turn_rows(q, frame.turns), turn_rows(k, frame.turns)
    with frame.pause():
        out = attend_rows(q, k, v, mask, frame.places, prefix, frame.weight, scale, frame.rotary, frame.backend)
    return _moved(out.transpose(1, 2), -shift, 2)


def _attend_row(frame: Frame, query: Tensor, key: Tensor, value: Tensor, **kwargs: Any) -> Tensor:
    """`_attend` where rows come one at a time, [1, H, S, D]."""
    rows = frame.rows
    assert rows is not None

    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        return _attend(frame, q, k, v, mask, **kwargs)

    return rows.attend(attend, query, key, value)


def _autocast(*tensors: Tensor) -> tuple[Tensor, ...]:
    """What autocast hands to `F.scaled_dot_product_attention`: norms of queries and keys give float32 there."""
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return tensors
    dtype = torch.get_autocast_dtype(device)
    return tuple(x if x.dtype == torch.float64 else x.to(dtype) for x in tensors)


def _moved(x: Tensor, shift: int | Tensor, dim: int) -> Tensor:
    """Rolls an axis of [T*B, ...], by one number or by one per row [T*B]."""
    if not isinstance(shift, Tensor):
        return x.roll(shift, dim) if shift else x
    places = (torch.arange(x.shape[dim], device=x.device) - shift[:, None]) % x.shape[dim]
    shape = [x.shape[axis] if axis in (0, dim) else 1 for axis in range(x.ndim)]
    return x.gather(dim, places.reshape(shape).expand_as(x))


def _prefix_mask(mask: Tensor | None, layer: Layer, rows: int, prefix: int, shift: int | Tensor) -> Tensor | None:
    """What canvas queries see of the text, bool [T*B, P], out of a mask [T*B or 1, 1, S or 1, S]; bool or additive.

    Of the P tokens those that stand behind the canvas's come first. The canvas's own columns are taken as visible: a
    model masks padding of the text only.
    """
    if mask is None or prefix == 0:
        return None
    while mask.ndim < 4:
        mask = mask.unsqueeze(0)
    if mask.shape[1] != 1:
        raise NotImplementedError(f"{layer.name}: a mask per head {tuple(mask.shape)} can't cross tiles; use halo=0")
    if mask.shape[2] > 1 and isinstance(shift, Tensor):
        raise NotImplementedError(f"{layer.name}: a mask per query can't cross tiles of unlike texts; use halo=0")
    row = 0 if mask.shape[2] == 1 or isinstance(shift, Tensor) else prefix - shift
    text = _moved(mask[:, 0, row].expand(rows, -1), shift, 1)[:, :prefix]
    return text if text.dtype == torch.bool else text == 0


class _Enter:
    """Forward pre-hook of a layer: it is under way."""

    def __init__(self, current: CurrentFrame, name: str) -> None:
        self.current, self.name = current, name

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        frame = self.current.frame
        if frame is not None and frame.tokens is not None:
            frame.layer = self


class _Leave:
    """Forward hook of a layer: it must have attended over the tiles."""

    def __init__(self, current: CurrentFrame) -> None:
        self.current = current

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        frame = self.current.frame
        if frame is None or frame.layer is None or frame.tokens is None:
            return
        layer, frame.layer = frame.layer, None
        if frame.crosses and not may_skip(module):
            raise RuntimeError(
                f"{layer.name}: its attention did not go through F.scaled_dot_product_attention, where it crosses "
                'tiles; take another attention backend off with set_attention_backend("native"), or use halo=0'
            )


class MarkedLayers:
    """Hooks on a transformer's self-attention layers, and a watch over the processors of all attention layers.

    The batch of a tiled model is `[T*B, ...]`, the tile index slow: a processor that tells the guidance copies apart by
    their place in the batch would take tiles for copies.

    Args:
        self_attentions: the self-attention layers, by name.
        cross_attentions: the layers that attend to conditioning, by name.
        halo: whether self-attention crosses borders; False leaves the layers alone.
        current: where hooks find the forward pass under way.
        processors: names of the processor classes that are known to work on rows.
    """

    def __init__(
        self,
        self_attentions: dict[str, Any],
        cross_attentions: dict[str, Any],
        halo: bool,
        current: CurrentFrame,
        processors: tuple[str, ...],
    ) -> None:
        self._layers = {name: Weak(layer) for name, layer in {**self_attentions, **cross_attentions}.items()}
        self._crossing = tuple(self_attentions) if halo else ()
        self._current = current
        self._processors = processors
        self._accepted: dict[str, Any] = {}
        self._installed = False

    def check(self) -> None:
        """Raises TypeError for layers whose processors aren't known."""
        for name, layer in self._living():
            if type(layer.processor).__name__ not in self._processors:
                raise TypeError(
                    f"{name}: its processor {type(layer.processor).__name__} can't run on tiles: only "
                    f"{', '.join(self._processors)} are known to work on rows [T*B], the tile index slow, where a "
                    "guidance copy is no half of the batch; put the layer's own processor back"
                )

    def adopt(self) -> None:
        """Checks processors that somebody has set since, and marks the layers the first time.

        Raises:
            TypeError: a processor that isn't known.
        """
        if not all(layer.processor is self._accepted.get(name) for name, layer in self._living()):
            self.check()
            self._accepted = {name: layer.processor for name, layer in self._living()}
        if self._installed:
            return
        self._installed = True
        for name, layer in self._living():
            if name in self._crossing:
                layer.register_forward_pre_hook(_Enter(self._current, name), prepend=True)
                layer.register_forward_hook(_Leave(self._current))

    def restore(self, model: nn.Module) -> None:
        """Takes the hooks off."""
        for _, layer in self._living():
            for hooks in (layer._forward_pre_hooks, layer._forward_hooks):
                for key, hook in list(hooks.items()):
                    if isinstance(hook, (_Enter, _Leave)) and hook.current is self._current:
                        del hooks[key]
        self._layers, self._accepted = {}, {}

    def _living(self) -> list[tuple[str, Any]]:
        return [(name, layer) for name, layer in ((n, r()) for n, r in self._layers.items()) if layer is not None]
