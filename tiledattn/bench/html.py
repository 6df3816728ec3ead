"""A run as one HTML file that needs nothing else: no script, no font, no picture from elsewhere."""

from __future__ import annotations

from html import escape
from pathlib import Path

from ..files import whole_file
from . import plots
from .notes import Data
from .report import validate
from .tables import (
    Cell,
    Table,
    about,
    commands,
    limits_table,
    operation_tables,
    operations,
    scaling_table,
    ways_table,
)

NEWLINE = "\n"
NO_PLOTS = "Tables only: the plots need matplotlib (pip install 'tiledattn[cli]')."


_STYLE = f"""
:root{{color-scheme:light dark;{plots.colours(dark=False)}}}
@media (prefers-color-scheme:dark){{:root{{{plots.colours(dark=True)}}}}}
*{{box-sizing:border-box}}
body{{margin:0 auto;padding:1rem;max-width:76rem;background:var(--paper);color:var(--ink);
font:15px/1.5 system-ui,sans-serif}}
h1{{font-size:1.5rem;margin:.5rem 0}}h2{{font-size:1.15rem;margin:2rem 0 .5rem}}
h3{{font-size:1rem;margin:1.2rem 0 .3rem}}
a{{color:var(--link)}}nav a{{margin-right:1rem;white-space:nowrap}}
.wide{{overflow-x:auto}}
table{{border-collapse:collapse;font-size:.85rem;font-variant-numeric:tabular-nums}}
th,td{{text-align:left;padding:.3rem .7rem .3rem 0;border-bottom:1px solid var(--faint);vertical-align:top}}
th{{font-weight:600;color:var(--grey);vertical-align:bottom;min-width:4.2rem}}td{{white-space:nowrap}}
td:first-child{{white-space:normal;min-width:11rem}}
pre,code{{font-family:ui-monospace,monospace;font-size:.85rem}}
pre{{overflow-x:auto;padding:.6rem .8rem;border:1px solid var(--faint);border-radius:.4rem}}
dl{{display:grid;grid-template-columns:max-content 1fr;gap:.1rem 1rem;font-size:.9rem}}
dt{{color:var(--grey)}}dd{{margin:0;overflow-wrap:anywhere}}
figure{{margin:1rem 0}}figcaption,.note{{font-size:.85rem;color:var(--grey)}}
svg{{display:block;width:100%;min-width:34rem;max-width:50rem;height:auto;font-family:system-ui,sans-serif}}
summary{{cursor:pointer;color:var(--link);font-size:.85rem;margin:.4rem 0}}
"""


def write(data: Data, path: Path) -> None:
    """Writes the page of a run to a file, which appears whole or not at all.

    Raises:
        ValueError: the data is not that of a run (`report.validate`).
        OSError: the file can't be written.
    """
    text = page(data)
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def page(data: Data) -> str:
    """The page: environment, command, limits, a table and plots for every operation, roofline, scaling.

    Without matplotlib there are no plots, and a line says so.

    Raises:
        ValueError: the data is not that of a run (`report.validate`).
    """
    validate(data)
    drawn = plots.available()
    ratios = plots.ratio_plots(data) if drawn else []
    parts: list[tuple[str, str]] = []
    for table, operation in zip(operation_tables(data), operations(data), strict=True):
        own = [plot for plot in ratios if plot.title == operation or plot.title.startswith(f"{operation}, from case ")]
        details = f"<details><summary>All ways</summary>{_table(ways_table(data, operation))}</details>"
        parts.append((operation, _table(table) + details + "".join(map(_figure, own))))
    if drawn and (roofline := plots.roofline_plots(data)):
        parts.append(("roofline", "".join(map(_figure, roofline))))
    if data["scaling"]:
        figures = plots.scaling_plots(data) if drawn else []
        parts.append(("scaling", _table(scaling_table(data)) + "".join(map(_figure, figures))))
    links = " ".join(f'<a href="#part-{number}">{escape(name)}</a>' for number, (name, _) in enumerate(parts))
    sections = "".join(
        f'<section id="part-{number}"><h2>{escape(_capital(name))}</h2>{body}</section>'
        for number, (name, body) in enumerate(parts)
    )
    title = f"tiledattn on {data['environment']['device_name']}, {data['environment']['date']}"
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n<body><h1>{escape(title)}</h1>\n"
        f"{_top(data, drawn)}<nav>{links}</nav>\n{sections}</body></html>\n"
    )


def _top(data: Data, drawn: bool) -> str:
    """What was measured where, how to have it again, how to read it."""
    native = data["environment"].get("native")
    facts = [*about(data), ("python", data["environment"]["python"])]
    if isinstance(native, dict):
        facts += [(name, str(native[name])) for name in ("compiler", "instruction_set") if native.get(name)]
    listed = "".join(
        f"<dt>{escape(name.replace('_', ' '))}</dt><dd>{escape(text.removeprefix(f'{name} '))}</dd>"
        for name, text in facts
    )
    typed = commands(data)
    command = f"<pre>{escape(NEWLINE.join(typed))}</pre>" if typed else ""
    limits = limits_table(data)
    reading = (
        "Results were compared with those of a wider precision before any time was taken; what failed has no figure, "
        "what was not compared is named. Times are medians ± interquartile range, the ways of a case taken in turns. "
        "A way's column is its time over ours, so above 1 tiledattn is faster; the fastest way of a row is bold, "
        "whichever it is, where a peer was timed. Other work does not give the same result: its column is its time, "
        "never bold."
    )
    return (
        f"<dl>{listed}</dl>{command}"
        + (f"<h3>{escape(limits.title)}</h3>{_table(limits)}" if limits.rows else "")
        + f'<p class="note">{escape(reading)}</p>'
        + ("" if drawn else f'<p class="note">{escape(NO_PLOTS)}</p>')
    )


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _figure(plot: plots.Plot) -> str:
    return f'<figure><div class="wide">{plot.svg}</div><figcaption>{escape(plot.caption)}</figcaption></figure>'


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col">{escape(text)}</th>' for text in table.head)
    rows = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in table.rows)
    notes = "".join(
        f"<li>{f'<strong>{escape(note.strong)}</strong>' if note.strong else ''}{escape(note.text)}</li>"
        for note in table.notes
    )
    listed = f'<ul class="note">{notes}</ul>' if notes else ""
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>{listed}'


def _cell(cell: Cell) -> str:
    text = escape(cell.text)
    text = f"<code>{text}</code>" if cell.code else text
    return f"<td>{f'<strong>{text}</strong>' if cell.strong else text}{escape(cell.rest)}</td>"
