"""How an operator is registered: schema, implementation on every device, shapes for tracing."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

LIB = torch.library.Library("tiledattn", "DEF")  # type: ignore[no-untyped-call]


def without_autocast(function: Callable[..., Any]) -> Callable[..., Any]:
    """An operator computes in its inputs' precision; torch.autocast decided that one level up."""

    @wraps(function)
    def wrapper(first: Tensor, *args: Any) -> Any:
        kind = first.device.type
        if not (torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)):
            return function(first, *args)
        with torch.autocast(kind, enabled=False):
            return function(first, *args)

    return wrapper


def define(schema: str, function: Callable[..., Any], fake: Callable[..., Any]) -> str:
    """Registers `function` under `schema`, `fake` giving its results' shapes; returns the operator's full name."""
    name = schema.partition("(")[0]
    LIB.define(schema, tags=(torch.Tag.pt2_compliant_tag,))  # type: ignore[no-untyped-call]
    LIB.impl(name, without_autocast(function), "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
    torch.library.register_fake(f"tiledattn::{name}", _without_tangents(name, fake), lib=LIB)
    return f"tiledattn::{name}"


def no_forward_mode(op: str) -> NotImplementedError:
    """What is raised where torch would take a missing forward-mode derivative for zeros."""
    return NotImplementedError(f"{op}: forward-mode derivatives (jvp) are not supported; use reverse mode")


def _without_tangents(op: str, fake: Callable[..., Any]) -> Callable[..., Any]:
    """`fake`, which refuses to be traced where forward-mode derivatives are being computed."""

    @wraps(fake)
    def wrapper(*args: Any) -> Any:
        if forward_ad._current_level >= 0:
            raise no_forward_mode(op)
        return fake(*args)

    return wrapper


def like(*places: int) -> Callable[..., Any]:
    """A fake whose outputs are shaped like the arguments at `places`."""

    def fake(*args: Any) -> Any:
        found = tuple(torch.empty_like(args[i], memory_format=torch.contiguous_format) for i in places)
        return found if len(found) > 1 else found[0]

    return fake
