"""Runs every kernel once on small, awkward cases and checks the results: `python -m bench.gpu.sanitize`.

Meant to run under compute-sanitizer. Inputs are made on the CPU and results judged there, so that next to no kernels
but the package's own are watched.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

import tiledattn as ta
from bench.ways import DTYPES, our_backends, random, relative_error

CPU = torch.device("cpu")
LAYOUT = ta.TileLayout((11, 26), (6, 13), (1, 0), (False, True))
PREFIX = 3

Call = Callable[[torch.device, str, torch.dtype], Tensor]


def attention(head_dim: int, prefix: int, backward: bool = False) -> Call:
    """Grouped heads, a masked prefix, lse; or the gradients of all three."""
    layout = LAYOUT
    shape = (layout.num_tiles, 1, prefix + layout.tile_positions)
    mask = random((*shape[:2], prefix), CPU, torch.float32, 5) > 0 if prefix else None

    def run(device: torch.device, backend: str, dtype: torch.dtype) -> Tensor:
        q, k, v = (
            random((*shape, heads, head_dim), CPU, torch.bfloat16, heads).to(device, dtype).requires_grad_(backward)
            for heads in (2, 1, 1)
        )
        out, lse = ta.cross_tile_attention(
            *(q, k, v, layout, (2, 5)),
            num_prefix_tokens=prefix,
            prefix_mask=None if mask is None else mask.to(device),
            halo_weight=0.5,
            return_lse=True,
            backend=backend,
        )
        if backward:
            weights = random(out.shape, CPU, torch.bfloat16, 7).to(device, dtype)
            return torch.cat([x.flatten().cpu().double() for x in torch.autograd.grad(out, (q, k, v), weights)])
        return torch.cat([out.flatten().cpu().double(), lse.flatten().cpu().double()])

    return run


def tiles(operation: str) -> Call:
    """One operation between canvas and tiles, odd sizes."""

    def run(device: torch.device, backend: str, dtype: torch.dtype) -> Tensor:
        canvas = random((1, 3, *LAYOUT.size), CPU, torch.bfloat16, 1).to(device, dtype)
        batch = random((LAYOUT.num_tiles, 1, 3, *LAYOUT.tile), CPU, torch.bfloat16, 2).to(device, dtype)
        if operation == "extract_tiles":
            found = ta.extract_tiles(canvas, LAYOUT, backend=backend)
        elif operation == "pad_tiles":
            found = ta.pad_tiles(batch, LAYOUT, (1, 2), backend=backend)
        else:
            found = ta.blend_tiles(batch, LAYOUT, backend=backend)
        return found.flatten().cpu().double()

    return run


def calls() -> Iterator[tuple[str, Call]]:
    """Every operation by name."""
    for dim, prefix in ((64, 0), (128, PREFIX), (40, PREFIX)):
        yield f"cross_tile_attention, D{dim} P{prefix}", attention(dim, prefix)
    yield "cross_tile_attention, gradients", attention(64, PREFIX, backward=True)
    for operation in ("extract_tiles", "blend_tiles", "pad_tiles"):
        yield operation, tiles(operation)


def check(name: str, call: Call, device: torch.device, backend: str, dtype: torch.dtype) -> str | None:
    """None, or what is wrong: the budget is twice what the PyTorch backend errs, plus one rounding unit."""
    exact = call(CPU, "reference", torch.float64)
    try:
        found = call(device, backend, dtype)
    except ta.BackendUnavailableError as reason:
        print(f"{backend}, {name}, {dtype}: left out: {reason}")
        return None
    error, plain = (relative_error(x, exact) for x in (found, call(CPU, "torch", dtype)))
    allowed = 2 * plain + torch.finfo(dtype).eps
    print(f"{backend}, {name}, {dtype}: error {error:.1e} of {allowed:.1e}", flush=True)
    return None if error <= allowed else f"{backend}, {name}, {dtype}: error {error:.2e}, allowed {allowed:.2e}"


def main() -> int:
    """Exit status 1 where a result is wrong."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu.sanitize", description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--nothing", action="store_true", help="only touch the device")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    if arguments.nothing:
        torch.ones(1).to(device).cpu()
        return 0
    backends = [name for name in our_backends(device) if name != "torch"]
    wrong = [
        check(name, call, device, backend, dtype)
        for backend in backends
        for name, call in calls()
        for dtype in DTYPES.values()
    ]
    for line in filter(None, wrong):
        print(f"wrong: {line}", file=sys.stderr)
    if not backends:
        print(f"no kernels run on {device}: {ta.backends()}", file=sys.stderr)
    return 1 if any(wrong) or not backends else 0


if __name__ == "__main__":
    sys.exit(main())
