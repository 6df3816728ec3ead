"""`tiledattn doctor`: versions, devices, and which backends can run here."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from typing import Annotated, Any

import typer

from .command import DebugOption, command

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


@command
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
    debug: DebugOption = False,
) -> None:
    """Print versions, devices, and each backend with the reason why it can't run here.

    [dim]Example: tiledattn doctor --json[/dim]
    """
    report = examine()
    if as_json:
        typer.echo(json.dumps(report, indent=2))
    else:
        _print(report)


def examine() -> dict[str, Any]:
    """What `doctor` reports, as JSON-ready values: versions, devices, backends, environment."""
    import torch

    from .. import __version__, backends
    from ..dispatch import ENVIRONMENT_VARIABLE

    return {
        "tiledattn": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: _version(name) for name in EXTRAS},
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
        "devices": _devices(),
        "backends": backends(),
        "automatic": _automatic(),
        "environment": {ENVIRONMENT_VARIABLE: os.environ.get(ENVIRONMENT_VARIABLE)},
    }


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


def _print(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    console.print(f"[bold]tiledattn {report['tiledattn']}[/bold]  Python {report['python']}, {report['platform']}")
    versions = Table(title="packages", title_justify="left", box=None, pad_edge=False, show_header=False)
    for name, version in report["packages"].items():
        missing = f"not installed: pip install 'tiledattn\\[{EXTRAS[name]}]'" if EXTRAS[name] else "not installed"
        versions.add_row(name, version or f"[yellow]{missing}[/yellow]")
    versions.add_row("CUDA of torch", report["cuda"] or "none")
    if report["hip"]:
        versions.add_row("ROCm of torch", report["hip"])
    console.print(versions)
    devices = Table(title="\ndevices", title_justify="left", box=None, pad_edge=False, show_header=False)
    for device in report["devices"]:
        facts = ", ".join(f"{k} {v}" for k, v in device.items() if k not in ("device", "name"))
        devices.add_row(device["device"], device["name"], facts)
    console.print(devices)
    found = Table(title="\nbackends", title_justify="left", box=None, pad_edge=False, show_header=False)
    for name, reason in report["backends"].items():
        found.add_row(name, "[green]runs here[/green]" if reason is None else f"[yellow]{reason}[/yellow]")
    console.print(found)
    automatic = Table(title="\nautomatic choice", title_justify="left", box=None, pad_edge=False, show_header=False)
    for device_name, by_dtype in report["automatic"].items():
        for dtype, choice in by_dtype.items():
            automatic.add_row(device_name, dtype, choice)
    console.print(automatic)
    console.print("\nwhich kernels have run on which GPUs: docs/backends.md")
    for name, value in report["environment"].items():
        console.print(f"{name} is {value or 'not set'}")
