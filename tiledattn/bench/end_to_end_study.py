"""Time against seams, end to end: which overlap the Panorama pipeline needs for the seams of ours without overlap.

`python -m tiledattn.bench.end_to_end --seeds 16 --json build/end-to-end.json`

Pictures of several seeds are painted in turns by all methods. Seam contrast and tone step (`tiledattn.metrics`) are
taken at the seams of both axes, with 95% intervals over seeds; 1.0 is seamless, more an edge, less a blur. Panorama
*needs* the smallest overlap at which both measures equal those of ours without overlap: the 95% interval of the ratio
of the two holds 1. Few seeds tell little apart, so that it may seem to need less than it does. Ours at larger overlaps
is painted with fewer seeds, for its time alone. The first picture of a method warms it up and is not timed,
unless it is the only one.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import tiledattn as ta
from tiledattn.files import whole_file
from tiledattn.metrics import Interval, ratio_interval, seam_gradients, tone_differences

from .denoisers import UNET
from .end_to_end import GRID, LATENTS, PIXELS, PROMPT, Paint, our_painter, panorama, share
from .ways import NotOfferedError, random

PERIOD = 2 * PIXELS  # of the UNet's coarsest level
TIME_SEEDS = 4
MOST_OF_NEEDED = 0.4


@dataclass(frozen=True)
class Method:
    """A way of painting, "ours" or "panorama", with its overlap in latents."""

    kind: str
    overlap: int

    @property
    def name(self) -> str:
        """As the table shows it."""
        return f"{'coupled' if self.kind == 'ours' else 'Panorama pipeline'}, {share(self.overlap)}"

    @property
    def layout(self) -> ta.TileLayout:
        """In pixels."""
        size = tuple(LATENTS * PIXELS * n for n in GRID)
        return ta.TileLayout(size, LATENTS * PIXELS, self.overlap * PIXELS)


@dataclass(frozen=True)
class Row:
    """The figures of one method."""

    method: Method
    seconds: float
    pictures: int
    seam_contrast: Interval
    tone_step: Interval


def row(method: Method, pictures: Sequence[Any], seconds: Sequence[float]) -> Row:
    """The figures of pictures [3, H, W] of one method."""
    data = np.stack([np.asarray(p, dtype=np.float64) for p in pictures])
    seams = ratio_interval(*seam_gradients(data, method.layout, PERIOD))
    tones = ratio_interval(*tone_differences(data, method.layout))
    return Row(method, statistics.median(seconds[1:] or seconds), len(pictures), seams, tones)


def equal(a: Interval, b: Interval) -> bool:
    """Whether the interval of a / b, both symmetric on the logarithm and independent, holds 1."""
    apart = abs(math.log(a.value / b.value))
    return apart <= math.hypot(math.log(a.high / a.value), math.log(b.high / b.value))


def needed(rows: Sequence[Row]) -> Row | None:
    """Panorama at the smallest overlap whose seams are, within the intervals, those of ours without overlap."""
    ours = next(r for r in rows if r.method == Method("ours", 0))
    peers = sorted((r for r in rows if r.method.kind == "panorama"), key=lambda r: r.method.overlap)
    like_ours = (r for r in peers if equal(r.seam_contrast, ours.seam_contrast) and equal(r.tone_step, ours.tone_step))
    return next(like_ours, None)


def study(
    painters: dict[Method, Callable[[str], Paint]],
    prompts: Sequence[str],
    seeds: int,
    tell: Callable[[str], None] = lambda line: None,
) -> list[Row]:
    """Paints all seeds of all prompts, methods in turns, and measures.

    Args:
        painters: what paints a prompt, by method.
        prompts: what to paint.
        seeds: pictures per prompt; methods of ours with overlap stop after `TIME_SEEDS`.
        tell: is given a line of progress.
    """
    pictures: dict[Method, list[Any]] = {method: [] for method in painters}
    seconds: dict[Method, list[float]] = {method: [] for method in painters}
    methods = list(painters)
    for prompt in prompts:
        ready = {method: make(prompt) for method, make in painters.items()}
        for seed in range(seeds):
            noise = random((1, 4, *UNET.canvas(GRID)), torch.device("cpu"), torch.float32, seed)
            first = seed % len(methods)
            for method in methods[first:] + methods[:first]:
                if seed >= TIME_SEEDS and method.kind == "ours" and method.overlap:
                    continue
                began = time.perf_counter()
                picture = ready[method](noise)
                seconds[method].append(time.perf_counter() - began)
                pictures[method].append(picture[0].float().cpu().numpy())
            tell(f"{prompt}, seed {seed + 1} of {seeds}")
    return [row(method, pictures[method], seconds[method]) for method in methods]


def table(rows: Sequence[Row]) -> str:
    """The rows as Markdown, and what they say."""
    ours = next(r for r in rows if r.method == Method("ours", 0))
    lines = ["| method | seconds | of ours | seam contrast | tone step | pictures |", "|---|---|---|---|---|---|"]
    for r in rows:
        times = [f"{r.seconds:.2f}", f"{r.seconds / ours.seconds:.2f}"]
        cells = [r.method.name, *times, str(r.seam_contrast), str(r.tone_step), str(r.pictures)]
        lines.append("| " + " | ".join(cells) + " |")
    found = needed(rows)
    lines.append("")
    if found is None:
        lines.append("No overlap of Panorama that was painted has seams like ours without overlap.")
    else:
        lines.append(
            f"Panorama needs {share(found.method.overlap)}; ours takes {ours.seconds / found.seconds:.2f} of its time "
            f"(at most {MOST_OF_NEEDED})."
        )
    for r in rows:
        peer = next((p for p in rows if p.method == Method("panorama", r.method.overlap)), None)
        if r.method.kind == "ours" and peer is not None:
            lines.append(
                f"With {share(r.method.overlap)} ours takes {r.seconds / peer.seconds:.2f} of Panorama's time."
            )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Paints, measures and prints; 2 for a missing package."""
    parser = argparse.ArgumentParser(
        prog="python -m tiledattn.bench.end_to_end", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--prompt", action="append", help=f"what to paint, once or more; default {PROMPT!r}")
    parser.add_argument("--seeds", type=int, default=8, help="pictures per prompt and method")
    parser.add_argument("--steps", type=int, default=20, help="of denoising")
    parser.add_argument("--panorama", type=int, nargs="*", default=[4, 8, 12], help="its overlaps, of 16 latents")
    parser.add_argument("--ours", type=int, nargs="*", default=[4, 8], help="overlaps of ours besides none")
    parser.add_argument("--view-batch", type=int, help="of Panorama; default: the fastest")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, help="of the CPU")
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    try:
        rows = study(_painters(options), options.prompt or [PROMPT], options.seeds, lambda s: print(s, file=sys.stderr))
    except NotOfferedError as reason:
        print(f"end_to_end: {reason}", file=sys.stderr)
        return 2
    print(table(rows))
    if options.json is not None:
        with whole_file(options.json) as temporary:
            temporary.write_text(json.dumps([asdict(r) for r in rows], indent=1) + "\n")
    return 0


def _painters(options: argparse.Namespace) -> dict[Method, Callable[[str], Paint]]:
    where, dtype = torch.device(options.device), torch.float32

    def ours(overlap: int) -> Callable[[str], Paint]:
        return lambda prompt: _on(where, our_painter(options.steps, where, dtype, overlap, prompt))

    def peer(overlap: int) -> Callable[[str], Paint]:
        return lambda prompt: _on(where, panorama(options.steps, where, dtype, overlap, prompt, options.view_batch))

    found = {Method("ours", o): ours(o) for o in sorted({0, *options.ours})}
    return found | {Method("panorama", o): peer(o) for o in options.panorama}


def _on(device: torch.device, paint: Paint) -> Paint:
    return lambda noise: paint(noise.to(device)).cpu()


if __name__ == "__main__":
    sys.exit(main())
