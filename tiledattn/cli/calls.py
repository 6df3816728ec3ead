"""What a pipeline's call takes and gives: arguments by name, guidance, progress, pictures and frames."""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .command import UsageError

# Arguments that options of their own give.
OPTION_OF = {
    "prompt": "--prompt",
    "negative_prompt": "--negative-prompt",
    "height": "--size",
    "width": "--size",
    "num_frames": "--frames",
    "frame_rate": "--fps",
    "num_inference_steps": "--steps",
    "generator": "--seed",
}
# Arguments that decide what comes back.
OURS = ("output_type", "return_dict", "num_images_per_prompt", "num_videos_per_prompt", "callback_steps")
TYPES: dict[str, type | tuple[type, ...]] = {
    "int": int,
    "float": (int, float),
    "bool": bool,
    "str": str,
    "list": list,
    "tuple": tuple,
    "dict": dict,
}
WORDS = {"none": None, "true": True, "false": False}


def parameters(pipe: Any) -> dict[str, inspect.Parameter]:
    """The named parameters of a pipeline's call."""
    found = dict(inspect.signature(type(pipe).__call__).parameters)
    return {name: one for name, one in list(found.items())[1:] if one.kind is not one.VAR_KEYWORD}


def paints_video(pipe: Any) -> bool:
    """Whether a pipeline paints frames."""
    return "num_frames" in parameters(pipe)


def frame_rate(pipe: Any) -> float | None:
    """The frames per second that a pipeline takes its videos to have; None where it doesn't say."""
    known = parameters(pipe).get("frame_rate")
    return float(known.default) if known is not None and isinstance(known.default, (int, float)) else None


def parse_argument(text: str) -> tuple[str, str]:
    """ "name=value" as a pair.

    Raises:
        ValueError: another form.
    """
    found = re.fullmatch(r"\s*([A-Za-z_]\w*)\s*=(.*)", text, re.DOTALL)
    if found is None:
        raise ValueError(f"got {text!r}; expected name=value, such as max_sequence_length=256")
    return found[1], found[2].strip()


def further_arguments(pipe: Any, given: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """What `--arg` gives a pipeline: name to value, read as the type that the pipeline's signature tells.

    Pictures (image=..., mask_image=...) are read from files.

    Raises:
        UsageError: a name that the pipeline doesn't take, given twice or by another option; a value of another type.
    """
    known = parameters(pipe)
    takes = [name for name, one in known.items() if _can_be_given(name, one)]
    values: dict[str, Any] = {}
    for name, text in given:
        if name in OPTION_OF:
            raise UsageError(f"--arg: got {name}; give it by {OPTION_OF[name]}")
        if name not in takes:
            raise UsageError(f"--arg: got {name!r}; {type(pipe).__name__} takes {', '.join(takes)}")
        if name in values:
            raise UsageError(f"--arg: got {name} twice")
        values[name] = _picture(name, text) if _is_picture(name) else _value(name, text, known[name])
    return values


def guidance_arguments(
    pipe: Any, guidance: float | None, negative: str | None, others: Mapping[str, Any]
) -> dict[str, Any]:
    """What `--guidance` and `--negative-prompt` give a pipeline.

    Guidance is the pipeline's `guidance_scale`, or `true_cfg_scale` where that is the one it guides by by default
    (Qwen-Image).

    Args:
        pipe: the pipeline.
        guidance: the scale, if given.
        negative: the negative prompt, if given.
        others: what `--arg` gives.

    Raises:
        UsageError: the pipeline takes no such thing, or would ignore it.
    """
    known, name, out = parameters(pipe), type(pipe).__name__, dict[str, Any]()
    scale = _scale(known)
    if guidance is not None:
        if scale is None:
            raise UsageError(f"--guidance: {name} takes neither guidance_scale nor true_cfg_scale; leave it out")
        if scale in others:
            raise UsageError(f"--guidance: {scale} is given by --arg as well; leave one out")
        _check_embedded(pipe, scale)
        out[scale] = guidance
        if scale == "true_cfg_scale" and negative is None:
            # Without a negative prompt the pipeline leaves guidance out; its model card has a space for none.
            out["negative_prompt"] = " "
    if negative is not None:
        if "negative_prompt" not in known:
            scales = [each for each in ("guidance_scale", "true_cfg_scale") if each in known]
            takes = f"; it takes {' and '.join(scales)}" if scales else ""
            raise UsageError(f"--negative-prompt: {name} takes no negative prompt{takes}; leave it out")
        out["negative_prompt"] = negative
        _check_true_guidance(name, known, {**others, **out})
    return out


def check_required(pipe: Any, given: Mapping[str, Any]) -> None:
    """Raises UsageError for a pipeline that needs more than it is given (a picture, say)."""
    empty = inspect.Parameter.empty
    missing = [name for name, one in parameters(pipe).items() if one.default is empty and name not in given]
    if missing:
        hints = [f"--arg {name}=FILE" if _is_picture(name) else f"--arg {name}=..." for name in missing]
        raise UsageError(f"--model: {type(pipe).__name__} also needs {', '.join(missing)}; add {' '.join(hints)}")


def run(pipe: Any, advance: Callable[[], None], arguments: Mapping[str, Any]) -> Any:
    """Calls a pipeline, and `advance` after every denoising step.

    Returns:
        Pictures, of a pipeline for video lists of frames; PIL images unless `arguments` has another output_type.
    """
    with _told(pipe, advance) as callbacks:
        output = pipe(**{"output_type": "pil", **callbacks, **arguments})
    if getattr(output, "audio", None) is not None:
        print(f"tiledattn: note: the sound that {type(pipe).__name__} makes is not saved", file=sys.stderr)
    return output.frames if paints_video(pipe) else output.images


@contextmanager
def _told(pipe: Any, advance: Callable[[], None]) -> Iterator[dict[str, Any]]:
    """Arguments by which `advance` is told of steps; a pipeline without such gets a progress bar that tells."""

    def step_done(_pipe: Any, _step: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        advance()
        return tensors

    if "callback_on_step_end" in parameters(pipe):
        yield {"callback_on_step_end": step_done}
        return
    pipe.progress_bar = lambda iterable=None, total=None: _Bar(iterable, advance)
    try:
        yield {}
    finally:
        del pipe.progress_bar


class _Bar:
    """What diffusers asks of a progress bar."""

    def __init__(self, iterable: Any, advance: Callable[[], None]) -> None:
        self._iterable, self._advance = iterable, advance

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def __iter__(self) -> Iterator[Any]:
        for item in self._iterable:
            yield item
            self._advance()

    def update(self, _count: int = 1) -> None:
        self._advance()


def _scale(known: Mapping[str, inspect.Parameter]) -> str | None:
    """The argument that guidance is, if there is one."""
    for name in ("guidance_scale", "true_cfg_scale"):
        if name in known and known[name].default is not None:
            return name
    return next((name for name in ("true_cfg_scale", "guidance_scale") if name in known), None)


def _check_embedded(pipe: Any, scale: str) -> None:
    """Raises UsageError where a model distilled without guidance would ignore it."""
    config = getattr(getattr(pipe, "transformer", None), "config", None)
    embeds = config.get("guidance_embeds") if isinstance(config, Mapping) else None
    true = "true_cfg_scale" in parameters(pipe)
    distilled = bool(getattr(pipe.config, "is_distilled", False))
    if distilled or (scale == "guidance_scale" and embeds is False and true):
        hint = "give --negative-prompt and --arg true_cfg_scale=4 instead" if true else "leave it out"
        raise UsageError(f"--guidance: this model was distilled without guidance and would ignore it; {hint}")


def _check_true_guidance(name: str, known: Mapping[str, inspect.Parameter], values: Mapping[str, Any]) -> None:
    """Raises UsageError where a negative prompt would be ignored for want of a scale."""
    if "true_cfg_scale" not in known:
        return
    scale = values.get("true_cfg_scale", known["true_cfg_scale"].default)
    if isinstance(scale, (int, float)) and scale <= 1:
        raise UsageError(
            f"--negative-prompt: {name} ignores it unless true_cfg_scale is above 1; add --arg true_cfg_scale=4"
        )


def _can_be_given(name: str, one: inspect.Parameter) -> bool:
    """Whether a command line can give an argument: no tensors, functions, or what comes back."""
    kind = _kind(one)
    if name in OPTION_OF or name in OURS or name.startswith("callback"):
        return False
    return _is_picture(name) or not ("Tensor" in kind or "Callable" in kind)


def _is_picture(name: str) -> bool:
    return name == "image" or name.endswith("_image")


def _kind(one: inspect.Parameter) -> str:
    if one.annotation is one.empty:
        return ""
    return one.annotation if isinstance(one.annotation, str) else inspect.formatannotation(one.annotation)


def _value(name: str, text: str, one: inspect.Parameter) -> Any:
    """The value that `text` stands for, as the annotation tells; of any kind without one."""
    kind = _kind(one)
    plain = kind
    while "[" in plain:
        plain = re.sub(r"\[[^\[\]]*\]", "", plain)
    words = [word for word in TYPES if re.search(rf"\b{word}\b", plain)]
    if words == ["str"]:
        return text
    value = _literal(text)
    if isinstance(value, list) and "tuple" in words and "list" not in words:
        value = tuple(value)
    fits = [word for word in words if isinstance(value, TYPES[word])]
    if isinstance(value, bool):
        fits = [word for word in fits if word == "bool"]
    if words and value is not None and not fits:
        if "str" in words:
            return text
        raise UsageError(f"--arg: {name}: got {text!r}; expected {kind}")
    return value


def _literal(text: str) -> Any:
    """None, a bool, a number, or a list or object in JSON; else the text."""
    if text.lower() in WORDS:
        return WORDS[text.lower()]
    for parse in (int, float):
        try:
            return parse(text)
        except ValueError:
            pass
    if text[:1] in ("[", "{"):
        try:
            return json.loads(text)
        except ValueError as error:
            raise UsageError(f"--arg: got {text!r}, which is no JSON: {error}") from None
    return text


def _picture(name: str, text: str) -> Any:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(Path(text)) as picture:
            return picture.convert("L" if "mask" in name else "RGB")
    except (OSError, UnidentifiedImageError) as error:
        reason = getattr(error, "strerror", None) or "no picture that Pillow can read"
        raise UsageError(f"--arg: {name}: got {text!r}: {reason}") from None
