"""Tables are kept by value, a bounded number of them, and for good where a CUDA graph reads them."""

import gc
import weakref

import pytest
import torch

from tiledattn.backends import tables
from tiledattn.backends.tables import cached


class Table:
    def __init__(self, number: int) -> None:
        self.number = number


@pytest.fixture
def make(monkeypatch):
    monkeypatch.setattr(tables, "_captured", {})
    return cached(4)(Table)


def test_the_same_value_gives_the_same_table(make):
    assert make(1) is make(1)
    assert make(1) is not make(2)


def dies(make) -> bool:
    first = weakref.ref(make(0))
    for number in range(1, 10):
        make(number)
    gc.collect()
    return first() is None


def test_old_tables_go(make):
    assert dies(make)


def test_tables_that_a_graph_was_captured_with_stay(make, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert not dies(make)


def test_tables_made_in_inference_mode_serve_in_training():
    with torch.inference_mode():
        table = cached(4)(torch.zeros)(2)
    assert not table.is_inference()


class OnGpu(torch.Tensor):
    """A tensor that says it is on a GPU, and notes who reads it."""

    is_cuda = True
    device = torch.device("cuda", 0)

    def record_stream(self, stream):
        self.readers.append(stream)


@pytest.mark.parametrize("nested", [False, True])
def test_memory_waits_for_other_streams_that_read_it(monkeypatch, nested):
    stream = "home"
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    monkeypatch.setattr(tables, "_captured", {})

    def table(number):
        found = torch.zeros(number).as_subclass(OnGpu)
        found.readers = []
        return (1, (found, None)) if nested else found

    make = cached(4)(table)
    found = make(3)[1][0] if nested else make(3)
    make(3)
    assert found.readers == []
    stream = "other"
    make(3)
    assert found.readers == ["other"]
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    make(3)  # it stays for good
    assert found.readers == ["other"]
