"""Which denoising step a forward belongs to, and what its halo weighs."""

from __future__ import annotations

import threading
from typing import Any

from torch import Tensor

from ..geometry.numbers import is_real
from .options import Schedule
from .weak import Weak


def halo_weight(schedule: Schedule, step: int, steps: int) -> float:
    """The halo's weight in [0, 1] at step `step` of `steps`.

    "constant": 1. "quadratic": 1 - (step / steps)^2, neighbours agree early and specialise late.

    Raises:
        TypeError, ValueError: a function that returns something else than a number in [0, 1].
    """
    if schedule == "constant":
        return 1.0
    if schedule == "quadratic":
        return 1.0 - (step / steps) ** 2
    assert callable(schedule)
    weight = schedule(step, steps)
    if not is_real(weight):
        raise TypeError(
            f"halo_schedule: returned {weight!r} ({type(weight).__name__}) for step {step} of {steps}; "
            "expected a number in [0, 1]"
        )
    if not 0.0 <= weight <= 1.0:
        raise ValueError(f"halo_schedule: returned {weight} for step {step} of {steps}; expected a number in [0, 1]")
    return float(weight)


class SchedulerSteps:
    """Finds a timestep's place among the timesteps of a pipeline's scheduler.

    A pipeline passes views into its scheduler's timesteps: their place is known from their address. A view into
    another tensor belongs to another scheduler, and is refused. Numbers and tensors of their own are looked up by
    value, and refused where the value occurs more than once.

    Args:
        pipe: the pipeline. Its last known scheduler outlives it: others may run the same denoiser with it.
        changed: whether the pipeline changes timesteps on their way to the denoiser (Flux divides them by 1000). The
            step is then the scheduler's own count, where it has one.
    """

    def __init__(self, pipe: Any, changed: bool = False) -> None:
        self._pipe = Weak(pipe)
        self._changed = changed
        self._scheduler = getattr(pipe, "scheduler", None)

    def position(self, timestep: Any) -> tuple[int, int]:
        """(step, number of steps) of a timestep.

        Raises:
            ValueError: the timestep is not among the scheduler's, or at several places.
        """
        pipe = self._pipe()
        if pipe is not None:
            self._scheduler = getattr(pipe, "scheduler", None)
        timesteps = getattr(self._scheduler, "timesteps", None)
        if isinstance(timesteps, Tensor) and timesteps.ndim == 1:
            place = _place_in_storage(timestep, timesteps)
            if place is None and self._changed:
                place = _scheduler_count(self._scheduler, timestep, timesteps)
            elif place is None and not _is_part(timestep):
                place = _place_by_value(timestep, timesteps)
            if place is not None:
                return place, len(timesteps)
        raise ValueError(
            f"timestep: {timestep} can't be found, or not at one place, in the timesteps of the scheduler of the "
            "pipeline that enable_tiling was called on, where halo_schedule, jitter and on_tiles look it up; call "
            "enable_tiling on the pipeline that runs, or pass num_steps= to count steps instead"
        )


class CountedSteps(threading.local):
    """Counts steps by changes of the timestep, in each thread, for models without a scheduler.

    A repeated timestep is the same step (two calls for guidance, the second orders of Heun and PNDM). A run starts over
    when its first timestep comes again, or when timesteps turn round; a run that goes on below the place where another
    was broken off can't be told from that one.

    Args:
        num_steps: steps of a run, each with a timestep of its own; None where nobody asks for it.
    """

    def __init__(self, num_steps: int | None) -> None:
        self._num_steps = num_steps
        self._seen: list[float] = []

    def position(self, timestep: Any) -> tuple[int, int]:
        """(step, number of steps) of a timestep.

        Raises:
            ValueError: a run of several steps goes on after `num_steps` of them.
        """
        value = float(timestep.flatten()[0]) if isinstance(timestep, Tensor) else float(timestep)
        seen = self._seen
        if not seen or value != seen[-1]:
            turned = len(seen) > 1 and (value > seen[-1]) != (seen[-1] > seen[-2])
            over = turned or self._num_steps == 1 or (seen and value == seen[0])
            if not over and self._num_steps is not None and len(seen) >= self._num_steps:
                raise ValueError(
                    f"num_steps: got {self._num_steps}, but the run goes on at timestep {value:g} after "
                    f"{', '.join(f'{t:g}' for t in seen[-3:])}; pass the number of different timesteps in a run"
                )
            if over:
                seen.clear()
            seen.append(value)
        steps = len(seen) if self._num_steps is None else self._num_steps
        return len(seen) - 1, steps

    def __reduce__(self) -> tuple[type[CountedSteps], tuple[int | None]]:
        return type(self), (self._num_steps,)


def _place_in_storage(timestep: Any, timesteps: Tensor) -> int | None:
    """The index of a view of one element of `timesteps`, by its address: no wait for the device, exact if repeated."""
    if not isinstance(timestep, Tensor) or (timestep.numel() != 1 and any(timestep.stride())):
        return None
    if timestep.device != timesteps.device or timestep.dtype != timesteps.dtype:
        return None
    if timestep.untyped_storage().data_ptr() != timesteps.untyped_storage().data_ptr():
        return None
    place = int(timestep.storage_offset()) - int(timesteps.storage_offset())
    return place if timesteps.stride(0) == 1 and 0 <= place < len(timesteps) else None


def _scheduler_count(scheduler: Any, timestep: Any, timesteps: Tensor) -> int | None:
    """The step that a scheduler takes next; None where it doesn't count, or where the timestep isn't that step's.

    Pipelines pass t, t / 1000 or 1 - t / 1000, rounded to the model's precision; tokens that are conditions get 0.
    """
    if not hasattr(scheduler, "step_index"):
        return None
    place = scheduler.step_index
    if place is None:
        place = getattr(scheduler, "begin_index", None)
    place = 0 if place is None else int(place)
    if place >= len(timesteps):
        return None
    own = float(timesteps[place])
    got = float(timestep.max()) if isinstance(timestep, Tensor) else float(timestep)
    near = abs(got - own) <= 5 or min(abs(got - own / 1000), abs(got - 1 + own / 1000)) <= 0.005
    return place if near else None


def _is_part(timestep: Any) -> bool:
    """Whether a timestep was taken out of a tensor of timesteps."""
    if not isinstance(timestep, Tensor):
        return False
    if timestep.ndim == 0 and timestep._base is not None:
        return True
    own = timestep.numel() if any(timestep.stride()) else 1
    return timestep.untyped_storage().nbytes() > own * timestep.element_size()


def _place_by_value(timestep: Any, timesteps: Tensor) -> int | None:
    """The only index at which `timesteps` holds the value."""
    value = timestep.flatten()[0] if isinstance(timestep, Tensor) else timestep
    found = (timesteps == value).nonzero()
    return int(found[0]) if len(found) == 1 else None
