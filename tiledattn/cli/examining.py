"""What `tiledattn doctor` finds out, and how it reads without colours: works where nothing but torch and numpy is."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from typing import Any

EXTRAS = {
    "numpy": None,
    "torch": None,
    "triton": None,
    "diffusers": "diffusers",
    "transformers": "diffusers",
    "accelerate": "diffusers",
    "safetensors": "diffusers",
    "peft": "diffusers",
    "matplotlib": "cli",
    "pillow": "cli",
}


RUNS, MISSING = "runs here", "not installed"


def examine() -> dict[str, Any]:
    """What `doctor` reports, as JSON-ready values: versions, devices, backends, environment, problems."""
    import torch

    from .. import __version__, backends
    from ..backends import native
    from ..backends.cuda_attention import SM90_VARIABLE
    from ..backends.native_library import LIBRARY_VARIABLE, NO_EXT_VARIABLE
    from ..dispatch import ENVIRONMENT_VARIABLE, capabilities

    known, asked = backends(), os.environ.get(ENVIRONMENT_VARIABLE)
    optional = (NO_EXT_VARIABLE, LIBRARY_VARIABLE, SM90_VARIABLE)
    return {
        "tiledattn": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in EXTRAS},
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
        "devices": _devices(),
        "backends": known,
        "checked_on": {backend.name: list(backend.proven_on) for backend in capabilities()},
        "native": native.describe(),
        "automatic": _automatic(),
        "environment": {
            ENVIRONMENT_VARIABLE: asked,
            **{name: os.environ[name] for name in optional if name in os.environ},
        },
        "problems": _problems(asked, known),
    }


def _problems(asked: str | None, known: dict[str, str | None]) -> list[str]:
    """What is wrong with the backend that the environment asks for, by why each known one can't run here."""
    from ..dispatch import ENVIRONMENT_VARIABLE

    if not asked or asked == "auto":
        return []
    if asked not in known:
        why = f"which isn't known; known are auto, {', '.join(known)}"
    elif known[asked] is not None:
        why = f"which can't run here: {known[asked]}"
    else:
        return []
    return [f"{ENVIRONMENT_VARIABLE} is {asked}, {why}; calls that say auto will raise"]


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _devices() -> list[dict[str, Any]]:
    import torch

    devices: list[dict[str, Any]] = [
        {"device": "cpu", "name": platform.processor() or platform.machine(), "threads": torch.get_num_threads()}
    ]
    for index in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(index)
        devices.append(
            {
                "device": f"cuda:{index}",
                "name": facts.name,
                "capability": f"{facts.major}.{facts.minor}",
                "memory_gib": round(facts.total_memory / 2**30, 1),
            }
        )
    for index in range(torch.xpu.device_count()):
        devices.append({"device": f"xpu:{index}", "name": torch.xpu.get_device_name(index)})
    return devices


def _automatic() -> dict[str, dict[str, str]]:
    """Per device and dtype, the backend that "auto" takes for attention, and why others are passed over."""
    import torch

    from ..dispatch import explain

    chosen: dict[str, dict[str, str]] = {}
    for device in _devices():
        name = device["device"]
        dtypes = (torch.float32,) if name == "cpu" else (torch.float32, torch.float16, torch.bfloat16)
        chosen[name] = {}
        for dtype in dtypes:
            reasons = explain("cross_tile_attention", torch.device(name), dtype, 64)
            taken = next((backend for backend, reason in reasons.items() if reason is None), "none")
            passed = [f"{backend}: {why}" for backend, why in reasons.items() if why is not None]
            label = str(dtype).removeprefix("torch.")
            if taken not in ("torch", "none"):
                taken += ", whose self-check passed on this device"
            chosen[name][label] = taken + (f" (passed over {'; '.join(passed)})" if passed else "")
    return chosen


def _native(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """What there is to say of the native library; first, if it isn't used, why not."""
    reason, rows = facts["reason"], []
    if reason is not None:
        rows.append(("not used", reason))
    if "compiler" not in facts:
        return rows
    in_use = f"{facts['instruction_set']} in use, of " if "instruction_set" in facts else ""
    cuda = f"CUDA {facts['cuda']}, for {', '.join(facts['cuda_architectures'])}" if facts.get("cuda") else "none"
    if facts["cuda_reason"]:
        cuda += f" ({facts['cuda_reason']})"
    return [
        *rows,
        ("CPU kernels", in_use + ", ".join(facts["instruction_sets"])),
        ("CUDA kernels", cuda),
        ("built by", facts["compiler"]),
    ]


Section = tuple[str, list[tuple[str, ...]]]


def sections(report: dict[str, Any]) -> list[Section]:
    """The report's tables: titles, and rows of plain text."""
    versions = [(name, version or _how_to_get(name)) for name, version in report["packages"].items()]
    versions += [("CUDA of torch", report["cuda"] or "none")]
    versions += [("ROCm of torch", report["hip"])] if report["hip"] else []
    devices = [
        (
            device["device"],
            device["name"],
            ", ".join(f"{key} {value}" for key, value in device.items() if key not in ("device", "name")),
        )
        for device in report["devices"]
    ]
    unproven = "no real GPU yet; `auto` checks it on each device first"
    return [
        ("packages", [*versions]),
        ("devices", [*devices]),
        ("backends", [(name, RUNS if reason is None else reason) for name, reason in report["backends"].items()]),
        (
            "what their results were checked on",
            [(name, "; ".join(places) or unproven) for name, places in report["checked_on"].items()],
        ),
        ("native library", [*_native(report["native"])]),
        (
            "automatic choice for attention of head dim 64",
            [
                (device, dtype, choice)
                for device, by_dtype in report["automatic"].items()
                for dtype, choice in by_dtype.items()
            ],
        ),
    ]


def headline(report: dict[str, Any]) -> tuple[str, str]:
    """The package with its version, and what it runs on."""
    return f"tiledattn {report['tiledattn']}", f"Python {report['python']}, {report['platform']}"


def remarks(report: dict[str, Any]) -> list[str]:
    """What the environment asks for, a line each."""
    return [f"{name} is {value or 'not set'}" for name, value in report["environment"].items()]


def plain_doctor(as_json: bool) -> int:
    """Prints the report without any package of the command line; the exit code."""
    report = examine()
    print(json.dumps(report, indent=2) if as_json else _as_text(report))
    return 1 if report["problems"] else 0


def _as_text(report: dict[str, Any]) -> str:
    lines = ["  ".join(headline(report))]
    for title, rows in sections(report):
        lines += ["", title]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines += [
            "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
        ]
    return "\n".join([*lines, "", *remarks(report), *report["problems"]])


def _how_to_get(package: str) -> str:
    extra = EXTRAS[package]
    return f"{MISSING}: pip install 'tiledattn[{extra}]'" if extra else MISSING
