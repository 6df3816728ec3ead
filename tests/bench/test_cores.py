"""Threads keep to their cores, and everything is as it was afterwards."""

import contextlib
import os
import threading

import pytest
import torch

from tiledattn.bench import cores


@pytest.fixture
def machine(monkeypatch):
    """Four cores and two threads; returns who keeps to what."""
    keeps = {1: {0, 1, 2, 3}, 2: {0, 1, 2, 3}}
    monkeypatch.setattr(os, "sched_getaffinity", lambda task: keeps[task or 1], raising=False)
    monkeypatch.setattr(os, "sched_setaffinity", lambda task, to: keeps.update({task: set(to)}), raising=False)
    monkeypatch.setattr(cores, "_tasks", lambda: list(keeps))
    return keeps


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_all_threads_are_moved_and_moved_back(machine):
    before = torch.get_num_threads()
    keeps_before = dict(machine)
    with contextlib.suppress(ZeroDivisionError), cores.pinned(2) as kept_to:
        assert kept_to == sorted(kept_to)
        assert len(kept_to) == 2
        assert torch.get_num_threads() == 2
        assert machine == {1: set(kept_to), 2: set(kept_to)}
        machine[3] = set(kept_to)  # it began inside
        raise ZeroDivisionError
    assert machine == {**keeps_before, 3: {0, 1, 2, 3}}
    assert torch.get_num_threads() == before


def test_as_many_threads_as_cores_move_nothing(machine, monkeypatch):
    monkeypatch.delattr(os, "sched_setaffinity")
    with cores.pinned(4) as kept_to:
        assert kept_to is None  # another system
    monkeypatch.setattr(os, "sched_setaffinity", lambda *arguments: pytest.fail("moved"), raising=False)
    with cores.pinned(4) as kept_to:
        assert kept_to == [0, 1, 2, 3]


def test_cores_that_share_units_come_last(tmp_path, monkeypatch):
    monkeypatch.setattr(cores, "_TOPOLOGY", tmp_path)
    for core, siblings in enumerate(("0-1", "0-1", "2,3", "2,3")):
        (tmp_path / f"cpu{core}/topology").mkdir(parents=True)
        (tmp_path / f"cpu{core}/topology/thread_siblings_list").write_text(siblings + "\n")
    assert cores._apart_first({0, 1, 2, 3, 4}) == [0, 2, 4, 1, 3]


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="Linux only")
def test_on_this_machine():
    before, seen = os.sched_getaffinity(0), []
    other = threading.Thread(target=lambda: seen.append(os.sched_getaffinity(0)))
    with cores.pinned(1) as kept_to:
        assert len(kept_to) == 1
        other.start()
        other.join()
        assert os.sched_getaffinity(0) == seen[0] == set(kept_to)
    assert os.sched_getaffinity(0) == before
