"""`tiledattn demo`: wide panoramas tiled alone, blended and coupled, side by side and measured."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from ..files import whole_file
from .command import SHIPPED_GUIDANCE, DebugOption, command
from .methods import METHODS, PROMPTS, Method, Painted
from .pipelines import cpu_threads, load_pipeline, paint, progress_bar, save_picture


@command
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write to.")] = Path("tiledattn-demo"),
    model: Annotated[
        str | None, typer.Option(help="Directory or hub id of a Stable Diffusion; default the shipped small one.")
    ] = None,
    prompt: Annotated[
        list[str] | None, typer.Option("--prompt", "-p", help="What to paint, once or more; default four materials.")
    ] = None,
    tiles: Annotated[int, typer.Option(min=4, help="Width of the panoramas in native tiles.")] = 6,
    seeds: Annotated[int, typer.Option(min=1, help="Pictures per prompt and method, for the intervals.")] = 4,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the first picture; it is the one that is saved.")] = 0,
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps.")] = 20,
    guidance: Annotated[float, typer.Option(help="Guidance scale.")] = SHIPPED_GUIDANCE,
    dtype: Annotated[str, typer.Option(help="auto, float32, float16 or bfloat16.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    threads: Annotated[
        int, typer.Option(min=1, help="CPU threads; models as small as the shipped one are quickest on one.")
    ] = 1,
    debug: DebugOption = False,
) -> None:
    """Paint wrapped panorama strips three ways from one seed, and measure their seams.

    Tiles alone; tiles blended over 25% and 50% overlap, as MultiDiffusion does; coupled tiles without overlap.

    Writes every picture, a comparison sheet and the figures; prints a table.

    [dim]Example: tiledattn demo --out build/demo[/dim]
    """
    from .report import measure, print_table, summary
    from .sheet import draw_sheet

    begin = time.perf_counter()
    pipe = load_pipeline(model, device, dtype)
    prompts = PROMPTS if not prompt else {_short(text): text for text in prompt}
    settings = {"num_inference_steps": steps, "guidance_scale": guidance}
    with cpu_threads(threads), progress_bar() as bar:
        task = bar.add_task("painting", total=steps * len(METHODS) * len(prompts))

        def advance(method: Method, name: str) -> None:
            bar.update(task, advance=1, description=f"{name}, {method.name}")

        painted = paint_all(pipe, prompts, tiles, seed, seeds, advance, **settings)
    for one in painted:
        save_picture(to_pil(one.pictures[0]), out / f"{one.prompt}-{one.method.key}.png")
    rows = [measure([one for one in painted if one.method is method]) for method in METHODS]
    with whole_file(out / "figures.json") as temporary:
        temporary.write_text(json.dumps([row.as_dict() for row in rows], indent=2) + "\n")
    draw_sheet(painted, rows, out / "sheet.png")
    print_table(rows)
    typer.echo(summary(painted, steps, time.perf_counter() - begin))
    typer.echo(f"{out / 'sheet.png'}: all of it on one sheet; the pictures and figures.json lie beside it")


def paint_all(
    pipe: Any,
    prompts: dict[str, str],
    tiles: int,
    seed: int,
    count: int,
    advance: Callable[[Method, str], None],
    **settings: Any,
) -> list[Painted]:
    """Every prompt by every method, all of its pictures in one call of the pipeline.

    Args:
        pipe: a Stable Diffusion pipeline.
        prompts: short name to prompt.
        tiles: width of the panoramas in native tiles.
        seed: of the first picture; all pictures of all prompts start from noise of their own, which the methods
            share.
        count: pictures per prompt and method.
        advance: called after each denoising step.
        settings: further arguments of the pipeline.
    """
    painted = []
    for place, (name, text) in enumerate(prompts.items()):
        own = [place * count + seed + k for k in range(count)]
        for method in METHODS:
            step_done = partial(advance, method, name)
            painted.append(paint_one(pipe, method, name, text, tiles, own, step_done, **settings))
    return painted


def paint_one(
    pipe: Any,
    method: Method,
    name: str,
    text: str,
    tiles: int,
    seeds: Sequence[int],
    advance: Callable[[], None],
    **settings: Any,
) -> Painted:
    """One prompt by one method; the pipeline is left as it was."""
    import torch

    from ..diffusers import enable_tiling
    from ..geometry import TileLayout
    from ..metrics import overlap_disagreement

    native = native_size(pipe)
    disagreement: list[float] = []

    def look(predictions: Any, layout: TileLayout, _step: int) -> None:
        disagreement.append(overlap_disagreement(predictions, layout))

    with enable_tiling(pipe, tile=native, wrap=(False, True), **method.options(native)) as handle:
        if method.overlap:
            handle.on_tiles = look
        begin = time.perf_counter()
        output = paint(
            pipe,
            advance,
            prompt=text,
            height=native,
            width=native * tiles,
            num_images_per_prompt=len(seeds),
            generator=[torch.Generator().manual_seed(s) for s in seeds],
            output_type="np",
            **settings,
        )
        seconds = time.perf_counter() - begin
        latents, pixels = handle.layout, handle.options.pixels
        period = handle.options.granularity * pixels
    assert latents is not None
    layout = TileLayout(
        tuple(n * pixels for n in latents.size),
        tuple(n * pixels for n in latents.tile),
        tuple(n * pixels for n in latents.overlap),
        latents.wrap,
    )
    pictures = np.moveaxis(np.asarray(output.images, dtype=np.float64), -1, 1)
    return Painted(method, name, layout, period, pictures, seconds / len(seeds), tuple(disagreement))


def native_size(pipe: Any) -> int:
    """The model's native width in pixels."""
    sample = pipe.unet.config.sample_size
    return int((sample if isinstance(sample, int) else sample[-1]) * pipe.vae_scale_factor)


def to_pil(picture: Any) -> Any:
    """A picture [3, H, W] in [0, 1] as a PIL image."""
    from PIL import Image

    return Image.fromarray((np.moveaxis(picture, 0, -1).clip(0, 1) * 255).round().astype(np.uint8))


def _short(text: str) -> str:
    """A prompt as a file name."""
    return "-".join(re.findall(r"[a-z0-9]+", text.lower()))[:40] or "prompt"
