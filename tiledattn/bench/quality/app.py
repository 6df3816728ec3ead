"""The program behind `tiledattn bench quality`."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...files import check_writable, whole_file
from . import picture
from .results import FORMAT, validate
from .settings import Setting, chosen, quick, standard, sweep
from .tables import tables

FOLDER = Path("tiledattn-quality")
PROMPT = "a photo of a brick wall"
EXAMPLES = """examples:
  tiledattn bench quality                            both shipped models, a brick wall, 16 seeds
  tiledattn bench quality --quick                    to see that it works
  tiledattn bench quality --overlap 12.5% 25% --halo 8 16 all --window hann uniform --model textures_unet
  tiledattn bench quality --model stable-diffusion-v1-5/stable-diffusion-v1-5 --prompt "a stone wall" \\
    --photographs walls --tiles 4 --steps 30 --guidance 7.5
Lengths are pixels, or shares of the tile (25%). Pictures are kept in OUT/kept: the same command goes on where it was
stopped, and measures again what is there, if sources, libraries, weights and device are the same. Below 16 seeds
nothing is called seamless, or a seam. exit codes: 0 done, 1 an error, 2 bad usage, 130 stopped by Ctrl-C.
"""


def parser() -> argparse.ArgumentParser:
    """The options of `tiledattn bench quality`."""
    made = argparse.ArgumentParser(
        prog="tiledattn bench quality",
        description="What tiling does to pictures, and what it costs: the same noise painted in many ways, measured.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = made.add_argument
    add("--model", nargs="+", metavar="NAME", help="shipped names, folders or hub ids; default both shipped models")
    add("--prompt", nargs="+", metavar="TEXT", help=f"default {PROMPT!r}")
    add("--seeds", type=_positive, metavar="N", help="pictures per prompt and method; default 16 (quick: 2)")
    add("--steps", type=_positive, metavar="N", help="denoising steps; default what suits the model")
    add("--guidance", type=float, metavar="SCALE", help="guidance scale; default what suits the model")
    add("--tiles", type=_several, default=6, metavar="N", help="width of the strips in native tiles; default 6")
    add("--overlap", nargs="+", metavar="LENGTH", help="sweep these overlaps")
    add("--halo", nargs="+", metavar="LENGTH", help='sweep these halos; "all" is the whole canvas')
    add("--window", nargs="+", metavar="NAME", help="sweep these blend windows: uniform, hann, linear, gaussian")
    add("--halo-schedule", nargs="+", metavar="NAME", help="sweep these schedules: constant, quadratic")
    add("--methods", metavar="GLOB", help="only keys that match, several by commas; --dry-run lists them")
    add("--photographs", type=Path, metavar="FOLDER", help="what to compare patches with; shipped models know theirs")
    add("--rounds", type=_count, default=5, metavar="N", help="of timing, in which the methods take turns; 0 for none")
    add("--threads", type=_positive, metavar="N", help="CPU threads; default 1 for a small model")
    add("--device", default="auto", help="auto, cpu, cuda, ...")
    add("--out", type=Path, default=FOLDER, metavar="FOLDER", help=f"default {FOLDER}")
    add("--json", action="store_true", help="print JSON instead of tables")
    add("--quick", action="store_true", help="four methods, two seeds, two rounds")
    add("--resume", action=argparse.BooleanOptionalAction, default=True, help="keep what was painted before (default)")
    add("--any-sources", action="store_true", help="keep what other commits or libraries made too; the result names it")
    add("--retime", action="store_true", help="keep the pictures, but take the times anew")
    add("--dry-run", action="store_true", help="list what would be painted, and stop")
    return made


def main(arguments: Sequence[str]) -> int:
    """Runs the evaluation; returns the exit code."""
    given = list(arguments)
    try:
        options = parser().parse_args(given)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 2
    try:
        return _run(options, command_of(given))
    except KeyboardInterrupt:
        print(f"\nquality: stopped; {options.out / 'kept'} has what was painted", file=sys.stderr)
        return 130
    except _Usage as problem:
        print(f"quality: {problem}", file=sys.stderr)
        return 2
    except (ImportError, OSError, TypeError, ValueError, NotImplementedError) as problem:
        print(f"quality: {problem}", file=sys.stderr)
        return 1


def command_of(given: Sequence[str]) -> str:
    """The command that makes the same again anywhere: without the folder, and without what was kept."""
    words, left = [], list(given)
    while left:
        word = left.pop(0)
        if word == "--out":
            left[:1] = []
        elif not word.startswith("--out=") and word not in (
            "--retime",
            "--resume",
            "--no-resume",
            "--any-sources",
            "--json",
        ):
            words.append(word)
    return shlex.join(["tiledattn", "bench", "quality", *words])


class _Usage(ValueError):
    """A bad value of an option."""


def _run(options: argparse.Namespace, command: str) -> int:
    from ...models.shipped import SHIPPED
    from .evaluating import Plan, evaluate
    from .painting import load
    from .strips import draw_strips

    seeds = options.seeds or (2 if options.quick else 16)
    prompts = tuple(dict.fromkeys(options.prompt or [PROMPT]))
    strips = []
    for name in dict.fromkeys(options.model or [one.name for one in SHIPPED]):
        strip = load(name, options.tiles, seeds, options.steps, options.guidance, options.device)
        strips.append((strip, settings_of(options, strip.native[1], strip.convolutional)))
    if options.dry_run:
        for strip, settings in strips:
            each = len(prompts) * seeds
            shape = f"{strip.canvas[1]}x{strip.canvas[0]} pixels, {strip.steps} steps"
            print(f"{strip.model}: {len(settings)} methods, {each} pictures each of {shape}")
            print("\n".join(f"  {one.key:32} {one.name}" for one in settings))
        return 0
    try:
        check_writable(options.out / "quality.json")
    except OSError as error:
        raise _Usage(f"--out: can't write into {str(options.out)!r}: {error.strerror or error}") from error
    rounds = min(options.rounds, 2) if options.quick else options.rounds
    plan = Plan(
        prompts,
        seeds,
        rounds,
        options.threads,
        options.resume,
        options.retime,
        options.any_sources,
        options.out,
        options.photographs,
    )
    data: dict[str, Any] = {"format": FORMAT, "command": command, "environment": {}, "models": []}
    shown: list[tuple[str, Sequence[Any]]] = []
    for strip, settings in strips:
        model, strips_of = evaluate(strip, settings, plan)
        data["models"].append(model)
        shown.append((strip.model, strips_of))
        data["environment"] = data["environment"] or strip.environment
        write(data, options.out)
        try:
            draw_strips(shown, options.out / "strips.jpg")
        except ImportError:
            print("quality: no strips.jpg: pip install 'tiledattn[cli]'", file=sys.stderr)
    print(json.dumps(data, indent=1) if options.json else tables(data))
    print(f"quality: {options.out / 'quality.json'}, .md, .png and strips.jpg hold all of it", file=sys.stderr)
    return 0


def settings_of(options: argparse.Namespace, tile: int, convolutional: bool) -> list[Setting]:
    """What the command line asks for, for a model with tiles `tile` pixels wide.

    Raises:
        _Usage: a value that can't be read or doesn't fit.
    """
    wanted = (options.overlap, options.halo, options.window, options.halo_schedule)
    try:
        if any(wanted):
            found = sweep(tile, convolutional, *wanted)
        else:
            found = quick(tile, convolutional) if options.quick else standard(tile, convolutional)
        return chosen(found, options.methods)
    except ValueError as problem:
        raise _Usage(str(problem)) from problem


def write(data: dict[str, Any], folder: Path) -> None:
    """Writes quality.json, quality.md and, with matplotlib, quality.png into a folder, each whole or not at all."""
    validate(data)
    for name, text in (("quality.json", json.dumps(data, indent=1) + "\n"), ("quality.md", tables(data))):
        with whole_file(folder / name) as path:
            path.write_text(text)
    try:
        picture.draw(data, folder / "quality.png")
    except ImportError as missing:
        print(f"quality: no picture: {missing}", file=sys.stderr)


def _positive(text: str) -> int:
    return _at_least(text, 1)


def _several(text: str) -> int:
    return _at_least(text, 4)


def _count(text: str) -> int:
    return _at_least(text, 0)


def _at_least(text: str, least: int) -> int:
    try:
        number = int(text)
    except ValueError:
        number = least - 1
    if number < least:
        raise argparse.ArgumentTypeError(f"got {text!r}; expected a whole number of at least {least}")
    return number
