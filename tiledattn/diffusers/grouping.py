"""GroupedLayers: layers that work on each token alone run on few at a time, so that what they make stays cached.

All tiles of a canvas are one batch, since attention, convolutions and norms cross their borders. A feed-forward does
not, and widens its input eightfold: of a whole canvas it makes the largest tensors of the model by far, which on a
CPU costs a page fault for each of their pages at every call. Tokens in groups give the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from .frame import CurrentFrame
from .hooking import InnermostHook, install_hook, installed_hook, remove_hook
from .weak import Weak

GROUP_BYTES = 4 << 20  # of the widest tensor of a group


class GroupedLayers:
    """Runs layers on groups of tokens while a tiled forward pass is under way, on CPUs and without gradients.

    Args:
        layers: modules that map [rows, N, C] to [rows, N, C'], token by token, through at most `widening` * C channels.
        current: where the forward pass under way is found.
        widening: how much wider than the input the widest tensor inside is.
    """

    def __init__(self, layers: Iterable[nn.Module], current: CurrentFrame, widening: int = 8) -> None:
        self._layers = [Weak(layer) for layer in layers]
        self._current = current
        self._widening = widening

    def install(self) -> None:
        """Puts the layers under it; those that somebody else has put something around are left alone."""
        for layer in self._living():
            if "forward" not in vars(layer) and installed_hook(layer) is None:
                install_hook(layer, InnermostHook(self._run))

    def remove(self, model: nn.Module) -> None:
        """Puts the layers back as they were; found in the model, since a copy made with one layer knows no others."""
        for layer in model.modules():
            hook = installed_hook(layer)
            if hook is not None and getattr(hook.run, "__self__", None) is self:
                remove_hook(layer)
        self._layers = []

    def _run(self, layer: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        x = args[0] if args else None
        if torch.compiler.is_compiling() or not isinstance(x, Tensor) or self._current.frame is None:
            return forward(*args, **kwargs)
        wide = x.numel() * x.element_size() * self._widening
        if x.ndim != 3 or x.device.type != "cpu" or torch.is_grad_enabled() or wide <= GROUP_BYTES:
            return forward(*args, **kwargs)
        parts = x.flatten(0, 1).unsqueeze(0).tensor_split(-(-wide // GROUP_BYTES), dim=1)
        found = torch.cat([forward(part, *args[1:], **kwargs) for part in parts], dim=1)
        return found.reshape(*x.shape[:2], -1)

    def _living(self) -> list[nn.Module]:
        return [layer for layer in (reference() for reference in self._layers) if layer is not None]
