"""Writes what of the documentation follows from the code: `python docs/generate.py [--check] [--pictures]`."""

from __future__ import annotations

import argparse
import json
import pathlib
import sys

HERE = pathlib.Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from bench import record  # noqa: E402  # found beside this folder
from tiledattn import dispatch  # noqa: E402
from tiledattn.bench import gaussian_field, gaussian_report, paper, plots, report  # noqa: E402
from tiledattn.bench.quality import results as quality_results  # noqa: E402
from tiledattn.bench.quality import tables as quality  # noqa: E402

PICTURES = HERE / "images/benchmarks"
NEWLINE = "\n"


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
        "| models | denoiser | tested pipelines | canvas | native tile | attention crosses borders | positions "
        "| region prompts | good to know |",
        "|---|---|---|---|---|---|---|---|---|",
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
            (family.native_tile.__doc__ or "").splitlines()[0].rstrip("."),
            halo,
            f"{family.positions}{where}",
            regions,
            family.notes,
        )
        rows.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")
    return "\n".join(rows)


def benchmark_tables() -> str:
    """The newest run of every device under bench/results, and large canvases on paper."""
    runs = [
        (report.validate(json.loads(path.read_text())), sorted((PICTURES / path.parent.name).glob("*.svg")))
        for path in record.latest_results()
    ]
    runs.sort(key=lambda run: run[0]["environment"]["device"], reverse=True)  # GPUs first
    measured = [
        f"## {run['environment']['device_name']}\n\n{report.tables(run)}{''.join(map(_shown, pictures))}"
        for run, pictures in runs
    ]
    planned = [f"### {table.title}\n\n{NEWLINE.join(report.lines_of(table))}\n" for table in paper.tables()]
    return "\n".join(
        [*(measured or ["No run has been recorded yet.\n"]), "## Large canvases on paper\n", *planned]
    ).rstrip()


def benchmark_pictures() -> dict[pathlib.Path, str]:
    """Files of the drawings that the page shows: the roofline and scaling of the newest run of every device."""
    found = {}
    for path in record.latest_results():
        run = report.validate(json.loads(path.read_text()))
        for plot in [*plots.roofline_plots(run), *plots.scaling_plots(run)]:
            found[_picture(path, plot.title)] = plots.standalone(plot)
    return found


def _picture(result: pathlib.Path, title: str) -> pathlib.Path:
    return PICTURES / result.parent.name / f"{title.lower().replace(' ', '-')}.svg"


def _shown(picture: pathlib.Path) -> str:
    title = picture.stem.replace("-", " ").capitalize()
    return f"\n![{title}]({picture.relative_to(HERE).as_posix()})\n"


def gaussian_tables() -> str:
    """The kept results of the analytic check."""
    kept = HERE.parent / "bench/results/gaussian-field.json"
    return gaussian_report.tables(gaussian_field.validate(json.loads(kept.read_text())))


def quality_tables() -> str:
    """The newest kept run of the quality evaluation."""
    kept = sorted((HERE.parent / "bench/results/quality").glob("*/*.json"), key=record.order)
    run = quality_results.validate(json.loads(kept[-1].read_text()))
    about = run["environment"]
    return f"Measured on {about['device_name']}, {about['date']}: `{run['command']}`\n\n{quality.tables(run).rstrip()}"


def _code(names: tuple[str, ...]) -> str:
    return ", ".join(f"`{name}`" for name in names)


TABLES = {
    "backends.md": ("backends", backends_table),
    "benchmarks.md": ("benchmarks", benchmark_tables),
    "families.md": ("families", families_table),
    "gaussian-field.md": ("gaussian-field", gaussian_tables),
    "quality.md": ("quality", quality_tables),
}


def rendered(name: str) -> str:
    """The page with its generated part made anew."""
    mark, table = TABLES[name]
    begin, end = f"<!-- generated: {mark} -->\n", "<!-- end -->"
    before, _, rest = (HERE / name).read_text().partition(begin)
    return before + begin + table() + "\n" + end + rest.partition(end)[2]


def write_pictures(pictures: dict[pathlib.Path, str]) -> None:
    """Writes these and removes those that a folder of theirs had before."""
    for folder in {path.parent for path in pictures}:
        for old in folder.glob("*.svg"):
            old.unlink()
    for path, text in pictures.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def main() -> int:
    """Rewrites the pages, or with --check says which are out of date."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; exit 1 if a page is out of date")
    parser.add_argument("--pictures", action="store_true", help="draw the pictures of benchmarks.md anew as well")
    options = parser.parse_args()
    check = options.check
    if options.pictures:
        write_pictures(benchmark_pictures())
    stale = [name for name in TABLES if rendered(name) != (HERE / name).read_text()]
    for name in stale:
        if not check:
            (HERE / name).write_text(rendered(name))
        sys.stdout.write(f"{name}: {'out of date' if check else 'written'}\n")
    return int(check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
