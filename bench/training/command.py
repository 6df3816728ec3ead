"""What the two training scripts have in common: their options, and how a run starts and stops."""

from __future__ import annotations

import argparse
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import torch


def parse(
    description: str | None, examples: str, work: Path, steps: dict[str, int], arguments: list[str] | None = None
) -> argparse.Namespace:
    """Read a command line; ``steps`` are the stages by name and how many steps they take unless told otherwise."""
    parser = argparse.ArgumentParser(
        description=description, epilog=examples, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="directory of the finished pipeline")
    parser.add_argument("--work", type=Path, default=work, help="checkpoints and sheets")
    for stage, count in steps.items():
        parser.add_argument(f"--{stage}-steps", type=int, default=count, help="default: %(default)s")
    parser.add_argument("--batch", type=int, default=16, help="crops a denoiser step (default: %(default)s)")
    parser.add_argument("--every", type=int, default=1000, help="steps between saves (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--note", default="", help="a sentence for the model card about how the run went")
    parser.add_argument("--fresh", action="store_true", help="start over instead of going on")
    options = parser.parse_args(arguments)
    for name in (*(f"{stage}_steps" for stage in steps), "batch", "every", "threads"):
        if getattr(options, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1, got {getattr(options, name)}")
    return options


def _interrupt(signum: int, frame: object) -> None:
    raise KeyboardInterrupt


def run(options: argparse.Namespace, stages: tuple[str, ...], train: Callable[[argparse.Namespace], None]) -> int:
    """Train, resuming where an earlier run stopped; the exit code."""
    signal.signal(signal.SIGTERM, _interrupt)
    warnings.filterwarnings("ignore", category=FutureWarning)
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    options.work.mkdir(parents=True, exist_ok=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    if options.fresh:
        for name in (*(f"{stage}.pt" for stage in stages), "log.jsonl"):
            (options.work / name).unlink(missing_ok=True)
    try:
        train(options)
    except KeyboardInterrupt:
        print(f"stopped; the same command goes on from {options.work}", file=sys.stderr)
        return 130
    return 0
