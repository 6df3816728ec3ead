"""Writes the tables of the documentation that follow from the code: `python docs/generate.py [--check]`."""

from __future__ import annotations

import argparse
import json
import pathlib
import sys

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from bench import record  # noqa: E402  # found beside this folder
from tiledattn import dispatch  # noqa: E402
from tiledattn.bench import gaussian_field, gaussian_report, report  # noqa: E402


def backends_table() -> str:
    """Backends against operations, dtypes and devices, from `dispatch.capabilities()`."""
    rows = ["| backend | in auto | operations | dtypes | runs on | checked on |", "|---|---|---|---|---|---|"]
    for c in dispatch.capabilities():
        missing = [f"`{op}`" for op in dispatch.OPERATIONS if op not in c.operations]
        operations = "all" if not missing else "all but " + ", ".join(missing)
        dtypes = ", ".join(str(d).removeprefix("torch.") for d in c.dtypes)
        proven = "; ".join(c.proven_on) or "not yet run on a GPU"
        rows.append(
            f"| `{c.name}` | {'yes' if c.automatic else 'no'} | {operations} | {dtypes} | {c.runs_on} | {proven} |"
        )
    return "\n".join(rows)


def families_table() -> str:
    """Model families against what they can do, from `tiledattn.diffusers.FAMILIES`."""
    from tiledattn.diffusers import FAMILIES
    from tiledattn.diffusers.families import Family

    rows = [
        "| models | denoiser | tested pipelines | canvas | attention crosses borders | positions | region prompts "
        "| good to know |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for family in FAMILIES:
        halo = "yes" if family.no_halo is None else f"no: {family.no_halo}"
        where = "" if family.no_canvas_positions else ', also `"canvas"`'
        regions = "no" if type(family).encode is Family.encode else "yes"
        cells = (
            family.name,
            _code(family.classes),
            _code(family.pipelines),
            ", ".join(family.axes),
            halo,
            f"{family.positions}{where}",
            regions,
            family.notes,
        )
        rows.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")
    return "\n".join(rows)


def benchmark_tables() -> str:
    """The newest run of every device under bench/results."""
    runs = [report.validate(json.loads(path.read_text())) for path in record.latest_results()]
    runs.sort(key=lambda run: run["environment"]["device"], reverse=True)  # GPUs first
    parts = [f"## {run['environment']['device_name']}\n\n{report.tables(run)}" for run in runs]
    return "\n".join(parts).rstrip() if parts else "No run has been recorded yet."


def gaussian_tables() -> str:
    """The kept results of the analytic check."""
    kept = HERE.parent / "bench/results/gaussian-field.json"
    return gaussian_report.tables(gaussian_field.validate(json.loads(kept.read_text())))


def _code(names: tuple[str, ...]) -> str:
    return ", ".join(f"`{name}`" for name in names)


TABLES = {
    "backends.md": ("backends", backends_table),
    "benchmarks.md": ("benchmarks", benchmark_tables),
    "families.md": ("families", families_table),
    "gaussian-field.md": ("gaussian-field", gaussian_tables),
}


def rendered(name: str) -> str:
    """The page with its generated part made anew."""
    mark, table = TABLES[name]
    begin, end = f"<!-- generated: {mark} -->\n", "<!-- end -->"
    before, _, rest = (HERE / name).read_text().partition(begin)
    return before + begin + table() + "\n" + end + rest.partition(end)[2]


def main() -> int:
    """Rewrites the pages, or with --check says which are out of date."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if a page is out of date")
    check = parser.parse_args().check
    stale = [name for name in TABLES if rendered(name) != (HERE / name).read_text()]
    for name in stale:
        if not check:
            (HERE / name).write_text(rendered(name))
        sys.stdout.write(f"{name}: {'out of date' if check else 'written'}\n")
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
