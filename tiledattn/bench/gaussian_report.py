"""Tables and picture of `gaussian_field`'s results."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from tiledattn.files import whole_file
from tiledattn.plotting import GREY, INK

ALONE, BLENDED, HALO = "#c92a2a", ("#a5d8ff", "#4dabf7", "#1864ab"), ("#ffa94d", "#d9480f")
POSITIONS = ["positions computed", "positions seen"]
Result = dict[str, Any]


def chosen(data: dict[str, Any], **values: Any) -> list[Result]:
    """The results whose entries have these values, in their order."""
    return [r for r in data["results"] if all(r[name] == value for name, value in values.items())]


def named(result: Result) -> str:
    """A result's method in words: "blended, 25% overlap, hann"."""
    if result["method"] == "halo":
        return f"halo {_percent(result['halo'])}"
    words = {"untiled": "untiled", "alone": "tiles alone"}
    return words.get(result["method"]) or f"blended, overlap {_percent(result['overlap'])}, {result['window']}"


def tables(data: dict[str, Any]) -> str:
    """All results as markdown."""
    return "\n\n".join(
        [
            "### Three fields, one axis",
            _fields_table(data),
            "### The coarse field in full, one axis",
            _full_table(chosen(data, field="coarse", axes=1, sampler="heun")),
            "### The coarse field, two axes",
            _full_table(chosen(data, field="coarse", axes=2)),
            "### Other samplers, the coarse field, one axis",
            _sampler_table(data),
        ]
    )


def _percent(value: float, digits: int = 4) -> str:
    return f"{100 * value:.{digits}g}%"


def _positions(result: Result) -> list[str]:
    return [f"{result[name]:.2f}" for name in ("computed", "seen")]


def _loss(value: float) -> str:
    return f"{round(100 * value, 1) + 0.0:.1f}%"  # + 0.0: no -0.0


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _fields_table(data: dict[str, Any]) -> str:
    fields = list(dict.fromkeys(r["field"] for r in data["results"]))
    columns = [
        [r for r in chosen(data, field=field, axes=1, sampler="heun") if r["window"] == "hann"] for field in fields
    ]
    rows = [
        [named(row[0]), *_positions(row[0]), *(f"{_loss(r['beside'])}, {_loss(r['loss'])}" for r in row)]
        for row in zip(*columns, strict=True)
    ]
    return _table(["", *POSITIONS, *fields], rows)


def _full_table(results: list[Result]) -> str:
    numbers = ["beside the seam", "up to half a tile", "worst line", "least variance", "KL", "W2"]
    rows = [
        [
            named(r),
            *_positions(r),
            *(_loss(r[name]) for name in ("beside", "loss", "worst")),
            f"{r['least_variance']:.3f}",
            f"{r['divergence']:.4f}",
            f"{r['distance']:.3f}",
        ]
        for r in results
    ]
    return _table(["", *POSITIONS, *numbers], rows)


def _sampler_table(data: dict[str, Any]) -> str:
    """The loss up to half a tile against the same sampler's untiled run."""
    samplers = list(dict.fromkeys((r["sampler"], r["steps"]) for r in data["results"]))
    columns = []
    for sampler, steps in samplers:
        results = chosen(data, field="coarse", axes=1, sampler=sampler, steps=steps)
        whole = next(r for r in results if r["method"] == "untiled")
        columns.append({named(r): 1 - (1 - r["loss"]) / (1 - whole["loss"]) for r in results if r is not whole})
    shared = [name for name in columns[0] if all(name in column for column in columns)]
    rows = [[name, *(_loss(column[name]) for column in columns)] for name in shared]
    return _table(["", *(f"{sampler}, {steps} steps" for sampler, steps in samplers)], rows)


def picture(data: dict[str, Any], path: str | os.PathLike[str]) -> None:
    """Draws the results: covariance and variance at a seam, what it costs, and loss against reach.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("drawing needs matplotlib: pip install 'tiledattn[cli]'") from error
    figure = Figure(figsize=(12, 7.4), facecolor="white", layout="constrained")
    panels = figure.subplots(2, 3)
    _draw_covariance(panels[0, 0], data)
    _draw_variance(panels[0, 1], data)
    _draw_cost(panels[0, 2], data)
    for axes, field in zip(panels[1], dict.fromkeys(r["field"] for r in data["results"]), strict=True):
        _draw_reach(axes, data, field)
    for axes in panels.flat:
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8, colors=INK)
        axes.grid(color="#e9ecef", linewidth=0.7)
    target = Path(path)
    with whole_file(target) as temporary:
        figure.savefig(temporary, format=target.suffix[1:], dpi=110, facecolor="white")


def _finish(axes: Any, title: str, x: str, y: str) -> None:
    axes.set_title(title, fontsize=9.5, fontweight="bold", color=INK, loc="left")
    axes.set_xlabel(x, fontsize=8.5, color=INK)
    axes.set_ylabel(y, fontsize=8.5, color=INK)
    axes.legend(fontsize=7.5, frameon=False)


def _shown(data: dict[str, Any], window: str) -> list[tuple[Result, str, str]]:
    """Results of the coarse field on one axis that are drawn as curves, with their colours and names."""
    found = {(r["method"], r["overlap"], r["halo"]): r for r in chosen(data, **ONE, field="coarse", window=window)}
    halos = {r["halo"]: r for r in chosen(data, **ONE, field="coarse", method="halo")}
    return [
        (found["blended", 0.125, 0.0], BLENDED[0], "blended, overlap 12.5%"),
        (found["blended", 0.25, 0.0], BLENDED[1], "blended, overlap 25%"),
        (found["blended", 0.5, 0.0], BLENDED[2], "blended, overlap 50%"),
        (halos[0.25], HALO[0], "halo 25%, no overlap"),
        (halos[1.0], HALO[1], "halo 100%, no overlap"),
    ]


ONE: dict[str, Any] = {"axes": 1, "sampler": "heun"}


def _draw_covariance(axes: Any, data: dict[str, Any]) -> None:
    alone = chosen(data, **ONE, field="coarse", method="alone")[0]
    lags = range(1, len(alone["true"]) + 1)
    axes.plot(lags, alone["true"], color=INK, linewidth=2.2, label="truth")
    for result, colour, name in reversed(_shown(data, "hann")):
        axes.plot(lags, result["seam"], color=colour, label=name, linewidth=1.5)
    axes.plot(lags, alone["seam"], color=ALONE, label="tiles alone", linewidth=1.5)
    axes.set_ylim(-0.03, 1.05)
    _finish(axes, "Covariance across a seam (coarse, hann)", "distance of the two positions (tile: 32)", "covariance")


def _draw_variance(axes: Any, data: dict[str, Any]) -> None:
    places = range(-16, 16)
    axes.axhline(1.0, color=INK, linewidth=2.2, label="truth")
    for window, style in (("hann", "-"), ("uniform", ":")):
        for result, colour, name in _shown(data, window)[1 : 5 if window == "hann" else 3]:
            cell = result["variance"]
            values = [cell[place % len(cell)] for place in places]
            axes.plot(
                [p + 0.5 for p in places],
                values,
                style,
                color=colour,
                linewidth=1.5,
                label=name if result["halo"] else f"{name}, {window}",
            )
    axes.set_ylim(0.52, 1.02)
    _finish(axes, "Variance of each position (coarse)", "position from a seam", "variance")


def _draw_cost(axes: Any, data: dict[str, Any]) -> None:
    results = [r for r in chosen(data, axes=2, field="coarse") if r["method"] != "untiled"]
    blended = [r for r in results if r["method"] in ("alone", "blended")]
    axes.plot(
        [r["computed"] for r in blended], [r["loss"] for r in blended], "o-", color=BLENDED[1], label="blended, hann"
    )
    halos = [r for r in results if r["method"] in ("alone", "halo")]
    for count, style in (("seen", "s-"), ("computed", "s:")):
        places, lost = [r[count] for r in halos], [r["loss"] for r in halos]
        face = HALO[1] if count == "seen" else "white"
        axes.plot(places, lost, style, color=HALO[1], markerfacecolor=face, label=f"halo, positions {count}")
    for r in blended[1:]:
        axes.annotate(f"overlap {_percent(r['overlap'])}", (r["computed"], r["loss"]), (3, 6), **NOTE)
    for r in halos[1:]:
        axes.annotate(_percent(r["halo"]), (r["seen"], r["loss"]), (-7, -10), horizontalalignment="right", **NOTE)
    axes.set_xscale("log", base=2)
    axes.set_xticks([1, 2, 4, 8, 16], ["1", "2", "4", "8", "16"])
    axes.set_xlim(0.85, 24)
    axes.set_ylim(-0.07, 1.07)
    _percents(axes)
    title = "Loss against computation (coarse, 2 axes)"
    _finish(axes, title, "positions per canvas position", "covariance lost, up to half a tile")


NOTE: dict[str, Any] = {"textcoords": "offset points", "fontsize": 7.5, "color": GREY}


def _draw_reach(axes: Any, data: dict[str, Any], field: str) -> None:
    for window, colour in (("uniform", BLENDED[0]), ("hann", BLENDED[1]), ("gaussian", BLENDED[2])):
        blended = chosen(data, **ONE, field=field, method="blended", window=window)
        reach = [r["overlap"] / 2 for r in blended]
        axes.plot(reach, [r["loss"] for r in blended], "o-", color=colour, markersize=4, label=f"blended, {window}")
    halos = chosen(data, **ONE, field=field, method="halo")
    reach = [r["halo"] for r in halos]
    axes.plot(reach, [r["loss"] for r in halos], "s-", color=HALO[1], markersize=4, label="halo, no overlap")
    axes.set_xscale("log", base=2)
    ticks = [0.0625, 0.125, 0.25, 0.5, 1.0]
    axes.set_xticks(ticks, [_percent(t) for t in ticks])
    axes.set_ylim(-0.03, 0.66)
    _percents(axes)
    _finish(
        axes, f"Loss against reach ({field})", "half the overlap, or the halo, of the tile", "lost, up to half a tile"
    )


def _percents(axes: Any) -> None:
    axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f}%")
