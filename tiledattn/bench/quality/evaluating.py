"""Everything about one model: its pictures, times and figures."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from . import learned, patches, photographs
from .measures import measure
from .painting import Painted, Strip, is_small
from .running import paint_all, painted, time_all, torch_threads
from .settings import Setting

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")


@dataclass(frozen=True)
class Plan:
    """What is done with every model.

    Attributes:
        prompts: what is painted.
        seeds: pictures per prompt and setting.
        rounds: of timing; 0 for none.
        threads: CPU threads; None: one for a small model, whose threads would mostly wait for one another.
        resume: whether what an earlier run kept is taken over.
        retime: whether times that an earlier run kept are taken anew.
        out: folder to keep pictures in.
        any_sources: whether what other sources or libraries made is taken over too.
        photographs: folder of pictures to compare patches with; None: those that a shipped model learned from.
    """

    prompts: tuple[str, ...]
    seeds: int
    rounds: int
    threads: int | None
    resume: bool
    retime: bool
    any_sources: bool
    out: Path
    photographs: Path | None


def evaluate(strip: Strip, settings: Sequence[Setting], plan: Plan) -> tuple[dict[str, Any], list[Painted]]:
    """Paints, times and measures one model.

    Returns:
        What `results.validate` calls a model, and the first picture of every setting.

    Raises:
        OSError: a folder of photographs without any, or pictures that can't be kept.
    """
    notes: list[str] = []
    truth = [_photographs(strip, prompt, plan.photographs, notes) for prompt in plan.prompts]
    threads = 1 if plan.threads is None and is_small(strip.pipe) else plan.threads
    with torch_threads(threads):
        every = plan.any_sources
        paint_all(strip, settings, plan.prompts, plan.seeds, plan.out, plan.resume, every)
        keep = plan.resume and not plan.retime
        times = time_all(strip, settings, plan.prompts[0], plan.rounds, plan.out, keep, every) if plan.rounds else {}
    lacking = learned.missing()
    reasons: dict[str, list[str]] = {}
    for name, reason in lacking.items():
        reasons.setdefault(reason, []).append(name)
    notes += [f"No {', '.join(names)}: {reason}." for reason, names in reasons.items()]
    whole = next((one for one in settings if one.kind == "untiled"), None)
    untiled = None if whole is None else _kept(strip, whole, plan)
    without = next((one for one in settings if one.kind == "alone"), None)
    alone = None if without is None else _kept(strip, without, plan)
    rows, shown, commits = [], [], set[str]()
    for setting in settings:
        print(f"quality: {strip.model}: measuring {setting.name}", file=sys.stderr)
        found = _kept(strip, setting, plan)
        commits.update(str(one.environment.get("commit")) for one in found)
        shown.append(replace(found[0], pictures=found[0].pictures[:1], latents=None))
        if setting.kind == "untiled":
            found = _on_the_lines_of(alone, found)
        rows.append(
            {
                **setting.as_dict(),
                "tiles": 1 if setting.kind == "untiled" else found[0].layout.num_tiles,
                "computed": _computed(found[0]),
                "time": times.get(setting.key),
                **measure(found, None if setting.kind == "untiled" else untiled, truth),
                "learned": learned.learned(
                    [one.pictures for one in found], plan.prompts, truth, strip.native, tuple(lacking)
                ),
            }
        )
    about = {
        "model": strip.model,
        "canvas": list(strip.canvas),
        "tile": list(strip.native),
        "steps": strip.steps,
        "arguments": strip.arguments,
        "seeds": plan.seeds,
        "prompts": list(plan.prompts),
        "commits": sorted(commits),
        "judged_against": "1.0" if untiled is None else "untiled",
        "levels": _levels(untiled, truth),
        "notes": notes,
        "rows": rows,
    }
    return about, shown


def _kept(strip: Strip, setting: Setting, plan: Plan) -> list[Painted]:
    found = painted(strip, setting, plan.prompts, plan.seeds, plan.out, plan.any_sources)
    if found is None:
        raise OSError(f"{plan.out / 'kept'}: pictures of {setting.key} are gone or unreadable; run again")
    return found


def _on_the_lines_of(tiled: Sequence[Painted] | None, untiled: Sequence[Painted]) -> list[Painted]:
    """The untiled pictures with the layout of tiled ones: measured where those have their seams."""
    if tiled is None:
        return list(untiled)
    return [replace(one, layout=other.layout) for one, other in zip(untiled, tiled, strict=True)]


def _photographs(strip: Strip, prompt: str, folder: Path | None, notes: list[str]) -> list[Any]:
    """What a prompt's patches are compared with; where there is nothing, none, and a note that says why."""
    if folder is not None:
        files = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
        if not files:
            raise FileNotFoundError(f"--photographs: {str(folder)!r} holds no picture ({', '.join(SUFFIXES)})")
        return [photographs.from_file(path) for path in files]
    material = photographs.material_of(prompt) if strip.is_shipped else None
    if material is None:
        notes.append(f"No photographs to compare patches of {prompt!r} with; give a folder of them by --photographs.")
        return []
    try:
        return [photographs.at_training_scale(material)]
    except ImportError as missing:
        notes.append(f"No patch distances: {missing}.")
        return []


def _levels(untiled: Sequence[Painted] | None, truth: Sequence[Sequence[Any]]) -> dict[str, float]:
    """Power of variation across over along: of the photographs, and of the untiled pictures."""
    levels = {}
    if all(truth):
        values = [math.log(patches.photograph_spectrum(each)) for each in truth]
        levels["photographs"] = math.exp(sum(values) / len(values))
    if untiled:
        values = [math.log(patches.across_along(one.pictures)) for one in untiled]
        levels["untiled runs"] = math.exp(sum(values) / len(values))
    return levels


def _computed(one: Painted) -> float:
    """Positions of all layers but attention, which alone computes some again where tiles are blended behind it."""
    if one.setting.blend == "attention":
        return 1.0
    return one.layout.num_tiles * one.layout.tile_positions / math.prod(one.layout.size)
