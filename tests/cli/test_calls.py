"""What pipelines' calls take: guidance, further arguments, progress without callbacks, and the automatic dtype."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, Optional

import pytest
import torch

pytest.importorskip("typer")
pytest.importorskip("diffusers")

import diffusers

from tiledattn.cli.calls import further_arguments, guidance_arguments, run
from tiledattn.cli.command import UsageError
from tiledattn.cli.pipelines import _dtype_for


class Pipe:
    """A stand-in with a model."""

    def __init__(self, distilled: bool = False, **model: Any) -> None:
        self.config = SimpleNamespace(is_distilled=distilled)
        self.transformer = SimpleNamespace(config=model)


class Plain(Pipe):
    def __call__(self, prompt=None, negative_prompt="", guidance_scale=4.5): ...


class Embedded(Pipe):
    def __call__(self, prompt=None, negative_prompt=None, true_cfg_scale=1.0, guidance_scale=3.5): ...


class True_(Pipe):
    def __call__(self, prompt=None, negative_prompt=None, true_cfg_scale=4.0, guidance_scale=None): ...


class Unguided(Pipe):
    def __call__(self, prompt=None, negative_prompt=None): ...


class Single(Pipe):
    def __call__(self, prompt=None, guidance_scale=4.0): ...


@pytest.mark.parametrize(
    ("pipe", "guidance", "negative", "others", "want"),
    [
        (Plain(), None, None, {}, {}),
        (Plain(), 3.0, "a", {}, {"guidance_scale": 3.0, "negative_prompt": "a"}),
        (Embedded(guidance_embeds=True), 3.0, None, {}, {"guidance_scale": 3.0}),
        (Embedded(), None, "a", {"true_cfg_scale": 2}, {"negative_prompt": "a"}),
        (True_(), 3.0, None, {}, {"true_cfg_scale": 3.0, "negative_prompt": " "}),
        (True_(), None, "a", {}, {"negative_prompt": "a"}),
        (Single(), 2.0, None, {}, {"guidance_scale": 2.0}),
        (Unguided(), None, "a", {}, {"negative_prompt": "a"}),
    ],
)
def test_guidance(pipe, guidance, negative, others, want):
    assert guidance_arguments(pipe, guidance, negative, others) == want


@pytest.mark.parametrize(
    ("pipe", "guidance", "negative", "message"),
    [
        (Unguided(), 3.0, None, "--guidance: Unguided takes neither"),
        (Embedded(guidance_embeds=False), 3.0, None, "--guidance: this model was distilled .*--arg true_cfg_scale"),
        (Single(distilled=True), 3.0, None, "--guidance: this model was distilled .*leave it out"),
        (Embedded(guidance_embeds=True), None, "a", "--negative-prompt: Embedded ignores it unless true_cfg_scale"),
        (True_(), 1.0, "a", "--negative-prompt: True_ ignores it"),
        (Single(), None, "a", "--negative-prompt: Single takes no negative prompt; it takes guidance_scale; leave"),
    ],
)
def test_guidance_that_would_be_ignored_is_refused(pipe, guidance, negative, message):
    with pytest.raises(UsageError, match=message):
        guidance_arguments(pipe, guidance, negative, {})


class Typed:
    def __call__(
        self,
        prompt: str,
        eta: float = 0.0,
        length: int = 512,
        clean: bool = True,
        second: str | list[str] | None = None,
        name: str | None = None,
        sigmas: list[float] = None,  # noqa: RUF013
        crop: tuple[int, int] = (0, 0),
        options: Optional[dict[str, Any]] = None,  # noqa: UP045
        latents: torch.Tensor | None = None,
        **kwargs: Any,
    ): ...


@pytest.mark.parametrize(
    ("name", "text", "want"),
    [
        ("eta", "1", 1),
        ("eta", "0.5", 0.5),
        ("length", "3", 3),
        ("length", "none", None),
        ("clean", "False", False),
        ("second", "12", "12"),
        ("second", '["a", "b"]', ["a", "b"]),
        ("name", "3", "3"),
        ("name", " a = b ", "a = b"),
        ("sigmas", "[1.0, 0.5]", [1.0, 0.5]),
        ("crop", "[8, 16]", (8, 16)),
        ("options", '{"scale": 0.5}', {"scale": 0.5}),
    ],
)
def test_values_are_read_as_the_signature_tells(name, text, want):
    got = further_arguments(Typed(), [(name, text.strip())])
    assert got == {name: want}
    assert type(got[name]) is type(want)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("length", "0.5", "length: got '0.5'; expected int"),
        ("clean", "1", "clean: got '1'; expected bool"),
        ("eta", "true", "eta: got 'true'; expected float"),
        ("sigmas", "[1", "is no JSON"),
        ("latents", "1", r"got 'latents'; Typed takes eta, length, clean, second, name, sigmas, crop, options$"),
        ("kwargs", "1", "got 'kwargs'"),
    ],
)
def test_values_of_other_types_are_refused(name, text, message):
    with pytest.raises(UsageError, match=message):
        further_arguments(Typed(), [(name, text)])


class Barred:
    """Without a callback; as PixArt and HunyuanVideo 1.5."""

    def __call__(self, prompt=None, output_type="np"):
        with self.progress_bar(total=3) as bar:
            for _ in range(3):
                bar.update()
        for _ in self.progress_bar([1, 2]):
            if prompt == "stop":
                raise KeyboardInterrupt
        return SimpleNamespace(images=[output_type])


def test_a_pipeline_without_callbacks_tells_by_its_progress_bar():
    pipe, steps = Barred(), []
    assert run(pipe, lambda: steps.append(1), {}) == ["pil"]
    assert len(steps) == 5
    with pytest.raises(KeyboardInterrupt):
        run(pipe, lambda: None, {"prompt": "stop"})
    assert not vars(pipe)


@pytest.mark.parametrize(
    ("device", "parts", "want"),
    [
        ("cpu", ["unet"], torch.float32),
        ("cuda", ["unet"], torch.float16),
        ("cuda", ["transformer", "transformer_2"], torch.bfloat16),
    ],
)
def test_the_automatic_dtype(device, parts, want, monkeypatch):
    def load_config(source, **options):
        return dict.fromkeys(parts)

    monkeypatch.setattr(diffusers.DiffusionPipeline, "load_config", load_config)
    assert _dtype_for(diffusers, "name", torch.device(device), False) == want
