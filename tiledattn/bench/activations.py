"""How much memory a denoiser step of a large canvas holds at once: `python -m tiledattn.bench.activations`.

Counted, not measured: the step runs on fake tensors, which have a shape and no memory, and every tensor that lives at
the same time as others counts, beside the weights. Layers run as they do on a GPU. What kernels take for themselves,
what an allocator loses between tensors, and the VAE come on top; attention is a kernel that keeps no scores. Guidance,
where the model has it, is two rows of one batch. The number of layers doesn't matter but for a UNet's skips: nothing is
kept for gradients.
"""

from __future__ import annotations

import argparse
import sys
import weakref
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .denoisers import FLUX_DIT, SDXL_UNET, Denoiser
from .notes import Note
from .tables import Cell, Table, bytes_text
from .ways import NotOfferedError

DTYPE = torch.bfloat16
NATIVE = 1024  # pixels a side of a tile of SDXL and Flux.1
GRIDS = (1, 2, 4, 8)  # tiles a side
MODELS = {"SDXL": SDXL_UNET, "Flux.1": FLUX_DIT}


class Held(NamedTuple):
    """Bytes of a model's weights, and of the tensors that a step holds at its peak beside them."""

    weights: int
    activations: int


class PeakBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what the tensors that operations return hold at the same time, each storage once.

    Args:
        known: tensors whose storages don't count.

    Attributes:
        now: bytes held at present.
        peak: the most so far.
    """

    def __init__(self, known: Iterable[Tensor] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._held: dict[int, int] = {x.untyped_storage()._cdata: 0 for x in known}

    def __torch_dispatch__(
        self, op: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        found = op(*args, **(kwargs or {}))
        for x in tree_leaves(found):
            if isinstance(x, Tensor):
                self._add(x)
        return found

    def _add(self, x: Tensor) -> None:
        storage = x.untyped_storage()
        key = storage._cdata
        if key in self._held:
            return
        self._held[key] = storage.nbytes()
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._drop, key)

    def _drop(self, key: int) -> None:
        self.now -= self._held.pop(key)


def made_up(denoiser: Denoiser, dtype: torch.dtype = DTYPE) -> tuple[nn.Module, FakeTensorMode]:
    """A denoiser whose weights have no memory, and the mode in which its inputs are to be made.

    Raises:
        NotOfferedError: diffusers is missing.
    """
    mode, before = FakeTensorMode(allow_non_fake_inputs=True), torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with mode:
            return denoiser.make().eval().requires_grad_(False), mode
    except ImportError as missing:
        raise NotOfferedError(f"{missing}: pip install 'tiledattn[diffusers]'") from None
    finally:
        torch.set_default_dtype(before)


@torch.no_grad()
def held(denoiser: Denoiser, grid: int, tiled: bool, dtype: torch.dtype = DTYPE) -> Held:
    """What a step of `grid` x `grid` native tiles holds, tiled as by default or untiled.

    Raises:
        NotOfferedError: diffusers is missing.
    """
    model, mode = made_up(denoiser, dtype)
    if tiled:
        import tiledattn.diffusers as td

        tiling = td.enable_tiling(model, tile=denoiser.tile, unit="latent")
        tiling._grouped.remove(model)  # which is for CPUs
    with mode:
        canvas = torch.empty(denoiser.batch, denoiser.channels, *denoiser.canvas((grid, grid)), dtype=dtype)
    weights = [*model.parameters(), *model.buffers()]
    with PeakBytes(weights) as count:
        denoiser.step(model, canvas)
    return Held(sum(x.nbytes for x in weights), count.peak)


def table(name: str, denoiser: Denoiser, grids: Sequence[int] = GRIDS) -> Table:
    """A row for every square canvas of so many tiles a side."""
    rows = []
    for grid in grids:
        ours, whole = (held(denoiser, grid, tiled) for tiled in (True, False))
        texts = [f"{NATIVE * grid:,}²", f"{grid**2:,}", bytes_text(ours.weights)]
        texts += [bytes_text(ours.activations), bytes_text(ours.weights + ours.activations)]
        rows.append([Cell(text) for text in [*texts, bytes_text(whole.activations)]])
    head = ["canvas", "tiles", "weights", "activations, tiled", "together", "activations, untiled"]
    note = (
        f"{name}, {'two rows for guidance' if denoiser.batch == 2 else 'one row'}, bfloat16, tiles of {NATIVE} pixels "
        "without overlap, the default halo. Beside it: kernels' scratch memory, the allocator's gaps, the VAE and the "
        "text encoders. Untiled with attention that keeps no scores."
    )
    return Table(name, head, rows, [Note(note)])


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the tables; 2 for a missing package."""
    parser = argparse.ArgumentParser(
        prog="python -m tiledattn.bench.activations",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--grids", type=int, nargs="+", default=GRIDS, metavar="N", help="tiles a side: 1 2 4 8")
    parser.add_argument("--model", choices=list(MODELS), action="append", help="one of them, may be repeated")
    options = parser.parse_args(arguments)
    if min(options.grids) < 1:
        parser.error(f"--grids: got {min(options.grids)}; a canvas has at least 1 tile a side")
    from .report import lines_of

    for name in options.model or MODELS:
        try:
            made = table(name, MODELS[name], options.grids)
        except NotOfferedError as reason:
            print(f"activations: {reason}", file=sys.stderr)
            return 2
        print("\n".join([f"{name}:", "", *lines_of(made)]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
