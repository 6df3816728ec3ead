"""Painting everything that is asked for, resumably, and timing it."""

from __future__ import annotations

import hashlib
import json
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ...files import whole_file
from ...metrics import interval
from .painting import Painted, Strip, kept, paint, same, save, step_seconds
from .settings import Setting

TIMED_STEPS = 4
TIMED_BATCH = 2
Advance = Callable[[], None]


class Progress:
    """A tqdm bar on stderr; where there is no terminal, or no tqdm, a line per part."""

    def __init__(self, total: int, what: str) -> None:
        self._began = time.monotonic()
        self._bar: Any = None
        if sys.stderr.isatty():
            try:
                from tqdm import tqdm
            except ImportError:
                return
            self._bar = tqdm(total=total, desc=what, file=sys.stderr, unit="step", dynamic_ncols=True, leave=False)

    def start(self, name: str) -> None:
        """A part begins."""
        if self._bar is not None:
            self._bar.set_description(name)
        else:
            print(f"quality: {name} ({time.monotonic() - self._began:.0f} s)", file=sys.stderr, flush=True)

    def advance(self, count: int = 1) -> None:
        """Denoising steps are done."""
        if self._bar is not None:
            self._bar.update(count)

    def close(self) -> None:
        """Takes the bar away."""
        if self._bar is not None:
            self._bar.close()


def slug(text: str) -> str:
    """A file name for a prompt or a model, unlike that of any other."""
    words = "-".join(re.findall(r"\w+", text.casefold()))[:40] or "unnamed"
    return f"{words}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"


def place_of(folder: Path, strip: Strip, setting: Setting, prompt: str) -> Path:
    """Where the pictures of a (model, setting, prompt) are kept."""
    return folder / "kept" / slug(strip.model) / f"{setting.key}-{slug(prompt)}.npz"


def about(strip: Strip, setting: Setting, prompt: str, seeds: Sequence[int]) -> dict[str, Any]:
    """What decides the pictures: they are kept for a later run that has the same."""
    return {
        "model": strip.model,
        "pipeline": strip.identity,
        "made_by": strip.made_by,
        "canvas": strip.canvas,
        "native": strip.native,
        "arguments": strip.arguments,
        "setting": asdict(setting),
        "prompt": prompt,
        "seeds": list(seeds),
    }


def paint_all(
    strip: Strip,
    settings: Sequence[Setting],
    prompts: Sequence[str],
    seeds: int,
    folder: Path,
    resume: bool,
    any_sources: bool = False,
) -> None:
    """Paints what is not kept yet; Ctrl-C leaves what is done."""
    todo = []
    for number, prompt in enumerate(prompts):
        own = range(number * seeds, (number + 1) * seeds)  # noise of its own for every prompt
        for setting in settings:
            path, facts = place_of(folder, strip, setting, prompt), about(strip, setting, prompt, own)
            if not resume or kept(path, setting, facts, any_sources) is None:
                todo.append((path, facts, setting, prompt, own))
    count = len(settings) * len(prompts)
    if len(todo) < count:
        print(f"quality: {strip.model}: {count - len(todo)} of {count} kept from before", file=sys.stderr)
    progress = Progress(sum(strip.steps * -(-seeds // strip.batch) for _ in todo), strip.model)
    try:
        for path, facts, setting, prompt, own in todo:
            progress.start(f"{strip.model}: {setting.name}: {prompt!r}")
            save(paint(strip, setting, prompt, own, progress.advance), path, facts)
    finally:
        progress.close()


def painted(
    strip: Strip, setting: Setting, prompts: Sequence[str], seeds: int, folder: Path, any_sources: bool = False
) -> list[Painted] | None:
    """The kept pictures of a setting, one item a prompt; None where some are missing."""
    found = []
    for number, prompt in enumerate(prompts):
        facts = about(strip, setting, prompt, range(number * seeds, (number + 1) * seeds))
        one = kept(place_of(folder, strip, setting, prompt), setting, facts, any_sources)
        if one is None:
            return None
        found.append(one)
    return found


def time_all(
    strip: Strip,
    settings: Sequence[Setting],
    prompt: str,
    rounds: int,
    folder: Path,
    resume: bool,
    any_sources: bool = False,
) -> dict[str, dict[str, Any]]:
    """Seconds per denoising step and picture, and their ratio to tiles alone.

    Settings take turns: each round times every one of them for a few steps, in an order that rotates. A round's value
    is the median of its steps; the seconds are the median over rounds, the ratio's interval is Student's on the
    logarithms of the rounds' ratios.

    Returns:
        Setting's key to {"seconds", "ratio", "low", "high", "rounds"}.
    """
    path = folder / "kept" / slug(strip.model) / "times.json"
    facts = {
        "threads": _threads(),
        "canvas": strip.canvas,
        "arguments": strip.arguments,
        "pipeline": strip.identity,
        "made_by": strip.made_by,
        "keys": [one.key for one in settings],
        "rounds": rounds,
    }
    if resume:
        try:
            data = json.loads(path.read_text())
            if same(data["about"], facts, any_sources):
                return dict(data["times"])
        except (OSError, ValueError, KeyError):
            pass
    values: dict[str, list[float]] = {one.key: [] for one in settings}
    progress = Progress(rounds * len(settings), f"{strip.model}: timing")
    try:
        for number in range(rounds):
            progress.start(f"{strip.model}: timing, round {number + 1} of {rounds}")
            for setting in [*settings[number % len(settings) :], *settings[: number % len(settings)]]:
                steps = step_seconds(strip, setting, prompt, TIMED_STEPS, min(TIMED_BATCH, strip.batch))
                if not steps:
                    return {}
                values[setting.key].append(float(np.median(steps)))
                progress.advance()
    finally:
        progress.close()
    times = ratios(values)
    with whole_file(path) as temporary:
        kept_facts = {"about": facts, "environment": strip.environment, "times": times}
        temporary.write_text(json.dumps(kept_facts, indent=1) + "\n")
    return times


def ratios(values: dict[str, list[float]]) -> dict[str, dict[str, Any]]:
    """What `time_all` returns, from seconds per setting and round; "alone" is the setting compared with."""
    base = np.log(values["alone"])
    times = {}
    for key, seconds in values.items():
        found = interval(np.log(seconds) - base)
        value, low, high = (float(np.exp(x)) for x in (found.value, found.low, found.high))
        times[key] = {
            "seconds": float(np.median(seconds)),
            "ratio": value,
            "low": None if np.isnan(low) else low,
            "high": None if np.isnan(high) else high,
            "rounds": len(seconds),
        }
    return times


@contextmanager
def torch_threads(count: int | None) -> Iterator[None]:
    """Lets torch use `count` CPU threads inside; None leaves the number as it is."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(before if count is None else count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _threads() -> int:
    import torch

    return int(torch.get_num_threads())
