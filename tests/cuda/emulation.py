"""Compiles a CUDA kernel's source with the emulator beside this file, so that it runs on a CPU.

The library is kept under build/emulator by the contents of what it is made of.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import os
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CSRC = ROOT / "csrc"


@cache
def emulated(source: str) -> ctypes.CDLL:
    """The library made of tests/cuda/`source`; skips the test where there is no compiler."""
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("no C++ compiler")
    inputs = [HERE / source, *sorted((HERE / "emulator").glob("*.h")), *sorted(CSRC.rglob("*.cuh"))]
    inputs += sorted(CSRC.rglob("*.h"))
    contents = hashlib.sha256(b"".join(path.read_bytes() for path in inputs)).hexdigest()[:16]
    library = ROOT / "build" / "emulator" / f"{Path(source).stem}-{contents}.so"
    library.parent.mkdir(parents=True, exist_ok=True)
    with library.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # test processes at the same time compile it once
        if not library.is_file():
            _compile(compiler, source, library)
    return ctypes.CDLL(str(library))


def _compile(compiler: str, source: str, library: Path) -> None:
    """Leaves a whole library behind, or none."""
    made = library.with_suffix(f".{os.getpid()}")
    flags = ["-std=c++17", "-O2", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas"]
    include = [f"-I{path}" for path in (CSRC, CSRC / "include", HERE)]
    done = subprocess.run(
        [compiler, *flags, *include, str(HERE / source), "-o", str(made)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    made.rename(library)


def call(function: ctypes._CFuncPtr, *arguments: object) -> None:
    """Calls a function that ends in (char* error, int room) and returns 0.

    Raises:
        RuntimeError: what the emulated kernel did wrong.
    """
    error = ctypes.create_string_buffer(400)
    if function(*arguments, error, len(error)):
        raise RuntimeError(error.value.decode())
