"""Peak memory of calls that take a known amount."""

import sys
from types import SimpleNamespace

import pytest
import torch

from tiledattn.bench import memory

MIB = 1 << 20
ABOUT = 4 * MIB + memory.noise_bytes()
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")


def taking(scratch, result):
    """A call that touches `scratch` MiB and frees them, and returns as many as `result`."""

    def call():
        torch.ones(scratch * MIB, dtype=torch.uint8)
        return torch.ones(result * MIB, dtype=torch.uint8)

    return call


@LINUX
@pytest.mark.parametrize(("scratch", "result"), [(64, 0), (200, 64)])
def test_scratch_is_counted_and_the_result_is_not(scratch, result):
    call = taking(scratch, result)
    call()
    expected = max(scratch, result) - result if scratch > result else 0
    assert memory.extra_bytes(call) == pytest.approx(expected * MIB, abs=ABOUT)


@LINUX
def test_both_at_once_are_both_counted():
    def call():
        scratch = torch.ones(48 * MIB, dtype=torch.uint8)
        return scratch[: 1 << 10].clone(), [torch.ones(16 * MIB, dtype=torch.uint8)]

    call()
    assert memory.extra_bytes(call) == pytest.approx(48 * MIB, abs=ABOUT)


@LINUX
def test_little_is_none_at_all():
    def call():
        return torch.ones(1000)

    call()
    assert memory.extra_bytes(call) == 0


@LINUX
def test_memory_that_the_allocator_kept_counts_again():
    """Blocks too small for pages of their own are kept after they are freed."""

    def call():
        return sum(len(x) for x in [bytearray(64 << 10) for _ in range(1000)])

    call()
    assert memory.extra_bytes(call) == pytest.approx(62.5 * MIB, abs=ABOUT)


@LINUX
def test_a_result_that_was_there_takes_nothing_off():
    kept = torch.ones(48 * MIB, dtype=torch.uint8)

    def call():
        return torch.add(torch.ones(48 * MIB, dtype=torch.uint8), 1, out=kept)

    call()
    assert memory.extra_bytes(call, result_is_new=False) == pytest.approx(48 * MIB, abs=ABOUT)


def test_where_the_peak_is_unknown(monkeypatch, tmp_path):
    assert memory.extra_bytes(lambda: None, "meta") is None
    for name in ("_RESET", "_STATUS"):
        with monkeypatch.context() as patch:
            patch.setattr(memory, name, tmp_path / "no such folder" / "file")
            assert memory.extra_bytes(lambda: None) is None
    status = tmp_path / "status"
    status.write_text("VmHWM:\t  900000 kB\nVmRSS:\t  1000 kB\n")
    monkeypatch.setattr(memory, "_RESET", tmp_path / "reset")
    monkeypatch.setattr(memory, "_STATUS", status)
    assert memory.extra_bytes(lambda: None) is None  # it was not reset
    status.write_text("VmRSS:\t  1000 kB\n")
    assert memory.extra_bytes(lambda: None) is None


def test_many_cores_make_the_count_less_exact(monkeypatch):
    noise = {}
    for cores, threads in ((2, 2), (16, 16), (64, 32)):
        monkeypatch.setattr(memory.os, "cpu_count", lambda cores=cores: cores)
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        noise[cores] = memory.noise_bytes() / memory.mmap.PAGESIZE
    assert noise == {2: MIB / memory.mmap.PAGESIZE, 16: 16 * 32, 64: 32 * 128}


def test_result_bytes_count_shared_storage_once():
    x = torch.ones(10, dtype=torch.float64)
    assert memory.result_bytes({"a": x, "b": [x[2:], (torch.ones(3),)], "c": None}) == 80 + 12


def test_on_cuda_the_result_is_not_counted(monkeypatch):
    fake = SimpleNamespace(
        synchronize=lambda device: None,
        reset_peak_memory_stats=lambda device: None,
        memory_allocated=lambda device: 1000,
        max_memory_allocated=lambda device: 1000 + 500 + 4 * 10,
    )
    monkeypatch.setattr(torch, "cuda", fake)
    assert memory.extra_bytes(lambda: torch.ones(10), "cuda") == 500
