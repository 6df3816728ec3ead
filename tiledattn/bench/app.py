"""`tiledattn bench`: times tiledattn beside its peers; also `python -m tiledattn.bench`.

`tiledattn bench quality ...` and `tiledattn bench scaling ...` are programs of their own.

Exit codes: 0 done, 1 a result of tiledattn failed its check, 2 bad usage, 3 `--seconds` ran out, 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

PROGRAM = "tiledattn bench"
FOLDER = Path("tiledattn-bench")
DEVICES = ("cpu", "cuda")
DTYPES = ("float32", "tf32", "bfloat16", "float16")
CASE_SECONDS = 4.0
PROGRAMS = {"quality": ".quality.app", "scaling": ".scaling"}

ABOUT = """Times tiledattn beside its peers, case by case: every result is checked against float64 first, and a result
that errs too much has no time. All ways to do a case's work take turns in one process. The machine's own limits (matrix
products, copies) are measured first. Cases that are done are kept: after Ctrl-C the same command goes on."""
EXAMPLES = """examples:
  tiledattn bench --quick                          a few cases; 2 minutes on two cores with AVX-512
  tiledattn bench --dry-run                        the cases, and nothing is run
  tiledattn bench --case 'blending/*' extraction   those cases alone; a word without * may be any part of the name
  tiledattn bench --backend cpu --peer gather      one backend beside one peer
  tiledattn bench --quick --json today.json --against yesterday.json
  tiledattn bench quality --help                   seams of painted pictures against compute
  tiledattn bench scaling --help                   time and memory against canvas, halo, tile and threads
exit codes: 0 done, 1 a result of tiledattn failed its check, 2 bad usage, 3 --seconds ran out, 130 stopped"""


class UsageError(ValueError):
    """An option's value that doesn't work; the message says which and what would."""


def main(arguments: Sequence[str]) -> int:
    """Runs `tiledattn bench` with these arguments and returns its exit code."""
    words = list(arguments)
    try:
        if words and words[0] in PROGRAMS:
            return int(import_module(PROGRAMS[words[0]], __package__).main(words[1:]))
        options = parser().parse_args(words)
        options.command = shlex.join([*PROGRAM.split(), *words])
        from .suite import run

        return run(options)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 2
    except UsageError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nbench: stopped", file=sys.stderr)
        return 130


def parser() -> argparse.ArgumentParser:
    """The options of the suite."""
    made = argparse.ArgumentParser(
        prog=PROGRAM, description=ABOUT, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    several: dict[str, Any] = {"nargs": "+", "action": "extend", "default": []}
    which = made.add_argument_group("what is run")
    which.add_argument("--case", metavar="GLOB", **several, help='cases by "operation/case/dtype", upper case as lower')
    which.add_argument("--quick", action="store_true", help="a few cases only, without other work than ours")
    which.add_argument("--dtype", choices=DTYPES, **several, help="dtypes of the inputs; default: all of each case")
    which.add_argument("--backend", metavar="NAME", **several, help="backends of tiledattn; default: all that run here")
    which.add_argument("--peer", metavar="NAME", **several, help="peers, by a part of their name or a glob")
    which.add_argument("--no-peers", action="store_true", help="tiledattn and the machine's limits alone")
    which.add_argument("--device", choices=DEVICES, help="default: cuda where there is one")
    which.add_argument("--dry-run", action="store_true", help="list cases, ways, work and memory; run nothing")
    how = made.add_argument_group("how times are taken")
    how.add_argument(
        "--threads",
        type=_count,
        metavar="N",
        help="threads of torch, which keep to as many cores (CPU); default: torch's",
    )
    how.add_argument("--cold", action="store_true", help="overwrite the caches before every timed call (CPU)")
    how.add_argument(
        "--case-seconds",
        type=_finite_seconds,
        metavar="S",
        help=f"about how long a case is sampled; default {CASE_SECONDS:g}, less with --quick",
    )
    how.add_argument(
        "--seconds",
        type=_seconds,
        metavar="S",
        default=float("inf"),
        help="start no case after S seconds; default: no limit",
    )
    what = made.add_argument_group("what is left")
    what.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        help=f"benchmark.json, .md and .html; default {FOLDER}, or none with --json",
    )
    what.add_argument("--json", type=Path, metavar="FILE", help="the run as JSON")
    what.add_argument("--fresh", action="store_true", help="measure again what an earlier run of the same left")
    what.add_argument("--report", action="store_true", help="run nothing; write tables and page of what is there anew")
    what.add_argument("--against", type=Path, metavar="FILE", help="show ratios to an earlier run's JSON")
    return made


def _count(text: str) -> int:
    with suppress(ValueError):
        value = int(text)
        if value >= 1:
            return value
    raise argparse.ArgumentTypeError(f"got {text}; expected a whole number of at least 1")


def _seconds(text: str) -> float:
    with suppress(ValueError):
        value = float(text)
        if value >= 0:
            return value
    raise argparse.ArgumentTypeError(f"got {text}; expected seconds, 0 or more")


def _finite_seconds(text: str) -> float:
    with suppress(ValueError):
        value = float(text)
        if 0 < value < float("inf"):
            return value
    raise argparse.ArgumentTypeError(f"got {text}; expected a finite number of seconds above 0")
