"""Which backend runs a call: an ordered list, each with reasons why it can't."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import NamedTuple

import torch

from .selfcheck import failed_self_check

ENVIRONMENT_VARIABLE = "TILEDATTN_BACKEND"

OPERATIONS = (
    "cross_tile_attention",
    "cross_tile_attention_backward",
    "extract_tiles",
    "blend_tiles",
    "pad_tiles",
    "group_norm_tiles",
)

_MODULES = {
    "triton": ".backends.triton",
    "cuda": ".backends.cuda",
    "cpu": ".backends.native",
    "torch": ".backends.pytorch",
    "reference": ".backends.reference",
}
_AUTOMATIC = ("triton", "cuda", "cpu", "torch")
_RECOMPUTING = "torch"  # its backward reads nothing that the forward could save

_logger = logging.getLogger("tiledattn")
_chosen: ContextVar[str | None] = ContextVar("tiledattn_backend", default=None)


class BackendUnavailableError(RuntimeError):
    """The backend that was asked for can't take this call; the message says why."""


def backends() -> dict[str, str | None]:
    """Every backend by name, in the order in which "auto" tries them, with None or why it can't run here.

    Examples:
        >>> tiledattn.backends()
        {'triton': 'no CUDA, ROCm or XPU device', 'cuda': 'no CUDA device', 'cpu': None, 'torch': None, ...}

    "reference" is the float64 oracle: never taken by "auto".
    """
    return {name: _module(name).probe() for name in _MODULES}


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Inside the `with`, calls that say "auto" take this backend ("auto" restores the automatic choice).

    An operation that the backend doesn't have at all (Triton has no group norm) stays with the automatic choice; one
    that it has never falls back. The environment variable TILEDATTN_BACKEND does the same for a process. Threads
    started inside don't inherit it, and it can't be entered inside a compiled function: pass `backend=` there.

    Raises:
        ValueError: an unknown name, listing the known ones.
    """
    token = _chosen.set(check_name(name))
    try:
        yield
    finally:
        _chosen.reset(token)


def select(op: str, requested: str, device: torch.device, dtype: torch.dtype, head_dim: int = 0) -> ModuleType:
    """The backend module that runs `op` on tensors of a device, dtype and head dim.

    Raises:
        ValueError: an unknown name, listing the known ones.
        BackendUnavailableError: the named backend can't take the call.
    """
    name = requested
    if name == "auto":
        name = _ambient(op)
    if name != "auto":
        module = _module(name)
        reason = _refusal(module, op, device, dtype, head_dim)
        if reason is not None:
            raise BackendUnavailableError(
                f"backend {name!r} can't run {op} on {device}, {dtype}: {reason}; {_way_out(requested)}"
            )
        return module
    if device.type == "cpu":
        return _module(_first_on_cpu(_AUTOMATIC, op, device, dtype, head_dim, os.environ.get("TRITON_INTERPRET")))
    return _module(_first(_AUTOMATIC, op, device, dtype, head_dim))


def _first(names: tuple[str, ...], op: str, device: torch.device, dtype: torch.dtype, head_dim: int) -> str:
    """The first of these backends that takes the call; the log says why those before it were passed over."""
    for name in names:
        module = _module(name)
        reason = _refusal(module, op, device, dtype, head_dim)
        if reason is None:
            reason = failed_self_check(module, _module("torch"), op, device, dtype, head_dim)
        if reason is None:
            return name
        _log_once(name, op, device.type, dtype, head_dim, reason)
    raise BackendUnavailableError(f"no backend can run {op} on {device}, {dtype}; see tiledattn.backends()")


@cache
def _first_on_cpu(
    names: tuple[str, ...], op: str, device: torch.device, dtype: torch.dtype, head_dim: int, interpreter: str | None
) -> str:
    """The same on CPUs, where the answer depends on nothing but these: asking every backend takes 5 us a call."""
    return _first(names, op, device, dtype, head_dim)


def _way_out(requested: str) -> str:
    """How to let the library choose, for whoever named the backend."""
    if requested != "auto":
        return "use backend='auto' to let the library choose"
    if _chosen.get() is not None:
        return f"it was named by use_backend({_chosen.get()!r}); leave that out to let the library choose"
    return f"it was named by the environment variable {ENVIRONMENT_VARIABLE}; unset it to let the library choose"


def explain(op: str, device: torch.device, dtype: torch.dtype, head_dim: int = 0) -> dict[str, str | None]:
    """For a call of this kind: each backend that "auto" would try, with None or the reason it is passed over."""
    reasons = {}
    for name in _AUTOMATIC:
        module = _module(name)
        reasons[name] = _refusal(module, op, device, dtype, head_dim) or failed_self_check(
            module, _module("torch"), op, device, dtype, head_dim
        )
    return reasons


class Capability(NamedTuple):
    """What one backend can do, for tables and `tiledattn doctor`."""

    name: str
    automatic: bool  # whether "auto" considers it
    operations: tuple[str, ...]
    dtypes: tuple[torch.dtype, ...]
    runs_on: str
    proven_on: tuple[str, ...]  # real devices on which its results were checked, with the date


def capabilities() -> tuple[Capability, ...]:
    """Every backend with its operations and dtypes, in the order in which "auto" tries them."""
    found = []
    for name in _MODULES:
        module = _module(name)
        offered = tuple(op for op in OPERATIONS if hasattr(module, op))
        found.append(
            Capability(name, name in _AUTOMATIC, offered, module.DTYPES, module.RUNS_ON, tuple(module.PROVEN_ON))
        )
    return tuple(found)


def provides(name: str, op: str) -> bool:
    """Whether a backend has an operation at all, on whatever device ("auto" has all of them)."""
    return check_name(name) == "auto" or hasattr(_module(name), op)


def preferred(op: str, requested: str) -> str:
    """The backend that a call asks for, by name or by its surroundings; "auto" where that one lacks `op`."""
    return requested if requested != "auto" and provides(requested, op) else _ambient(op)


def saves_lse(requested: str, device_type: str, dtype: torch.dtype) -> bool:
    """Whether an attention that will be differentiated should keep its lse: the backward to be expected reads it.

    A guess, from devices in general: a backward without the lse computes it anew.
    """
    op, device = "cross_tile_attention_backward", torch.device(device_type)
    name = preferred(op, requested)
    candidates = _AUTOMATIC if name == "auto" else (name,)
    taken = next((c for c in candidates if _refusal(_module(c), op, device, dtype, 0) is None), _RECOMPUTING)
    return taken != _RECOMPUTING


# as torch.compiler.assume_constant_result does, which would import Dynamo and Triton right now
saves_lse._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _ambient(op: str) -> str:
    """The backend that the surrounding `use_backend` or the environment names, if it has the operation at all."""
    name = _chosen.get()
    if name is None:
        name = os.environ.get(ENVIRONMENT_VARIABLE) or "auto"
        if name != "auto" and name not in _MODULES:
            raise ValueError(f"{ENVIRONMENT_VARIABLE}: got {name!r}; known are auto, {', '.join(_MODULES)}")
    return name if provides(name, op) else "auto"


def check_name(name: object) -> str:
    """`name` is "auto" or a known backend.

    Raises:
        TypeError: not a string.
        ValueError: an unknown name, listing the known ones.
    """
    if not isinstance(name, str):
        raise TypeError(f"backend: got {name!r} ({type(name).__name__}); expected a name such as 'auto'")
    if name != "auto" and name not in _MODULES:
        raise ValueError(f"backend: got {name!r}; known are auto, {', '.join(_MODULES)}")
    return name


@cache
def _module(name: str) -> ModuleType:
    return import_module(_MODULES[name], __package__)


def _refusal(module: ModuleType, op: str, device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    if not hasattr(module, op):
        return f"it has no {op}"
    reason: str | None = module.probe()
    if reason is None:
        reason = module.rejects(op, device, dtype, head_dim)
    return reason


@cache
def _log_once(name: str, op: str, device: str, dtype: torch.dtype, head_dim: int, reason: str) -> None:
    _logger.info("%s on %s, %s: backend %r passed over: %s", op, device, dtype, name, reason)
