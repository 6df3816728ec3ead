"""RegionPrompts: what a pipeline encodes, and the rows of a call where regions put their prompts."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .mixing import entry, mix_call
from .observing import Method, Watch
from .regions import Region, region_weights
from .view import CanvasView
from .weak import Weak

if TYPE_CHECKING:
    from .families import Family

_ENCODERS = ("text_encoder", "tokenizer")
# What a pipeline's own call says of its own prompts and not of encoding as such.
_OWN = ("prompt", "embeds", "mask", "num_", "guidance", "image", "video")
# What of these says how to encode.
_HOW = ("system_prompt",)


@dataclass
class _Run:
    """What one run of a pipeline has encoded.

    `positive` and `others` are (tensor or list, its rows); `encoded` has the regions' conditioning by argument;
    `known` are calls' conditioning that was looked at, with the rows that are the positive prompt's.
    """

    positive: list[tuple[Any, list[Tensor]]]
    others: list[tuple[Any, list[Tensor]]]
    encoded: list[dict[str, Tensor]]
    called: bool = False
    known: list[tuple[Any, list[int], list[bool]]] = field(default_factory=list)


class RegionPrompts:
    """Watches a pipeline's `encode_prompt`, encodes the regions' prompts there, and mixes them into tiles' calls.

    In front of `encode_prompt` because text encoders may be on the device only while it runs, and because its outputs
    tell the rows of the positive prompt from those of the negative one, whatever order a pipeline passes them in. The
    first call of a run is the positive prompt's, and puts it first. A run begins with `check_inputs`, or with the first
    `encode_prompt` after a call of the denoiser.

    Args:
        regions: the regions.
        family: knows how a prompt becomes arguments of the denoiser.
        pipe: the pipeline.
    """

    def __init__(self, regions: Sequence[Region], family: Family, pipe: Any) -> None:
        self.regions = tuple(regions)
        self._family = family
        self._pipe = Weak(pipe)
        self._run: _Run | None = None
        self._carried: dict[str, Any] | None = None
        self._watches = [Watch("encode_prompt", self._encode)]
        if hasattr(pipe, "check_inputs"):
            self._watches.append(Watch("check_inputs", self._begin))

    def install(self) -> None:
        """Begins to watch the pipeline."""
        pipe = self._pipe()
        if pipe is not None:
            for watch in self._watches:
                watch.install(pipe)

    def remove(self) -> None:
        """Leaves the pipeline as it was."""
        for watch in self._watches:
            watch.remove(self._pipe())
        self._run = None

    def _begin(self, pipe: Any, original: Method, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._run = None
        return original(*args, **kwargs)

    def _encode(self, pipe: Any, original: Method, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Encodes what the pipeline asks for, and with its positive prompt the regions' prompts as well."""
        if self._carried is not None:
            return original(**{**_arguments(pipe, args, kwargs), **self._carried})
        outputs = original(*args, **kwargs)
        parts = [outputs] if isinstance(outputs, Tensor) else list(outputs)
        rows = [(part, _rows(part)) for part in parts if _rows(part)]
        if self._run is None or self._run.called:
            self._run = _Run(rows[:1], rows[1:], self._encode_regions(pipe, _arguments(pipe, args, kwargs)))
        else:
            self._run.others += rows
        return outputs

    def _encode_regions(self, pipe: Any, given: dict[str, Any]) -> list[dict[str, Tensor]]:
        """Conditioning of every region, each prompt encoded once, with the settings of the pipeline's own call.

        Raises:
            ValueError: the pipeline has given up its text encoders.
        """
        self._carried = {
            name: value for name, value in given.items() if name in _HOW or not any(word in name for word in _OWN)
        }
        try:
            with torch.no_grad():
                encoded = {
                    prompt: self._family.encode(pipe, prompt)
                    for prompt in dict.fromkeys(region.prompt for region in self.regions)
                }
        except (AttributeError, TypeError) as problem:
            lacking = [name for name, part in pipe.components.items() if name.startswith(_ENCODERS) and part is None]
            if not lacking:
                raise
            raise ValueError(
                f"regions: their prompts can't be encoded, since the pipeline's {' and '.join(lacking)} "
                f"{'is' if len(lacking) == 1 else 'are'} None; keep the text encoders, offloaded if need be"
            ) from problem
        finally:
            self._carried = None
        return [encoded[region.prompt] for region in self.regions]

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def apply(
        self, canvas_call: dict[str, Any], call: dict[str, Any], view: CanvasView, batch: int, pixels: tuple[int, ...]
    ) -> dict[str, Any]:
        """A tiles' call whose positive rows have every tile's own mix. Not traced: rows are told apart by value.

        Args:
            canvas_call: the call as the pipeline made it.
            call: the call for tiles.
            view: how the canvas is cut.
            batch: rows of the canvas batch.
            pixels: pixels per position, per axis.

        Raises:
            ValueError: conditioning that the pipeline's `encode_prompt` didn't make, a box outside the canvas, or
                prompts of different length for a model without a mask.
        """
        run = self._run
        if run is None:
            raise ValueError(
                "regions: the pipeline that enable_tiling was called on has encoded no prompt, so that its prompt's "
                "rows can't be told from the negative prompt's; call that pipeline"
            )
        run.called = True
        own = self._positive_rows(run, entry(canvas_call, next(iter(run.encoded[0]))))
        own = own * batch if len(own) == 1 else own
        if not any(own):
            return call
        masks = [name for name in self._family.repeated if "mask" in name]
        return mix_call(call, run.encoded, own, region_weights(self.regions, view, pixels), masks)

    def _positive_rows(self, run: _Run, given: Any) -> list[bool]:
        """Which rows of a call's conditioning are the positive prompt's."""
        rows = _rows(given)
        versions = [_version(row) for row in rows]
        for known, seen, answer in run.known:
            if _same(known, given) and seen == versions and -1 not in seen:
                return answer
        positive = [row for _, part in run.positive for row in part]
        others = [row for _, part in run.others for row in part]
        found = [(_is_among(row, positive), _is_among(row, others)) for row in rows]
        if not rows or not all(is_own or is_other for is_own, is_other in found):
            raise ValueError(
                "regions: the denoiser's conditioning is neither the prompt nor the negative prompt that the "
                "pipeline's encode_prompt gave, so that regions don't know which rows to replace; call the pipeline "
                "that enable_tiling was called on, and leave its embeddings as they are"
            )
        answer = [is_own for is_own, _ in found]
        if any(is_own and is_other for is_own, is_other in found):
            answer = self._by_place(run, given, len(rows))
        kept = given if isinstance(given, Tensor) else tuple(given)
        run.known = [*run.known[-3:], (kept, versions, answer)]
        return answer

    def _by_place(self, run: _Run, given: Any, count: int) -> list[bool]:
        """Which rows are the positive prompt's where both read the same: of one call the second half."""
        single = sum(len(part) for _, part in run.positive)
        if count == 2 * single:
            return [False] * single + [True] * single
        if any(_same(part, given) for part, _ in run.positive):
            return [True] * count
        if any(_same(part, given) for part, _ in run.others):
            return [False] * count
        raise ValueError(
            "regions: the prompt and the negative prompt read the same, so that their rows can't be told apart; give "
            "one of them another text"
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> RegionPrompts:
        """The copied pipeline's; of a denoiser copied without its pipeline, the same."""
        if id(self._pipe()) not in memo:
            return self
        memo[id(self)] = copied = object.__new__(type(self))
        shared = {"regions": self.regions, "_family": self._family, "_run": None, "_carried": None}
        for name, value in vars(self).items():
            setattr(copied, name, shared[name] if name in shared else copy.deepcopy(value, memo))
        return copied


def _arguments(pipe: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call of `encode_prompt` by name, whoever has wrapped it."""
    bound = inspect.signature(type(pipe).encode_prompt).bind(pipe, *args, **kwargs)
    named = {name: value for name, value in bound.arguments.items() if value is not pipe}
    for name, parameter in bound.signature.parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            named |= named.pop(name, {})
    return named


def _rows(value: Any) -> list[Tensor]:
    """The rows of conditioning: of a tensor [B, ...], or of a list of tensors."""
    if isinstance(value, Tensor):
        return list(value.unbind(0)) if value.ndim > 1 and value.is_floating_point() else []
    if isinstance(value, (list, tuple)) and value and all(isinstance(item, Tensor) for item in value):
        return list(value)
    return []


def _is_among(row: Tensor, known: list[Tensor]) -> bool:
    return any(row.shape == other.shape and torch.equal(row, other.to(row.device, row.dtype)) for other in known)


def _version(row: Tensor) -> int:
    """How often a tensor was written to; -1 where torch doesn't count."""
    return -1 if row.is_inference() else row._version


def _same(first: Any, second: Any) -> bool:
    """Whether two conditionings are the same memory."""
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        place = first.data_ptr() == second.data_ptr() and first.dtype == second.dtype
        return place and first.shape == second.shape and first.stride() == second.stride()
    if isinstance(first, (list, tuple)) and isinstance(second, (list, tuple)) and len(first) == len(second):
        return all(_same(a, b) for a, b in zip(first, second, strict=True))
    return False
