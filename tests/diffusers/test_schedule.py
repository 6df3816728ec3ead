"""Which step a call belongs to, and what the halo weighs there."""

from __future__ import annotations

import gc
import math
import threading
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPipeline,
)
from tiny_diffusers import SMALL, error, make_unet, paint, quiet, unet_inputs

import tiledattn.diffusers as td
from tiledattn.diffusers.schedule import CountedSteps, SchedulerSteps, halo_weight


class Holder:
    """What of a pipeline holds its scheduler."""

    def __init__(self, scheduler: Any) -> None:
        self.scheduler = scheduler


def test_weights() -> None:
    assert [halo_weight("constant", i, 4) for i in range(4)] == [1.0] * 4
    assert [halo_weight("quadratic", i, 4) for i in range(4)] == [1, 15 / 16, 3 / 4, 7 / 16]
    assert halo_weight(lambda i, n: i / n, 1, 4) == 0.25
    assert halo_weight(lambda i, n: 1, 0, 1) == 1.0


@pytest.mark.parametrize(
    ("value", "kind"),
    [(1.5, ValueError), (-0.1, ValueError), (math.nan, ValueError), ("1", TypeError), (True, TypeError)],
)
def test_a_function_with_a_bad_answer(value: Any, kind: type[Exception]) -> None:
    with pytest.raises(kind, match=r"halo_schedule: returned .* step 1 of 4"):
        halo_weight(lambda i, n: value, 1, 4)


@pytest.mark.parametrize("order", [[3, 2, 1], [1, 2, 3], [0.9, 0.5, 0.1]])
@pytest.mark.parametrize("calls", [1, 2])
def test_counting_by_changes_of_the_timestep(order: list[float], calls: int) -> None:
    """One or two calls a step, run after run, as numbers or tensors; a run broken off starts over."""
    steps = CountedSteps(3)
    for run in (order, order, order[:2], order):
        places = [steps.position(t) for t in run for _ in range(calls)]
        assert places == [(i, 3) for i in range(len(run)) for _ in range(calls)]
    assert [steps.position(torch.tensor([t, t])) for t in order] == [(i, 3) for i in range(3)]


def test_counting_a_second_run_that_starts_elsewhere() -> None:
    steps = CountedSteps(2)
    assert [steps.position(t)[0] for t in (9, 5, 8, 4, 9, 5)] == [0, 1, 0, 1, 0, 1]
    steps = CountedSteps(5)
    assert [steps.position(t)[0] for t in (9, 5, 8, 4)] == [0, 1, 0, 1]


def test_a_run_of_more_steps_than_it_should_have_is_refused() -> None:
    steps = CountedSteps(3)
    for _ in range(2):
        assert [steps.position(t)[0] for t in (9, 7, 5)] == [0, 1, 2]
        with pytest.raises(ValueError, match="num_steps: got 3, but the run goes on at timestep 3 after 9, 7, 5"):
            steps.position(3)
    one = CountedSteps(1)
    assert [one.position(t) for t in (9, 5, 1, 9)] == [(0, 1)] * 4


def test_threads_count_apart() -> None:
    steps, places = CountedSteps(3), []
    assert [steps.position(t)[0] for t in (9, 7)] == [0, 1]
    thread = threading.Thread(target=lambda: places.extend(steps.position(t)[0] for t in (8, 6, 4)))
    thread.start()
    thread.join()
    assert places == [0, 1, 2]
    assert steps.position(5) == (2, 3)


@pytest.mark.parametrize(("kind", "options"), [(PNDMScheduler, {"skip_prk_steps": True}), (HeunDiscreteScheduler, {})])
def test_repeated_timesteps_are_one_counted_step(kind: Any, options: dict[str, Any]) -> None:
    """num_steps is what the pipeline calls num_inference_steps."""
    scheduler = kind(**options)
    scheduler.set_timesteps(4)
    steps = CountedSteps(4)
    for _ in range(2):
        values = [float(t) for t in scheduler.timesteps]
        assert [steps.position(t)[0] for t in values] == [sorted(set(values), reverse=True).index(t) for t in values]


@pytest.mark.parametrize("kind", [DDIMScheduler, PNDMScheduler, HeunDiscreteScheduler, EulerDiscreteScheduler])
def test_the_scheduler_tells(kind: Any) -> None:
    """By the place in its timesteps, exact even where they repeat (PNDM, Heun)."""
    scheduler = kind()
    scheduler.set_timesteps(5)
    pipe = Holder(scheduler)
    steps = SchedulerSteps(pipe)
    n = len(scheduler.timesteps)
    assert [steps.position(t) for t in scheduler.timesteps] == [(i, n) for i in range(n)]
    assert steps.position(scheduler.timesteps[0].clone()) == (0, n)
    assert steps.position(float(scheduler.timesteps[0])) == (0, n)
    assert steps.position(scheduler.timesteps[:1].repeat(3)) == (0, n)
    assert steps.position(scheduler.timesteps[1].expand(3)) == (1, n)
    assert steps.position(scheduler.timesteps[1:][1]) == (2, n)
    del pipe
    assert steps.position(scheduler.timesteps[0]) == (0, n)


@pytest.mark.parametrize("change", [lambda t: t, lambda t: t / 1000, lambda t: 1 - t / 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", [FlowMatchEulerDiscreteScheduler, DPMSolverMultistepScheduler])
def test_pipelines_that_change_the_timestep(kind: Any, dtype: torch.dtype, change: Any) -> None:
    """The scheduler counts; both calls of a step are at its place."""
    scheduler = kind()
    scheduler.set_timesteps(5)
    steps, n, sample = SchedulerSteps(Holder(scheduler), changed=True), len(scheduler.timesteps), torch.zeros(1, 1)
    for place, t in enumerate(scheduler.timesteps):
        seen = change(t.expand(2).to(dtype))
        assert [steps.position(seen), steps.position(seen)] == [(place, n)] * 2
        scheduler.step(sample, t, sample)


def test_a_changed_timestep_of_another_scheduler_is_refused() -> None:
    scheduler, other = FlowMatchEulerDiscreteScheduler(), FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(5)
    other.set_timesteps(4)
    steps = SchedulerSteps(Holder(scheduler), changed=True)
    assert steps.position(scheduler.timesteps[0] / 1000) == (0, 5)
    with pytest.raises(ValueError, match=r"timestep: .* can't be found"):
        steps.position(other.timesteps[2] / 1000)


def test_a_value_at_several_places_is_refused() -> None:
    scheduler = PNDMScheduler(skip_prk_steps=True)
    scheduler.set_timesteps(5)
    steps = SchedulerSteps(Holder(scheduler))
    assert steps.position(scheduler.timesteps[1]) == (1, 6)
    assert steps.position(scheduler.timesteps[2]) == (2, 6)
    assert scheduler.timesteps[1] == scheduler.timesteps[2]
    with pytest.raises(ValueError, match="not at one place"):
        steps.position(int(scheduler.timesteps[1]))


def test_timesteps_of_another_scheduler_are_refused(sd: Any) -> None:
    """Though the values occur in ours, left from an earlier run, at other places."""
    seen: list[tuple[int, int]] = []
    others = DDIMScheduler.from_config(sd.scheduler.config)  # one step is at 1, ten are at 901, 801, ..., 1
    other = quiet(StableDiffusionPipeline(**{**sd.components, "scheduler": others}, requires_safety_checker=False))
    with td.enable_tiling(sd, halo_schedule=recorded(seen)):
        paint(sd, 64, 64, steps=10)
        for steps in (5, 1):
            with pytest.raises(ValueError, match="pipeline that runs, or pass num_steps="):
                paint(other, 64, 64, steps=steps)
        other.scheduler = sd.scheduler
        paint(other, 64, 64, steps=5)
    assert seen == [(i, 10) for i in range(10)] + [(i, 5) for i in range(5)]
    with td.enable_tiling(sd, halo_schedule=recorded(seen), num_steps=5):
        paint(other, 64, 64, steps=5)
    assert seen[15:] == [(i, 5) for i in range(5)]


def test_the_scheduler_outlives_its_pipeline(sd: Any) -> None:
    seen: list[tuple[int, int]] = []
    first = StableDiffusionPipeline(**sd.components, requires_safety_checker=False)
    with td.enable_tiling(first, halo_schedule=recorded(seen)):
        del first
        gc.collect()
        paint(sd, 64, 64, steps=3)
    assert seen == [(0, 3), (1, 3), (2, 3)]


def test_a_timestep_that_is_not_the_schedulers() -> None:
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(5)
    for steps in (SchedulerSteps(Holder(scheduler)), SchedulerSteps(Holder(None))):
        with pytest.raises(ValueError, match="num_steps="):
            steps.position(torch.tensor(13))


def recorded(seen: list[tuple[int, int]]) -> Any:
    def schedule(step: int, steps: int) -> float:
        seen.append((step, steps))
        return 1.0

    return schedule


@pytest.mark.parametrize("kind", [DDIMScheduler, DPMSolverMultistepScheduler])
def test_in_a_pipeline(sd: Any, kind: Any) -> None:
    sd.scheduler = kind.from_config(sd.scheduler.config)
    seen: list[tuple[int, int]] = []
    with td.enable_tiling(sd, halo_schedule=recorded(seen)):
        paint(sd, steps=3)
        assert seen == [(0, 3), (1, 3), (2, 3)]
        sd.scheduler = EulerDiscreteScheduler.from_config(sd.scheduler.config)
        paint(sd, steps=2)
    assert seen[3:] == [(0, 2), (1, 2)]


def test_image_to_image_starts_in_the_middle(sd: Any) -> None:
    pipe = quiet(StableDiffusionImg2ImgPipeline(**sd.components, requires_safety_checker=False))
    seen: list[tuple[int, int]] = []
    with td.enable_tiling(pipe, halo_schedule=recorded(seen)):
        pipe("a", image=torch.rand(1, 3, 64, 128), strength=0.5, num_inference_steps=4, output_type="latent")
    assert seen == [(2, 4), (3, 4)]


def test_a_pipeline_may_be_counted_instead(sd: Any) -> None:
    seen: list[tuple[int, int]] = []
    with td.enable_tiling(sd, halo_schedule=recorded(seen), num_steps=10):
        paint(sd, steps=3)
    assert seen == [(0, 10), (1, 10), (2, 10)]


def test_the_constant_schedule_never_looks_at_the_timestep() -> None:
    model = make_unet("sd")
    x, t, kwargs = unet_inputs("sd", 16, 32, batch=1)
    with td.enable_tiling(model, tile=16, unit="latent") as tiling:
        tiling._steps = SimpleNamespace(position=None)
        model(x, t, **kwargs)


def test_a_schedule_compiles_with_few_graphs(sd: Any) -> None:
    """The step is looked up outside the graphs, and a weight that changes needs no graph of its own."""
    seen: list[tuple[int, int]] = []
    graphs: list[Any] = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    def schedule(step: int, steps: int) -> float:
        seen.append((step, steps))
        return halo_weight("quadratic", step, steps)

    sd.unet = make_unet("sd", **SMALL)
    torch.compiler.reset()
    with td.enable_tiling(sd, tile=32, halo=16, halo_schedule=schedule):
        want = paint(sd, 32, 64, steps=6)
        sd.unet = torch.compile(sd.unet, backend=backend)
        assert error(paint(sd, 32, 64, steps=6), want) < 1e-5
    assert seen == [(i, 6) for i in range(6)] * 2
    assert len(graphs) <= 4


def test_the_weight_reaches_attention() -> None:
    """Weight 1 is the constant schedule, 0 is halo 0, and between lies something else."""
    model = make_unet("sd")
    x, t, kwargs = unet_inputs("sd", 16, 32, batch=1)

    def run(**options: Any) -> torch.Tensor:
        with td.enable_tiling(model, **{"tile": 16, "halo": 8, "unit": "latent", "num_steps": 4, **options}):
            return model(x, t, **kwargs).sample

    full, none, half = run(), run(halo=0), run(halo_schedule=lambda i, n: 0.5)
    assert torch.equal(run(halo_schedule="quadratic"), full)
    assert error(run(halo_schedule=lambda i, n: 0.0), none) < 1e-5
    assert error(half, full) > 1e-3
    assert error(half, none) > 1e-3
