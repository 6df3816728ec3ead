"""Tiny models in the place of those on the hub: the documentation's code runs as it is written.

`stand_in(monkeypatch)` makes `from_pretrained` of the classes below give a tiny model of random weights of the same
class, and divides the sizes that are asked of it (height, width, frames, tile, overlap, halo), since a tiny model's
pixels are few. What is written in a page stays a real call of the real class; a misspelt argument fails.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from tiny_diffusers import make_scheduler, make_text_encoder, make_unet, make_vae, quiet
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

import tiledattn.diffusers as td

STEPS = 2


@dataclass(frozen=True)
class StandIn:
    """A tiny pipeline, and how large it takes what is asked of the real one.

    Attributes:
        build: makes it.
        pixels: by what its lengths are shorter than those in the page.
        token, latent: pixels; its canvas and tiles are multiples of `token`, its halo and overlap of `latent`.
        frame: frames of a latent frame; a quarter as many are painted as the page says.
        call: what its tiny text encoders need to be told.
    """

    build: Callable[[], Any]
    pixels: int = 16
    token: int = 16
    latent: int = 4
    frame: int = 4
    call: dict[str, Any] = field(default_factory=dict)

    def length(self, pixels: int) -> int:
        """A canvas's or tile's length."""
        return _nearest(pixels / self.pixels, self.token)

    def reach(self, pixels: int) -> int:
        """A halo or an overlap."""
        return _nearest(pixels / self.pixels, self.latent) if pixels else 0

    def frames(self, count: int) -> int:
        """A clip's or tile's frames."""
        return 1 + _nearest((count - 1) / 4, self.frame)

    def frame_reach(self, count: int) -> int:
        """A halo or an overlap in frames."""
        return _nearest(count / 4, self.frame) if count else 0


def _nearest(value: float, unit: int) -> int:
    return max(1, round(value / unit)) * unit


@functools.cache
def clip_tokenizer() -> CLIPTokenizer:
    """CLIP's, of single letters."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=16)


def _sdxl_parts() -> dict[str, Any]:
    tokenizer = clip_tokenizer()
    return {
        "vae": make_vae(),
        "text_encoder": make_text_encoder(CLIPTextModel, tokenizer, 2),
        "text_encoder_2": make_text_encoder(CLIPTextModelWithProjection, tokenizer, 3),
        "tokenizer": tokenizer,
        "tokenizer_2": tokenizer,
        "unet": make_unet("sdxl"),
        "scheduler": make_scheduler(),
        "add_watermarker": False,
    }


def _image(name: str) -> Callable[[], Any]:
    def build() -> Any:
        from ..diffusers.families.test_image_pipelines import MAKERS

        return MAKERS[name][0](clip_tokenizer())

    return build


def _flux() -> Any:
    from ..diffusers.families.test_region_prompts import flux_pipe

    return flux_pipe(clip_tokenizer())


def _qwen() -> Any:
    from ..diffusers.families.test_region_prompts import qwen_pipe

    return qwen_pipe(clip_tokenizer())


def _wan() -> Any:
    from ..diffusers.families import test_wan

    return test_wan.wan(transformer_2=test_wan.transformer(seed=1), boundary_ratio=0.9)


def _wan_image_to_video() -> Any:
    from ..diffusers.families import test_wan

    return test_wan.image_to_video()


def _ltx() -> Any:
    from ..diffusers.families import test_video_pipelines

    return test_video_pipelines.ltx(diffusers.LTXPipeline)


def _hunyuan() -> Any:
    from ..diffusers.families import test_video_pipelines

    return test_video_pipelines.hunyuan(clip_tokenizer())


SHORT = {"max_sequence_length": 12}
PIPELINES: dict[str, StandIn] = {
    "StableDiffusionXLPipeline": StandIn(lambda: diffusers.StableDiffusionXLPipeline(**_sdxl_parts())),
    "StableDiffusionXLControlNetPipeline": StandIn(
        lambda: diffusers.StableDiffusionXLControlNetPipeline(**_sdxl_parts(), controlnet=controlnet())
    ),
    "FluxPipeline": StandIn(_flux, pixels=32, token=8, latent=8, call=SHORT),
    "QwenImagePipeline": StandIn(_qwen, pixels=32, token=8, latent=8),
    "StableDiffusion3Pipeline": StandIn(_image("sd3"), pixels=32, token=8, call=SHORT),
    "ZImagePipeline": StandIn(_image("zimage"), pixels=32, token=8, call=SHORT),
    "PixArtSigmaPipeline": StandIn(_image("pixart-sigma"), pixels=32, token=8, call=SHORT),
    "SanaPipeline": StandIn(_image("sana"), pixels=32, token=8, call={**SHORT, "complex_human_instruction": None}),
    "WanPipeline": StandIn(_wan, latent=8, call=SHORT),
    "WanImageToVideoPipeline": StandIn(_wan_image_to_video, latent=8, call=SHORT),
    "LTXPipeline": StandIn(_ltx, call={"max_sequence_length": 6}),
    "HunyuanVideoPipeline": StandIn(_hunyuan, latent=8, call={"max_sequence_length": 8}),
}


def controlnet() -> Any:
    """A ControlNet of the tiny SDXL."""
    from ..diffusers.test_controlnet import make_net

    return make_net(make_unet("sdxl"))


MODELS: dict[str, Callable[[], Any]] = {
    "ControlNetModel": controlnet,
    "UNet2DConditionModel": lambda: make_unet("sd", cross_attention_dim=768),  # Stable Diffusion 1.5's text
}


def stand_in(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Patches diffusers and tiledattn for the rest of a test; returns what will have been opened, in order."""
    opened: list[str] = []
    for name in PIPELINES:
        cls = getattr(diffusers, name)
        monkeypatch.setattr(cls, "from_pretrained", classmethod(_open(name, opened)))
        monkeypatch.setattr(cls, "to", lambda self, *args, **kwargs: self)
        monkeypatch.setattr(cls, "__call__", _smaller_call(cls.__call__, PIPELINES[name]))
    for name, build in MODELS.items():
        monkeypatch.setattr(getattr(diffusers, name), "from_pretrained", classmethod(_open_model(name, build, opened)))
    monkeypatch.setattr(td, "enable_tiling", _smaller_tiling(td.enable_tiling))
    monkeypatch.setattr("diffusers.utils.load_image", lambda path: _photo())
    monkeypatch.setattr("diffusers.utils.export_to_video", _export)
    # the image-to-video pipeline cleans prompts by a library that clean ones don't need
    library = SimpleNamespace(fix_text=lambda text: text)
    monkeypatch.setattr("diffusers.pipelines.wan.pipeline_wan_i2v.ftfy", library, raising=False)
    return opened


def _open(name: str, opened: list[str]) -> Any:
    # keyword arguments that the pages may give; torch_dtype has another name since diffusers 0.35
    def from_pretrained(cls: Any, hub: str, *, dtype: torch.dtype | None = None, controlnet: Any = None) -> Any:
        assert cls.__name__ == name, f"{cls.__name__} has no stand-in"
        assert (controlnet is not None) == ("ControlNet" in name)
        opened.append(hub)
        return quiet(PIPELINES[name].build())

    return from_pretrained


def _open_model(name: str, build: Callable[[], Any], opened: list[str]) -> Any:
    real = getattr(diffusers, name).from_pretrained

    def from_pretrained(cls: Any, hub: Any, *, dtype: Any = None, subfolder: str = "", **others: Any) -> Any:
        if others:  # a pipeline that opens its own parts, such as the model that ships with the package
            return real(hub, subfolder=subfolder, **others)
        opened.append(str(hub))
        return build()

    return from_pretrained


def _smaller_call(call: Any, small: StandIn) -> Any:
    """The pipeline's call with smaller sizes and few steps."""

    @functools.wraps(call)
    def run(self: Any, *args: Any, **kwargs: Any) -> Any:
        given = dict(inspect.signature(call).bind(self, *args, **kwargs).arguments)
        given.pop("self")
        for name in ("height", "width"):
            given[name] = small.length(given[name])
        if "num_frames" in given:
            given["num_frames"] = small.frames(given["num_frames"])
        given["num_inference_steps"] = min(STEPS, given.get("num_inference_steps", STEPS))
        return call(self, **{**small.call, **given})

    return run


def _smaller_tiling(enable: Any) -> Any:
    """`enable_tiling` with smaller sizes for the pipelines above."""

    @functools.wraps(enable)
    def enable_tiling(pipe: Any, *args: Any, **kwargs: Any) -> Any:
        given = dict(inspect.signature(enable).bind(pipe, *args, **kwargs).arguments)
        small = PIPELINES.get(type(pipe).__name__)
        if small is not None and given.get("unit", "pixel") == "pixel":
            given |= {
                name: _lengths(given[name], length, frames)
                for name, length, frames in (
                    ("tile", small.length, small.frames),
                    ("overlap", small.reach, small.frame_reach),
                    ("halo", small.reach, small.frame_reach),
                )
                if name in given
            }
        return enable(**given)

    return enable_tiling


def _lengths(value: Any, length: Callable[[int], int], frames: Callable[[int], int]) -> Any:
    """An int, (height, width) or (frames, height, width) in smaller numbers; "all" stays."""
    if isinstance(value, int):
        return length(value)
    if isinstance(value, str):
        return value
    time, space = value[:-2], value[-2:]
    return (*(frames(n) for n in time), *(length(n) for n in space))


def _photo() -> Any:
    from ..diffusers.families.running import photo

    return photo()


def _export(frames: Any, path: str, fps: int) -> str:
    """Diffusers' function without a video encoder."""
    assert len(frames) > 1
    assert fps > 0
    return path
