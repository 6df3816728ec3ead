"""Device, versions, commit and date of a run, for its JSON."""

from __future__ import annotations

import datetime
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
NEEDED_ON_A_GPU = {
    "torch": "torch>=2.10",
    "triton": "triton>=3.6",
    "numpy": "numpy>=1.26",
    "pytest": "pytest>=8",
    "pytest_timeout": "pytest-timeout>=2.3",
    "hypothesis": "hypothesis>=6.100",
    "setuptools": "setuptools>=77",
}


def output_of(*command: str) -> str | None:
    """First words of what a command prints, or None where it is missing, fails or hangs."""
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20, cwd=ROOT)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def examine(device: str) -> dict[str, Any]:
    """What identifies a run on a device ("cpu" or "cuda"), as JSON-ready values."""
    import torch

    from tiledattn import __version__, backends
    from tiledattn.backends import native

    triton = None
    if find_spec("triton") is not None:
        import triton as package

        triton = package.__version__
    compiled = output_of(os.environ.get("NVCC", "nvcc"), "--version") or ""
    found = re.search(r"release (\S+),", compiled)
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "commit": os.environ.get("TILEDATTN_COMMIT")
        or output_of("git", "describe", "--always", "--dirty")
        or "unknown",
        "device": device,
        "device_name": torch.cuda.get_device_name() if device == "cuda" else cpu_name(),
        "threads": torch.get_num_threads(),
        "driver": output_of("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "triton": triton,
        "nvcc": found[1] if found else None,
        "tiledattn": __version__,
        "native": native.describe(),
        "backends": backends(),
    }


def cpu_name() -> str:
    """Architecture, vector units and number of cores: what the kernels' speed depends on."""
    flags: set[str] = set()
    if Path("/proc/cpuinfo").is_file():
        found = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), flags=re.MULTILINE)
        flags = set(found[1].split()) if found else set()
    names = {"avx2": "AVX2", "avx512f": "AVX-512", "avx512_bf16": "bfloat16", "amx_tile": "AMX"}
    known = [text for flag, text in names.items() if flag in flags]
    units = f" with {', '.join(known)}" if known else ""
    return f"{platform.machine()}{units}, {os.cpu_count()} cores"


def missing_for_a_gpu() -> list[str]:
    """What a run on a GPU lacks here, one line each; empty where nothing is missing."""
    lines = [f"{name}: pip install '{wanted}'" for name, wanted in NEEDED_ON_A_GPU.items() if find_spec(name) is None]
    if find_spec("torch") is not None:
        import torch

        if not torch.cuda.is_available():
            build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
            lines.append(f"a CUDA device: torch {torch.__version__} (built with {build}) sees none")
    return lines


def main() -> int:
    """Prints the environment as JSON; with "cuda", exit 1 and what is missing where a GPU run can't be made."""
    device = sys.argv[1] if len(sys.argv) > 1 else "cpu"
    missing = missing_for_a_gpu() if device == "cuda" else []
    for line in missing:
        print(f"missing: {line}", file=sys.stderr)
    if missing:
        return 1
    print(json.dumps(examine(device), indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
