"""Whole pictures of the shipped UNet: `enable_tiling` against diffusers' `StableDiffusionPanoramaPipeline`.

Both paint 4 x 4 native tiles (256 x 256 pixels) from the same noise with the same UNet, VAE, scheduler, steps, prompt
and guidance. The Panorama pipeline (MultiDiffusion, Bar-Tal et al., 2023) takes views of 64 latents every 8, that is
7/8 overlap, and both numbers are fixed in its `get_views`. This model's native size is 16 latents, so that method alone
is overridden here: views of 16 latents, with the same fraction or another. Its `view_batch_size` is the fastest of
several, found before anything is timed.

The gate: the picture that was timed must be what the same method paints in float64, ours on the PyTorch backend, within
the budget of `ways`; ours must be far from what it paints without couplings, and its denoiser must pass law 4
(`step_cases`). Panorama does other work than ours, also at the same overlap: its tiles aren't coupled.

`python -m tiledattn.bench.end_to_end` also measures the seams: `end_to_end_study`.
"""

from __future__ import annotations

import copy
import math
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

import tiledattn as ta
from tiledattn import models

from .denoisers import UNET, sharing_copy
from .step_cases import UNCOUPLED, couples, far_verdict, finite_budget, law_verdict, needs_diffusers
from .ways import Call, Case, Inputs, Judge, NotOfferedError, Verdict, Way, nearest, random

LATENTS = 16  # of a side of a native tile
PIXELS = 4  # per latent
GRID = (4, 4)
GUIDANCE, PROMPT = 1.5, "a photo of a brick wall"
DEFAULT_OVERLAP = 14  # of 16: the 7/8 of views of 64 latents every 8
VIEW_BATCHES = (4, 8, 16, 32)

BEHIND_ATTENTION = ", blended behind attention"

GATE_STEPS = 2  # of the study's pictures


@dataclass(frozen=True)
class Painter:
    """Paints noise [1, 4, h, w] as a picture [1, 3, H, W] in [0, 1].

    Attributes:
        pipe: of diffusers.
        steps: of denoising.
        prompt: what to paint.
        more: further arguments of the pipeline's call.
        alone: makes the painter that is the same but for its tiles, which aren't coupled; None: these aren't either.
    """

    pipe: Any
    steps: int
    prompt: str
    more: Mapping[str, Any] = field(default_factory=dict)
    alone: Callable[[], Painter] | None = None

    @torch.no_grad()
    def __call__(self, noise: Tensor, steps: int | None = None) -> Tensor:
        """The picture, in another number of steps if that is given."""
        height, width = (n * PIXELS for n in noise.shape[2:])
        unet = self.pipe.unet
        picture: Tensor = self.pipe(
            self.prompt,
            height=height,
            width=width,
            latents=noise.to(unet.device, unet.dtype),
            num_inference_steps=steps or self.steps,
            guidance_scale=GUIDANCE,
            output_type="pt",
            **self.more,
        ).images
        return picture


@dataclass(frozen=True)
class EndToEnd(Case):
    """A picture from noise to pixels.

    Attributes:
        steps: of denoising.
        ours: overlap of ours, in latents.
        blend: where ours blends it.
        panorama: overlaps of the Panorama pipeline, in latents.
    """

    steps: int = field(kw_only=True)
    ours: int = field(kw_only=True)
    panorama: tuple[int, ...] = field(kw_only=True)
    blend: str = field(default="prediction", kw_only=True)

    def amount(self, dtype: torch.dtype) -> float:
        """0: ways differ in the work that they need."""
        return 0.0

    def inputs(self, device: torch.device, dtype: torch.dtype, seed: int) -> Inputs:
        """The noise [1, 4, h, w]."""
        needs_diffusers()
        return (random((1, 4, *UNET.canvas(GRID)), device, dtype, seed),)

    def ways(self, device: torch.device, dtype: torch.dtype) -> list[Way]:
        """Ours coupled as by default, Panorama with its best `view_batch_size`."""

        def prepare(make: Callable[..., Painter], inputs: Inputs) -> Call:
            paint = make(self.steps, device, dtype)
            return lambda: paint(inputs[0])

        ours = partial(our_painter, overlap=self.ours, blend=self.blend)
        return [
            Way(_ours(self.ours, self.blend), "ours", partial(prepare, ours)),
            *(Way(_peer(o), "bound", partial(prepare, partial(panorama, overlap=o))) for o in self.panorama),
        ]

    def judge(self, inputs: Inputs, yardstick: torch.dtype | None = None) -> Judge:
        """By the same method in float64, in the same steps; ours also by tiles alone and law 4 of its denoiser."""
        (noise,) = inputs
        device, dtype = noise.device, noise.dtype
        overlaps = {_peer(o): o for o in self.panorama}

        def reference(way: Way, precision: torch.dtype) -> Painter:
            if way.kind == "ours":
                return our_painter(self.steps, device, precision, self.ours, blend=self.blend)
            return panorama(self.steps, device, precision, overlaps[way.name], view_batch=VIEW_BATCHES[0])

        def verdict(found: Tensor, way: Way) -> Verdict:
            plain, exact = reference(way, yardstick or dtype), reference(way, torch.float64)
            same = _same_verdict(found, plain, exact, noise)
            if way.kind != "ours" or not same.passed:
                return same
            return nearest(same, law_verdict(UNET, device, dtype, yardstick))

        return verdict


def judged(painter: Painter, plain: Painter, exact: Painter, noise: Tensor) -> Verdict:
    """How far a painter is from the same method in float64, in `GATE_STEPS` steps.

    Args:
        painter: the one that is timed.
        plain: the same method, made anew in the same precision.
        exact: the same method in float64.
        noise: what to begin with.
    """
    return _same_verdict(painter(noise, GATE_STEPS), plain, exact, noise, GATE_STEPS)


def _same_verdict(found: Tensor, plain: Painter, exact: Painter, noise: Tensor, steps: int | None = None) -> Verdict:
    """How far a picture is from that of the same method in float64, or that it is not far from that of tiles alone."""
    with ta.use_backend("torch"):
        same = finite_budget(found, plain(noise, steps).to(noise.dtype), exact(noise, steps))
        if plain.alone is None or not same.passed:
            return same
        moved = far_verdict(found, plain.alone()(noise, steps), same.allowed)
    return same if moved.passed else moved


def _ours(overlap: int, blend: str) -> str:
    return f"coupled, {share(overlap)}{BEHIND_ATTENTION if blend == 'attention' else ''}"


def _peer(overlap: int) -> str:
    return f"Panorama pipeline, {share(overlap)}"


def share(overlap: int) -> str:
    """An overlap in latents as tables name it."""
    return f"{100 * overlap / LATENTS:g}% overlap" if overlap else "no overlap"


@cache
def _parts(device: torch.device, dtype: torch.dtype) -> Any:
    """The shipped pipeline, which lends its parts and paints nothing itself."""
    needs_diffusers()
    from diffusers import StableDiffusionPipeline

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipe = StableDiffusionPipeline.from_pretrained(models.textures_unet(), dtype=dtype, local_files_only=True)
    return pipe.to(device)


def _own_parts(device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """Components with a UNet, of shared weights, and a scheduler of one's own."""
    parts = _parts(device, dtype).components
    return {**parts, "unet": sharing_copy(parts["unet"]), "scheduler": copy.deepcopy(parts["scheduler"])}


def our_painter(
    steps: int,
    device: torch.device,
    dtype: torch.dtype,
    overlap: int = 0,
    prompt: str = PROMPT,
    **options: Any,
) -> Painter:
    """Paints with `enable_tiling` in native tiles, coupled as by default.

    Args:
        overlap: in latents.
        options: further arguments of `enable_tiling`.
    """
    needs_diffusers()
    from diffusers import StableDiffusionPipeline

    import tiledattn.diffusers as td

    pipe = StableDiffusionPipeline(**_own_parts(device, dtype), requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    td.enable_tiling(pipe, tile=LATENTS * PIXELS, overlap=overlap * PIXELS, **options)
    uncoupled = partial(our_painter, steps, device, dtype, overlap, prompt, **{**options, **UNCOUPLED})
    return Painter(pipe, steps, prompt, alone=uncoupled if couples(options) else None)


def panorama(
    steps: int,
    device: torch.device,
    dtype: torch.dtype,
    overlap: int,
    prompt: str = PROMPT,
    view_batch: int | None = None,
) -> Painter:
    """Paints with diffusers' Panorama pipeline, its views of this model's native size.

    Args:
        overlap: of views, in latents.
        view_batch: its `view_batch_size`; None: the fastest of `VIEW_BATCHES`.
    """
    pipe = _panorama_class()(**_own_parts(device, dtype), requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    pipe.view_overlap = overlap
    if view_batch is None:
        noise = random((1, 4, *UNET.canvas(GRID)), device, dtype, 0)
        view_batch = fastest_view_batch(lambda size: Painter(pipe, 1, prompt, {"view_batch_size": size})(noise).cpu())
    return Painter(pipe, steps, prompt, {"view_batch_size": view_batch})


@cache
def _panorama_class() -> Any:
    needs_diffusers()
    try:
        from diffusers import StableDiffusionPanoramaPipeline
    except ImportError as missing:  # it is deprecated
        raise NotOfferedError(f"this diffusers has no StableDiffusionPanoramaPipeline: {missing}") from None

    class NativePanorama(StableDiffusionPanoramaPipeline):  # type: ignore[misc]
        """The Panorama pipeline with views of 16 latents that share `view_overlap` of them."""

        view_overlap = DEFAULT_OVERLAP

        def get_views(self, panorama_height: int, panorama_width: int, *_: Any, **__: Any) -> list[tuple[int, ...]]:
            """(top, bottom, left, right) of every view, in latents."""
            size = (panorama_height // self.vae_scale_factor, panorama_width // self.vae_scale_factor)
            layout = ta.TileLayout(size, LATENTS, self.view_overlap)
            return [(y, y + LATENTS, x, x + LATENTS) for y, x in layout.origins]

    return NativePanorama


def fastest_view_batch(paint: Callable[[int], Any], sizes: tuple[int, ...] = VIEW_BATCHES, rounds: int = 2) -> int:
    """Which number of views at once paints fastest: the least of several times; `paint` returns when it is done."""
    times = dict.fromkeys(sizes, math.inf)
    for _ in range(rounds):
        for size in sizes:
            began = time.perf_counter()
            paint(size)
            times[size] = min(times[size], time.perf_counter() - began)
    return min(times, key=lambda size: times[size])


_DTYPES = {"cpu": ("float32",), "cuda": ("float32",)}
_PICTURE = "picture of the shipped UNet"

CASES: list[Case] = [
    EndToEnd(_PICTURE, "256x256 px, 4 steps", _DTYPES, steps=4, ours=0, panorama=(0, 4, 8, 12)),
    *(
        EndToEnd(_PICTURE, f"256x256 px, 4 steps, {share(o)}{words}", _DTYPES, steps=4, ours=o, panorama=(o,), blend=b)
        for o in (4, 8)
        for b, words in (("prediction", ""), ("attention", BEHIND_ATTENTION))
    ),
    EndToEnd(
        _PICTURE, "256x256 px, 2 steps, Panorama's default", _DTYPES, steps=2, ours=0, panorama=(DEFAULT_OVERLAP,)
    ),
]


if __name__ == "__main__":
    from .end_to_end_study import main

    sys.exit(main())
