"""The benchmark's run: which cases and ways, the machine's limits, then case by case, with files after each."""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from tiledattn.files import check_writable, whole_file

from . import against, cores, environment, html, limits, plan, registry, report, runner, timing
from .app import CASE_SECONDS, FOLDER, UsageError

QUICK_SECONDS = 12.0  # of samples in all quick cases; checks, compilation and slow ways' least samples come on top
LEAST_CASE_SECONDS = 0.5
NOTHING_DONE = "before any case was done; nothing written"

Run = dict[str, Any]


def run(options: argparse.Namespace) -> int:
    """Runs the suite with options of `app.parser()`; returns the exit code.

    Raises:
        UsageError: an option's value does not work, with what would.
    """
    if options.report:
        if options.against:
            raise UsageError("--report: got --against too, which needs a run; expected one of them")
        Files(options).write_anew()
        return 0
    device = _device(options.device)
    pairs = _chosen(options, device)
    wanted = plan.wanted(pairs, device, options.backend, options.peer, options.no_peers, options.quick)
    if options.dry_run:
        print(plan.listing(pairs, device, wanted, _case_seconds(options, pairs)))
        return 0
    files = Files(options)
    earlier = _earlier(options.against)
    with cores.pinned(options.threads) if device.type == "cpu" else _as_is() as kept_to:
        about = _about(options, device, kept_to, _case_seconds(options, pairs))
        data, status = measure(options, device, pairs, wanted, about, files)
    if not data["cases"]:
        if status != 130:
            print("bench: nothing was run, nothing written", file=sys.stderr)
        return status
    print(report.tables(data))
    if earlier is not None:
        print(against.table(data, earlier))
    files.write_page(data)
    files.name_them()
    return status


def measure(
    options: argparse.Namespace,
    device: torch.device,
    pairs: Sequence[registry.Pair],
    wanted: plan.Wanted,
    about: Run,
    files: Files,
) -> tuple[Run, int]:
    """Runs what an earlier run has not done; the run's JSON and the exit code."""
    data: Run = {"format": report.FORMAT, "command": options.command, "environment": about}
    data |= {"limits": [], "no_product": [], "cases": [], "scaling": []}
    earlier = {} if options.fresh else files.kept(about)
    data |= earlier
    if data["cases"]:
        print(f"bench: {len(data['cases'])} cases kept from before (--fresh measures again)", file=sys.stderr)
    known = {(case["operation"], case["case"], case["dtype"]) for case in data["cases"]}
    missing = [pair for pair in pairs if (pair[0].operation, pair[0].name, pair[1]) not in known]
    began, left, stopped = time.monotonic(), 0, False
    try:
        if missing and options.seconds > 0:
            limits.add_lacking(data, device, [dtype for _, dtype in pairs])
        with _progress(len(missing)) as show:
            for case, dtype in missing:
                if time.monotonic() - began >= options.seconds:
                    left += 1
                    continue
                with show(registry.label(case, dtype)):
                    done = runner.run(case, dtype, device, about["case_seconds"], wanted, cold=options.cold)
                if not done["rows"]:
                    label = registry.label(case, dtype)
                    print(f"bench: {label}: left out, since it has none of the chosen ways", file=sys.stderr)
                    continue
                data["cases"].append(done)
                data["command"] = _together(earlier.get("command"), options.command)
                files.write(data)
    except KeyboardInterrupt:
        stopped = True
        kept_ones = "the cases that were done are kept" if data["cases"] else NOTHING_DONE
        print(f"\nbench: stopped{'; ' if data['cases'] else ' '}{kept_ones}", file=sys.stderr)
    if data["cases"]:
        files.write(data)
    if left:
        print(f"bench: {left} cases were not run: out of time; the same command goes on", file=sys.stderr)
    failed = sum("failed" in row and row["kind"] == "ours" for case in data["cases"] for row in case["rows"])
    if failed:
        print(f"bench: {failed} results of tiledattn failed their check", file=sys.stderr)
    return data, 130 if stopped else 1 if failed else 3 if left else 0


class Files:
    """Where a run is kept: a folder with `benchmark.json`, `.md` and `.html`, a JSON file, or both."""

    def __init__(self, options: argparse.Namespace) -> None:
        folder: Path | None = options.out or (None if options.json else FOLDER)
        self._json = [path for path in (options.json, folder and folder / "benchmark.json") if path]
        self._seen: set[Path] = set()
        self._markdown = folder / "benchmark.md" if folder else None
        self._page = folder / "benchmark.html" if folder else None
        for path in self._json:
            try:
                check_writable(path)
            except OSError as error:
                raise UsageError(f"can't write {str(path)!r}: {error.strerror or error}") from error

    def kept(self, about: Run) -> Run:
        """Limits, cases and scaling of an earlier run of the same: see `kept`."""
        return next((found for path in self._json if (found := kept(path, about))), {})

    def write(self, data: Run) -> None:
        """The run so far, as JSON and as Markdown."""
        report.validate(data)
        for path in self._json:
            if path not in self._seen:
                _put_aside(path, data)
                self._seen.add(path)
            _write(path, json.dumps(data, indent=1) + "\n")
        if self._markdown:
            _write(self._markdown, report.tables(data))

    def write_page(self, data: Run) -> None:
        """The run as HTML."""
        if self._page and data["cases"]:
            html.write(data, self._page)

    def write_anew(self) -> None:
        """The tables and the page of the JSON that is there, whatever else has been written into it; prints the tables.

        Raises:
            UsageError: there is none, or it is no run.
        """
        try:
            data = against.read(self._json[-1])
        except ValueError as error:
            raise UsageError(f"--report: {error}") from error
        print(report.tables(data))
        self.write(data)
        self.write_page(data)

    def name_them(self) -> None:
        """Says on stderr what was written."""
        paths = [path for path in (*self._json, self._markdown, self._page) if path and path.is_file()]
        print(f"bench: written {', '.join(map(str, paths))}", file=sys.stderr)


def kept(path: Path, about: Run) -> Run:
    """What an earlier run found, if its environment, options included, is the same; else nothing."""
    try:
        data = report.validate(json.loads(path.read_text()))
    except (OSError, ValueError):
        return {}
    if about["commit"] == "unknown" or data["environment"] != about:
        return {}
    names = ("command", "limits", "no_product", "cases", "scaling")
    return {name: data.get(name, []) for name in names}


def _together(earlier: str | None, command: str) -> str:
    """The commands that made a run, a line each."""
    lines = earlier.splitlines() if earlier else []
    return "\n".join(dict.fromkeys([*lines, command]))


def _put_aside(path: Path, data: Run) -> None:
    """Renames a file that holds anything else than what `data` begins with, and says so."""
    try:
        text = path.read_text()
    except OSError:
        return
    try:
        there = json.loads(text)
        if all(entry in data[name] for name in ("cases", "scaling") for entry in there[name]):
            return
        date = there["environment"]["date"]
    except (ValueError, LookupError, TypeError):
        date = "before"
    names = (path.with_name(f"{path.stem}-{date}-{number}{path.suffix}") for number in itertools.count(1))
    target = next(name for name in names if not name.exists())
    path.rename(target)
    print(f"bench: {path} was of another run; it is {target.name} now", file=sys.stderr)


def _write(target: Path, text: str) -> None:
    with whole_file(target) as path:
        path.write_text(text)


def _device(name: str | None) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device: got cuda, but torch sees no CUDA device; expected cpu")
    return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))


def _chosen(options: argparse.Namespace, device: torch.device) -> list[registry.Pair]:
    found = registry.chosen(device, options.case, options.dtype, options.quick)
    if found:
        return found
    of_device = registry.chosen(device)
    operations = " ".join(f"'{name}/*'" for name in dict.fromkeys(case.operation for case, _ in of_device))
    dtypes = ", ".join(dict.fromkeys(dtype for _, dtype in of_device))
    given = " ".join(
        [f"--case {' '.join(options.case)}"] * bool(options.case)
        + [f"--dtype {' '.join(options.dtype)}"] * bool(options.dtype)
        + ["--quick"] * options.quick
    )
    raise UsageError(
        f"got {given}, which leaves no case on {device.type}; it has --case {operations}, in {dtypes}; "
        "--dry-run names them all"
    )


def _case_seconds(options: argparse.Namespace, pairs: Sequence[registry.Pair]) -> float:
    if options.case_seconds is not None:
        return float(options.case_seconds)
    return max(LEAST_CASE_SECONDS, min(CASE_SECONDS, QUICK_SECONDS / len(pairs))) if options.quick else CASE_SECONDS


def _earlier(path: Path | None) -> Run | None:
    if path is None:
        return None
    try:
        return against.read(path)
    except ValueError as error:
        raise UsageError(f"--against: {error}") from error


def _about(options: argparse.Namespace, device: torch.device, kept_to: list[int] | None, seconds: float) -> Run:
    protocol = timing.COLD_INPUTS if device.type == "cuda" else timing.COLD if options.cold else timing.WARM
    ways = {"backend": options.backend, "peer": options.peer, "no_peers": options.no_peers, "quick": options.quick}
    return {
        **environment.examine(device.type),
        "cores": kept_to,
        "cache_bytes": timing.last_level_cache(),
        "protocol": protocol,
        "case_seconds": seconds,
        "ways": {name: value for name, value in ways.items() if value},
    }


@contextmanager
def _as_is() -> Iterator[None]:
    yield None


Show = Callable[[str], Any]


@contextmanager
def _progress(total: int) -> Iterator[Show]:
    """A bar on stderr; a line per case where that is no terminal or tqdm is missing."""
    began = time.monotonic()
    bar = None
    if sys.stderr.isatty() and find_spec("tqdm") is not None:
        from tqdm import tqdm

        bar = tqdm(total=total, unit="case", file=sys.stderr, dynamic_ncols=True)

    @contextmanager
    def show(label: str) -> Iterator[None]:
        if bar is None:
            print(label, end=" ", file=sys.stderr, flush=True)
        else:
            bar.set_description_str(label)
        yield
        if bar is None:
            print(f"({time.monotonic() - began:.0f} s)", file=sys.stderr, flush=True)
        else:
            bar.update()

    try:
        yield show
    finally:
        if bar is not None:
            bar.close()
