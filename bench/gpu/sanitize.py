"""Runs every kernel once on small, awkward cases and checks the results: `python -m bench.gpu.sanitize`.

Meant to run under compute-sanitizer. Inputs are made on the CPU and results judged there, so that next to no kernels
but the package's own are watched.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

import tiledattn as ta
from tiledattn.bench.variants import SM90, TF32, missing_for_sm90, products, sm90_only, yardstick
from tiledattn.bench.ways import DTYPES, our_backends, random, relative_error

CPU = torch.device("cpu")
LAYOUT = ta.TileLayout((11, 26), (6, 13), (1, 0), (False, True))
BOXES = ta.TileLayout((4, 8, 48), (2, 8, 16), 0, (False, False, True))  # what the kernel for sm_90a takes
PREFIX = 3

Call = Callable[[torch.device, str, torch.dtype], Tensor]


def attention(
    head_dim: int,
    prefix: int,
    backward: bool = False,
    layout: ta.TileLayout = LAYOUT,
    halo: int | tuple[int, ...] = (2, 5),
) -> Call:
    """Grouped heads, a masked prefix, lse; or the gradients of all three."""
    shape = (layout.num_tiles, 1, prefix + layout.tile_positions)
    mask = random((*shape[:2], prefix), CPU, torch.float32, 5) > 0 if prefix else None

    def run(device: torch.device, backend: str, dtype: torch.dtype) -> Tensor:
        q, k, v = (
            numbers((*shape, heads, head_dim), heads).to(device, dtype).requires_grad_(backward) for heads in (2, 1, 1)
        )
        out, lse = ta.cross_tile_attention(
            *(q, k, v, layout, halo),
            num_prefix_tokens=prefix,
            prefix_mask=None if mask is None else mask.to(device),
            halo_weight=0.5,
            return_lse=True,
            backend=backend,
        )
        if backward:
            weights = numbers(out.shape, 7).to(device, dtype)
            return torch.cat([x.flatten().cpu().double() for x in torch.autograd.grad(out, (q, k, v), weights)])
        return torch.cat([out.flatten().cpu().double(), lse.flatten().cpu().double()])

    return run


def tiles(operation: str) -> Call:
    """One operation between canvas and tiles, odd sizes."""

    def run(device: torch.device, backend: str, dtype: torch.dtype) -> Tensor:
        canvas = numbers((1, 3, *LAYOUT.size), 1).to(device, dtype)
        batch = numbers((LAYOUT.num_tiles, 1, 3, *LAYOUT.tile), 2).to(device, dtype)
        if operation == "extract_tiles":
            found = ta.extract_tiles(canvas, LAYOUT, backend=backend)
        elif operation == "pad_tiles":
            found = ta.pad_tiles(batch, LAYOUT, (1, 2), backend=backend)
        else:
            found = ta.blend_tiles(batch, LAYOUT, backend=backend)
        return found.flatten().cpu().double()

    return run


def numbers(shape: Sequence[int], seed: int) -> Tensor:
    """What every precision holds exactly."""
    return random(shape, CPU, torch.bfloat16, seed).half()


def calls() -> Iterator[tuple[str, Call]]:
    """Every operation by name."""
    for dim, prefix in ((64, 0), (128, PREFIX), (40, PREFIX)):
        yield f"cross_tile_attention, D{dim} P{prefix}", attention(dim, prefix)
    yield "cross_tile_attention, gradients", attention(64, PREFIX, backward=True)
    for operation in ("extract_tiles", "blend_tiles", "pad_tiles"):
        yield operation, tiles(operation)


def calls_for_sm90() -> Iterator[tuple[str, Call]]:
    """Calls that the kernel for sm_90a takes."""
    for dim, prefix, halo in ((64, 0, (2, 0, 8)), (128, PREFIX, (1, 0, 4))):
        yield f"cross_tile_attention, boxes, D{dim} P{prefix}", attention(dim, prefix, layout=BOXES, halo=halo)


def cases(device: torch.device) -> Iterator[tuple[str, str, Call, str]]:
    """Backend, name, call and name of the dtype of all that runs on a device."""
    for backend in our_backends(device):
        if backend == "torch":
            continue
        for name, call in calls():
            for dtype in DTYPES:
                if dtype != TF32 or "attention" in name:
                    yield backend, name, call, dtype
    reason = missing_for_sm90(device)
    if reason is not None:
        print(f"{SM90}: left out: {reason}")
        return
    for name, call in calls_for_sm90():
        for dtype in ("bfloat16", "float16"):
            yield SM90, name, call, dtype


def check(name: str, call: Call, device: torch.device, backend: str, dtype: str) -> str | None:
    """None, or what is wrong: the budget is twice what the PyTorch backend errs, plus one rounding unit."""
    exact, precision = call(CPU, "reference", torch.float64), DTYPES[dtype]
    try:
        with products(dtype):
            if backend == SM90:
                with sm90_only():
                    found = call(device, "cuda", precision)
            else:
                found = call(device, backend, precision)
    except ta.BackendUnavailableError as reason:
        print(f"{backend}, {name}, {dtype}: left out: {reason}")
        return None
    error, plain = (relative_error(x, exact) for x in (found, call(CPU, "torch", yardstick(dtype) or precision)))
    allowed = 2 * plain + torch.finfo(precision).eps
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
    results = [check(name, call, device, backend, dtype) for backend, name, call, dtype in cases(device)]
    for line in filter(None, results):
        print(f"wrong: {line}", file=sys.stderr)
    if not results:
        print(f"no kernels run on {device}: {ta.backends()}", file=sys.stderr)
    return 1 if any(results) or not results else 0


if __name__ == "__main__":
    sys.exit(main())
