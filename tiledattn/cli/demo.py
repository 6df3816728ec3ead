"""`tiledattn demo`: wide panoramas tiled alone, blended and coupled, side by side and measured."""

from __future__ import annotations

import json
import re
import time
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from ..files import whole_file
from .command import (
    MAX_SEED,
    SHIPPED_GUIDANCE,
    DebugOption,
    ThreadsOption,
    bad_usage,
    check_out,
    check_words,
    command,
)
from .methods import METHODS, PROMPTS, Method, Painted
from .pipelines import (
    cpu_threads,
    is_small,
    load_pipeline,
    native_size,
    note_vocabulary,
    paint,
    progress_bar,
    save_picture,
    threads_for,
)
from .report import measure, print_table, summary


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
    seed: Annotated[int, typer.Option(min=0, max=MAX_SEED, help="Seed of the first picture, which is saved.")] = 0,
    steps: Annotated[int, typer.Option(min=1, help="Denoising steps.")] = 20,
    guidance: Annotated[float, typer.Option(help="Guidance scale.")] = SHIPPED_GUIDANCE,
    dtype: Annotated[str, typer.Option(help="auto, float32, float16 or bfloat16.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    batch: Annotated[
        int | None,
        typer.Option(min=1, help="Pictures painted at once; default all seeds of a small model, one of another."),
    ] = None,
    threads: ThreadsOption = None,
    debug: DebugOption = False,
) -> None:
    """Paint wrapped panorama strips three ways from one seed, and measure their seams.

    Tiles alone; tiles blended over 25% and 50% overlap, as MultiDiffusion does; coupled tiles without overlap.

    Writes every picture, a comparison sheet and the figures; prints a table.

    [dim]Example: tiledattn demo --out build/demo[/dim]
    """
    check_words(prompt or (), None, guidance)
    prompts = named(prompt) if prompt else PROMPTS
    places = _places(out, prompts)
    begin = time.perf_counter()
    pipe = load_pipeline(model, device, dtype)
    with bad_usage("--model"):
        native = native_size(pipe)
    note_vocabulary(model, prompts.values())
    batch = batch or (seeds if is_small(pipe) else 1)
    settings = {"num_inference_steps": steps, "guidance_scale": guidance}
    with cpu_threads(threads_for(pipe, threads)), progress_bar() as bar:
        task = bar.add_task("painting", total=steps * len(METHODS) * len(prompts) * -(-seeds // batch))

        def advance(method: Method, name: str) -> None:
            bar.update(task, advance=1, description=f"{name}, {method.name}")

        canvas = Canvas(native, tiles)

        def start(name: str) -> None:
            if bar.disable:
                typer.echo(f"painting {prompts[name]!r}, {list(prompts).index(name) + 1} of {len(prompts)}", err=True)

        painted = paint_all(pipe, prompts, canvas, range(seed, seed + seeds), batch, start, advance, **settings)
    for one in painted:
        save_picture(to_pil(one.pictures[0]), places[one.prompt, one.method.key])
    write_report(painted, out)
    typer.echo(summary(painted, steps, time.perf_counter() - begin))
    typer.echo(f"{out / 'sheet.png'}: all of it on one sheet; the pictures and figures.json lie beside it")


def write_report(painted: Sequence[Painted], out: Path) -> None:
    """Measures the pictures, writes the figures and the sheet into `out`, and prints the table."""
    from .sheet import draw_sheet

    rows = [measure([one for one in painted if one.method is method]) for method in METHODS]
    with whole_file(out / "figures.json") as temporary:
        temporary.write_text(json.dumps([row.as_dict() for row in rows], indent=2) + "\n")
    draw_sheet(painted, rows, out / "sheet.png")
    print_table(rows)


@dataclass(frozen=True)
class Canvas:
    """The panoramas: `tiles` native tiles of (height, width) pixels abreast."""

    native: tuple[int, int]
    tiles: int


def paint_all(
    pipe: Any,
    prompts: dict[str, str],
    canvas: Canvas,
    seeds: range,
    batch: int,
    start: Callable[[str], None],
    advance: Callable[[Method, str], None],
    **settings: Any,
) -> list[Painted]:
    """Every prompt by every method.

    Args:
        pipe: a Stable Diffusion pipeline.
        prompts: short name to prompt.
        canvas: the size of the panoramas.
        seeds: of the first prompt; those of the next follow. All pictures start from noise of their own, which the
            methods share.
        batch: pictures in one call of the pipeline at most; what is painted doesn't depend on it.
        start: called with a prompt's short name before it is painted.
        advance: called after each denoising step.
        settings: further arguments of the pipeline.
    """
    painted = []
    for place, (name, text) in enumerate(prompts.items()):
        start(name)
        own = [place * len(seeds) + s for s in seeds]
        for method in METHODS:
            step_done = partial(advance, method, name)
            painted.append(paint_one(pipe, method, name, text, canvas, own, batch, step_done, **settings))
    return painted


def paint_one(
    pipe: Any,
    method: Method,
    name: str,
    text: str,
    canvas: Canvas,
    seeds: Sequence[int],
    batch: int,
    advance: Callable[[], None],
    **settings: Any,
) -> Painted:
    """One prompt by one method; the pipeline is left as it was."""
    import torch

    from ..diffusers import enable_tiling
    from ..geometry import TileLayout
    from ..metrics import overlap_disagreement

    height, width = canvas.native
    parts = [seeds[start : start + batch] for start in range(0, len(seeds), batch)]
    disagreement: list[list[float]] = [[] for _ in parts]
    images = []
    with enable_tiling(pipe, tile=canvas.native, wrap=(False, True), **method.options(width)) as handle:
        begin = time.perf_counter()
        for part, steps in zip(parts, disagreement, strict=True):

            def look(predictions: Any, layout: TileLayout, _step: int, steps: list[float] = steps) -> None:
                steps.append(overlap_disagreement(predictions, layout))

            handle.on_tiles = look if method.overlap else None
            output = paint(
                pipe,
                advance,
                prompt=text,
                height=height,
                width=width * canvas.tiles,
                num_images_per_prompt=len(part),
                generator=[torch.Generator().manual_seed(s) for s in part],
                output_type="np",
                **settings,
            )
            images.append(np.asarray(output.images, dtype=np.float32))
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
    pictures = np.moveaxis(np.concatenate(images), -1, 1)
    pooled = np.sqrt(np.average(np.square(disagreement), axis=0, weights=[len(part) for part in parts]))
    return Painted(method, name, layout, period, pictures, seconds / len(seeds), tuple(pooled.tolist()))


def to_pil(picture: Any) -> Any:
    """A picture [3, H, W] in [0, 1] as a PIL image."""
    from PIL import Image

    return Image.fromarray((np.moveaxis(picture, 0, -1).clip(0, 1) * 255).round().astype(np.uint8))


def _places(out: Path, prompts: dict[str, str]) -> dict[tuple[str, str], Path]:
    """The pictures' paths by prompt's name and method's key; everything that the demo writes is writable then."""
    places = {(name, method.key): out / f"{name}-{method.key}.png" for name in prompts for method in METHODS}
    for path in (*places.values(), out / "figures.json", out / "sheet.png"):
        check_out(path)
    return places


def named(prompts: Sequence[str]) -> dict[str, str]:
    """Prompts by names that are fit for files and different from one another, in any script."""
    names: dict[str, str] = {}
    for text in prompts:
        words = re.findall(r"\w+", unicodedata.normalize("NFC", text).casefold())
        short = name = "-".join(words)[:40].rstrip("-") or "prompt"
        number = 1
        while name in names:
            number += 1
            name = f"{short}-{number}"
        names[name] = text
    return names
