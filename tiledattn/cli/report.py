"""The demo's figures: measured per method over prompts and seeds, and printed as a table."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..metrics import Interval, ratio_interval, seam_gradients, tone_differences, wrap_gradients
from .methods import Painted


@dataclass(frozen=True)
class Row:
    """The figures of one method; intervals pool seeds within prompts and average over prompts."""

    model: str
    method: str
    tiles: int
    computed: float
    seconds: float
    seam_contrast: Interval
    tone_step: Interval
    disagreement: float
    wrap_score: Interval
    per_prompt: dict[str, Interval]

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready; None for what is NaN or infinite."""
        return {key: _plain(value) for key, value in asdict(self).items()}


def measure(painted: Sequence[Painted]) -> Row:
    """The figures of one method from its pictures of all prompts."""
    first = painted[0]
    steps = [step for one in painted for step in one.disagreement]
    return Row(
        model=first.method.model,
        method=first.method.name,
        tiles=first.layout.num_tiles,
        computed=first.computed,
        seconds=float(np.mean([one.seconds for one in painted])),
        seam_contrast=_pooled(painted, _seams),
        tone_step=_pooled(painted, lambda one: tone_differences(one.pictures, one.layout, axis=1)),
        disagreement=float(np.mean(steps)) if steps else math.nan,
        wrap_score=_pooled(painted, lambda one: wrap_gradients(one.pictures, one.layout, one.period, axis=1)),
        per_prompt={one.prompt: ratio_interval(*_seams(one)) for one in painted},
    )


def print_table(rows: Sequence[Row]) -> None:
    """The figures as a table on stdout."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    title = "1.0 is seamless"
    if not all(math.isnan(row.seam_contrast.low) for row in rows):
        title += "; below each value its 95% interval over prompts and seeds"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("model")
    table.add_column("method")
    for name in ("tiles", "computed\nper\nposition", "seconds\nper\npicture"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("seam\ncontrast", "tone\nstep", "overlap\ndisagree-\nment", "wrap\nscore"):
        table.add_column(name, justify="center", no_wrap=True)
    for row in rows:
        table.add_row(
            row.model,
            row.method,
            str(row.tiles),
            f"{row.computed:.2f}",
            f"{row.seconds:.2f}",
            _cell(row.seam_contrast),
            _cell(row.tone_step),
            "none" if math.isnan(row.disagreement) else f"{row.disagreement:.3f}",
            _cell(row.wrap_score),
        )
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=120)
    console.print(table)


def summary(painted: Sequence[Painted], seconds: float) -> str:
    """One sentence on what was painted."""
    count = sum(len(one.pictures) for one in painted)
    height, width = painted[0].layout.size
    steps = " or ".join(str(number) for number in dict.fromkeys(one.steps for one in painted))
    return f"{count} pictures of {width}x{height} in {steps} step{'s' * (steps != '1')} each: {seconds:.0f} s"


def _seams(one: Painted) -> tuple[Any, Any]:
    return seam_gradients(one.pictures, one.layout, one.period, axis=1)


def _pooled(painted: Sequence[Painted], pair: Callable[[Painted], tuple[Any, Any]]) -> Interval:
    pairs = [pair(one) for one in painted]
    groups = np.concatenate([np.full(len(one.pictures), index) for index, one in enumerate(painted)])
    tops, bottoms = (np.concatenate(side) for side in zip(*pairs, strict=True))
    return ratio_interval(tops, bottoms, groups)


def _cell(found: Interval) -> str:
    if math.isnan(found.low):
        return f"{found.value:.2f}"
    colour = "green" if 1.0 in found else "red" if found.low > 1 else "yellow"
    return f"[{colour}]{found.value:.2f}[/{colour}]\n[dim]{found.low:.2f}–{found.high:.2f}[/dim]"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
