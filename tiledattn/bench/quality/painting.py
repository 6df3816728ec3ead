"""Pictures of one model by one setting: the same noise for every setting."""

from __future__ import annotations

import inspect
import itertools
import json
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ...models.shipped import SHIPPED, shipped
from .. import environment
from .identity import identity, made_by
from .settings import Setting

if TYPE_CHECKING:
    from ...diffusers import Tiling
    from ...geometry import TileLayout

SMALL = 30_000_000  # parameters of the denoiser up to which all seeds are painted in one batch


@dataclass(frozen=True)
class Strip:
    """What is painted: strips of native tiles abreast, whose ends meet.

    Attributes:
        pipe: a pipeline on its device.
        model: what the command line called it.
        native: (height, width) of a tile in pixels.
        tiles: native tiles abreast.
        batch: pictures in one call of the pipeline at most; what is painted doesn't depend on it.
        arguments: of the pipeline: steps, guidance, ...
        is_shipped: whether the model comes with the package.
    """

    pipe: Any
    model: str
    native: tuple[int, int]
    tiles: int
    batch: int
    arguments: dict[str, Any]
    is_shipped: bool = False

    @property
    def canvas(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        return self.native[0], self.native[1] * self.tiles

    @property
    def convolutional(self) -> bool:
        """Whether more than attention mixes positions."""
        return getattr(self.pipe, "unet", None) is not None

    @property
    def steps(self) -> int:
        """Denoising steps of a picture."""
        return int(self.arguments["num_inference_steps"])

    @property
    def device(self) -> str:
        """ "cpu" or "cuda"."""
        return str(self.pipe.device.type)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What the pipeline is; see `identity.identity`."""
        return identity(self.pipe)

    @cached_property
    def made_by(self) -> dict[str, Any]:
        """What paints here; see `identity.made_by`."""
        return made_by()

    @cached_property
    def environment(self) -> dict[str, Any]:
        """Device, versions and commit; see `environment.examine`."""
        return environment.examine(self.device)


@dataclass(frozen=True, eq=False)
class Painted:
    """The pictures of one prompt by one setting.

    Attributes:
        setting: how they were tiled.
        layout: in pixels, (height, width).
        period: pixels per position of the model's coarsest level; see `tiledattn.metrics.control_lines`.
        pixels: per latent.
        pictures: [seeds, 3, H, W] in [0, 1], float32.
        latents: [seeds, C, h, w] of the last step, or None where the pipeline's are no such grid.
        disagreement: RMS in the overlaps at each step; empty without overlap.
        environment: where it was painted, as in `environment.examine`.
    """

    setting: Setting
    layout: TileLayout
    period: int
    pixels: int
    pictures: NDArray[np.float32]
    latents: NDArray[np.float32] | None
    disagreement: tuple[float, ...]
    environment: dict[str, Any] = field(default_factory=dict)


def load(
    model: str, tiles: int, seeds: int, steps: int | None = None, guidance: float | None = None, device: str = "auto"
) -> Strip:
    """A pipeline and how it paints; what isn't given is what suits a shipped model.

    Raises:
        ImportError: diffusers or transformers is missing; names the extra.
        FileNotFoundError: the model is neither shipped, nor a folder, nor on the hub or in its cache.
    """
    pipe = _pipeline(model, device)
    known = shipped(model)
    good = known or SHIPPED[0]
    arguments: dict[str, Any] = {"num_inference_steps": steps or good.steps, **(known.arguments if known else {})}
    takes = _parameters(pipe)
    if "guidance_scale" in takes and (known or guidance is not None):
        arguments["guidance_scale"] = good.guidance if guidance is None else guidance
    if "num_frames" in takes:
        arguments["num_frames"] = 1
    native = known.native if known else _native(pipe)
    name = known.name if known else str(model)
    return Strip(pipe, name, native, tiles, seeds if is_small(pipe) else 1, arguments, known is not None)


def paint(
    strip: Strip, setting: Setting, prompt: str, seeds: Sequence[int], advance: Callable[[], None] = lambda: None
) -> Painted:
    """Pictures of one prompt, one per seed; the pipeline is left as it was.

    Args:
        strip: the model and its canvas.
        setting: how it is tiled.
        prompt: what is painted.
        seeds: of the noise.
        advance: called after every denoising step of a batch.
    """
    from ...diffusers import enable_tiling
    from ...metrics import overlap_disagreement

    parts = [list(seeds[start : start + strip.batch]) for start in range(0, len(seeds), strip.batch)]
    squares = np.zeros((len(parts), strip.steps))
    differ = bool(setting.overlap) and setting.blend == "prediction"  # joined tiles have one prediction
    images: list[Any] = []
    latents: list[Any] = []
    with enable_tiling(strip.pipe, wrap=(False, True), **setting.options(strip.native, strip.canvas)) as handle:
        for number, part in enumerate(parts):
            calls: dict[int, list[float]] = {}

            def look(predictions: Any, layout: TileLayout, step: int, calls: dict[int, list[float]] = calls) -> None:
                calls.setdefault(step, []).append(overlap_disagreement(predictions, layout) ** 2)

            handle.on_tiles = look if differ else None
            last: list[Any] = []
            images.append(_call(strip, prompt, part, _watcher(advance, last), output_type="np"))
            latents.append(last[-1] if last else None)
            for step, found in calls.items():
                squares[number, step] = np.mean(found)
        grid, pixels = handle.layout, handle.options.pixels
        period = handle.options.granularity * pixels
        layout = _in_pixels(handle)
    pictures = np.moveaxis(np.concatenate(images), -1, 1).astype(np.float32)
    counts = [len(part) for part in parts]
    disagreement = np.sqrt(np.average(squares, axis=0, weights=counts)).tolist() if differ else []
    assert grid is not None
    return Painted(
        setting,
        layout,
        period,
        pixels,
        pictures,
        _latent_grids(latents, grid.size[-2:]),
        tuple(disagreement),
        strip.environment,
    )


def step_seconds(strip: Strip, setting: Setting, prompt: str, steps: int, batch: int) -> list[float]:
    """Seconds per denoising step and picture, one value a step; the first step, which warms up, is left out."""
    from ...diffusers import enable_tiling

    times: list[float] = []

    def tick(_pipe: Any, _step: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        if strip.device == "cuda":
            import torch

            torch.cuda.synchronize()
        times.append(time.perf_counter())
        return tensors

    with enable_tiling(strip.pipe, wrap=(False, True), **setting.options(strip.native, strip.canvas)):
        _call(
            strip,
            prompt,
            list(range(batch)),
            {"callback_on_step_end": tick},
            output_type="latent",
            num_inference_steps=steps + 1,
        )
    return [float(b - a) / batch for a, b in itertools.pairwise(times)]


def save(painted: Painted, path: Path, about: dict[str, Any]) -> None:
    """Keeps pictures whole or not at all: values as 16-bit fractions of their range, `about` beside them."""
    from ...files import whole_file

    layout = painted.layout
    facts = {
        "about": about,
        "layout": [layout.size, layout.tile, layout.overlap, layout.wrap],
        "period": painted.period,
        "pixels": painted.pixels,
        "disagreement": painted.disagreement,
        "environment": painted.environment,
    }
    arrays: dict[str, Any] = {"pictures": np.round(painted.pictures.clip(0, 1) * 65535).astype(np.uint16)}
    if painted.latents is not None:
        arrays["latents"] = painted.latents.astype(np.float32)
    with whole_file(path) as temporary, temporary.open("wb") as file:
        np.savez(file, facts=np.array(json.dumps(facts)), **arrays)


def kept(path: Path, setting: Setting, about: dict[str, Any], any_sources: bool = False) -> Painted | None:
    """What `save` kept under the same `about`, or None."""
    from ...geometry import TileLayout

    try:
        with np.load(path, allow_pickle=False) as data:
            facts = json.loads(str(data["facts"]))
            if not same(facts["about"], about, any_sources):
                return None
            latents = data.get("latents")
            pictures = data["pictures"].astype(np.float32) / 65535
    except (OSError, ValueError, KeyError):
        return None
    layout = TileLayout(*(tuple(part) for part in facts["layout"]))
    curve, where = tuple(facts["disagreement"]), facts["environment"]
    return Painted(setting, layout, facts["period"], facts["pixels"], pictures, latents, curve, where)


def same(found: dict[str, Any], about: dict[str, Any], any_sources: bool) -> bool:
    """Whether what is kept is about the same; with `any_sources` whatever made it."""
    wanted = json.loads(json.dumps(about))
    if any_sources:
        found, wanted = ({**one, "made_by": None} for one in (found, wanted))
    return bool(found == wanted)


def _call(strip: Strip, prompt: str, seeds: Sequence[int], callbacks: dict[str, Any], **more: Any) -> Any:
    """Runs the pipeline: pictures [B, H, W, 3] of a video pipeline's only frame, or of a picture's."""
    import torch

    takes = _parameters(strip.pipe)
    count = next((name for name in ("num_images_per_prompt", "num_videos_per_prompt") if name in takes), None)
    arguments = {**strip.arguments, **more, **(callbacks if "callback_on_step_end" in takes else {})}
    if count is not None:
        arguments[count] = len(seeds)
    elif len(seeds) > 1:
        arguments["prompt"] = [prompt] * len(seeds)
    output = strip.pipe(
        **{"prompt": prompt, **arguments},
        height=strip.canvas[0],
        width=strip.canvas[1],
        generator=[torch.Generator().manual_seed(seed) for seed in seeds],
    )
    if "num_frames" in takes:
        frames = output.frames
        return frames if arguments["output_type"] == "latent" else np.stack([np.asarray(video)[0] for video in frames])
    return output.images if arguments["output_type"] == "latent" else np.asarray(output.images)


def _watcher(advance: Callable[[], None], last: list[Any]) -> dict[str, Any]:
    """A callback that counts steps and keeps the latents of the last."""

    def watch(_pipe: Any, _step: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        last[:] = [tensors.get("latents")]
        advance()
        return tensors

    return {"callback_on_step_end": watch}


def _latent_grids(latents: Sequence[Any], size: tuple[int, ...]) -> NDArray[np.float32] | None:
    """Latents [B, C, h, w] (of one frame: [B, C, 1, h, w]) as one array, or None."""
    found = []
    for one in latents:
        if one is None or one.ndim not in (4, 5) or tuple(one.shape[-2:]) != tuple(size):
            return None
        if one.ndim == 5 and one.shape[2] != 1:
            return None
        found.append(one.float().cpu().numpy().reshape(one.shape[0], -1, *size))
    return np.concatenate(found) if found else None


def _in_pixels(handle: Tiling) -> TileLayout:
    """The layout of the last picture over height and width."""
    from ...geometry import TileLayout

    latents, pixels = handle.layout, handle.options.pixels
    assert latents is not None
    size, tile, overlap = (
        tuple(n * pixels for n in lengths[-2:]) for lengths in (latents.size, latents.tile, latents.overlap)
    )
    return TileLayout(size, tile, overlap, latents.wrap[-2:])


def denoiser(pipe: Any) -> Any | None:
    """A pipeline's UNet or transformer."""
    return getattr(pipe, "unet", None) or getattr(pipe, "transformer", None)


def is_small(pipe: Any) -> bool:
    """Whether a pipeline's denoiser is about as small as the shipped ones."""
    model = denoiser(pipe)
    return model is not None and sum(p.numel() for p in model.parameters()) <= SMALL


def _parameters(pipe: Any) -> frozenset[str]:
    return frozenset(inspect.signature(type(pipe).__call__).parameters)


def _native(pipe: Any) -> tuple[int, int]:
    """The size that a pipeline's denoiser was trained at, in pixels."""
    from ...diffusers import enable_tiling

    with enable_tiling(pipe) as handle:
        (height, width), pixels = handle.options.tile[-2:], handle.options.pixels
    return height * pixels, width * pixels


def _pipeline(model: str, device: str) -> Any:
    try:
        import diffusers
        import torch
        import transformers
    except ImportError as error:
        raise ImportError(
            f"painting needs {error.name}, which is not installed: pip install 'tiledattn[diffusers]'"
        ) from error
    for library in (diffusers, transformers):
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()
    place = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    known = shipped(model)
    source = known.folder if known is not None else model
    local = Path(source).is_dir()
    kind = torch.float32
    if torch.device(place).type == "cuda" and known is None:
        parts = diffusers.DiffusionPipeline.load_config(source, local_files_only=local)
        kind = torch.float16 if "unet" in parts else torch.bfloat16
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pipe = diffusers.DiffusionPipeline.from_pretrained(source, dtype=kind, local_files_only=local)
    except (OSError, ValueError) as error:
        if local and Path(source, "model_index.json").is_file():
            raise
        raise FileNotFoundError(
            f"--model: {model!r} is neither a shipped model ({', '.join(one.name for one in SHIPPED)}), nor the folder "
            "of a diffusers pipeline, nor a model that the hub, or the cache of it, has"
        ) from error
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(place)
