"""Watching a pipeline's methods: instance attributes in front of them, that can be taken away again."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

from .weak import Weak

Method = Callable[..., Any]
Watcher = Callable[[Any, Method, tuple[Any, ...], dict[str, Any]], Any]


class Watch:
    """Stands in front of a method of an object: `watcher(object, original, args, kwargs)` runs instead.

    It keeps the object not alive, is copied along with it, and leaves what strangers have put there in place.

    Args:
        name: the method's name.
        watcher: what runs instead.
    """

    def __init__(self, name: str, watcher: Watcher) -> None:
        self.name = name
        self.watcher = watcher
        self.active = False
        self.replaced: Method | None = None

    def install(self, target: Any) -> None:
        """Puts itself in front, as an attribute of the object."""
        self.active, self.replaced = True, vars(target).get(self.name)
        watched = functools.partial(_watched, self, Weak(target))
        watched.__signature__ = inspect.signature(getattr(target, self.name))  # type: ignore[attr-defined]
        setattr(target, self.name, watched)

    def remove(self, target: Any | None) -> None:
        """Takes itself away; where a stranger has wrapped it since, it stays there, inert."""
        self.active = False
        if target is None or _watch_of(vars(target).get(self.name)) is not self:
            return
        replaced = self.replaced
        while (inner := _watch_of(replaced)) is not None and not inner.active:
            replaced = inner.replaced
        if replaced is None:
            delattr(target, self.name)
        else:
            setattr(target, self.name, replaced)


def _watched(watch: Watch, reference: Weak[Any], *args: Any, **kwargs: Any) -> Any:
    target = reference()
    if target is None:
        raise ReferenceError(f"the pipeline of this {watch.name} is gone; keep the pipeline")
    method = getattr(type(target), watch.name)
    original = method.__get__(target, type(target)) if watch.replaced is None else watch.replaced
    return watch.watcher(target, original, args, kwargs) if watch.active else original(*args, **kwargs)


def _watch_of(method: Any) -> Watch | None:
    watched = isinstance(method, functools.partial) and method.func is _watched
    return method.args[0] if watched else None
