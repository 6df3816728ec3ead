"""Resolution-dependent timestep shift: a tiled canvas takes the noise levels that the model saw with a tile.

Pipelines of flow models (Flux, Qwen-Image, Z-Image, SD 3.5, ...) compute `mu` from the canvas's number of tokens and
hand it to the scheduler, which moves the steps toward noise. On a canvas of many tiles `mu` grows far beyond training.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import isclose
from typing import Any

from .weak import Weak

Shift = Callable[[Mapping[str, Any], int, int], float]

_SPAN = 1024  # tokens over which the slope is measured where a piece has no end


def linear_shift(config: Mapping[str, Any], tokens: int, defaults: tuple[float, float, float, float]) -> float:
    """`mu` of an image of `tokens` tokens, on the line through (base_image_seq_len, base_shift) and (max_..., max_...).

    Args:
        config: the scheduler's configuration.
        tokens: the number of tokens.
        defaults: base_image_seq_len, max_image_seq_len, base_shift, max_shift where the configuration lacks them.
    """
    names = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
    base_tokens, max_tokens, base, most = (config.get(n, d) for n, d in zip(names, defaults, strict=True))
    slope = (most - base) / (max_tokens - base_tokens)
    return float(tokens * slope + (base - slope * base_tokens))


def tokens_of(mu: float, shift: Callable[[int], float], breaks: tuple[int, ...]) -> int | None:
    """The number of tokens that has the shift `mu`; None where it has another origin (the user's own).

    Args:
        mu: the shift.
        shift: `mu` of a number of tokens, linear between breaks.
        breaks: numbers of tokens behind which another line begins.
    """
    for start, last in zip((1, *(b + 1 for b in breaks)), (*breaks, None), strict=True):
        span = _SPAN if last is None else last - start
        slope = (shift(start + span) - shift(start)) / span
        if slope == 0:
            continue
        tokens = start + round((mu - shift(start)) / slope)
        inside = start <= tokens and (last is None or tokens <= last)
        if inside and isclose(shift(tokens), mu, rel_tol=1e-9):
            return tokens
    return None


@dataclass(eq=False)
class _ShiftedSteps:
    """What takes the place of a scheduler's `set_timesteps`.

    Attributes:
        shift: `mu` by the scheduler's configuration, a number of tokens and of steps.
        breaks: see `tokens_of`.
        tokens: tokens of a tile.
        active: False: sets timesteps as if it were not there.
        replaced: the instance attribute it replaced; None: the method of the scheduler's class.
    """

    shift: Shift
    breaks: tuple[int, ...]
    tokens: int
    active: bool = True
    replaced: Callable[..., Any] | None = None

    def mu(self, config: Mapping[str, Any], mu: float, steps: int) -> float:
        """`mu` of a tile for that of a canvas with more tokens; others stay."""
        canvas = tokens_of(float(mu), lambda tokens: self.shift(config, tokens, steps), self.breaks)
        return mu if canvas is None or canvas <= self.tokens else self.shift(config, self.tokens, steps)


class TileShift:
    """Gives the scheduler of a pipeline the shift of a tile, on schedulers that take one.

    Args:
        pipe: the pipeline.
        shift: `mu` by the scheduler's configuration, a number of tokens and of steps.
        breaks: numbers of tokens behind which the shift is another line.
        tokens: tokens of a tile.
    """

    def __init__(self, pipe: Any, shift: Shift, breaks: tuple[int, ...], tokens: int) -> None:
        self._pipe = Weak(pipe)
        self._make = functools.partial(_ShiftedSteps, shift, breaks, tokens)
        self._scheduler: Weak[Any] | None = None
        self._steps: _ShiftedSteps | None = None

    def install(self) -> None:
        """Follows the pipeline's present scheduler."""
        self._move(getattr(self._pipe(), "scheduler", None))

    def follow(self, several: bool) -> None:
        """Follows a scheduler that the pipeline got since, at a forward of a canvas of several tiles or of one.

        Raises:
            RuntimeError: the new scheduler has set the steps of this run for a canvas of several tiles already.
        """
        pipe = self._pipe()
        scheduler = getattr(pipe, "scheduler", None)
        if pipe is None or scheduler is self._followed():
            return
        self._move(scheduler)
        if (
            several
            and scheduler is not None
            and self._steps is not None
            and scheduler.config.get("use_dynamic_shifting")
        ):
            raise RuntimeError(
                f'timestep_shift: "tile" came too late for the {type(scheduler).__name__} that {type(pipe).__name__} '
                "got after enable_tiling: its steps are shifted for the whole canvas; run the pipeline again, which "
                "takes the tile's, and call enable_tiling after setting a scheduler"
            )

    def remove(self) -> None:
        """Puts `set_timesteps` back; where a stranger has wrapped it since, it stays there, inert."""
        self._move(None)

    def _followed(self) -> Any | None:
        """The scheduler that is followed; of a copied pipeline the copy, which this doesn't know when it is copied."""
        scheduler = getattr(self._pipe(), "scheduler", None)
        steps = None if scheduler is None else _steps_of(vars(scheduler).get("set_timesteps"))
        if steps is not None and steps is self._steps:
            return scheduler
        return None if self._scheduler is None else self._scheduler()

    def _move(self, scheduler: Any | None) -> None:
        before = self._followed()
        if scheduler is not None and scheduler is before:
            return
        if self._steps is not None:
            _remove(self._steps, before)
        self._scheduler, self._steps = None if scheduler is None else Weak(scheduler), None
        if scheduler is not None and "mu" in inspect.signature(scheduler.set_timesteps).parameters:
            self._steps = self._make()
            _install(self._steps, scheduler)


def _install(steps: _ShiftedSteps, scheduler: Any) -> None:
    steps.replaced = vars(scheduler).get("set_timesteps")
    wrapped = functools.partial(_set_timesteps, steps, Weak(scheduler))
    wrapped.__signature__ = inspect.signature(scheduler.set_timesteps)  # type: ignore[attr-defined]
    scheduler.set_timesteps = wrapped


def _remove(steps: _ShiftedSteps, scheduler: Any | None) -> None:
    steps.active = False
    if scheduler is None or _steps_of(vars(scheduler).get("set_timesteps")) is not steps:
        return
    replaced = steps.replaced
    while (inner := _steps_of(replaced)) is not None and not inner.active:
        replaced = inner.replaced
    if replaced is None:
        del scheduler.set_timesteps
    else:
        scheduler.set_timesteps = replaced


def _steps_of(set_timesteps: Any) -> _ShiftedSteps | None:
    mine = isinstance(set_timesteps, functools.partial) and set_timesteps.func is _set_timesteps
    return set_timesteps.args[0] if mine else None


def _set_timesteps(steps: _ShiftedSteps, reference: Weak[Any], *args: Any, **kwargs: Any) -> Any:
    scheduler = reference()
    if scheduler is None:
        raise ReferenceError("the scheduler of this set_timesteps is gone; keep the scheduler or its pipeline")
    original = functools.partial(type(scheduler).set_timesteps, scheduler) if steps.replaced is None else steps.replaced
    if not steps.active:
        return original(*args, **kwargs)
    call = inspect.signature(original).bind(*args, **kwargs)
    mu = call.arguments.get("mu")
    if mu is not None:
        call.arguments["mu"] = steps.mu(scheduler.config, mu, _number(call.arguments))
    return original(*call.args, **call.kwargs)


def _number(arguments: dict[str, Any]) -> int:
    """How many steps a call of `set_timesteps` asks for; 0 where it doesn't say."""
    if arguments.get("num_inference_steps") is not None:
        return int(arguments["num_inference_steps"])
    for name in ("sigmas", "timesteps"):
        if arguments.get(name) is not None:
            return len(arguments[name])
    return 0
