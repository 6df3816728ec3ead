"""What counts as a number in arguments: Python's and NumPy's, no bool."""

from __future__ import annotations

from numbers import Integral, Real
from typing import TypeGuard


def is_whole(value: object) -> TypeGuard[int]:
    """Whether it is an integer."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def is_real(value: object) -> TypeGuard[float]:
    """Whether it is an integer or a float."""
    return isinstance(value, Real) and not isinstance(value, bool)
