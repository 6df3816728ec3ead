"""Keeps a run: `python -m bench.record OUT/benchmark.json` puts it under bench/results and into docs/benchmarks.md."""

from __future__ import annotations

import argparse
import itertools
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

from tiledattn.bench import report
from tiledattn.bench.tables import LIMIT_OF
from tiledattn.files import whole_file

RESULTS = Path(__file__).resolve().parent / "results"
NO_DEVICES = ("quality", "end-to-end")  # folders of other results
GENERATE = RESULTS.parent.parent / "docs/generate.py"


def place(data: dict[str, Any], folder: Path) -> Path:
    """Where a run belongs: `<device>/<date>.json`, or `<date>-2.json` and so on where others of that day are kept.

    A run that is kept already belongs where it is.
    """
    device = re.sub(r"[^a-z0-9]+", "-", data["environment"]["device_name"].lower()).strip("-")
    first = folder / device / f"{data['environment']['date']}.json"
    names = itertools.chain([first], (first.with_stem(f"{first.stem}-{number}") for number in itertools.count(2)))
    return next(name for name in names if not name.exists() or _holds(name, data))


def _holds(path: Path, data: dict[str, Any]) -> bool:
    try:
        return bool(json.loads(path.read_text()) == data)
    except ValueError:
        return False


def order(path: Path) -> list[int]:
    """By which kept runs are sorted, newest last: the numbers of `<date>-<number>.json`, so that -10 is after -2."""
    return [int(digits) for digits in re.findall(r"[0-9]+", path.stem)]


def record(source: Path, folder: Path = RESULTS) -> Path:
    """Copies a valid run to its place.

    Raises:
        ValueError: it is no run, a result of tiledattn failed its check or was not compared, or the machine's limits,
            which rates are over, are not there.
    """
    data = report.validate(json.loads(source.read_text()))
    ours = [
        (row, f"{row['way']} ({case['case']}, {case['dtype']})")
        for case in data["cases"]
        for row in case["rows"]
        if row["kind"] == "ours"
    ]
    wrong = [name for row, name in ours if "failed" in row]
    if wrong:
        raise ValueError(f"{source}: not kept, since results failed their check: {'; '.join(wrong)}")
    unseen = [name for row, name in ours if "seconds" in row and row["error"] is None]
    if unseen:
        raise ValueError(f"{source}: not kept, since results were not compared: {'; '.join(unseen)}")
    lacking = missing_limits(data)
    if lacking:
        raise ValueError(f"{source}: not kept, since limits of the machine are missing: {', '.join(lacking)}")
    target = place(data, folder)
    with whole_file(target) as path:
        path.write_text(report.dumps(data))
    return target


def missing_limits(data: dict[str, Any]) -> list[str]:
    """The limits that a run's rates ask for and that it lacks: a copy, a matrix product in at least one dtype."""
    wanted = dict.fromkeys(LIMIT_OF[case["unit"]] for case in data["cases"] if case["unit"])
    known = {limit["name"] for limit in data["limits"]}
    return [name for name in wanted if name not in known]


def latest_results(folder: Path = RESULTS) -> list[Path]:
    """The newest JSON of every device, by `order`."""
    folders = sorted(path for path in folder.glob("*") if path.is_dir() and path.name not in NO_DEVICES)
    newest = (max(path.glob("*.json"), default=None, key=order) for path in folders)
    return [path for path in newest if path is not None]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.record", description=__doc__)
    parser.add_argument("run", type=Path)
    try:
        print(record(parser.parse_args().run))
    except (OSError, ValueError) as problem:
        print(f"bench.record: {problem}", file=sys.stderr)
        return 1
    return subprocess.run([sys.executable, str(GENERATE), "--pictures"], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
