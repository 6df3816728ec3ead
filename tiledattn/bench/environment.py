"""Device, versions, commit and date of a run, for its JSON."""

from __future__ import annotations

import datetime
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from contextlib import suppress
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

PACKAGE = Path(__file__).resolve().parents[1]
ROOT = PACKAGE.parent
NEEDED = {
    "torch": "torch>=2.10",
    "numpy": "numpy>=1.26",
    "pytest": "pytest>=8",
    "pytest_timeout": "pytest-timeout>=2.3",
    "hypothesis": "hypothesis>=6.100",
    "setuptools": "setuptools>=77",
}
CPU_INFO, HUGE_PAGES = Path("/proc/cpuinfo"), Path("/sys/kernel/mm/transparent_hugepage/enabled")
PEERS = (
    *("diffusers", "transformers", "monai", "pytorch-toolbelt", "opencv-python-headless", "opencv-python"),
    *("natten", "flash-attn", "numpy"),
)
NEEDED_ON_A_GPU = {**NEEDED, "triton": "triton>=3.6"}


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
    from tiledattn.backends.cuda_attention import SM90_VARIABLE

    cudnn: Any = torch.backends.cudnn  # its functions have no types
    triton = None
    if find_spec("triton") is not None:
        import triton as package

        triton = package.__version__
    compiled = output_of(os.environ.get("NVCC", "nvcc"), "--version") or ""
    found = re.search(r"release (\S+),", compiled)
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "commit": commit(),
        "device": device,
        "device_name": torch.cuda.get_device_name() if device == "cuda" else cpu_name(),
        "cpu_model": cpu_model(),
        "kernel": platform.release(),
        "huge_pages": huge_pages(),
        "threads": torch.get_num_threads(),
        "driver": output_of("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "cudnn": cudnn.version(),
        "triton": triton,
        "nvcc": found[1] if found else None,
        "packages": packages(),
        "tiledattn": __version__,
        "native": native.describe(),
        "library": library_hash(),
        "sm90": os.environ.get(SM90_VARIABLE),
        "backends": backends(),
    }


def commit() -> str:
    """What names the sources: the commit, with a hash of the package's files where they differ or none is known.

    TILEDATTN_COMMIT stands for it where it is set.
    """
    described = output_of("git", "describe", "--always", "--dirty") if (ROOT / ".git").exists() else None
    named = os.environ.get("TILEDATTN_COMMIT") or described or "sources"
    if named != "sources" and not named.endswith("-dirty"):
        return named
    digest = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        digest.update(path.relative_to(PACKAGE).as_posix().encode() + b"\0" + path.read_bytes())
    return f"{named}-{digest.hexdigest()[:12]}"


def library_hash() -> str | None:
    """First digits of the SHA-256 of the native library in use: two builds of one commit differ. None without one."""
    from tiledattn.backends import native_library

    if native_library.load() is not None:
        return None
    return hashlib.sha256(native_library.library_path().read_bytes()).hexdigest()[:12]


def cpu_name() -> str:
    """Architecture, generation, vector units and number of cores: what the kernels' speed depends on."""
    flags = set((_of_cpu("flags") or "").split())
    names = {"avx2": "AVX2", "avx512f": "AVX-512", "avx512_bf16": "bfloat16", "amx_tile": "AMX"}
    known = [text for flag, text in names.items() if flag in flags]
    units = f" with {', '.join(known)}" if known else ""
    vendor, family, model = (_of_cpu(field) for field in ("vendor_id", "cpu family", "model"))
    maker = {"AuthenticAMD": "AMD", "GenuineIntel": "Intel"}.get(vendor or "", vendor)
    generation = f" ({maker}, family {family}, model {model})" if maker and family and model else ""
    return f"{platform.machine()}{generation}{units}, {os.cpu_count()} cores"


def cpu_model() -> str | None:
    """Name, vendor, family and model of the first core as the system has them; None where it says nothing."""
    name = _of_cpu("model name") or platform.processor() or None
    numbers = [_of_cpu(field) for field in ("vendor_id", "cpu family", "model")]
    return f"{name} ({', '.join(filter(None, numbers))})" if name and any(numbers) else name


def _of_cpu(field: str) -> str | None:
    if not CPU_INFO.is_file():
        return None
    found = re.search(rf"^{field}[ \t]*:(.*)$", CPU_INFO.read_text(), flags=re.MULTILINE)
    return found[1].strip() if found else None


def huge_pages(source: Path = HUGE_PAGES) -> str | None:
    """Where the kernel backs memory with huge pages by itself: "always", "madvise" or "never"; None where unknown."""
    found = re.search(r"\[(\w+)\]", source.read_text()) if source.is_file() else None
    return found[1] if found else None


def load() -> float | None:
    """Processes that wanted a core in the last minute, on average; None where the system doesn't count them."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def packages() -> dict[str, str]:
    """Versions of the peers' packages that are installed."""
    found = {}
    for name in PEERS:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def missing_for(device: str) -> list[str]:
    """What a run on a device ("cpu" or "cuda") lacks here, one line each; empty where nothing is missing."""
    needed = NEEDED_ON_A_GPU if device == "cuda" else NEEDED
    lines = [f"{name}: pip install '{wanted}'" for name, wanted in needed.items() if find_spec(name) is None]
    if device == "cuda" and find_spec("torch") is not None:
        import torch

        if not torch.cuda.is_available():
            build = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA"
            lines.append(f"a CUDA device: torch {torch.__version__} (built with {build}) sees none")
    return lines


def main() -> int:
    """Prints the environment as JSON ("--missing" first: nothing); exit 1 and a list where something is missing."""
    words = sys.argv[1:]
    only_missing = words[:1] == ["--missing"]
    device = (words[only_missing:] or ["cpu"])[0]
    missing = missing_for(device)
    if missing:
        print(f"with {sys.executable} (set PYTHON to change it):", file=sys.stderr)
    for line in missing:
        print(f"missing: {line}", file=sys.stderr)
    if missing or only_missing:
        return 1 if missing else 0
    print(json.dumps(examine(device), indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
