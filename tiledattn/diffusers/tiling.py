"""Tiling: a tiling in force on a denoiser, and the handle that `enable_tiling` returns."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from ..geometry import TileLayout
from .binning import AskedSize
from .caches import check_caches, check_still
from .couplings import CouplingMode
from .families import Family
from .families.base import CallContext
from .frame import CurrentFrame, Frame, split_tiles
from .grouping import GroupedLayers
from .hooking import InnermostHook, call_alike, install_hook, installed_hook, named_arguments, remove_hook
from .jitter import jittered
from .joining import RoundMode, covers_once, log_blending
from .options import Options
from .placing import PlacedPositions
from .prompts import RegionPrompts
from .schedule import CountedSteps, SchedulerSteps, halo_weight
from .sdpa import CrossTileMode, MarkedLayers
from .shift import TileShift
from .swapping import ProcessorSwap
from .turning import turns_of_angles
from .vae import CircularDecode
from .view import CanvasView, Place
from .weak import Weak

_ATTRIBUTE = "_tiledattn_tiling"

OnTiles = Callable[[Tensor, TileLayout, int], None]


class Tiling:
    """A tiling in force; what `enable_tiling` returns. As a context manager it is disabled on leaving.

    It keeps neither the model nor the VAE alive. A deep copy of a tiled model or pipeline is tiled alike, on its own.

    Attributes:
        options: the checked arguments, in latents.
        layout: the layout of the last forward, in any thread, in latents; None before the first.
        joined: whether that forward ran on the canvas itself and only attention by tiles (`blend`); None before it.
        on_tiles: None, or a function called at every forward of the model with the predictions before they are
            blended [T, B, C, *tile], the layout, and the denoising step; of joined tiles (`blend`) cut from their one
            prediction. It must not change them. Companions have their own.
        companions: the tilings of the pipeline's other models that work on the canvas (a second denoiser,
            ControlNets). A copy has none: `disable_tiling` of a copied pipeline finds them by the models.
    """

    def __init__(
        self,
        model: nn.Module,
        family: Family,
        options: Options,
        pipe: Any | None,
        prompts: RegionPrompts | None = None,
        companion: bool = False,
    ) -> None:
        changed = None if companion else pipe  # one tiling acts on the VAE, the scheduler and the choice of sizes
        self._changed = None if changed is None else Weak(changed)
        self.options = options
        self.layout: TileLayout | None = None
        self.joined: bool | None = None
        self.on_tiles: OnTiles | None = None
        self._family = family
        self._model = Weak(model)
        self._parameters = family.parameters(model)
        self._current = CurrentFrame()
        self._layers: ProcessorSwap | MarkedLayers = family.layers(model, options.has_halo, self._current)
        self._grouped = GroupedLayers(family.feed_forwards(model), self._current)
        self._placing = PlacedPositions(
            family.positionals(model) if options.positions == "canvas" else {}, self._current
        )
        multiples = tuple(
            axis.granularity * scale for axis, scale in zip(options.axes, options.pixels_per_axis, strict=True)
        )
        self._asked = None if changed is None else AskedSize(changed, multiples)
        self._shift: TileShift | None = None
        if changed is not None and options.timestep_shift == "tile":
            patches = zip(options.tile, family.patch(model), strict=True)
            tokens = math.prod(length // patch for length, patch in patches)
            self._shift = TileShift(changed, family.shift, family.shift_breaks, tokens)
        self._pipe = Weak(changed) if changed is not None and any(options.wrap) else None
        self._prompts = prompts
        self._is_companion = companion
        self._vae_pixels = _vae_pixels(pipe, options.pixels)
        self._vae: Weak[Any] | None = None
        self._decode: CircularDecode | None = None
        self._steps: SchedulerSteps | CountedSteps = CountedSteps(options.num_steps)
        if pipe is not None and options.num_steps is None:
            self._steps = SchedulerSteps(pipe, changed=family.step_from_scheduler)
        self.companions: tuple[Tiling, ...] = ()

    def __repr__(self) -> str:
        o = self.options
        return (
            f"Tiling({'enabled' if self.enabled else 'disabled'}, {self._family.name}, in latents: tile={o.tile}, "
            f"overlap={o.overlap}, halo={o.halo!r}, wrap={o.wrap}, conv_halo={o.conv_halo}, norm={o.norm!r}, "
            f"backend={o.backend!r}, blend={o.blend!r})"
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
            self._layers.restore(model)
            self._grouped.remove(model)
            self._placing.restore()
        pipe = None if self._changed is None else self._changed()
        if pipe is not None and tiling_held_by(pipe) is self:
            delattr(pipe, _ATTRIBUTE)
        if self._asked is not None:
            self._asked.remove()
        if self._shift is not None:
            self._shift.remove()
        self._pipe = None
        self._make_circular(None)
        if self._prompts is not None and not self._is_companion:
            self._prompts.remove()
        for companion in self.companions:
            companion.disable()

    def __enter__(self) -> Tiling:
        if not self.enabled:
            raise RuntimeError("this tiling was disabled or replaced; call enable_tiling again")
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
            setattr(copied, name, () if name == "companions" else copy.deepcopy(value, memo))
        return copied

    def lead(self, companions: Sequence[Tiling]) -> None:
        """Makes tilings of the pipeline's other models companions, which count steps together."""
        self.companions = tuple(companions)
        for companion in companions:
            if isinstance(self._steps, CountedSteps):
                companion._steps = self._steps

    def check_processors(self) -> None:
        """Raises TypeError for an attention layer whose processor can't run on tiles."""
        for tiling in (self, *self.companions):
            tiling._layers.check()

    def install(self) -> None:
        """Puts the tiling in force."""
        self._layers.adopt()
        model = self._model()
        assert model is not None
        install_hook(model, InnermostHook(self._run))
        self._grouped.install()
        self._placing.install()
        if self._asked is not None:
            self._asked.install()
        if self._shift is not None:
            self._shift.install()
        self._follow_vae()
        if self._prompts is not None and not self._is_companion:
            self._prompts.install()
        pipe = None if self._changed is None else self._changed()
        if pipe is not None:
            setattr(pipe, _ATTRIBUTE, _Held(self))
        for companion in self.companions:
            companion.install()

    def _follow_vae(self) -> None:
        """Makes the VAE that the pipeline has now decode with circular context on wrapped axes."""
        pipe = None if self._pipe is None else self._pipe()
        if pipe is not None:
            vae = getattr(pipe, "vae", None)
            self._make_circular(getattr(vae, "_orig_mod", vae))  # inside torch.compile's wrapper

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
            self._decode = CircularDecode(
                (self.options.wrap[-2], self.options.wrap[-1]), self._vae_pixels, self.options.backend
            )
            self._decode.install(vae)

    def _run(self, model: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Canvas in, tiles through the model, canvas out. A pass inside a pass leaves the outer one as it was."""
        outer = self._current.frame
        try:
            with nullcontext() if outer is None else outer.pause():
                call = named_arguments(self._parameters, args, kwargs)
                alike = functools.partial(call_alike, forward, self._parameters[: len(args)])
                return self._run_tiled(model, alike, call)
        finally:
            self._current.frame = outer

    def _run_tiled(self, model: nn.Module, forward: Callable[..., Any], call: dict[str, Any]) -> Any:
        family, options = self._family, self.options
        canvas = family.canvas_of(call, model)
        if torch.is_grad_enabled() and getattr(model, "is_gradient_checkpointing", False):
            raise NotImplementedError(
                "gradient checkpointing runs layers again outside the tiling; call disable_gradient_checkpointing()"
            )
        check_caches(model)
        self._layers.adopt()
        if not torch.compiler.is_compiling():
            self._follow_vae()
        step, weight = 0, 1.0
        if self.on_tiles is not None and not callable(self.on_tiles):
            raise TypeError(f"on_tiles: got {self.on_tiles!r}; expected None, or a function of (tiles, layout, step)")
        if options.halo_schedule != "constant" or options.jitter is not None or self.on_tiles is not None:
            step, weight = self._step(family.timestep_of(call))
        view = self._view(options.layout_for(*canvas.shape[2:]), step)
        layout = view.layout
        moves = options.jitter is not None and (layout.num_tiles > 1 or any(layout.wrap))
        if moves and not torch.compiler.is_compiling():
            check_still(model)
        context = CallContext(
            view, canvas.shape[0], options.pixels_per_axis, options.size_conditioning, options.positions, call
        )
        frame = self._frame(model, context, weight)
        joined = self._joined_call(call, context, model)
        if joined is not None:
            frame.joined, frame.window, call = True, options.window_for(layout, canvas.device), joined
        else:
            tile_call = family.tile_call(call, view.tiles(family.canvas, canvas), context, model)
            if self._prompts is not None:
                tile_call = self._prompts.apply(call, tile_call, view, context.batch, context.pixels)
            call = tile_call
        lengths = family.text_lengths(call, context)
        if lengths is not None:
            frame.text_lengths = torch.tensor(lengths, device=canvas.device)
        frame.behind = family.tokens_behind(call, context)
        angles = family.row_angles(call, context, model, lengths)
        if angles is not None:
            frame.turns = turns_of_angles(angles, canvas)
        if self._shift is not None and not torch.compiler.is_compiling():
            self._shift.follow(several=layout.num_tiles > 1)
        self.layout, self.joined = layout, frame.joined
        self._current.frame = frame
        with self._modes(frame):
            output = forward(**call)
        outputs = family.outputs_of(output, context)
        if self.on_tiles is not None:
            tiles = view.tiles("prediction", outputs[0]) if frame.joined else outputs[0]
            self.on_tiles(split_tiles(tiles, layout), layout, step)
        if frame.joined:
            return output
        window = options.window_for(layout, canvas.device)
        return family.with_outputs(output, [view.canvas(tiles, window) for tiles in outputs], context)

    def _joined_call(self, call: dict[str, Any], context: CallContext, model: nn.Module) -> dict[str, Any] | None:
        """The call on the canvas itself, where coupled tiles may stay joined; else None."""
        options, once = self.options, covers_once(context.layout)
        if context.layout.num_tiles == 1 or (options.blend == "prediction" and not once):
            return None
        joined: dict[str, Any] | str = "not everything is coupled, or regions, jitter or refresh are on"
        if options.crosses_everywhere and self._prompts is None and context.view.place is None:
            joined = self._family.joined_call(call, context, model)
        if not isinstance(joined, str):
            return joined
        if options.blend == "attention":
            raise NotImplementedError(
                f'blend: "attention" keeps the tiles of {type(model).__name__} joined, but {joined}; use "prediction"'
            )
        if self._family.no_joining is None and not (once or torch.compiler.is_compiling()):
            log_blending(type(model).__name__, joined)
        return None

    def _view(self, layout: TileLayout, step: int) -> CanvasView:
        """The canvas, cut by a layout: shifted, or a part of it, where the options say so."""
        options, family = self.options, self._family
        place: Place | None = None
        granularity = tuple(axis.granularity for axis in options.axes)
        if options.jitter is not None:
            layout, place = jittered(layout, granularity, options.jitter, step)
        if options.refresh is not None:
            reach = options.halo
            if reach != "all" and family.has_couplings and options.has_couplings:
                reach = tuple(max(pair) for pair in zip(reach, granularity, strict=True))
            layout, place = options.refresh.part(layout, place, options.pixels_per_axis, reach)
        return CanvasView(layout, options.backend, place)

    def _frame(self, model: nn.Module, context: CallContext, weight: float) -> Frame:
        family, options, layout = self._family, self.options, context.layout
        norm_backend = options.norm_backend
        finest, halo = family.finest(model), options.halo
        if finest > 1:
            layout = context.view.level("pixels", tuple(finest * length for length in layout.size))
            halo = "all" if halo == "all" else tuple(finest * reach for reach in halo)
        if not isinstance(self._layers, MarkedLayers):
            return Frame(layout, halo, weight, options.backend, norm_backend, context.batch)
        patch = family.patch(model)
        sizes = zip(context.layout.size, patch, strict=True)
        tokens = context.view.level("tokens", tuple(n // p for n, p in sizes))
        rotary = family.rotary(model, context)
        return Frame(
            layout,
            halo,
            weight,
            options.backend,
            norm_backend,
            context.batch,
            tokens=tokens,
            rotary=rotary,
            text=family.text,
            size=context.size,
            origins=context.origins,
        )

    def _modes(self, frame: Frame) -> ExitStack:
        """What acts on the model's calls while it runs."""
        options, stack = self.options, ExitStack()
        several = frame.layout.num_tiles > 1
        if frame.joined:
            if any(frame.layout.wrap):
                stack.enter_context(RoundMode(frame))
            return stack
        if self._family.has_couplings and options.has_couplings and (several or any(frame.layout.wrap)):
            stack.enter_context(CouplingMode(frame, options.conv_halo, options.norm))
        if frame.tokens is not None and options.has_halo and frame.crosses:
            stack.enter_context(CrossTileMode(frame))
        return stack

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _step(self, timestep: Any) -> tuple[int, float]:
        """The denoising step and the halo's weight. Not traced: a step is looked up by the timestep's value."""
        step, steps = self._steps.position(timestep)
        return step, halo_weight(self.options.halo_schedule, step, steps)


def tiling_of(model: nn.Module) -> Tiling | None:
    """The tiling in force on a model, or None."""
    hook = installed_hook(model)
    tiling = None if hook is None else getattr(hook.run, "__self__", None)
    return tiling if isinstance(tiling, Tiling) else None


class _Held:
    """What a pipeline remembers its tiling by, whatever models it has got since; a copied pipeline's has the copy."""

    def __init__(self, tiling: Tiling | None) -> None:
        self.tiling = tiling

    def __deepcopy__(self, memo: dict[int, Any]) -> _Held:
        return _Held(memo.get(id(self.tiling)))


def tiling_held_by(pipe: Any) -> Tiling | None:
    """The tiling that acts on a pipeline's parts, or None."""
    held = vars(pipe).get(_ATTRIBUTE)
    return held.tiling if isinstance(held, _Held) else None


def _vae_pixels(pipe: Any | None, position: int) -> int:
    """Pixels per latent of the pipeline's VAE; a position of the canvas may be several latents."""
    for name in ("vae_scale_factor", "vae_scale_factor_spatial", "vae_spatial_compression_ratio"):
        if hasattr(pipe, name):
            return int(getattr(pipe, name))
    return position
