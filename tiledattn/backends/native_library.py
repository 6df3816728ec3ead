"""The native library of CPU and CUDA kernels: loaded once; nothing is compiled at import or later."""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path

import torch

INTERFACE = 4  # of the operators' schemas; the library says which one it was built with

_FOLDER = Path(__file__).resolve().parent.parent

NO_EXT_VARIABLE = "TILEDATTN_NO_EXT"  # 1: as if there were no library, at build time and at run time
LIBRARY_VARIABLE = "TILEDATTN_LIBRARY"  # another library than the package's own, such as one with sanitizers


def build_report() -> dict[str, object]:
    """What the build wrote down: `reason` why there is no library, or compiler, instruction sets and CUDA version."""
    try:
        found: dict[str, object] = json.loads((_FOLDER / "_build.json").read_text())
    except (OSError, ValueError):
        return {"reason": "it was not built; run `pip install .` or `make setup` in the source tree"}
    return found


def library_path() -> Path:
    """Where the library is looked for: the package's own, or the one that TILEDATTN_LIBRARY names."""
    return Path(os.environ.get(LIBRARY_VARIABLE) or _FOLDER / "_C.abi3.so")


@cache
def load() -> str | None:
    """Loads the library; None, or why it can't be used."""
    if os.environ.get(NO_EXT_VARIABLE) == "1":
        return f"switched off by {NO_EXT_VARIABLE}=1"
    library = library_path()
    if not library.is_file():
        return f"no native library: {build_report().get('reason') or f'{library} is missing'}"
    try:
        torch.ops.load_library(library)  # type: ignore[no-untyped-call]
        interface = torch.ops.tiledattn.native_interface()
    except (OSError, AttributeError, RuntimeError) as problem:
        return f"the native library can't be loaded: {problem}"
    if interface != INTERFACE:
        return "the native library was built from other sources than these; run `pip install .` or `make build` again"
    return None


def describe() -> dict[str, object]:
    """For `tiledattn doctor`: what the build wrote down, and the instruction set in use or why there is none."""
    reason = load()
    report = {**build_report(), "reason": reason}
    if reason is None:
        report["instruction_set"] = instruction_set()
        if report.get("cuda") or not report.get("cuda_reason"):  # what the build says is more, where nothing was built
            report["cuda_reason"] = torch.ops.tiledattn.native_cuda_reason() or None
    return report


def instruction_set(name: str = "") -> str:
    """The instruction set that kernels use; a name ("auto", "portable", "avx2", ...) chooses another."""
    chosen: str = torch.ops.tiledattn.native_instruction_set(name)
    return chosen
