"""Plots of a run as SVG for an HTML page, in colours that the page's style sheet chooses (matplotlib, extra `cli`).

Every colour is a CSS variable of the page (`var(--ink)`, `var(--grey)`, `var(--series-0)` ...), so that one drawing
serves light and dark.
"""

from __future__ import annotations

import io
import math
import re
import textwrap
from collections.abc import Sequence
from html import escape
from typing import Any, NamedTuple

from .notes import Data, exponent_text
from .roofline import points, roofs
from .tables import first_of_ours, operations

SERIES = 8
CASES_PER_PLOT = 10
LEGEND_COLUMNS = 4
LABEL_LETTERS = 42
# What matplotlib draws with, and what stands in its place in the page.
_INK, _GREY, _FAINT = "#010203", "#040506", "#070809"
_VARIABLES = {_INK: "var(--ink)", _GREY: "var(--grey)", _FAINT: "var(--faint)"}
_SERIES_COLOURS = [f"#0a0b{16 + number:02x}" for number in range(SERIES)]
_VARIABLES.update({colour: f"var(--series-{number})" for number, colour in enumerate(_SERIES_COLOURS)})
_MARKERS = "osD^vP*X"
_LIGHT = (
    *("#1d232b", "#66707e", "#e1e4e9", "#ffffff", "#1c5fb8"),
    *("#2a78d6", "#eb6834", "#1baf7a", "#8250c4", "#d03b6b", "#a07800", "#0b7285", "#6b7280"),
)
_DARK = (
    *("#e5e8ec", "#9aa3b2", "#343a43", "#15181d", "#7db0f5"),
    *("#5b9dee", "#f08a5d", "#3ecf97", "#a986e0", "#ea6f96", "#d0a838", "#3fb6c9", "#9aa3b2"),
)


def colours(dark: bool) -> str:
    """The variables as CSS declarations; besides those of drawings `--paper` and `--link`."""
    names = ("ink", "grey", "faint", "paper", "link", *(f"series-{number}" for number in range(SERIES)))
    return "".join(f"--{name}:{value};" for name, value in zip(names, _DARK if dark else _LIGHT, strict=True))


class Plot(NamedTuple):
    """A drawing: what it is about, how to read it, and an SVG element."""

    title: str
    caption: str
    svg: str


def standalone(plot: Plot) -> str:
    """The drawing as a file of its own, in light colours on paper."""
    opening, _, rest = plot.svg.partition(">")
    style = f"svg{{{colours(dark=False)}background:var(--paper);font-family:system-ui,sans-serif}}"
    names = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return f"<svg {names}{opening.removeprefix('<svg')}><style>{style}</style>{rest}\n"


def available() -> bool:
    """Whether matplotlib is installed."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError:
        return False
    return True


def all_plots(data: Data) -> list[Plot]:
    """Ratios of every operation, the roofline, scaling; those without anything to show are left out.

    Raises:
        ImportError: matplotlib is not installed.
    """
    return [*ratio_plots(data), *roofline_plots(data), *scaling_plots(data)]


def ratio_plots(data: Data) -> list[Plot]:
    """Bars of each peer's time over ours, per operation, so many cases to a drawing."""
    found = []
    for name, cases in operations(data).items():
        groups = [group for case in cases if (group := _ratios(case))]
        ways = list(dict.fromkeys(way for _, ratios in groups for way in ratios))
        for start in range(0, len(groups), CASES_PER_PLOT):
            part = groups[start : start + CASES_PER_PLOT]
            title = name if len(groups) <= CASES_PER_PLOT else f"{name}, from case {start + 1}"
            caption = "Time over ours: a bar to the right of 1 is slower than tiledattn, one to the left faster."
            found.append(Plot(title, caption, _svg(_bars(part, ways), title)))
    return found


def _ratios(case: Data) -> tuple[str, dict[str, float]] | None:
    """A case's label, and the peers' times over ours."""
    first = first_of_ours(case)
    if first is None:
        return None
    rows = [row for row in case["rows"] if row["kind"] == "peer" and "seconds" in row]
    ratios = {row["way"]: row["seconds"] / first["seconds"] for row in rows}
    label = "\n".join([*textwrap.wrap(case["case"], LABEL_LETTERS), case["dtype"]])
    return (label, ratios) if ratios else None


def _bars(groups: Sequence[tuple[str, dict[str, float]]], ways: Sequence[str]) -> Any:
    thick = 0.16  # inches
    spans = [max(len(ratios) * thick, 0.14 * (label.count("\n") + 1)) + 0.22 for label, ratios in groups]
    top = 0.25 + 0.18 * -(-len(ways) // LEGEND_COLUMNS)
    figure, axes = _axes(8.0, sum(spans) + top + 0.45, left=2.9, bottom=0.45, top=top)
    below, ticks = 0.0, []
    for (_, ratios), span in zip(groups, spans, strict=True):
        for number, (way, ratio) in enumerate(sorted(ratios.items(), key=lambda item: ways.index(item[0]))):
            at = below + (span - len(ratios) * thick) / 2 + thick * (number + 0.5)
            axes.barh(at, math.log10(ratio), thick * 0.86, color=_colour(ways.index(way)), label=way)
            side = {"ha": "left" if ratio >= 1 else "right", "va": "center", "fontsize": 7.5, "color": _INK}
            axes.text(math.log10(ratio) + math.copysign(0.012, ratio - 1), at, f"{ratio:.3g}", **side)
        ticks.append(below + span / 2)
        below += span
        axes.axhline(below, color=_FAINT, linewidth=0.8)
    axes.set_ylim(below, 0)
    axes.set_yticks(ticks, [label for label, _ in groups], fontsize=8)
    every = [ratio for _, ratios in groups for ratio in ratios.values()]
    low, high = min(1.0, *every) / 1.15, max(1.0, *every) * 1.35
    axes.set_xlim(math.log10(low), math.log10(high))
    marks = [mark for mark in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500) if low <= mark <= high]
    axes.set_xticks([math.log10(mark) for mark in marks], [f"{mark:g}" for mark in marks])
    axes.axvline(0, color=_INK, linewidth=1)
    handles = {label: handle for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    _legend(figure, [handles[way] for way in ways if way in handles], [way for way in ways if way in handles])
    return figure


def roofline_plots(data: Data) -> list[Plot]:
    """Where ours, and the peers that win, stand under the machine's roofs."""
    tops, found = roofs(data), points(data)
    if not tops or not found:
        return []
    figure, axes = _axes(8.0, 4.6, left=0.75, bottom=0.6, top=0.25 + 0.18 * len(tops))
    marked = [*(point.intensity for point in found), *(top.operations / top.bytes for top in tops)]
    low, high = min(marked) / 4, max(marked) * 4
    dtypes = [top.dtype for top in tops]
    for number, top in enumerate(tops):
        ridge = top.operations / top.bytes
        xs = sorted({low, min(max(ridge, low), high), high})
        axes.plot(xs, [top.at(x) / 1e12 for x in xs], color=_colour(number), linewidth=1.4, label=f"roof, {top.dtype}")
    labels = set()
    for point in found:
        if point.dtype not in dtypes:
            continue
        ours = point.kind == "ours"
        label = f"{'ours' if ours else 'a peer that wins'}, {point.dtype}"
        colour = _colour(dtypes.index(point.dtype))
        style = {"marker": "o" if ours else "X", "markersize": 6, "linestyle": "", "color": colour}
        axes.plot(point.intensity, point.rate / 1e12, **style, label="_" if label in labels else label)
        labels.add(label)
    axes.set(xscale="log", yscale="log", xlabel="operations per byte that must move", ylabel="TFLOP/s")
    axes.set_xlim(low, high)
    _powers_of_two(axes)
    _legend(figure, *axes.get_legend_handles_labels())
    caption = (
        "Useful operations a second against operations per byte that must move at least. The roofs are what torch's "
        "copy and matrix product reach on the machine, so that a case can be above them."
    )
    return [Plot("Roofline", caption, _svg(figure, "Roofline"))]


def scaling_plots(data: Data) -> list[Plot]:
    """Time, and memory where it is known, against the size of the work, with the fitted lines."""
    found = []
    for against in dict.fromkeys(entry["against"] for entry in data["scaling"]):
        entries = [entry for entry in data["scaling"] if entry["against"] == against and len(entry["points"]) > 1]
        units = dict.fromkeys(entry["unit"] for entry in entries)
        for unit in units:
            chosen = [entry for entry in entries if entry["unit"] == unit]
            title = f"Scaling with {against}"
            caption = f"Time and memory of one call against {unit}; lines are the fits, where they were made."
            found.append(Plot(title, caption, _svg(_scaling_figure(chosen, unit), f"{title}, {unit}")))
    return found


def _scaling_figure(entries: Sequence[Data], unit: str) -> Any:
    kinds = [("seconds", "time_exponent", "seconds"), ("memory_bytes", "memory_exponent", "bytes")]
    kinds = [kind for kind in kinds if any(_known(entry, kind[0]) for entry in entries)]
    figure = _figure(8.0, 3.4 * len(kinds) + 0.2 * len(entries) + 0.2)
    height = figure.get_size_inches()[1]
    legend = 0.2 * len(entries) + 0.25
    for number, (name, exponent, label) in enumerate(kinds):
        bottom = (height - legend - 3.4 * (number + 1) + 0.55) / height
        axes = figure.add_axes((0.1, bottom, 0.87, 2.75 / height))
        _style(axes)
        for index, entry in enumerate(entries):
            _draw_scaling(axes, entry, name, exponent, index)
        axes.set(xscale="log", yscale="log", xlabel=unit, ylabel=label)
        _powers_of_two(axes)
        if number == 0:
            handles, labels = axes.get_legend_handles_labels()
            figure.legend(handles, labels, loc="upper left", ncols=1, **_LEGEND)
    return figure


def _draw_scaling(axes: Any, entry: Data, name: str, exponent: str, index: int) -> None:
    known = _known(entry, name)
    if not known:
        return
    colour = _colour(index)
    text = f"{entry['operation']}, {entry['dtype']}: time {exponent_text(entry['time_exponent'])}"
    if entry.get("memory_exponent") is not None:
        text += f", memory {exponent_text(entry['memory_exponent'])}"
    marks = {"marker": _MARKERS[index % len(_MARKERS)], "markersize": 5, "linestyle": ""}
    axes.plot([x for x, _ in known], [y for _, y in known], **marks, color=colour, label=text)
    fitted = [(x, y) for x, y in known if x >= entry.get("fit_from", 0)]
    slope = entry.get(exponent)
    if slope is None or len(fitted) < 2:
        return
    middle = [sum(math.log(pair[side]) for pair in fitted) / len(fitted) for side in (0, 1)]
    xs = [fitted[0][0], fitted[-1][0]]
    axes.plot(xs, [math.exp(middle[1] + slope[0] * (math.log(x) - middle[0])) for x in xs], color=colour, linewidth=1)


def _known(entry: Data, name: str) -> list[tuple[float, float]]:
    return [(point["x"], point[name]) for point in entry["points"] if point.get(name)]


_LEGEND: dict[str, Any] = {"frameon": False, "fontsize": 8, "labelcolor": _INK, "handlelength": 1.2}


def _figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height))


def _axes(width: float, height: float, left: float, bottom: float, top: float) -> tuple[Any, Any]:
    """A figure of so many inches, and axes with so much room around them."""
    figure = _figure(width, height)
    inner = (left / width, bottom / height, 1 - (left + 0.2) / width, 1 - (bottom + top) / height)
    axes = figure.add_axes(inner)
    _style(axes)
    return figure, axes


def _style(axes: Any) -> None:
    axes.patch.set_visible(False)
    axes.tick_params(which="both", colors=_GREY, labelcolor=_INK, labelsize=8)
    axes.grid(visible=True, which="major", axis="x", color=_FAINT, linewidth=0.7)
    axes.set_axisbelow(True)
    for part in (axes.xaxis.label, axes.yaxis.label):
        part.set(color=_INK, fontsize=8.5)
    for name, spine in axes.spines.items():
        spine.set(color=_GREY, visible=name in ("left", "bottom"))


def _powers_of_two(axes: Any) -> None:
    """Plain numbers under a logarithmic x axis, few enough not to touch."""
    low, high = (math.log2(end) for end in axes.get_xlim())
    every = max(1, math.ceil((high - low) / 12))
    ticks = [2.0**power for power in range(math.ceil(low), math.floor(high) + 1, every)]
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xticks([], minor=True)


def _legend(figure: Any, handles: Sequence[Any], labels: Sequence[str]) -> None:
    figure.legend(handles, labels, loc="upper left", ncols=LEGEND_COLUMNS, columnspacing=1.0, **_LEGEND)


def _colour(number: int) -> str:
    return _SERIES_COLOURS[number % SERIES]


def _svg(figure: Any, title: str) -> str:
    """The figure as an SVG element without anything that points outside the page."""
    import matplotlib

    text = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": title, "font.family": "sans-serif"}):
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    found = text.getvalue()
    found = found[found.index("<svg") :]
    found = re.sub(r"<metadata>.*?</metadata>", "", found, flags=re.DOTALL)
    found = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", found)
    found = re.sub(r"font:\s*[^;\"]*?(\d[\d.]*)px[^;\"]*", r"font-size: \1px", found)
    for colour, variable in _VARIABLES.items():
        found = found.replace(colour, variable)
    opening, _, rest = found.partition(">")
    unsized = re.sub(r'\s(width|height)="[^"]*"', "", opening)
    return f'{unsized} role="img" aria-label="{escape(title)}">{rest}'.strip()
