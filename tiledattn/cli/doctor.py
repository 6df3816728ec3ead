"""`tiledattn doctor`: versions, devices, and which backends can run here."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from collections.abc import Sequence
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

    The exit code is 1 where TILEDATTN_BACKEND names one that can't run here.

    [dim]Example: tiledattn doctor --json[/dim]
    """
    report = examine()
    if as_json:
        typer.echo(json.dumps(report, indent=2))
    else:
        _print(report)
    if report["problems"]:
        raise typer.Exit(1)


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


def _print(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.markup import escape

    console = Console(highlight=False)
    about = escape(f"Python {report['python']}, {report['platform']}")
    console.print(f"[bold]tiledattn {escape(report['tiledattn'])}[/bold]  {about}")
    versions = [(escape(name), _shown(name, version)) for name, version in report["packages"].items()]
    versions += [("CUDA of torch", escape(report["cuda"] or "none"))]
    versions += [("ROCm of torch", escape(report["hip"]))] if report["hip"] else []
    _print_table(console, "packages", versions)
    devices = []
    for device in report["devices"]:
        facts = ", ".join(f"{key} {value}" for key, value in device.items() if key not in ("device", "name"))
        devices.append((escape(device["device"]), escape(device["name"]), escape(facts)))
    _print_table(console, "\ndevices", devices)
    backends = [
        (escape(name), "[green]runs here[/green]" if reason is None else f"[yellow]{escape(reason)}[/yellow]")
        for name, reason in report["backends"].items()
    ]
    _print_table(console, "\nbackends", backends)
    checked = [
        (escape(name), escape("; ".join(devices) or "no real GPU yet; `auto` checks it on each device first"))
        for name, devices in report["checked_on"].items()
    ]
    _print_table(console, "\nwhat their results were checked on", checked)
    _print_table(console, "\nnative library", [(name, escape(fact)) for name, fact in _native(report["native"])])
    automatic = [
        (escape(device), escape(dtype), escape(choice))
        for device, by_dtype in report["automatic"].items()
        for dtype, choice in by_dtype.items()
    ]
    _print_table(console, "\nautomatic choice for attention of head dim 64", automatic)
    console.print()
    for name, value in report["environment"].items():
        console.print(escape(f"{name} is {value or 'not set'}"))
    for problem in report["problems"]:
        console.print(f"[red]{escape(problem)}[/red]", soft_wrap=True)


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


def _shown(package: str, version: str | None) -> str:
    """A package's version, or how to get it, as rich markup."""
    from rich.markup import escape

    if version is not None:
        return escape(version)
    extra = EXTRAS[package]
    missing = f"not installed: pip install 'tiledattn[{extra}]'" if extra else "not installed"
    return f"[yellow]{escape(missing)}[/yellow]"


def _print_table(console: Any, title: str, rows: Sequence[tuple[str, ...]]) -> None:
    """Rows of rich markup under a title."""
    from rich.table import Table

    table = Table(title=title, title_justify="left", box=None, pad_edge=False, show_header=False)
    for row in rows:
        table.add_row(*row)
    console.print(table)
