"""What tiling itself takes of a denoiser step of SDXL's shapes: `python -m tiledattn.bench.machinery`.

A stub that returns its input stands for the UNet, so that what is timed is the hook alone: cutting the canvas,
repeating the conditioning, blending, and everything in between. What couplings cost inside a denoiser's layers (rings,
norms, attention across tiles, Python per torch call) is not in it: `end_to_end` has that. Before anything is timed the
stub's canvas must come back as it was, or the exit code is 1. A share that is too large is a line, and exits with 0.
The cold call comes after all plans and tables were forgotten, and makes the attention plans of the UNet's levels, too.
The step itself is timed on one tile and multiplied by the tiles: SDXL's own UNet with random weights (`--whole`, 12 GB
in float32, minutes on a CPU), or by default a UNet of the same levels with a quarter of the channels and 1, 2, 2
transformer layers, whose step is much shorter, so that the share is an upper bound.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import tiledattn as ta

from .denoisers import SDXL, SDXL_UNET
from .ways import DTYPES, NotOfferedError, random

TILE, GRID = 128, (2, 2)  # latents; a canvas of 2048 x 2048 pixels
HALO = TILE // 8  # as enable_tiling has it by default
LEVELS = (2, 4)  # how much coarser the levels with attention are
MOST_SHARE = 0.02
SMALLER = {
    **SDXL,
    "block_out_channels": (80, 160, 320),
    "transformer_layers_per_block": (1, 2, 2),
    "attention_head_dim": (2, 4, 8),
    "norm_num_groups": 16,
}
_TINY = {**SDXL, "block_out_channels": (8, 8, 8), "attention_head_dim": (1, 1, 1), "norm_num_groups": 4}
_PLANNING = ("tiledattn.geometry", "tiledattn.ops", "tiledattn.backends.tables", "tiledattn.backends.pytorch")


class Machinery(NamedTuple):
    """Seconds per denoiser step of the whole canvas: of the hook, cold and warm, and of the UNet on all tiles."""

    cold: float
    warm: float
    step: float
    of: str

    @property
    def share(self) -> float:
        """The warm hook's part of the step."""
        return self.warm / self.step


def stub_denoiser() -> nn.Module:
    """A `UNet2DConditionModel` with SDXL's levels whose forward returns the sample, tiled as by default.

    Raises:
        NotOfferedError: diffusers is missing.
    """
    try:
        from diffusers import UNet2DConditionModel

        import tiledattn.diffusers as td
    except ImportError as missing:
        raise NotOfferedError(f"{missing}: pip install 'tiledattn[diffusers]'") from None

    class Stub(UNet2DConditionModel):  # type: ignore[misc]
        def forward(self, sample: Tensor, timestep: Any, encoder_hidden_states: Tensor, **kwargs: Any) -> Any:
            return (sample,)

    Stub.__name__ = "UNet2DConditionModel"
    model: nn.Module = Stub(**_TINY).eval().requires_grad_(False)
    td.enable_tiling(model, tile=TILE, unit="latent")
    return model


def forget_plans() -> None:
    """Empties the caches of plans and tables, as in a process that has not seen the layout."""
    for name, module in list(sys.modules.items()):
        if name.startswith(_PLANNING):
            for function in list(vars(module).values()):
                cells = getattr(function, "__closure__", None) or ()
                for found in (function, *(cell.cell_contents for cell in cells)):
                    if callable(getattr(found, "cache_clear", None)):
                        found.cache_clear()


def make_plans(device: torch.device) -> None:
    """The attention plans of the levels, with the tables that backends read."""
    from tiledattn.backends.tables import attention_tables
    from tiledattn.geometry import attention_plan

    layout = ta.TileLayout(SDXL_UNET.canvas(GRID), TILE, 0)
    for factor in LEVELS:
        plan = attention_plan(layout.scaled(factor), (HALO // factor,) * 2, False)
        attention_tables(plan, device)


@torch.no_grad()
def measure(model: nn.Module, device: torch.device, dtype: torch.dtype, samples: int = 9, of: str = "") -> Machinery:
    """Times of the hook, and of `model` on one tile times the tiles.

    Args:
        model: a UNet that takes SDXL's arguments, untiled.
        samples: of the hook; the model is run once to warm up and once for its time.
        of: the model's name.
    """
    canvas = random((SDXL_UNET.batch, 4, *SDXL_UNET.canvas(GRID)), device, dtype, 0)
    stub = stub_denoiser().to(device)

    def hook() -> None:
        SDXL_UNET.step(stub, canvas)

    def cold() -> None:
        make_plans(device)
        hook()

    if not torch.allclose(SDXL_UNET.step(stub, canvas), canvas, atol=8 * torch.finfo(dtype).eps):
        raise ArithmeticError("the stub's canvas, cut and blended, is not what it was")
    colds = []
    for _ in range(min(samples, 5)):
        forget_plans()
        colds.append(_seconds(cold, device))
    hook()
    warm = statistics.median(_seconds(hook, device) for _ in range(samples))
    tile = canvas[..., :TILE, :TILE].contiguous()

    def once() -> None:
        SDXL_UNET.step(model, tile)

    once()  # a first call also finds its kernels and memory
    one = _seconds(once, device)
    return Machinery(statistics.median(colds), warm, one * GRID[0] * GRID[1], of)


def text(found: Machinery) -> str:
    """The figures, and whether they are as they must be."""
    verdict = "reached" if found.share <= MOST_SHARE else "missed"
    return (
        f"hook: {found.warm * 1e3:.2f} ms warm, {found.cold * 1e3:.2f} ms cold with its plans; step of {found.of} on "
        f"{GRID[0] * GRID[1]} tiles: {found.step:.3g} s; {verdict}: share {found.share:.4%}, at most {MOST_SHARE:.0%}"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures and prints; 1 for a hook that changes the canvas, 2 for a missing package, 0 whatever the share."""
    parser = argparse.ArgumentParser(
        prog="python -m tiledattn.bench.machinery", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--whole", action="store_true", help="SDXL's own UNet (random weights) instead of a quarter")
    parser.add_argument("--dtype", choices=[n for n in DTYPES if n != "tf32"], default="float32")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--samples", type=int, default=9, help="of the hook")
    options = parser.parse_args(arguments)
    device, dtype = torch.device(options.device), DTYPES[options.dtype]
    try:
        found = measure(_unet(options.whole, device, dtype), device, dtype, options.samples, _name(options.whole))
    except NotOfferedError as reason:
        print(f"machinery: {reason}", file=sys.stderr)
        return 2
    except ArithmeticError as reason:
        print(f"machinery: {reason}", file=sys.stderr)
        return 1
    print(text(found))
    return 0


def _unet(whole: bool, device: torch.device, dtype: torch.dtype) -> nn.Module:
    if whole:
        return SDXL_UNET.build(device, dtype)
    from dataclasses import replace

    from .denoisers import random_model

    return replace(SDXL_UNET, make=random_model("UNet2DConditionModel", SMALLER)).build(device, dtype)


def _name(whole: bool) -> str:
    return "SDXL's UNet" if whole else "a UNet with SDXL's levels and a quarter of its channels"


def _seconds(call: Callable[[], None], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    began = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began


if __name__ == "__main__":
    sys.exit(main())
