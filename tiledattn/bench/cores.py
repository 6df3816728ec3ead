"""Threads and the cores that they run on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch

_TASKS = Path("/proc/self/task")
_TOPOLOGY = Path("/sys/devices/system/cpu")


@contextmanager
def pinned(threads: int | None = None) -> Iterator[list[int] | None]:
    """Inside, torch computes with so many threads (default: as now), and the process keeps to as many cores.

    Gives the cores, or None where the system has no such thing (it is Linux's). Cores that share no units come first.
    Threads that exist already are moved too; afterwards everything is as it was.
    """
    before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    moved: dict[int, set[int]] = {}
    cores: list[int] | None = None
    try:
        if hasattr(os, "sched_setaffinity"):
            available = os.sched_getaffinity(0)
            cores = sorted(_apart_first(available)[: torch.get_num_threads()])
            for task in _tasks() if len(cores) < len(available) else ():
                with suppress(OSError):  # a thread that has ended meanwhile
                    moved[task] = os.sched_getaffinity(task)
                    os.sched_setaffinity(task, cores)
        yield cores
    finally:
        for task in _tasks() if moved else ():
            with suppress(OSError):  # threads that began inside have their cores from the one that made them
                os.sched_setaffinity(task, moved.get(task, available))
        torch.set_num_threads(before)


def _tasks() -> list[int]:
    return [int(path.name) for path in _TASKS.iterdir()]


def _apart_first(available: set[int]) -> list[int]:
    """Cores in order, those that share a core with an earlier one behind all others."""
    seen: set[str] = set()
    first: list[int] = []
    second: list[int] = []
    for core in sorted(available):
        file = _TOPOLOGY / f"cpu{core}/topology/thread_siblings_list"
        siblings = file.read_text().strip() if file.is_file() else str(core)
        (second if siblings in seen else first).append(core)
        seen.add(siblings)
    return first + second
