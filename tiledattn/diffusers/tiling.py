"""enable_tiling, disable_tiling, and the handle between them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from types import TracebackType
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from ..geometry import TileLayout
from ..ops import blend_tiles, extract_tiles
from .couplings import CouplingMode
from .families import Family, family_of
from .families.base import CallContext
from .frame import CurrentFrame, Frame, split_tiles
from .hooking import InnermostHook, install_hook, installed_hook, remove_hook
from .options import Extent, Model, Options, Schedule, make_options
from .schedule import CountedSteps, SchedulerSteps, halo_weight
from .swapping import ProcessorSwap
from .vae import CircularDecode
from .weak import Weak

OnTiles = Callable[[Tensor, TileLayout, int], None]


class Tiling:
    """A tiling in force; what `enable_tiling` returns. As a context manager it is disabled on leaving.

    It keeps neither the model nor the VAE alive. A deep copy of a tiled model or pipeline is tiled alike, on its own.

    Attributes:
        options: the checked arguments, in latents.
        layout: the layout of the last forward, in any thread, in latents; None before the first.
        on_tiles: None, or a function called at every forward with the predictions before they are blended
            [T, B, C, height, width], the layout, and the denoising step.
    """

    def __init__(self, model: nn.Module, family: Family, options: Options, pipe: Any | None) -> None:
        self.options = options
        self.layout: TileLayout | None = None
        self.on_tiles: OnTiles | None = None
        self._family = family
        self._model = Weak(model)
        self._current = CurrentFrame()
        self._swap = ProcessorSwap(
            family.self_attentions(model), family.cross_attentions(model), options.has_halo, self._current
        )
        self._pipe = Weak(pipe) if pipe is not None and any(options.wrap) else None
        self._vae: Weak[Any] | None = None
        self._decode: CircularDecode | None = None
        self._steps: SchedulerSteps | CountedSteps = CountedSteps(options.num_steps)
        if pipe is not None and options.num_steps is None:
            self._steps = SchedulerSteps(pipe)

    def __repr__(self) -> str:
        o = self.options
        return (
            f"Tiling({'enabled' if self.enabled else 'disabled'}, in latents: tile={o.tile}, overlap={o.overlap}, "
            f"halo={o.halo!r}, wrap={o.wrap}, conv_halo={o.conv_halo}, norm={o.norm!r}, backend={o.backend!r})"
        )

    @property
    def frame(self) -> Frame | None:
        """The calling thread's forward pass under way, or None."""
        return self._current.frame

    @property
    def enabled(self) -> bool:
        """Whether the tiling is in force."""
        model = self._model()
        return model is not None and tiling_of(model) is self

    def disable(self) -> None:
        """Puts the model, its attention processors and the VAE back as they were. Harmless when done already."""
        model = self._model()
        if model is not None and tiling_of(model) is self:
            remove_hook(model)
            self._swap.restore(model)
        self._pipe = None
        self._make_circular(None)

    def __enter__(self) -> Tiling:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.disable()

    def __deepcopy__(self, memo: dict[int, Any]) -> Tiling:
        """The copied model's tiling.

        Raises:
            TypeError: the model isn't being copied.
        """
        if self.enabled and id(self._model()) not in memo:
            raise TypeError("a Tiling can't be copied alone: deepcopy the pipeline or the model, or enable_tiling anew")
        memo[id(self)] = copied = object.__new__(type(self))
        for name, value in vars(self).items():
            setattr(copied, name, copy.deepcopy(value, memo))
        return copied

    def check_processors(self) -> None:
        """Raises TypeError for an attention layer whose processor can't run on tiles."""
        self._swap.check()

    def install(self) -> None:
        """Puts the tiling in force."""
        self._swap.adopt()
        model = self._model()
        assert model is not None
        install_hook(model, InnermostHook(self._run))
        self._follow_vae()

    def _follow_vae(self) -> None:
        """Makes the VAE that the pipeline has now decode with circular context on wrapped axes."""
        pipe = None if self._pipe is None else self._pipe()
        if pipe is not None:
            self._make_circular(getattr(pipe, "vae", None))

    def _make_circular(self, vae: Any | None) -> None:
        """Moves circular decoding to `vae`; None: to nowhere."""
        before = None if self._vae is None else self._vae()
        if vae is before and (vae is not None or self._decode is None):
            return
        if self._decode is not None:
            self._decode.remove(before)
        self._vae, self._decode = None, None
        if vae is not None:
            self._vae = Weak(vae)
            self._decode = CircularDecode(self.options.wrap, self.options.pixels, self.options.backend)
            self._decode.install(vae)

    def _run(self, model: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Canvas in, tiles through the model, canvas out. A pass inside a pass leaves the outer one as it was."""
        outer = self._current.frame
        try:
            with nullcontext() if outer is None else outer.pause():
                return self._run_tiled(model, forward, _bind(self._family.parameters(), args, kwargs))
        finally:
            self._current.frame = outer

    def _run_tiled(self, model: nn.Module, forward: Callable[..., Any], call: dict[str, Any]) -> Any:
        family, options = self._family, self.options
        canvas = family.canvas_of(call)
        if torch.is_grad_enabled() and getattr(model, "is_gradient_checkpointing", False):
            raise NotImplementedError(
                "gradient checkpointing runs layers again outside the tiling; call disable_gradient_checkpointing()"
            )
        layout = options.layout_for(canvas.shape[-2], canvas.shape[-1])
        self._swap.adopt()
        if not torch.compiler.is_compiling():
            self._follow_vae()
        step, weight = 0, 1.0
        if options.halo_schedule != "constant" or self.on_tiles is not None:
            step, weight = self._step(family.timestep_of(call))
        frame = Frame(layout, options.halo, weight, options.backend, options.norm_backend)
        tiles = extract_tiles(canvas, layout, backend=options.backend)
        context = CallContext(layout, canvas.shape[0], options.pixels, options.size_conditioning)
        call = family.tile_call(call, tiles.flatten(0, 1), context)
        coupled = options.has_couplings and (layout.num_tiles > 1 or any(layout.wrap))
        self.layout = layout
        self._current.frame = frame
        with CouplingMode(frame, options.conv_halo, options.norm) if coupled else nullcontext():
            output = forward(**call)
        prediction = split_tiles(family.prediction_of(output), layout)
        if self.on_tiles is not None:
            self.on_tiles(prediction, layout, step)
        window = options.window_for(layout, prediction.device)
        blended = blend_tiles(prediction, layout, window, backend=options.backend)
        return family.with_prediction(output, blended)

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _step(self, timestep: Any) -> tuple[int, float]:
        """The denoising step and the halo's weight. Not traced: a step is looked up by the timestep's value."""
        step, steps = self._steps.position(timestep)
        return step, halo_weight(self.options.halo_schedule, step, steps)


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
    backend: str = "auto",
    unit: str | None = None,
) -> Tiling:
    """Makes a pipeline paint any size tile by tile, the tiles of one canvas influencing one another at every step.

    The denoiser gets the whole canvas, cuts it into tiles, predicts for all of them in one batch, and blends the
    predictions. The pipeline stays as it is; call it with the `height` and `width` you want. Pipelines that share the
    model are tiled too. Enabling again replaces the tiling in force, and an inner `with` leaves none behind. With halo
    "all" and the other couplings as by default (for SDXL also size_conditioning "canvas") the result is the untiled
    model's, to rounding.

    Args:
        pipe_or_model: a pipeline with a `UNet2DConditionModel` (Stable Diffusion 1.x, 2.x, SDXL; text-to-image,
            image-to-image, inpainting), or such a UNet on its own.
        tile: size of a tile, an int or (height, width); default the size the model was trained at. A tile larger than
            the canvas becomes the canvas.
        overlap: what adjacent tiles share, an int or (height, width); 0 needs no blending.
        halo: how far attention sees beyond a tile's border: an int, (height, width) or "all"; default an eighth of
            the tile. 0 leaves the attention processors alone.
        window: weights of overlapping tiles: "uniform", "hann", "linear", "gaussian", or two 1-D tensors (height,
            width) as long as the tile in latents, unused on an axis with one tile.
        wrap: which axes are periodic, a bool or (height, width): (False, True) is a 360-degree panorama, True a
            seamless texture. A pipeline's VAE then decodes with circular context.
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
        backend: backend of the operations, "auto" or a name from `tiledattn.backends()`.
        unit: what tile, overlap and halo are counted in: "pixel" (default) or "latent", the only one for a bare model.

    Returns:
        The handle. `with enable_tiling(pipe, ...):` disables at the end.

    Raises:
        TypeError: an argument of the wrong type, a denoiser that isn't supported, or an attention processor that is
            neither a stock one nor IP-Adapter's.
        ValueError: an argument out of range, or sizes that the model's levels can't divide, naming the nearest that
            work. A canvas that can't be divided raises the same when the pipeline is called.
        NotImplementedError: a pipeline whose conditioning lies on the canvas (ControlNet, T2I-Adapter, GLIGEN), or PAG.

    Example:
        >>> enable_tiling(pipe, tile=1024, halo=128)
        >>> pipe("an aerial photo of a river delta", height=4096, width=4096).images[0]
    """
    pipe, model = _resolve(pipe_or_model)
    if pipe is not None:
        _check_pipeline(pipe)
    family = family_of(model)
    family.check(model)
    vae_factor = getattr(pipe, "vae_scale_factor", None)
    facts = Model(
        granularity=family.granularity(model),
        native_tile=family.native_tile(model),
        pixels=family.pixels_per_latent(model) if vae_factor is None else int(vae_factor),
        has_vae=vae_factor is not None,
        has_scheduler=pipe is not None,
    )
    options = make_options(
        facts,
        tile=tile,
        overlap=overlap,
        halo=halo,
        window=window,
        wrap=wrap,
        conv_halo=conv_halo,
        norm=norm,
        halo_schedule=halo_schedule,
        num_steps=num_steps,
        size_conditioning=size_conditioning,
        backend=backend,
        unit=unit,
    )
    tiling = Tiling(model, family, options, pipe)
    tiling.check_processors()
    before = tiling_of(model)
    if before is not None:
        before.disable()
    tiling.install()
    return tiling


def disable_tiling(pipe_or_model: Any) -> None:
    """Takes the tiling off: attention processors, forward and VAE are the objects they were before.

    Harmless on a model without a tiling.

    Raises:
        TypeError: not a pipeline or a model.
    """
    _, model = _resolve(pipe_or_model)
    tiling = None if model is None else tiling_of(model)
    if tiling is not None:
        tiling.disable()


def tiling_of(model: nn.Module) -> Tiling | None:
    """The tiling in force on a model, or None."""
    hook = installed_hook(model)
    tiling = None if hook is None else getattr(hook.run, "__self__", None)
    return tiling if isinstance(tiling, Tiling) else None


def _resolve(target: Any) -> tuple[Any | None, Any]:
    """The pipeline, if it is one, and its denoiser (None if it has none), without torch.compile's wrapper."""
    if isinstance(target, DiffusionPipeline):
        model = getattr(target, "unet", None)
        if model is None:
            model = getattr(target, "transformer", None)
        return target, getattr(model, "_orig_mod", model)
    if isinstance(target, nn.Module):
        return None, getattr(target, "_orig_mod", target)
    raise TypeError(
        f"pipe_or_model: got {type(target).__name__}; expected a diffusers pipeline or a UNet2DConditionModel"
    )


def _check_pipeline(pipe: Any) -> None:
    """Raises for pipelines that feed the denoiser with what can't be tiled."""
    name = type(pipe).__name__
    for component, what in (("controlnet", "a ControlNet's residuals"), ("adapter", "a T2I-Adapter's residuals")):
        if getattr(pipe, component, None) is not None:
            raise NotImplementedError(f"{name}: can't be tiled yet: {what} lie on the canvas and would need cutting")
    if hasattr(pipe, "pag_applied_layers") or hasattr(pipe, "pag_attn_processors"):
        raise NotImplementedError(
            f"{name}: can't be tiled yet: perturbed attention guidance splits the batch into guidance copies by place, "
            "and a tiled batch has its tiles there; use the pipeline without PAG"
        )
    if getattr(pipe, "unet", None) is None and getattr(pipe, "transformer", None) is None:
        raise TypeError(f"{name}: has no unet or transformer to tile")


def _bind(names: tuple[str, ...], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """All arguments by name."""
    if len(args) > len(names):
        raise TypeError(f"forward: got {len(args)} positional arguments; it takes {len(names)}")
    call = dict(zip(names, args, strict=False))
    twice = [name for name in call if name in kwargs]
    if twice:
        raise TypeError(f"forward: got several values for {twice}")
    return {**call, **kwargs}
