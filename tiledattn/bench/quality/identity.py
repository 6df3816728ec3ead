"""What decides a picture beside its setting, prompt and seeds: weights, scheduler, device, and what ran them."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from pathlib import Path
from typing import Any

from .. import environment

# Of the package: what only measures, prints or asks. `bench/quality/painting.py` and `settings.py` paint as well.
BESIDES = ("bench", "cli", "metrics")
PAINTING = ("bench/quality/painting.py", "bench/quality/settings.py")
LIBRARIES = ("torch", "diffusers", "transformers")


def identity(pipe: Any) -> dict[str, Any]:
    """Of a pipeline, JSON-ready.

    Returns:
        "weights" (a hash of all values of all its models: denoiser, VAE, text encoders), "parts" (its classes),
        "scheduler" (a hash of its configuration), "dtype" and "device" (its name).
    """
    import torch

    digest, parts, kinds = hashlib.sha256(), {}, set()
    for name, part in sorted(pipe.components.items()):
        parts[name] = type(part).__name__
        if isinstance(part, torch.nn.Module):
            for key, value in sorted(part.state_dict().items()):
                kinds.add(str(value.dtype).removeprefix("torch."))
                digest.update(f"{name} {key} {value.dtype} {tuple(value.shape)}".encode())
                digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    device = pipe.device
    scheduler = getattr(pipe, "scheduler", None)
    settings = json.dumps(dict(getattr(scheduler, "config", {})), sort_keys=True, default=str)
    return {
        "weights": digest.hexdigest()[:16],
        "parts": parts,
        "scheduler": hashlib.sha256(settings.encode()).hexdigest()[:16],
        "dtype": sorted(kinds),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else environment.cpu_name(),
    }


def made_by() -> dict[str, Any]:
    """What runs here: a hash of the sources that paint, the native library's, and the libraries' versions."""
    return {
        "sources": sources(environment.PACKAGE),
        "library": environment.library_hash(),
        "libraries": {name: _version(name) for name in LIBRARIES},
    }


def sources(package: Path) -> str:
    """A hash of the Python files of a package that decide pictures: all but those of `BESIDES`."""
    digest = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        name = path.relative_to(package).as_posix()
        if name.split("/")[0] not in BESIDES or name in PAINTING:
            digest.update(name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def _version(library: str) -> str | None:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return None
