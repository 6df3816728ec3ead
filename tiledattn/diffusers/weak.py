"""Weak: a reference that keeps nothing alive and follows a deep copy."""

from __future__ import annotations

import weakref
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Weak(Generic[T]):
    """A weak reference whose deep copy, made along with its target's, refers to the target's copy.

    Args:
        target: what it refers to.
    """

    def __init__(self, target: T) -> None:
        self._reference = weakref.ref(target)

    def __call__(self) -> T | None:
        """The target, or None when it is gone."""
        return self._reference()

    def __deepcopy__(self, memo: dict[int, Any]) -> Weak[T]:
        """Refers to the target's copy where there is one already, else to the target."""
        target = self()
        return self if target is None else Weak(memo.get(id(target), target))

    def __reduce__(self) -> Any:
        raise TypeError("a tiled model can't be pickled; call disable_tiling first, or use save_pretrained")
