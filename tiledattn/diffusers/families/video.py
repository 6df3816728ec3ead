"""What video families share: timesteps of tokens, the VAE's factors, prompts of a T5, hooks of a family's own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..frame import CurrentFrame, Frame
from ..sdpa import MarkedLayers
from ..weak import Weak
from .base import CallContext


def timesteps_of_tiles(timestep: Tensor, context: CallContext, grid: tuple[int, ...]) -> Tensor:
    """Timesteps [] stay, [B] are repeated, [B, tokens of `grid`, ...] are cut like the canvas.

    Raises:
        ValueError: other shapes.
    """
    if timestep.ndim == 0:
        return timestep
    if timestep.ndim == 1:
        repeated: Tensor = context.repeat("timestep", timestep)
        return repeated
    return context.cut_tokens("timestep", timestep, grid)


def noisiest(timestep: Any) -> Any:
    """The scheduler's timestep among those of tokens, of which the given frame's are 0; other timesteps as they are."""
    return timestep.amax() if isinstance(timestep, Tensor) and timestep.ndim > 1 else timestep


def vae_factors(pipe: Any | None, temporal: str, spatial: str, default: tuple[int, int]) -> tuple[int, int, int]:
    """Frames, rows and columns per latent: a pipeline's attributes of these names, `default` without them."""
    frames = int(getattr(pipe, temporal, default[0]))
    pixels = int(getattr(pipe, spatial, default[1]))
    return (frames, pixels, pixels)


class FamilyHook:
    """A hook on one of the model's modules, with what it needs to find the forward pass under way.

    Subclasses define `before` or `after`, or both.

    Args:
        current: where the forward pass is found.
    """

    def __init__(self, current: CurrentFrame) -> None:
        self.current = current

    def before(
        self, frame: Frame, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments that the module shall have instead."""
        return args, kwargs

    def after(self, frame: Frame, module: nn.Module, output: Any) -> Any:
        """What the module shall return instead."""
        return output


class _Before:
    def __init__(self, hook: FamilyHook) -> None:
        self.hook = hook

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        frame = self.hook.current.frame
        return None if frame is None or frame.tokens is None else self.hook.before(frame, module, args, kwargs)


class _After:
    def __init__(self, hook: FamilyHook) -> None:
        self.hook = hook

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        frame = self.hook.current.frame
        return None if frame is None or frame.tokens is None else self.hook.after(frame, module, output)


class HookedLayers(MarkedLayers):
    """MarkedLayers, and a family's own hooks on other modules, in force whatever the halo.

    Args:
        hooks: modules, each with its hook.
        others: the arguments of MarkedLayers.
    """

    def __init__(self, hooks: Sequence[tuple[nn.Module, FamilyHook]], *others: Any) -> None:
        super().__init__(*others)
        self._hooks = [(Weak(module), hook) for module, hook in hooks]
        self._hooked = False

    def adopt(self) -> None:
        """Checks processors, and puts all hooks on the first time."""
        super().adopt()
        if self._hooked:
            return
        self._hooked = True
        for reference, hook in self._hooks:
            module = reference()
            if module is not None:
                module.register_forward_pre_hook(_Before(hook), with_kwargs=True)
                module.register_forward_hook(_After(hook))

    def restore(self, model: nn.Module) -> None:
        """Takes all hooks off."""
        super().restore(model)
        for reference, hook in self._hooks:
            module = reference()
            if module is None:
                continue
            tables = (module._forward_pre_hooks, module._forward_hooks, module._forward_pre_hooks_with_kwargs)
            ours = [k for t in tables[:2] for k, f in t.items() if isinstance(f, (_Before, _After)) and f.hook is hook]
            for table in tables:
                for key in ours:
                    table.pop(key, None)
        self._hooks = []


def rows_of_first_frames(frame: Frame, rows: int, device: torch.device) -> Tensor:
    """Which of the rows [T*B] belong to tiles that begin with the canvas's first frame, bool."""
    first = torch.tensor([origin[0] == 0 for origin in frame.origins], device=device)
    return first.repeat_interleave(rows // frame.layout.num_tiles)
