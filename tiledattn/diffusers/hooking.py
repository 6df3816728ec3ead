"""Puts a hook around a model's own forward, inside everything that others have wrapped around it, and takes it out.

Innermost is the place where a hook stays: accelerate's offloading and diffusers' own hooks come and go (a pipeline
with model offloading removes and re-adds its wrappers after every run) and would take along whatever wraps them. It is
no entry of diffusers' `HookRegistry`, which holds its model in a cycle (nothing is freed before the garbage collector
comes) and whose closures still run the original's weights in a deep copy.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from types import MethodType
from typing import Any

from torch import nn

from .weak import Weak

_ATTRIBUTE = "_tiledattn_hook"

Run = Callable[[nn.Module, Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]


@dataclass(eq=False)
class InnermostHook:
    """Runs `run(model, original_forward, args, kwargs)` instead of a model's forward.

    Attributes:
        run: what to run.
        active: False: the model's forward runs as if there were no hook.
        original: the wrapped forward; None: the method of the model's class.
        had_forward: whether the model had a forward of its own before.
        method: the forward of the model's class; looked up beforehand, since torch.compile can't in every class.
    """

    run: Run
    active: bool = True
    original: Callable[..., Any] | None = None
    had_forward: bool = False
    method: Callable[..., Any] | None = None


@dataclass
class _Slot:
    """A place that holds a forward function: the model's attribute, accelerate's, or one of a registry's hooks."""

    owner: Any
    name: str

    def get(self) -> Any:
        return getattr(self.owner, self.name)

    def set(self, value: Any) -> None:
        setattr(self.owner, self.name, value)


def installed_hook(model: nn.Module) -> InnermostHook | None:
    """The hook on a model, or None."""
    hook = vars(model).get(_ATTRIBUTE)
    return hook if isinstance(hook, InnermostHook) else None


def install_hook(model: nn.Module, hook: InnermostHook) -> None:
    """Wraps `hook` around the model's own forward."""
    slot = next((s for s in _slots(model) if not _is_wrapper(model, s.get())), _Slot(model, "forward"))
    original = slot.get()
    hook.had_forward = "forward" in vars(model)
    hook.method = type(model).forward
    hook.original = None if _is_own_forward(model, original) else original
    hooked = functools.partial(_hooked_forward, hook, Weak(model))
    hooked.__signature__ = inspect.signature(original)  # type: ignore[attr-defined]
    slot.set(hooked)
    setattr(model, _ATTRIBUTE, hook)


def remove_hook(model: nn.Module) -> None:
    """Takes the model's hook out and leaves what others wrapped around it, or inside it, in place.

    Where a stranger's wrapper holds the hook, the hook stays there, inert.
    """
    hook = installed_hook(model)
    if hook is None:
        return
    hook.active = False
    delattr(model, _ATTRIBUTE)
    for slot in _slots(model):
        if _hook_of(slot.get()) is hook:
            slot.set(MethodType(type(model).forward, model) if hook.original is None else hook.original)
            break
    if not hook.had_forward and _is_own_forward(model, vars(model).get("forward")):
        del model.forward


def named_arguments(names: tuple[str, ...], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """All arguments of a forward by name."""
    if len(args) > len(names):
        raise TypeError(f"forward: got {len(args)} positional arguments; it takes {len(names)}")
    call = dict(zip(names, args, strict=False))
    twice = [name for name in call if name in kwargs]
    if twice:
        raise TypeError(f"forward: got several values for {twice}")
    return {**call, **kwargs}


def call_alike(forward: Callable[..., Any], names: tuple[str, ...], **call: Any) -> Any:
    """Calls a forward with `names` by position, as its caller did: somebody's wrapper may count on that."""
    if not all(name in call for name in names):
        return forward(**call)
    by_position = [call.pop(name) for name in names]
    return forward(*by_position, **call)


def _hooked_forward(hook: InnermostHook, reference: Weak[nn.Module], *args: Any, **kwargs: Any) -> Any:
    model = reference()
    if model is None:
        raise ReferenceError("the model of this forward is gone; keep the model or its pipeline")
    assert hook.method is not None
    original = functools.partial(hook.method, model) if hook.original is None else hook.original
    return hook.run(model, original, args, kwargs) if hook.active else original(*args, **kwargs)


def _hook_of(forward: Any) -> Any:
    hooked = isinstance(forward, functools.partial) and forward.func is _hooked_forward
    return forward.args[0] if hooked else None


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
