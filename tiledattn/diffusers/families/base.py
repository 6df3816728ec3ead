"""What a model family answers, and what it is told of a call."""

from __future__ import annotations

import inspect
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ...geometry import TileLayout
from ...ops import Rotary
from ...ops.rotary import unchecked_rotary
from ..frame import CurrentFrame
from ..sdpa import MarkedLayers
from ..shift import linear_shift
from ..swapping import ProcessorSwap
from ..view import CanvasView

IMAGE = ("height", "width")
VIDEO = ("frames", "height", "width")


@dataclass(frozen=True)
class CallContext:
    """What a family needs to turn a call on the canvas into a call on tiles.

    Attributes:
        view: how the canvas is cut.
        batch: rows of the canvas batch (guidance copies included).
        pixels: pixels (or frames) per position, per axis.
        size_conditioning: "tile", "crop" or "canvas".
        positions: "tile" or "canvas".
        call: the forward's arguments on the canvas, by name.
    """

    view: CanvasView
    batch: int
    pixels: tuple[int, ...]
    size_conditioning: str = "tile"
    positions: str = "tile"
    call: dict[str, Any] = field(default_factory=dict)

    @property
    def layout(self) -> TileLayout:
        """The layout, in positions of the canvas. It may cover a part of the canvas, or begin before it."""
        return self.view.layout

    @property
    def size(self) -> tuple[int, ...]:
        """The canvas that the forward was called with, in positions: what its arguments lie on."""
        return self.view.size

    @property
    def origins(self) -> tuple[tuple[int, ...], ...]:
        """Where tiles begin on that canvas; below 0 where they begin before it."""
        return self.view.origins

    @property
    def whole(self) -> bool:
        """Whether the only tile is the canvas."""
        return self.view.place is None and self.layout.num_tiles == 1

    def cut(self, name: str, x: Tensor) -> Tensor:
        """[B, C, *size] at the canvas's or another resolution -> [T*B, C, *tile]."""
        return self.view.tiles(name, x)

    def cut_all(self, name: str, value: Any) -> Any:
        """`cut`, in tensors and in tuples and lists of them; one row stands for all of the canvas batch.

        Pooled tensors [B, C, 1, ...] lie on no position and are repeated for every tile.

        Raises:
            TypeError, ValueError: something else than tensors of as many rows as the canvas batch, or of one.
        """
        if isinstance(value, (list, tuple)):
            return type(value)(self.cut_all(name, item) for item in value)
        self.check_cut(name, value)
        if _is_pooled(value):
            return self.repeat(name, value)
        return self.cut(name, value.expand(self.batch, *value.shape[1:]))

    def check_cut(self, name: str, value: Any) -> None:
        """Raises what `cut_all` would, and cuts nothing."""
        if isinstance(value, (list, tuple)):
            for item in value:
                self.check_cut(name, item)
        elif _is_pooled(value):
            self.check_rows(name, value)
        elif not isinstance(value, Tensor) or value.ndim < 3 or value.shape[0] not in (1, self.batch):
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"{name}: got {got}; expected tensors [{self.batch}, C, *size] that lie on the canvas")
        elif self.view.place is None:
            self.view.level(name, tuple(value.shape[2:]))

    def cut_tokens(self, name: str, x: Tensor, grid: tuple[int, ...]) -> Tensor:
        """[B, tokens of `grid` in row-major order, ...] -> [T*B, tokens of a tile, ...]."""
        if x.shape[1] != math.prod(grid):
            raise ValueError(f"{name}: got {x.shape[1]} tokens; the canvas has {grid}, {math.prod(grid)} tokens")
        rest = x.shape[2:]
        flat = x.reshape(x.shape[0], x.shape[1], -1).transpose(1, 2)  # [B, C, tokens]
        tiles = self.cut(name, torch.unflatten(flat, 2, grid))
        return torch.unflatten(tiles.flatten(2).transpose(1, 2), 2, rest) if rest else tiles.flatten(1)

    def repeat(self, name: str, value: Any) -> Any:
        """Rows [B, ...] -> [T*B, ...], in tensors and in tuples and lists of them; None stays None.

        Raises:
            TypeError, ValueError: something else than tensors of as many rows as the canvas batch, or of one.
        """
        if value is None:
            return None
        if isinstance(value, (list, tuple)):
            return type(value)(self.repeat(name, item) for item in value)
        self.check_rows(name, value)
        tiles = self.layout.num_tiles
        if value.shape[0] == 1 and self.batch > 1:
            return value.expand(tiles * self.batch, *value.shape[1:])
        return value.repeat(tiles, *(1,) * (value.ndim - 1))

    def rows(self, name: str, value: Any) -> Any:
        """Rows [1, ...] or [B, ...] -> [B, ...], like `repeat` for a canvas that isn't cut; raises the same."""
        if value is None:
            return None
        if isinstance(value, (list, tuple)):
            return type(value)(self.rows(name, item) for item in value)
        self.check_rows(name, value)
        return value.expand(self.batch, *value.shape[1:])

    def check_rows(self, name: str, value: Any) -> None:
        """Raises what `repeat` would, and repeats nothing."""
        if isinstance(value, (list, tuple)):
            for item in value:
                self.check_rows(name, item)
        elif value is not None and not isinstance(value, Tensor):
            raise TypeError(f"{name}: got {type(value).__name__}; expected a tensor [B, ...] or a list of them")
        elif value is not None and (not value.ndim or value.shape[0] not in (1, self.batch)):
            raise ValueError(
                f"{name}: got shape {tuple(value.shape)}; expected {self.batch} rows, as many as the canvas batch"
            )


def _is_pooled(value: Any) -> bool:
    """Whether it lies on no position: one number per row and channel."""
    return isinstance(value, Tensor) and value.ndim > 2 and all(length == 1 for length in value.shape[2:])


class Family(ABC):
    """The denoisers that are called alike. What differs is data; implementations hold no state."""

    name: str
    """What people call the models."""
    classes: tuple[str, ...]
    """Names of the model classes; subclasses belong to the family as well."""
    pipelines: tuple[str, ...] = ()
    """Pipeline classes that are tested."""
    hub: str = ""
    """A model on the hub, for examples."""
    axes: tuple[str, ...] = IMAGE
    """The canvas's axes."""
    canvas: str = "hidden_states"
    """The argument that holds the canvas."""
    required: tuple[str, ...] = ("timestep", "encoder_hidden_states")
    """Arguments that the forward must have besides."""
    repeated: tuple[str, ...] = ()
    """Arguments with a row per row of the canvas batch, repeated for every tile."""
    passed: tuple[str, ...] = ("return_dict",)
    """Arguments that are passed on as they are."""
    refused: Mapping[str, str] = MappingProxyType({})
    """Arguments that can't be tiled, and why."""
    attention: str = ""
    """Pattern (whole match) of the names of the self-attention layers over canvas tokens."""
    cross_attention: str = ""
    """Pattern of the names of layers in which canvas tokens attend to text; their processors are watched as well."""
    processors: tuple[str, ...] = ()
    """Classes of attention processors that these layers may have: each row's output depends on that row alone."""
    text: Literal["none", "first", "last"] = "none"
    """Where tokens that lie on no canvas position (text) stand in self-attention, relative to the canvas's."""
    halo_part: int = 4
    """The default halo is the tile's length divided by it: transformers have nothing else that crosses borders."""
    no_halo: str | None = None
    """Why attention can't cross tile borders, in one sentence; None where it can."""
    positions: str = ""
    """How tokens know their place, for the table: "rotary", "absolute" or "none"."""
    positional: str = ""
    """Pattern of the names of modules that add absolute positions to the patches: diffusers' `PatchEmbed`."""
    no_canvas_positions: str | None = "its tokens can't be told their places on the canvas"
    """Why positions="canvas" can't be had, in one sentence; None where it can."""
    notes: str = ""
    """What mixes positions and is not coupled, or other limits, for the table; may be empty."""
    step_from_scheduler: bool = True
    """Whether the pipeline changes the timestep before it reaches the model, so that only the scheduler knows it."""
    shift_defaults: tuple[float, float, float, float] = (256, 4096, 0.5, 1.15)
    """What the pipeline takes for base_image_seq_len, max_image_seq_len, base_shift and max_shift by default."""
    shift_breaks: tuple[int, ...] = ()
    """Numbers of tokens behind which `shift` is another line."""
    has_couplings: bool = False
    """Whether the model has padded convolutions or group norms over canvas positions."""
    no_joining: str | None = "only the attention of UNets can be tiled alone"
    """Why the model can't run on the canvas with its attention alone in tiles, in one sentence; None where it can."""

    def matches(self, model: Any) -> bool:
        """Whether the model is of the family."""
        return any(cls.__name__ in self.classes for cls in type(model).__mro__)

    def check(self, model: Any) -> None:  # noqa: B027
        """Raises ValueError with the reason for a configuration that can't be tiled."""

    def patch(self, model: Any) -> tuple[int, ...]:
        """Canvas positions per token, per axis."""
        return (1,) * len(self.axes)

    def granularity(self, model: Any) -> tuple[int, ...]:
        """What canvas, tile and overlap must be multiples of, in positions, per axis."""
        return self.patch(model)

    @abstractmethod
    def native_tile(self, model: Any) -> tuple[int, ...]:
        """The size the model was trained at, in positions, per axis."""

    @abstractmethod
    def pixels(self, model: Any, pipe: Any | None) -> tuple[int, ...]:
        """Pixels (frames on a time axis) per position, per axis; without a pipeline a guess from the model."""

    def finest(self, model: Any) -> int:
        """How many of the model's finest positions make one of the canvas, on each axis: more than 1 for pixels."""
        return 1

    def parameters(self, model: Any) -> tuple[str, ...]:
        """Names of the forward's parameters in order."""
        names = tuple(inspect.signature(type(model).forward).parameters)
        return names[1:]

    def self_attentions(self, model: Any) -> dict[str, nn.Module]:
        """The self-attention layers over canvas tokens, by name."""
        return _layers(model, self.attention)

    def cross_attentions(self, model: Any) -> dict[str, nn.Module]:
        """The layers in which canvas tokens attend to conditioning, by name."""
        return _layers(model, self.cross_attention)

    def positionals(self, model: Any) -> dict[str, nn.Module]:
        """The modules that add absolute positions to the patches, by name."""
        return _layers(model, self.positional)

    def feed_forwards(self, model: Any) -> list[nn.Module]:
        """Feed-forwards, which work on each token alone and may be given few at a time; none by default."""
        return []

    def layers(self, model: Any, halo: bool, current: CurrentFrame) -> ProcessorSwap | MarkedLayers:
        """What makes the model's self-attention cross tile borders, and watches its attention processors."""
        return MarkedLayers(self.self_attentions(model), self.cross_attentions(model), halo, current, self.processors)

    def rotary(self, model: Any, context: CallContext) -> Rotary | None:
        """How the model's rotary positions turn, in radians per token; None without rotary positions.

        None as well where the call gives every tile the canvas's own positions.
        """
        return None

    def tokens_behind(self, call: dict[str, Any], context: CallContext) -> int:
        """How many tokens stand behind the canvas's in a tile's call without being text (reference images)."""
        return 0

    def text_lengths(self, call: dict[str, Any], context: CallContext) -> tuple[int, ...] | None:
        """How many text tokens stand before the canvas's, row by row [T*B] of a call for tiles, where rows differ.

        None where `text` tells the place in every row. Sequences are then padded behind the canvas's tokens, and a
        mask tells the padding.
        """
        return None

    def row_angles(
        self, call: dict[str, Any], context: CallContext, model: Any, lengths: tuple[int, ...] | None
    ) -> Tensor | None:
        """By what radians the rows of tiles must be turned to stand where the first tile's do, [T*B, D / 2].

        For models that place the canvas behind the text on a rotary axis; None where tiles agree. `lengths` are what
        `text_lengths` gave.
        """
        return None

    def canvas_of(self, call: dict[str, Any], model: Any) -> Tensor:
        """The canvas [B, C, *size] among the arguments; raises for arguments that can't be tiled."""
        self.check_call(call)
        canvas = call[self.canvas]
        if not isinstance(canvas, Tensor) or canvas.ndim != 2 + len(self.axes):
            got = tuple(canvas.shape) if isinstance(canvas, Tensor) else type(canvas).__name__
            raise ValueError(f"{self.canvas}: got {got}; expected a tensor [B, C, {', '.join(self.axes)}]")
        return canvas

    def check_call(self, call: dict[str, Any]) -> None:
        """Raises for missing arguments, and for given ones that can't be tiled."""
        missing = [name for name in (self.canvas, *self.required) if call.get(name) is None]
        if missing:
            raise TypeError(f"forward: missing {', '.join(missing)}")
        known = (self.canvas, *self.required, *self.repeated, *self.passed)
        for name, value in call.items():
            if value is not None and name not in known:
                reason = self.refused.get(name, "tiling doesn't know what it is")
                raise NotImplementedError(f"{name}: can't be tiled: {reason}; leave it out, or disable_tiling")

    def tile_call(self, call: dict[str, Any], tiles: Tensor, context: CallContext, model: Any) -> dict[str, Any]:
        """The call for `tiles` [T*B, C, *tile]: conditioning repeated, or cut."""
        new = {**call, self.canvas: tiles}
        for name in self.repeated:
            if call.get(name) is not None:
                new[name] = context.repeat(name, call[name])
        return new

    def joined_call(self, call: dict[str, Any], context: CallContext, model: Any) -> dict[str, Any] | str:
        """The call for tiles that stay joined, on the canvas itself; a text where tiles must be cut, why.

        For models of which everything but self-attention computes the same on the canvas as on coupled tiles, and
        whose attention processors know joined tiles.
        """
        return "its model can't run on the canvas"

    def shift(self, config: Mapping[str, Any], tokens: int, num_steps: int) -> float:
        """The timestep shift `mu` that the pipeline gives its scheduler, linear in tokens between `shift_breaks`.

        Args:
            config: the scheduler's configuration.
            tokens: the canvas's number of tokens.
            num_steps: steps of the run.
        """
        return linear_shift(config, tokens, self.shift_defaults)

    def timestep_of(self, call: dict[str, Any]) -> Any:
        """The timestep among the arguments."""
        return call["timestep"]

    def prediction_of(self, output: Any, context: CallContext) -> Tensor:
        """The prediction [T*B, C, *tile] in the model's output: of a tuple the first, else `sample`."""
        prediction: Tensor = output[0] if isinstance(output, tuple) else output.sample
        return prediction

    def with_prediction(self, output: Any, prediction: Tensor, context: CallContext) -> Any:
        """The model's output with another prediction, [B, C, *size]."""
        return (prediction, *output[1:]) if isinstance(output, tuple) else type(output)(sample=prediction)

    def outputs_of(self, output: Any, context: CallContext) -> list[Tensor]:
        """All that lies on the canvas in the model's output, [T*B, C, *tile] each, at any resolution."""
        return [self.prediction_of(output, context)]

    def with_outputs(self, output: Any, outputs: list[Tensor], context: CallContext) -> Any:
        """The model's output with what `outputs_of` gave, blended: [B, C, *size] each."""
        return self.with_prediction(output, outputs[0], context)

    def encode(self, pipe: Any, prompt: str) -> dict[str, Tensor]:
        """Conditioning of one prompt, for region prompts: what `pipe(prompt)` gives the denoiser without guidance.

        Args:
            pipe: the pipeline, whose own `encode_prompt` does it.
            prompt: the prompt.

        Returns:
            By the names of the forward's arguments, tensors of one row [1, ...]. The first is what `encode_prompt`
            returns first: by it the rows of the positive prompt are known. "added_cond_kwargs.text_embeds" is an
            entry of a dictionary; what has "mask" in its name is the mask over another's tokens. Where the forward
            takes a list of rows (Z-Image), the tensor is that list's item with a row's axis in front.

        Raises:
            NotImplementedError: the family has none.
        """
        raise NotImplementedError(f"regions: {self.name} models don't take region prompts yet")


def _layers(model: Any, pattern: str) -> dict[str, nn.Module]:
    return {name: layer for name, layer in model.named_modules() if pattern and re.fullmatch(pattern, name)}


def axial_frequencies(dims: tuple[int, ...], theta: float) -> Tensor:
    """Frequencies of axial rotary positions, theta^(-2j / dim) for pair j of an axis with `dim` channels.

    Returns:
        Radians per token, float64 [axes, sum(dims) / 2]: each axis turns its own channels only.
    """
    table = torch.zeros(len(dims), sum(dims) // 2, dtype=torch.float64, device="cpu")
    start = 0
    for axis, dim in enumerate(dims):
        pairs = torch.arange(0, dim, 2, dtype=torch.float64, device="cpu")
        table[axis, start : start + dim // 2] = theta ** (-pairs / dim)
        start += dim // 2
    return table


def device_rotary(frequencies: Tensor, like: Tensor, interleaved: bool = True) -> Rotary:
    """A family's frequencies on the device of `like`, whose values aren't read: that would wait for the device."""
    dtype = torch.float32 if like.device.type == "mps" else torch.float64  # MPS has no float64
    return unchecked_rotary(frequencies.to(like.device, dtype), interleaved)
