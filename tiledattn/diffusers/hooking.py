"""Puts a hook around a model's own forward, inside everything that others have wrapped around it, and takes it out.

Innermost is the place where a hook stays: accelerate's offloading and diffusers' own hooks come and go (a pipeline
with model offloading removes and re-adds its wrappers after every run) and would take along whatever wraps them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from diffusers.hooks import HookRegistry, ModelHook
from torch import nn

HOOK_NAME = "tiledattn"


@dataclass
class _Slot:
    """A place that holds a forward function: the model's attribute, accelerate's, or one of a registry's hooks."""

    owner: Any
    name: str

    def get(self) -> Any:
        return getattr(self.owner, self.name)

    def set(self, value: Any) -> None:
        setattr(self.owner, self.name, value)


class InnermostHook(ModelHook):  # type: ignore[misc]
    """Runs `run(original_forward, args, kwargs)` instead of a model's forward.

    Args:
        run: what to run.
    """

    def __init__(self, run: Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]) -> None:
        super().__init__()
        self.run = run
        self.active = True
        self.wrapper: Any = None
        self.created_registry = False
        self.had_forward = False

    def new_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """The hooked forward."""
        original = self.fn_ref.original_forward
        return self.run(original, args, kwargs) if self.active else original(*args, **kwargs)


def installed_hook(model: nn.Module) -> InnermostHook | None:
    """The hook on a model, or None."""
    registry = getattr(model, "_diffusers_hook", None)
    hook = None if registry is None else registry.hooks.get(HOOK_NAME)
    return hook if isinstance(hook, InnermostHook) else None


def install_hook(model: nn.Module, hook: InnermostHook) -> None:
    """Wraps `hook` around the model's own forward."""
    hook.created_registry = not hasattr(model, "_diffusers_hook")
    hook.had_forward = "forward" in vars(model)
    registry = HookRegistry.check_if_exists_or_initialize(model)
    slot = next((s for s in _slots(model) if not _is_wrapper(model, s.get())), _Slot(model, "forward"))
    outermost = model.forward
    model.forward = slot.get()
    registry.register_hook(hook, HOOK_NAME)
    hook.wrapper = model.forward
    registry._hook_order.insert(0, registry._hook_order.pop())
    registry._fn_refs.insert(0, registry._fn_refs.pop())
    if slot.owner is not model or slot.name != "forward":
        model.forward = outermost
        slot.set(hook.wrapper)


def remove_hook(model: nn.Module, hook: InnermostHook) -> None:
    """Takes `hook` out and leaves what others wrapped around it, or inside it, in place.

    Where a stranger's wrapper holds the hook, the hook stays there, inert.
    """
    hook.active = False
    original = hook.fn_ref.original_forward
    for slot in _slots(model):
        if slot.get() is hook.wrapper:
            slot.set(original)
            break
    registry = getattr(model, "_diffusers_hook", None)
    if registry is not None and registry.hooks.get(HOOK_NAME) is hook:
        index = registry._hook_order.index(HOOK_NAME)
        del registry.hooks[HOOK_NAME], registry._hook_order[index], registry._fn_refs[index]
        if hook.created_registry and not registry.hooks:
            del model._diffusers_hook
    if not hook.had_forward and _is_own_forward(model, vars(model).get("forward")):
        del model.forward


def _slots(model: nn.Module) -> list[_Slot]:
    slots = [_Slot(model, "forward")]
    if hasattr(model, "_old_forward"):
        slots.append(_Slot(model, "_old_forward"))
    registry = getattr(model, "_diffusers_hook", None)
    for reference in () if registry is None else registry._fn_refs:
        slots.append(_Slot(reference, "forward" if reference.original_forward is None else "original_forward"))
    return slots


def _is_own_forward(model: nn.Module, forward: Any) -> bool:
    """Whether a forward is the method of the model's class."""
    return getattr(forward, "__func__", None) is type(model).forward and forward.__self__ is model


def _is_wrapper(model: nn.Module, forward: Any) -> bool:
    """Whether accelerate or a hook registry made this forward (both make partials over the model)."""
    return hasattr(forward, "__wrapped__") and getattr(forward, "args", None) == (model,)
