"""What the CUDA compiler made of the kernels, read from the objects of the last build."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import pytest

from tiledattn.backends import native_library

ROOT = Path(__file__).resolve().parents[2]


def built_with_cuda() -> bool:
    return native_library.load() is None and native_library.build_report().get("cuda") is not None


def cuobjdump() -> str | None:
    """NVIDIA's own, or the one that Triton's package carries."""
    found = shutil.which("cuobjdump")
    spec = find_spec("triton")
    if found is None and spec is not None and spec.origin:
        beside = Path(spec.origin).parent / "backends/nvidia/bin/cuobjdump"
        found = str(beside) if beside.is_file() else None
    return found


def read_object(name: str, *options: str) -> str:
    """What cuobjdump says of the object of csrc/cuda/`name`.cu; skips the test where there is none."""
    if not built_with_cuda():
        pytest.skip("the native library was built without CUDA")
    tool = cuobjdump()
    path = next(iter(ROOT.glob(f"build/native-*/cuda.{name}.o")), None)
    if tool is None or path is None:
        pytest.skip("no cuobjdump, or the library was not built in this folder")
    environment = {**os.environ, "PATH": f"{Path(tool).parent}:{os.environ['PATH']}"}
    done = subprocess.run([tool, *options, path], capture_output=True, text=True, check=True, env=environment)
    return done.stdout


class Usage(NamedTuple):
    """A kernel's registers, and bytes of stack (what was spilled lies there) and of local memory."""

    architecture: str
    function: str
    registers: int
    stack: int
    local: int


def by_architecture(text: str) -> list[tuple[str, str]]:
    """(architecture, what is said of it) of every part of cuobjdump's output; an architecture may have several."""
    parts = re.split(r"\narch = (\w+)\n", text)
    return list(zip(parts[1::2], parts[2::2], strict=True))


def usage(name: str) -> list[Usage]:
    """Of every kernel and architecture."""
    return [
        Usage(architecture, function, *map(int, numbers))
        for architecture, text in by_architecture(read_object(name, "--dump-resource-usage"))
        for function, *numbers in re.findall(r"Function (\S+):\s+REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", text)
    ]


def machine_code(name: str) -> dict[tuple[str, str], str]:
    """The instructions by (architecture, kernel)."""
    return instructions(read_object(name, "-sass"))


def instructions(text: str) -> dict[tuple[str, str], str]:
    """Those that cuobjdump lists, by (architecture, kernel)."""
    return {
        (architecture, part.split(maxsplit=1)[0]): part
        for architecture, code in by_architecture(text)
        for part in re.split(r"\n\s*Function : ", code)[1:]
    }
