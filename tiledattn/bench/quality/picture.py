"""The trade-off picture: seam contrast against the compute that a way of tiling takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...files import whole_file
from .measures import SEAMLESS, UNDECIDED

COLOURS = {
    "alone": "#7b8594",
    "blended": "#e8590c",
    "attention": "#9c36b5",
    "single": "#2b8a3e",
    "ours": "#3b5bdb",
}
NAMES = {
    "alone": "tiles alone",
    "blended": "blended over an overlap",
    "attention": "attention over the whole canvas, nothing else",
    "single": "one coupling alone",
    "ours": "coupled",
}
AGAINST = {
    "computed": "positions computed per canvas position",
    "time": "measured time of a denoising step, tiles alone = 1",
}
MEASURES = {
    "seam_contrast": "seam contrast, 95% interval",
    "patch_ratio": "patches, seams / inside, 95% interval",
}
NAME_WIDTH, NAME_HEIGHT = 0.16, 0.033  # of the longest name and of a line, shares of the axes
INK, GREY = "#20262e", "#7b8594"


def draw(data: Mapping[str, Any], path: Path) -> None:
    """Writes the picture, a .png or .svg: a row per model; seam contrast by positions and by time, patches by time.

    Raises:
        ImportError: matplotlib is missing; names the extra.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.lines import Line2D
    except ImportError as error:
        raise ImportError(
            "the picture needs matplotlib, which is not installed: pip install 'tiledattn[cli]'"
        ) from error
    models = data["models"]
    shown = _panels(models)
    figure = Figure(
        figsize=(6.2 * len(shown), 4.4 * len(models) + 0.5), dpi=100, facecolor="white", layout="constrained"
    )
    panels = figure.subplots(len(models), len(shown), squeeze=False)
    for line, model in zip(panels, models, strict=True):
        for axes, (measure, against) in zip(line, shown, strict=True):
            _panel(axes, model, measure, against)
        line[0].set_title(f"{model['model']}: {', '.join(model['prompts'])}", color=INK, fontsize=11, loc="left")
    kinds = dict.fromkeys(row["kind"] for model in models for row in model["rows"] if row["kind"] in COLOURS)
    handles = [Line2D([], [], color=COLOURS[kind], marker="o", linestyle="", label=NAMES[kind]) for kind in kinds]
    handles.append(
        Line2D([], [], color=GREY, linestyle="--", label="filled: seamless; half: not separated; grey: untiled run")
    )
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    kind = path.suffix.lstrip(".") or "png"
    with whole_file(path) as temporary:
        figure.savefig(temporary, format=kind, metadata={"Software": None} if kind == "png" else None)


def _panels(models: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """(measure, what it is set against) of the columns."""
    rows = [row for model in models for row in model["rows"]]
    against = ["computed", *(["time"] if any(row.get("time") for row in rows) else [])]
    shown = [("seam_contrast", each) for each in against]
    if any(row["measures"]["patch_ratio"] for row in rows):
        shown.append(("patch_ratio", against[-1]))
    return shown


def _place(row: Mapping[str, Any], against: str) -> float | None:
    if against == "computed":
        return float(row["computed"])
    return None if row.get("time") is None else float(row["time"]["ratio"])


def _panel(axes: Any, model: Mapping[str, Any], measure: str, against: str) -> None:
    axes.axhline(1.0, color=GREY, linestyle="--", linewidth=1)
    untiled = next((row["measures"][measure] for row in model["rows"] if row["kind"] == "untiled"), None)
    if untiled is not None and untiled["low"] is not None:
        axes.axhspan(untiled["low"], untiled["high"], color=GREY, alpha=0.15, linewidth=0)
    points = []
    for row in model["rows"]:
        x, found = _place(row, against), row["measures"][measure]
        if row["kind"] in COLOURS and x is not None and found is not None:
            points.append((x, row, found))
    for window in ("hann", "uniform"):
        own = [point for point in points if point[1]["kind"] == "blended" and point[1]["window"] == window]
        _line(axes, own)
    spread = _beside([x for x, _, _ in points])
    verdict = "seamless_patches" if measure == "patch_ratio" else "seamless"
    for (_, row, found), x in zip(points, spread, strict=True):
        colour = COLOURS[row["kind"]]
        if found["low"] is not None:
            axes.plot([x, x], [found["low"], found["high"]], color=colour, linewidth=1.2, alpha=0.6)
        filled = {SEAMLESS: "full", UNDECIDED: "left"}.get(row[verdict], "none")
        axes.plot(
            [x], [found["value"]], marker="o", markersize=6, color=colour, fillstyle=filled, markerfacecoloralt="white"
        )
    _style(axes)
    _name(axes, [(x, row, found) for x, (_, row, found) in zip(spread, points, strict=True)])
    axes.set_xlabel(AGAINST[against], color=INK, fontsize=9)
    axes.set_ylabel(MEASURES[measure], color=INK, fontsize=9)


def _style(axes: Any) -> None:
    axes.set_yscale("log")
    axes.set_xscale("log")
    ticks = ((axes.yaxis, (0.7, 0.8, 1.0, 1.25, 1.5, 2.0, 2.5, 3, 4, 5)), (axes.xaxis, (1.0, 1.2, 1.5, 2, 3, 4, 5)))
    for axis, places in ticks:
        axis.set_major_locator(_fixed(places))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_locator(_fixed(()))
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)


def _name(axes: Any, points: Sequence[tuple[float, Any, Any]]) -> None:
    """Writes names to the right of the points, those of neighbours below one another with a thin line to each."""
    low, high = np.log(axes.get_xlim())
    bottom, top = np.log(axes.get_ylim())
    ends: list[tuple[float, float]] = []  # (where it begins across, height) of the names so far, shares of the axes
    for x, row, found in sorted(points, key=lambda point: -float(point[2]["value"])):
        across = (float(np.log(x)) - low) / (high - low)
        own = height = (float(np.log(found["value"])) - bottom) / (top - bottom)
        while any(abs(across - other) < NAME_WIDTH and abs(height - level) < NAME_HEIGHT for other, level in ends):
            height -= 0.005
        ends.append((across, height))
        line = {"arrowstyle": "-", "color": GREY, "linewidth": 0.4} if own - height > NAME_HEIGHT else None
        axes.annotate(
            short_name(row),
            (x, found["value"]),
            xytext=(across + 0.025, height),
            textcoords="axes fraction",
            fontsize=7,
            color=INK,
            va="center",
            arrowprops=line,
        )


def short_name(row: Mapping[str, Any]) -> str:
    """A few letters for a point."""
    if row["kind"] == "alone":
        return "alone"
    if row["kind"] == "blended":
        return f"{row['overlap']} px" + ("" if row["window"] == "hann" else f" {row['window']}")
    parts = ["rings"] if row["kind"] == "single" and row["rings"] else []
    if row["kind"] == "single" and row["norm"] != "tile":
        parts = ["norms"]
    if not parts:
        parts = [f"halo {row['halo']}"]
    if row["overlap"]:
        parts.append(f"+ overlap {row['overlap']}")
    if row["schedule"] != "constant":
        parts.append(row["schedule"])
    return " ".join(parts)


def _line(axes: Any, points: Sequence[tuple[float, Any, Any]]) -> None:
    """Joins the points of one way of tiling in the order of their overlap."""
    ordered = sorted(points, key=lambda point: point[1]["overlap"])
    axes.plot(
        [x for x, _, _ in ordered],
        [found["value"] for _, _, found in ordered],
        color=COLOURS["blended"],
        linewidth=0.8,
        alpha=0.5,
    )


def _beside(places: Sequence[float]) -> list[float]:
    """The places, those that are alike moved a little apart."""
    moved, seen = [], dict[float, int]()
    for place in places:
        key = round(place, 2)
        moved.append(place * 1.004 ** seen.get(key, 0))
        seen[key] = seen.get(key, 0) + 1
    return moved


def _fixed(ticks: Sequence[float]) -> Any:
    from matplotlib.ticker import FixedLocator

    return FixedLocator(list(ticks))
