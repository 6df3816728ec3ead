"""enable_tiling and disable_tiling."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from diffusers import DiffusionPipeline
from torch import Tensor, nn

from .axes import Extent
from .caches import check_caches
from .families import FAMILIES, Family, family_of
from .options import Model, Options, Schedule, make_options
from .prompts import RegionPrompts
from .refresh import Refreshed, check_refreshed_pipeline
from .regions import Region
from .tiling import Tiling, tiling_held_by, tiling_of

DENOISERS = ("unet", "transformer", "transformer_2")


def enable_tiling(
    pipe_or_model: Any,
    tile: Extent | None = None,
    overlap: Extent = 0,
    halo: Extent | str | None = None,
    window: str | Sequence[Tensor] = "hann",
    wrap: bool | Sequence[bool] = False,
    conv_halo: bool = True,
    norm: str = "canvas",
    halo_schedule: Schedule = "constant",
    num_steps: int | None = None,
    size_conditioning: str = "tile",
    positions: str = "tile",
    timestep_shift: str = "tile",
    backend: str = "auto",
    unit: str | None = None,
    regions: Sequence[Region] | None = None,
    jitter: int | None = None,
    refresh: Refreshed | None = None,
    blend: str = "auto",
) -> Tiling:
    """Makes a pipeline paint any size tile by tile, the tiles of one canvas influencing one another at every step.

    The denoiser gets the whole canvas, cuts it into tiles, predicts for all of them in one batch, and blends the
    predictions; a UNet whose tiles are coupled in everything cuts its self-attention alone (`blend`). The pipeline
    stays as it is; call it with the `height` and `width` you want. Pipelines that share the model are tiled too.
    Enabling again replaces the tiling in force, and an inner `with` leaves none behind. With halo "all" and the other
    couplings as by default a UNet (SDXL's also with size_conditioning "canvas") and a transformer whose text stays out
    of self-attention (Wan, LTX, PixArt) predict what the untiled model does, to rounding.

    A pipeline that paints at the trained size nearest in shape and resizes (`use_resolution_binning` of PixArt, Sana)
    paints the size that was asked for while it is tiled; for another pipeline that shares the model pass False there.

    Args:
        pipe_or_model: a diffusers pipeline whose denoiser belongs to a family of `tiledattn.diffusers.FAMILIES` (UNets
            of Stable Diffusion and SDXL, diffusion transformers for images and video), or such a denoiser on its own.
        tile: size of a tile in pixels, an int or (height, width), for video also (frames, height, width); default the
            size the model was trained at, also on the axes that aren't given. A tile larger than the canvas becomes
            the canvas. Frames are counted as the model's VAE wants them (4k + 1 for most).
        overlap: what adjacent tiles share, given like `tile`, 0 on axes that aren't given; 0 needs no blending.
        halo: how far attention sees beyond a tile's border, given like `tile`, or "all"; default an eighth of the tile
            per axis, a quarter for transformers, where nothing else crosses borders. 0 leaves attention alone.
        window: weights of overlapping tiles: "uniform", "hann", "linear", "gaussian", or 1-D tensors, one per axis, as
            long as the tile in latents, unused on an axis with one tile.
        wrap: which axes are periodic, a bool or one per axis: (False, True) is a 360-degree panorama, True a seamless
            texture. A bool or a pair speaks of height and width. A pipeline's VAE then decodes with circular context.
        conv_halo: convolutions read their neighbours' positions instead of zeros.
        norm: whose statistics group norms use: "tile", "neighbours" (weighted by nearness) or "canvas".
        halo_schedule: the halo's weight over the run: "constant" (1), "quadratic" (1 - (i / n)^2 at step i of n) or a
            function of (i, n) that returns a number in [0, 1]. i is the place in the scheduler's timesteps, so that
            image-to-image starts in the middle.
        num_steps: steps of a run, for a bare model whose schedule isn't constant: steps are then counted by changes of
            the timestep, a repeated timestep being the same step. A pipeline's scheduler tells; pass it where another
            pipeline with a scheduler of its own shares the model.
        size_conditioning: SDXL's `time_ids` per tile: "tile" (sizes that equal the canvas's become the tile's, as in
            training), "crop" (the tile as a crop of one large picture) or "canvas" (untouched).
        positions: where a transformer's tokens are told they are: "tile" (as in training; across tiles rotary offsets
            are the canvas's all the same) or "canvas" (at their place on the canvas: positions beyond the trained
            ones, and for a model with absolute positions a canvas that its table covers). A model whose text has no
            positions (Wan) takes both for the same; one that can't place its tokens refuses "canvas".
        timestep_shift: how many tokens decide the timestep shift of pipelines that have one (Flux, SD 3.5, Qwen-Image,
            Z-Image, ...): "tile" (a larger canvas takes a tile's, as in training) or "canvas" (untouched). A scheduler
            set later is followed from the second run on; the first is refused where its shift would be the canvas's.
            Pipelines that share the scheduler, whatever they paint with, take the shift as well.
        backend: backend of the operations, "auto" or a name from `tiledattn.backends()`.
        unit: what tile, overlap and halo are counted in: "pixel" (default; frames on a time axis) or "latent", the only
            one for a bare model: positions of the denoiser's input, which are latents, or 2x2 latents where the
            pipeline packs them (Flux, Qwen-Image).
        regions: prompts for boxes of the canvas, `Region(box, prompt, weight=1.0, feather=0)`, any number, boxes in
            pixels whatever the unit. A tile's conditioning is the mean of the prompts, weighed by how much of it each
            box covers; the call's own prompt fills the rest. The negative prompt holds everywhere. Needs a pipeline.
        jitter: seed of a shift of the grid of tiles that is another one at every step, so that what is left of seams
            never falls on the same place; None: the grid stays. Height and width are shifted, by less than a tile. Not
            with diffusers' caches between steps.
        refresh: what to paint anew: a mask [height, width] in pixels or positions of the canvas, True or above 0 where
            to paint, or indices of tiles. Only the tiles that it touches run, with the neighbours that they see; the
            prediction elsewhere is 0. For inpainting pipelines that put the rest back at every step, and for loops of
            one's own.
        blend: where tiles that overlap are blended. "prediction": behind the model, once a step. "attention": of a
            UNet whose tiles are coupled in everything, behind every self-attention, which alone goes by tiles; all
            other layers run on the canvas and compute positions that tiles share once, so that an overlap costs a part
            of the attention only. Not with regions, jitter, refresh, masks of adapters, SDXL's size_conditioning "crop"
            or features of 2^31 elements. "auto": behind attention where that can be had, else as predictions, which
            the log says; the two give different pictures.

    Returns:
        The handle. `with enable_tiling(pipe, ...):` disables at the end.

    Raises:
        TypeError: an argument of the wrong type, a denoiser that isn't supported, or an attention processor that is
            neither a stock one nor IP-Adapter's.
        ValueError: an argument out of range, or sizes that the model's levels can't divide, naming the nearest that
            work. A canvas that can't be divided raises the same when the pipeline is called.
        NotImplementedError: a pipeline with PAG, or with a ControlNet of a family that isn't supported; regions without
            an `encode_prompt`; refresh of a pipeline that doesn't put the rest of the picture back.

    Examples:
        >>> enable_tiling(pipe, tile=1024, halo=128)
        >>> pipe("an aerial photo of a river delta", height=4096, width=4096).images[0]
    """
    pipe, models = _resolve(pipe_or_model)
    guides = [] if pipe is None else _guides(pipe)
    if pipe is not None:
        _check_pipeline(pipe, models, guides)
    arguments: dict[str, Any] = {
        "tile": tile,
        "overlap": overlap,
        "halo": halo,
        "window": window,
        "wrap": wrap,
        "conv_halo": conv_halo,
        "norm": norm,
        "halo_schedule": halo_schedule,
        "num_steps": num_steps,
        "size_conditioning": size_conditioning,
        "positions": positions,
        "timestep_shift": timestep_shift,
        "backend": backend,
        "unit": unit,
        "regions": regions,
        "jitter": jitter,
        "refresh": refresh,
        "blend": blend,
    }
    checked = [_options(model, pipe, arguments) for model in models]
    options = checked[0]
    prompts = RegionPrompts(options.regions, family_of(models[0]), pipe) if options.regions else None
    tilings = [
        Tiling(model, family_of(model), own, pipe, prompts, companion=place > 0)
        for place, (model, own) in enumerate(zip(models, checked, strict=True))
    ]
    tiling = tilings[0]
    tilings += [_guide_tiling(model, pipe, options, prompts) for model in guides]
    tiling.lead(tilings[1:])
    tiling.check_processors()
    for before in _present(pipe, models, guides):
        before.disable()
    tiling.install()
    return tiling


def _options(model: Any, pipe: Any | None, arguments: dict[str, Any]) -> Options:
    """The checked arguments for one model."""
    family = family_of(model)
    family.check(model)
    check_caches(model)
    facts = Model(
        axes=family.axes,
        granularity=family.granularity(model),
        native_tile=family.native_tile(model),
        pixels=family.pixels(model, pipe),
        has_vae=getattr(pipe, "vae", None) is not None or hasattr(pipe, "vae_scale_factor"),
        has_scheduler=pipe is not None,
        no_halo=family.no_halo,
        halo_part=family.halo_part,
        no_canvas_positions=family.no_canvas_positions,
        no_regions=_no_regions(family, pipe),
        no_joining=family.no_joining,
    )
    options = make_options(facts, **arguments)
    if options.refresh is not None and pipe is not None:
        check_refreshed_pipeline(pipe, model)
    return options


def _no_regions(family: Family, pipe: Any | None) -> str | None:
    """Why there can be no region prompts, in one sentence; None where there can."""
    if pipe is None:
        return "a bare model has no text encoder for their prompts; call enable_tiling on the pipeline"
    if not hasattr(pipe, "encode_prompt"):
        return f"{type(pipe).__name__} has no encode_prompt, where they are encoded with its own prompt"
    if type(family).encode is Family.encode:
        return f"{family.name} models don't take region prompts yet"
    return None


def _guide_tiling(model: Any, pipe: Any, options: Options, prompts: RegionPrompts | None) -> Tiling:
    """A tiling of a ControlNet, with the tiles of the denoiser that it guides; not yet in force."""
    family = family_of(model)
    family.check(model)
    for axis, own in zip(options.axes, family.granularity(model), strict=True):
        if axis.granularity % own:
            raise ValueError(
                f"{type(model).__name__}: its levels need a {axis.name} that is a multiple of {own} latents, the "
                f"denoiser's only of {axis.granularity}; use a ControlNet with as many levels as the denoiser"
            )
    return Tiling(model, family, options, pipe, prompts, companion=True)


def disable_tiling(pipe_or_model: Any) -> None:
    """Takes the tiling off: attention processors, forward and VAE are the objects they were before.

    Harmless on a model without a tiling.

    Raises:
        TypeError: not a pipeline or a model.
    """
    pipe, models = _resolve(pipe_or_model)
    for tiling in _present(pipe, models, [] if pipe is None else _guides(pipe)):
        tiling.disable()


def _present(pipe: Any | None, models: list[Any], guides: list[Any]) -> list[Tiling]:
    """The tilings in force on models, and on a pipeline that had another model when it was tiled."""
    found = [tiling_of(model) for model in (*models, *guides)]
    found.append(None if pipe is None else tiling_held_by(pipe))
    return [tiling for tiling in found if tiling is not None]


def _resolve(target: Any) -> tuple[Any | None, list[Any]]:
    """The pipeline, if it is one, and its denoisers, without torch.compile's wrapper."""
    if isinstance(target, DiffusionPipeline):
        found = [getattr(target, name, None) for name in DENOISERS]
        return target, _distinct(found)
    if isinstance(target, nn.Module):
        return None, [getattr(target, "_orig_mod", target)]
    raise TypeError(
        f"pipe_or_model: got {type(target).__name__}; expected a diffusers pipeline or its denoiser "
        "(UNet2DConditionModel, or a transformer)"
    )


def _guides(pipe: Any) -> list[Any]:
    """The pipeline's ControlNets, without what holds several of them and without torch.compile's wrapper."""
    net = getattr(pipe, "controlnet", None)
    net = getattr(net, "_orig_mod", net)
    nets = getattr(net, "nets", [] if net is None else [net])
    return _distinct(nets)


def _distinct(models: Iterable[Any]) -> list[Any]:
    """Models without torch.compile's wrapper, each once; None is left out."""
    plain = [getattr(model, "_orig_mod", model) for model in models if model is not None]
    return list({id(model): model for model in plain}.values())


def _check_pipeline(pipe: Any, models: list[Any], guides: list[Any]) -> None:
    """Raises for pipelines that feed the denoiser with what can't be tiled."""
    name = type(pipe).__name__
    if not models:
        raise TypeError(f"{name}: has no unet or transformer to tile")
    for guide in guides:
        if not any(family.matches(guide) for family in FAMILIES):
            raise NotImplementedError(
                f"{name}: can't be tiled yet: the residuals of its {type(guide).__name__} lie on the canvas, and no "
                "family cuts them; use the pipeline without ControlNet"
            )
    if hasattr(pipe, "pag_applied_layers") or hasattr(pipe, "pag_attn_processors"):
        raise NotImplementedError(
            f"{name}: can't be tiled yet: perturbed attention guidance splits the batch into guidance copies by place, "
            "and a tiled batch has its tiles there; use the pipeline without PAG"
        )
