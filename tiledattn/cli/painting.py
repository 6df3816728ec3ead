"""What the demo paints: jobs, one per model, and their pictures by every method."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from operator import mul
from typing import TYPE_CHECKING, Any

import numpy as np
import typer

from .command import bad_usage
from .methods import Method, Painted, methods_for
from .pipelines import is_small, native_size, paint
from .shipped import SHIPPED, Shipped

if TYPE_CHECKING:
    from ..diffusers import Tiling
    from ..geometry import TileLayout


@dataclass(frozen=True)
class Canvas:
    """The panoramas: `tiles` native tiles of (height, width) pixels abreast."""

    native: tuple[int, int]
    tiles: int


@dataclass(frozen=True)
class Job:
    """What the demo paints with one model.

    Attributes:
        pipe: a pipeline.
        methods: the ways it is tiled.
        canvas: the size of the panoramas.
        seeds: pictures per prompt and method.
        batch: pictures in one call of the pipeline at most; what is painted doesn't depend on it.
        settings: further arguments of the pipeline.
    """

    pipe: Any
    methods: tuple[Method, ...]
    canvas: Canvas
    seeds: int
    batch: int
    settings: dict[str, Any]


def make_job(
    pipe: Any,
    known: Shipped | None,
    tiles: int,
    batch: int | None,
    seeds: int,
    steps: int | None = None,
    guidance: float | None = None,
) -> Job:
    """The demo of a pipeline, `known` if it ships with the package, with values that suit it where none are given."""
    with bad_usage("--model"):
        canvas = Canvas(native_size(pipe, known), tiles)
    good = known or SHIPPED[0]
    settings = {
        "num_inference_steps": steps or good.steps,
        "guidance_scale": good.guidance if guidance is None else guidance,
    }
    batch = batch or (seeds if is_small(pipe) else 1)
    return Job(pipe, methods_for(pipe), canvas, seeds, batch, settings | dict(known.arguments if known else {}))


class Teller:
    """Tells what is being painted: on a progress bar, or where there is no terminal in a line per prompt and model."""

    def __init__(self, bar: Any, prompts: dict[str, str], jobs: Sequence[Job]) -> None:
        self.bar, self.prompts, self.total, self.count = bar, prompts, len(prompts) * len(jobs), 0
        calls = [len(prompts) * len(job.methods) * -(-job.seeds // job.batch) for job in jobs]
        steps = [job.settings["num_inference_steps"] for job in jobs]
        self.task = bar.add_task("painting", total=sum(map(mul, calls, steps)))

    def start(self, name: str) -> None:
        """A prompt begins."""
        self.count += 1
        if self.bar.disable:
            typer.echo(f"painting {self.prompts[name]!r}, {self.count} of {self.total}", err=True)

    def step(self, method: Method, name: str) -> None:
        """A denoising step is done."""
        self.bar.update(self.task, advance=1, description=f"{name}, {method.model}, {method.name}")


def paint_all(job: Job, prompts: dict[str, str], seed: int, teller: Teller) -> list[Painted]:
    """Every prompt by every method.

    Args:
        job: the model and how it paints.
        prompts: short name to prompt.
        seed: of the first picture; those of the others follow. All pictures start from noise of their own, which the
            methods share.
        teller: is told of every prompt and step.
    """
    painted = []
    for place, (name, text) in enumerate(prompts.items()):
        teller.start(name)
        own = [seed + place * job.seeds + number for number in range(job.seeds)]
        for method in job.methods:
            painted.append(paint_one(job, method, name, text, own, partial(teller.step, method, name)))
    return painted


def paint_one(
    job: Job, method: Method, name: str, text: str, seeds: Sequence[int], advance: Callable[[], None]
) -> Painted:
    """One prompt by one method; the pipeline is left as it was."""
    import torch

    from ..diffusers import enable_tiling
    from ..metrics import overlap_disagreement

    height, width = job.canvas.native
    parts = [seeds[start : start + job.batch] for start in range(0, len(seeds), job.batch)]
    disagreement: list[list[float]] = [[] for _ in parts]
    images = []
    with enable_tiling(job.pipe, tile=job.canvas.native, wrap=(False, True), **method.options(width)) as handle:
        begin = time.perf_counter()
        for part, steps in zip(parts, disagreement, strict=True):

            def look(predictions: Any, layout: TileLayout, _step: int, steps: list[float] = steps) -> None:
                steps.append(overlap_disagreement(predictions, layout))

            handle.on_tiles = look if method.overlap else None
            pictures = paint(
                job.pipe,
                advance,
                prompt=text,
                height=height,
                width=width * job.canvas.tiles,
                num_images_per_prompt=len(part),
                generator=[torch.Generator().manual_seed(s) for s in part],
                output_type="np",
                **job.settings,
            )
            images.append(np.asarray(pictures, dtype=np.float32))
        seconds = (time.perf_counter() - begin) / len(seeds)
        layout, period = _in_pixels(handle), handle.options.granularity * handle.options.pixels
    whole = np.moveaxis(np.concatenate(images), -1, 1)
    pooled = np.sqrt(np.average(np.square(disagreement), axis=0, weights=[len(part) for part in parts]))
    steps = job.settings["num_inference_steps"]
    return Painted(method, name, layout, period, whole, seconds, tuple(pooled.tolist()), steps)


def _in_pixels(handle: Tiling) -> TileLayout:
    """The layout of the last picture over height and width."""
    from ..geometry import TileLayout

    latents, pixels = handle.layout, handle.options.pixels
    assert latents is not None
    size, tile, overlap = (
        tuple(n * pixels for n in lengths[-2:]) for lengths in (latents.size, latents.tile, latents.overlap)
    )
    return TileLayout(size, tile, overlap, latents.wrap[-2:])
