"""Time against seams, end to end: which overlap the Panorama pipeline needs for the seams of ours.

`python -m tiledattn.bench.end_to_end --json build/end-to-end.json`

Pictures of several seeds are painted in turns by all methods, from the same noise. Seam contrast, axis by axis, and
tone step (`tiledattn.metrics`) are taken at the seams, each method's where it can jump: Panorama's where views begin
and end. 1.0 is seamless, more an edge, less a blur, or structure that is missing there. Where the model learned the
prompt from a photograph, so are patches centred on the seams across x: their distance to the photograph's, relative to
that of patches inside the tiles (`tiledattn.bench.quality`).

The criterion: Panorama *needs* the smallest overlap with which neither its seam contrast on any axis nor its tone
step is significantly above that of ours without overlap: the 95% interval of the ratio, Panorama's over ours by the
same seed, begins at or below 1. Ratios are taken in two ways, each with its verdict: picture by picture (the mean of
logarithms) and pooled (sums over sums, in which a picture with next to no edges inside its tiles weighs next to
nothing); where they disagree nothing is settled. What of Panorama is significantly below ours by both is a note. The
same is asked beside ours with overlap, blended behind attention. Few seeds tell little apart, so that it may seem to
need less than it does; three measures, each at 2.5%, also turn away a Panorama exactly like ours in up to 7% of
studies, and there is a verdict for each of ours. A second one asks the same of patches as well (10%). Where no
overlap that was painted is enough, more would be needed, which takes longer than the largest that was: the verdict is
then about that one's time, if all smaller ones with which diffusers' own views cover this canvas were painted (0, 4,
8, 10, ...; with others they leave a part out, which is mended here). Its default overlap, 14 of 16, has a border
every 2 latents, hence no lines to compare the seams with, and is not painted.

The gate: every method first paints its first noise in 2 steps, which must be what the same method paints in float64
(ours on the PyTorch backend), within the budget of `ways`. This also warms it up. Ours at larger overlaps, blended as
predictions, is painted with fewer seeds, for its time alone; blended behind attention with all of them. The step with
and without couplings is timed last.

A verdict is "reached" where the whole interval is at most the target, "missed" where it lies above, else "not settled".
"""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from tiledattn.files import whole_file
from tiledattn.metrics import Interval

from .denoisers import UNET
from .end_to_end import GRID, PROMPT, Painter, judged, our_painter, panorama
from .end_to_end_verdicts import Key, Method, Row, grouped, patch_ratios, row, table
from .step_cases import ALONE, tiled_copy
from .ways import NotOfferedError, random

TIME_SEEDS = 4
STEP_ROUNDS = 21


class WrongError(Exception):
    """A method paints what it should not; the message says which."""


def study(
    painters: dict[Method, Callable[[str, torch.dtype], Painter]],
    prompts: Sequence[str],
    seeds: int,
    tell: Callable[[str], None] = lambda line: None,
    first: int = 0,
) -> tuple[list[Row], dict[Method, dict[Method, Interval]]]:
    """Checks all methods, paints all seeds of all prompts, methods in turns, and measures.

    Args:
        painters: what paints a prompt in a precision, by method.
        prompts: what to paint; each has noise of its own.
        seeds: pictures per prompt; methods of ours that blend predictions stop after `TIME_SEEDS`.
        tell: is given a line of progress.
        first: the first seed.

    Returns:
        A row per method, and `patch_ratios` by each of ours that Panorama is held against.

    Raises:
        ValueError: a method whose seams can't be measured, before anything is painted.
        WrongError: a method that fails the gate.
    """
    for method in painters:
        for axis in range(2):
            method.gradients(torch.zeros(1, 3, *method.layout.size).numpy(), axis)
    pictures: dict[Method, dict[Key, Any]] = {method: {} for method in painters}
    seconds: dict[Method, dict[Key, float]] = {method: {} for method in painters}
    methods = list(painters)
    for number, prompt in enumerate(prompts):
        ready = {method: make(prompt, torch.float32) for method, make in painters.items()}
        for method, painter in ready.items():
            plain, exact = (painters[method](prompt, dtype) for dtype in (torch.float32, torch.float64))
            found = judged(painter, plain, exact, _noise(first + number * seeds))
            if not found.passed:
                raise WrongError(f"{method.name} errs by {found.error:.2e}, more than {found.allowed:.2e}")
        tell(f"{prompt}: every method paints as it should")
        for seed in range(seeds):
            noise = _noise(first + number * seeds + seed)
            turn = seed % len(methods)
            for method in methods[turn:] + methods[:turn]:
                if seed >= TIME_SEEDS and (method.kind, method.blend) == ("ours", "prediction") and method.overlap:
                    continue
                began = time.perf_counter()
                picture = ready[method](noise).cpu()
                seconds[method][number, seed] = time.perf_counter() - began
                pictures[method][number, seed] = picture[0].float().numpy()
            tell(f"{prompt}, seed {seed + 1} of {seeds}")
    rows = [row(method, pictures[method], seconds[method]) for method in methods]
    return rows, {method: patch_ratios(pictures, prompts, method) for method in methods if method.is_standard}


@torch.no_grad()
def couplings(device: torch.device, rounds: int = STEP_ROUNDS) -> Interval:
    """The step of the UNet with all couplings over that of tiles alone, without overlap, in turns."""
    canvas = random((UNET.batch, UNET.channels, *UNET.canvas(GRID)), device, torch.float32, 0)
    model = UNET.build(device, torch.float32)
    ways = [tiled_copy(UNET, model, {}), tiled_copy(UNET, model, ALONE)]
    times: list[list[float]] = [[], []]
    for number in range(rounds + 1):
        for index in (0, 1) if number % 2 else (1, 0):
            began = time.perf_counter()
            UNET.step(ways[index], canvas).cpu()
            times[index].append(time.perf_counter() - began)
    ratios = torch.tensor(times).double()[:, 1:].log()
    return grouped((ratios[0] - ratios[1]).numpy(), [0] * rounds)


def _noise(seed: int) -> torch.Tensor:
    return random((1, 4, *UNET.canvas(GRID)), torch.device("cpu"), torch.float32, seed)


def main(arguments: Sequence[str] | None = None) -> int:
    """Paints, measures and prints; 1 for a wrong result, 2 for arguments or packages, 0 whatever the targets say."""
    parser = argparse.ArgumentParser(
        prog="python -m tiledattn.bench.end_to_end",
        description=__doc__,
        epilog="Exit code 1: a method paints something wrong. A target that is missed is a line, and exits with 0.",
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("--prompt", action="append", help=f"what to paint, once or more; default {PROMPT!r}")
    parser.add_argument("--seeds", type=int, default=16, help="pictures per prompt and method; default 16")
    parser.add_argument(
        "--first-seed", type=int, default=0, help="beyond those of an earlier study: to confirm what it found"
    )
    parser.add_argument("--steps", type=int, default=20, help="of denoising; default 20")
    parser.add_argument(
        "--panorama", type=int, nargs="*", default=[0, 4, 8], help="its overlaps, of 16 latents; default 0 4 8"
    )
    parser.add_argument("--ours", type=int, nargs="*", default=[4, 8], help="of ours besides none; default 4 8")
    parser.add_argument(
        "--attention", type=int, nargs="*", default=[4, 8], help="of ours, blended behind attention; default 4 8"
    )
    parser.add_argument("--view-batch", type=int, help="of Panorama; default: the fastest")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--threads", type=int, help="of the CPU")
    parser.add_argument("--json", type=Path, help="file for the figures")
    options = parser.parse_args(arguments)
    for name, least in (("seeds", 1), ("steps", 1), ("first_seed", 0)):
        if getattr(options, name) < least:
            flag = name.replace("_", "-")
            parser.error(f"--{flag}: got {getattr(options, name)}; expected at least {least}")
    if options.threads:
        torch.set_num_threads(options.threads)
    prompts = options.prompt or [PROMPT]
    try:
        rows, patches = study(
            _painters(options), prompts, options.seeds, lambda line: print(line, file=sys.stderr), options.first_seed
        )
        part = couplings(torch.device(options.device))
    except (NotOfferedError, ValueError) as reason:
        print(f"end_to_end: {reason}", file=sys.stderr)
        return 2
    except WrongError as reason:
        print(f"end_to_end: {reason}", file=sys.stderr)
        return 1
    print(table(rows, patches, part))
    if options.json is not None:
        from .environment import examine

        data = {
            "command": shlex.join([parser.prog, *(sys.argv[1:] if arguments is None else arguments)]),
            "steps": options.steps,
            "first_seed": options.first_seed,
            "prompts": prompts,
            "environment": examine(options.device),
            "methods": [r.as_json() for r in rows],
            "patches_over_ours": {
                ours.name: {peer.name: [p.value, p.low, p.high] for peer, p in found.items()}
                for ours, found in patches.items()
            },
            "coupled_over_alone": [part.value, part.low, part.high],
        }
        with whole_file(options.json) as temporary:
            temporary.write_text(json.dumps(data, indent=1, allow_nan=False) + "\n")
    return 0


def _painters(options: argparse.Namespace) -> dict[Method, Callable[[str, torch.dtype], Painter]]:
    where = torch.device(options.device)

    def ours(overlap: int, blend: str = "prediction") -> Callable[[str, torch.dtype], Painter]:
        return lambda prompt, dtype: our_painter(options.steps, where, dtype, overlap, prompt, blend=blend)

    def peer(overlap: int) -> Callable[[str, torch.dtype], Painter]:
        def make(prompt: str, dtype: torch.dtype) -> Painter:
            # Which views go together changes no result, so that a wider precision needs no search.
            batch = 16 if dtype == torch.float64 else options.view_batch
            return panorama(options.steps, where, dtype, overlap, prompt, batch)

        return make

    found = {Method("ours", o): ours(o) for o in sorted({0, *options.ours})}
    found |= {Method("ours", o, "attention"): ours(o, "attention") for o in options.attention if o}
    return found | {Method("panorama", o): peer(o) for o in options.panorama}


if __name__ == "__main__":
    sys.exit(main())
