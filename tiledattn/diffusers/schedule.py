"""Which denoising step a forward belongs to, and what its halo weighs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from .options import Schedule


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
    if isinstance(weight, bool) or not isinstance(weight, (int, float)):
        raise TypeError(
            f"halo_schedule: returned {weight!r} ({type(weight).__name__}) for step {step} of {steps}; "
            "expected a number in [0, 1]"
        )
    if not 0.0 <= weight <= 1.0:
        raise ValueError(f"halo_schedule: returned {weight} for step {step} of {steps}; expected a number in [0, 1]")
    return float(weight)


class SchedulerSteps:
    """Finds a timestep's place among a scheduler's timesteps.

    Args:
        scheduler: returns the scheduler in use now, or None.
    """

    def __init__(self, scheduler: Callable[[], Any]) -> None:
        self._scheduler = scheduler

    def position(self, timestep: Any) -> tuple[int, int]:
        """(step, number of steps) of a timestep.

        Raises:
            ValueError: the timestep is not among the scheduler's.
        """
        timesteps = getattr(self._scheduler(), "timesteps", None)
        if isinstance(timesteps, Tensor) and timesteps.ndim == 1:
            if isinstance(timestep, Tensor) and timestep.numel() > 1:
                timestep = timestep[0]
            place = _place_in_storage(timestep, timesteps)
            if place is None:
                found = (timesteps == timestep).nonzero()
                place = int(found[0]) if len(found) else None
            if place is not None:
                return place, len(timesteps)
        raise ValueError(
            f"timestep {timestep} is not among those of the pipeline's scheduler, where halo_schedule and on_tiles "
            "look it up; call enable_tiling on the pipeline that runs, or pass num_steps="
        )


class CountedSteps:
    """Counts steps by changes of the timestep, for models without a scheduler.

    A run starts over when its first timestep comes again, when timesteps turn round, or after `num_steps` steps.

    Args:
        num_steps: steps of a run; None where nobody asks for it.
    """

    def __init__(self, num_steps: int | None) -> None:
        self._num_steps = num_steps
        self._seen: list[float] = []

    def position(self, timestep: Any) -> tuple[int, int]:
        """(step, number of steps) of a timestep."""
        value = float(timestep.flatten()[0]) if isinstance(timestep, Tensor) else float(timestep)
        seen = self._seen
        if not seen or value != seen[-1]:
            turned = len(seen) > 1 and (value > seen[-1]) != (seen[-1] > seen[-2])
            full = self._num_steps is not None and len(seen) >= self._num_steps
            if turned or full or (seen and value == seen[0]):
                seen.clear()
            seen.append(value)
        steps = len(seen) if self._num_steps is None else self._num_steps
        return len(seen) - 1, steps


def _place_in_storage(timestep: Any, timesteps: Tensor) -> int | None:
    """The index of a view in `timesteps` by its address: no wait for the device, and exact for repeated values."""
    if not isinstance(timestep, Tensor) or timestep.numel() != 1:
        return None
    if timestep.device != timesteps.device or timestep.dtype != timesteps.dtype:
        return None
    if timestep.untyped_storage().data_ptr() != timesteps.untyped_storage().data_ptr():
        return None
    place = int(timestep.storage_offset()) - int(timesteps.storage_offset())
    return place if timesteps.stride(0) == 1 and 0 <= place < len(timesteps) else None
