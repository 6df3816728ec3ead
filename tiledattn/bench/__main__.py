"""Times tiledattn against its peers: `python -m tiledattn.bench --device cpu --out build/bench`.

Every result is checked against float64 first; a way that fails has no time. Ways take turns in one process. Ctrl-C
leaves the cases that are done.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from tiledattn.files import whole_file

from . import environment, report


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tiledattn.bench", description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda where there is one")
    parser.add_argument("--out", type=Path, default=Path("build/bench"), help="folder of benchmark.json and .md")
    parser.add_argument("--only", default="", metavar="TEXT", help="cases whose operation, name or dtype holds TEXT")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="start no case after this long")
    parser.add_argument("--case-seconds", type=float, default=6.0, help="about how long a case is sampled")
    parser.add_argument("--fresh", action="store_true", help="forget what an earlier run with this --out measured")
    parser.add_argument("--list", action="store_true", help="print the cases and stop")
    return parser.parse_args()


def earlier(path: Path, about: dict[str, object]) -> list[dict[str, object]]:
    """Cases of an earlier run, if commit, day, device, versions, library and --case-seconds are the same."""
    try:
        data = report.validate(json.loads(path.read_text()))
    except (OSError, ValueError):
        return []
    named = about["commit"] != "unknown" and not str(about["commit"]).endswith("-dirty")
    return data["cases"] if named and data["environment"] == about else []


def main() -> int:
    arguments = parse()
    import torch

    from . import runner

    device = torch.device(arguments.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cuda" and not torch.cuda.is_available():
        print("bench: --device cuda, but torch sees no CUDA device", file=sys.stderr)
        return 2
    chosen = runner.chosen(device, arguments.only)
    if arguments.list or not chosen:
        print("\n".join(runner.label(*pair) for pair in chosen) or f"bench: no case holds {arguments.only!r}")
        return 0 if chosen else 2
    about = {**environment.examine(device.type), "case_seconds": arguments.case_seconds}
    done = [] if arguments.fresh else earlier(arguments.out / "benchmark.json", about)
    if done:
        print(f"bench: {len(done)} cases kept from before (--fresh measures again)", file=sys.stderr)
    known = {(case["operation"], case["case"], case["dtype"]) for case in done}
    data = {"format": report.FORMAT, "environment": about, "cases": done}
    began, left = time.monotonic(), 0
    for case, dtype in chosen:
        if (case.operation, case.name, dtype) in known:
            continue
        if time.monotonic() - began > arguments.seconds:
            left += 1
            continue
        print(runner.label(case, dtype), end=" ", file=sys.stderr, flush=True)
        data["cases"].append(runner.run(case, dtype, device, arguments.case_seconds))
        print(f"({time.monotonic() - began:.0f} s)", file=sys.stderr, flush=True)
        write(data, arguments.out)
    write(data, arguments.out)
    print(report.tables(data))
    if left:
        print(f"bench: {left} cases were not run: out of time; the same command goes on", file=sys.stderr)
    failed = sum("failed" in row and row["kind"] == "ours" for case in data["cases"] for row in case["rows"])
    if failed:
        print(f"bench: {failed} results of tiledattn failed their check", file=sys.stderr)
    return 1 if failed else 3 if left else 0


def write(data: dict[str, object], folder: Path) -> None:
    report.validate(data)
    for name, text in (("benchmark.json", json.dumps(data, indent=1) + "\n"), ("benchmark.md", report.tables(data))):
        with whole_file(folder / name) as path:
            path.write_text(text)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("\nbench: stopped; the cases that were done are kept", file=sys.stderr)
        sys.exit(130)
