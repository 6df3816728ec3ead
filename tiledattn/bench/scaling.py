"""How time and memory grow: `tiledattn bench scaling`.

Every sweep is one operation at several sizes. All its sizes are made ready first, and each result is compared with
float64 (`tiledattn.bench.sweeps`): a sweep in which one fails has no figures. Then they are timed in turns, round by
round, beginning with another size each time; a sample is the mean of as many calls as take about 5 ms, after one that
does not count. The time of a size is the median over the rounds.

The exponent of a sweep is the slope of log time over log size (`tiledattn.bench.fitting` tells how its interval is
found), fitted from the size on that the sweep names. Memory is inputs, outputs and what the call takes at its peak
beyond them (`tiledattn.bench.memory`), the largest of three calls.

Every entry keeps the command and the environment that it was made with: a run that is filled may be of another commit.
Whether the exponents against canvas area are at most 1.05 is printed below the table and does not change the exit code.
"""

from __future__ import annotations

import argparse
import fnmatch
import gc
import json
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..files import check_writable, whole_file
from . import report
from .fitting import fit
from .notes import Data
from .tables import scaling_table

if TYPE_CHECKING:
    import torch

    from .sweeps import Load, Ready, Sweep

ROUNDS, QUICK_ROUNDS = 11, 5
SAMPLE_SECONDS = 5e-3
MOST_CALLS = 200
MEMORY_CALLS = 3

EXAMPLES = """examples:
  tiledattn bench scaling --quick
  tiledattn bench scaling --sweep 'attention/*' --sweep '*step*'
  tiledattn bench scaling --json build/bench/benchmark.json    # into a run that the suite has made
"""


def parser() -> argparse.ArgumentParser:
    """The command's options."""
    made = argparse.ArgumentParser(
        prog="tiledattn bench scaling",
        description="Time and memory against canvas area, halo, tile and threads, with fitted exponents.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is one")
    made.add_argument("--dtype", action="append", choices=("float32", "bfloat16", "float16"), help="default: float32")
    made.add_argument("--sweep", action="append", metavar="GLOB", help="sweeps by name (--list), * for anything")
    made.add_argument("--quick", action="store_true", help="smaller canvases and fewer rounds: about half a minute")
    made.add_argument("--rounds", type=int, metavar="N", help=f"samples of every size; default {ROUNDS}")
    made.add_argument("--json", type=Path, metavar="FILE", help="write there, into the run that it holds if any")
    made.add_argument("--list", action="store_true", help="print the sweeps and stop")
    return made


def main(arguments: Sequence[str]) -> int:
    """Runs the command; 0 done, 1 a result failed its check, 2 bad usage, 130 stopped by Ctrl-C."""
    try:
        options = parser().parse_args(arguments)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 2
    import torch

    from . import environment
    from .sweeps import all_sweeps

    command = shlex.join(["tiledattn", "bench", "scaling", *arguments])
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cuda" and not torch.cuda.is_available():
        return _refuse("--device cuda, but torch sees no CUDA device")
    if options.rounds is not None and options.rounds < 2:
        return _refuse(f"--rounds {options.rounds}: a spread needs at least 2")
    dtypes = options.dtype or ["float32"]
    every = [sweep for dtype in dtypes for sweep in all_sweeps(device, dtype, options.quick)]
    globs = options.sweep or ["*"]
    chosen = [sweep for sweep in every if any(fnmatch.fnmatchcase(sweep.name, glob) for glob in globs)]
    if options.list or not chosen:
        print("\n".join(sweep.name for sweep in every))
        return 0 if options.list else _refuse(f"--sweep {' '.join(globs)}: no sweep has such a name; they are above")
    try:
        about = environment.examine(device.type)
        data = _run_to_fill(options.json, about, command)
    except (OSError, ValueError) as problem:
        return _refuse(str(problem))
    files = Kept(data, options.json, command, about)
    rounds = options.rounds or (QUICK_ROUNDS if options.quick else ROUNDS)
    failed, stopped = 0, False
    try:
        for sweep in chosen:
            failed += _measure(sweep, rounds, device, files)
    except KeyboardInterrupt:
        stopped = True
        where = f"kept in {options.json}" if options.json else "below"
        print(f"\nbench scaling: stopped; the {files.added} sweeps that were done are {where}", file=sys.stderr)
    if data["scaling"]:
        print("\n".join(report.lines_of(scaling_table(data))))
    return 130 if stopped else 1 if failed else 0


class Kept:
    """A run, and the file that it is written to after every sweep, if any."""

    def __init__(self, data: Data, path: Path | None, command: str, about: dict[str, Any]) -> None:
        self.data, self.added = data, 0
        self._path, self._made = path, {"command": command, "environment": about}

    def add(self, entry: Data) -> None:
        """Puts an entry, with the command and environment that made it, in the place of an earlier one of the same."""
        names = ("operation", "against", "dtype")
        others = [old for old in self.data["scaling"] if any(old[name] != entry[name] for name in names)]
        self.data["scaling"] = [*others, {**entry, **self._made}]
        self.added += 1
        text = report.dumps(self.data)
        if self._path is not None:
            with whole_file(self._path) as temporary:
                temporary.write_text(text)


def _measure(sweep: Sweep, rounds: int, device: torch.device, kept: Kept) -> bool:
    """Measures and keeps a sweep; whether a result of it was wrong."""
    began = time.monotonic()
    entry, reason = measured(sweep, rounds, device)
    if entry is not None:
        kept.add(entry)
    print(f"{sweep.name}: {reason or f'{time.monotonic() - began:.1f} s'}", file=sys.stderr, flush=True)
    return reason.startswith("wrong")


def _refuse(message: str) -> int:
    print(f"bench scaling: {message}", file=sys.stderr)
    return 2


def _run_to_fill(path: Path | None, about: dict[str, Any], command: str) -> Data:
    """The run in a file, if there is one, else an empty one.

    Raises:
        ValueError: the file can't be written, holds no run, or one of another device.
    """
    empty = {
        "format": report.FORMAT,
        "command": command,
        "environment": about,
        "limits": [],
        "cases": [],
        "scaling": [],
    }
    if path is not None:
        try:
            check_writable(path)
        except OSError as error:
            raise ValueError(f"--json: can't write {str(path)!r}: {error.strerror or error}") from error
    if path is None or not path.exists():
        return empty
    try:
        data = report.validate(json.loads(path.read_text()))
    except ValueError as problem:
        raise ValueError(f"--json {path}: {problem}") from None
    found = data["environment"]["device_name"]
    if found != about["device_name"]:
        raise ValueError(f"--json {path}: that run is of {found}, this machine is {about['device_name']}")
    return data


def measured(sweep: Sweep, rounds: int, device: torch.device) -> tuple[Data | None, str]:
    """The entry of `scaling` in a run's JSON; None, and why, where a result is wrong or a way is not offered."""
    from .memory import extra_bytes, result_bytes
    from .ways import NotOfferedError

    gc.collect()
    try:
        ready = [_make(load, device) for load in sweep.loads]
    except NotOfferedError as reason:
        return None, f"left out: {reason}"
    for load, (_, _, verdict) in zip(sweep.loads, ready, strict=True):
        if not verdict.passed:
            errs = f"{load.x:g} {sweep.unit} err by {verdict.error:.2e}, more than {verdict.allowed:.2e}"
            return None, f"wrong, hence no figures: {errs}"
    seconds = timed(sweep.loads, ready, rounds, device)
    points: list[Data] = []
    for load, (call, input_bytes, _), samples in zip(sweep.loads, ready, seconds.T, strict=True):
        found = [] if load.threads else [extra_bytes(call, device, sweep.result_is_new) for _ in range(MEMORY_CALLS)]
        extra = max((size for size in found if size is not None), default=None)
        low, median, high = np.quantile(samples, (0.25, 0.5, 0.75))
        point = {"x": load.x, "seconds": float(median), "spread": float((high - low) / median), "extra_bytes": extra}
        points.append(point | ({} if extra is None else {"memory_bytes": extra + input_bytes + result_bytes(call())}))
    return _entry(sweep, points, seconds), ""


def _make(load: Load, device: torch.device) -> Ready:
    with _on_cores(load.threads, device):
        return load.make()


def _entry(sweep: Sweep, points: list[Data], seconds: NDArray[np.float64]) -> Data:
    """Points and the exponents that are fitted to them."""
    fitted = [index for index, load in enumerate(sweep.loads) if load.x >= sweep.fit_from]
    xs = [sweep.loads[index].x for index in fitted]
    memory = [points[index].get("memory_bytes") or 0 for index in fitted]
    work = [sweep.loads[index].work or 0.0 for index in fitted]
    return {
        "operation": sweep.operation,
        "against": sweep.against,
        "unit": sweep.unit,
        "dtype": sweep.dtype,
        "points": points,
        "rounds": len(seconds),
        "fit_from": xs[0],
        "time_exponent": list(fit(xs, seconds[:, fitted])),
        "memory_exponent": list(fit(xs, memory)) if sweep.against == "canvas area" and all(memory) else None,
        "work_exponent": fit(xs, work).value if all(work) else None,
        "note": sweep.note,
    }


def timed(loads: Sequence[Load], ready: Sequence[Ready], rounds: int, device: torch.device) -> NDArray[np.float64]:
    """Seconds of one call, [rounds, loads], in turns."""
    counts = []
    for load, (call, *_) in zip(loads, ready, strict=True):
        with _on_cores(load.threads, device):
            once = _seconds(call, 1, device)
        counts.append(max(1, min(MOST_CALLS, round(SAMPLE_SECONDS / once))))
    seconds = np.empty((rounds, len(loads)))
    for number in range(rounds):
        for step in range(len(loads)):
            index = (number + step) % len(loads)
            with _on_cores(loads[index].threads, device):
                seconds[number, index] = _seconds(ready[index].call, counts[index], device)
    return seconds


def _seconds(call: Callable[[], Any], count: int, device: torch.device) -> float:
    """Of one call on average, after one that does not count; on a GPU until all of them are done."""
    call()
    _wait(device)
    began = time.perf_counter()
    for _ in range(count):
        call()
    _wait(device)
    return (time.perf_counter() - began) / count


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)


def _on_cores(threads: int | None, device: torch.device) -> AbstractContextManager[Any]:
    """On a CPU torch computes inside with so many threads (None: as many as are set), each with a core of its own."""
    from . import cores

    return cores.pinned(threads) if device.type == "cpu" else nullcontext()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
