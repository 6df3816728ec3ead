"""The emulator notices what it is there to notice."""

import ctypes

import pytest
from emulation import call, emulated

ROTATE, ROTATE_UNSYNCHRONISED, COPY, COPY_UNWAITED = range(4)
HALF_A_BARRIER, LANES_APART, BEYOND, MISALIGNED, SHORT_STRIDE = range(4, 9)
THREADS = 64


def run(which: int, seed: int = 0) -> list[int]:
    given = (ctypes.c_int * (4 * THREADS))(*range(4 * THREADS))
    found = (ctypes.c_int * THREADS)()
    call(emulated("faults.cpp").run_fault, which, given, found, ctypes.c_uint(seed))
    return list(found)


@pytest.mark.parametrize("seed", range(5))
def test_what_is_right_stays_right(seed):
    assert run(ROTATE, seed) == [(i + 1) % THREADS for i in range(THREADS)]
    assert run(COPY, seed) == [4 * i + 1 for i in range(THREADS)]


def test_a_missing_barrier_shows():
    assert run(ROTATE_UNSYNCHRONISED) != [(i + 1) % THREADS for i in range(THREADS)]


def test_a_missing_wait_shows():
    assert run(COPY_UNWAITED) != [4 * i + 1 for i in range(THREADS)]


@pytest.mark.parametrize(
    ("which", "message"),
    [
        (HALF_A_BARRIER, "deadlock"),
        (LANES_APART, "different instructions"),
        (BEYOND, "beyond shared memory"),
        (MISALIGNED, "misaligned"),
        (SHORT_STRIDE, "must span the dim before"),
    ],
)
def test_faults_are_reported(which, message):
    with pytest.raises(RuntimeError, match=message):
        run(which)
