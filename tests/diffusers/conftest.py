"""Tiny random-weight pipelines for the tests."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline
from tiny_diffusers import make_scheduler, make_text_encoder, make_unet, make_vae, quiet
from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from tiledattn.diffusers.families import unet as unet_family


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """The models are too small for threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=["joined", "cut"])
def joined_and_cut(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once as it comes, and once with no tiles that may stay joined."""
    if request.param == "cut":
        monkeypatch.setattr(unet_family, "may_be_joined", lambda layout, widest: False)


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> CLIPTokenizer:
    """A CLIP tokenizer whose vocabulary is the letters."""
    folder = tmp_path_factory.mktemp("tokenizer")
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    words = [*letters, *(c + "</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=16)


@pytest.fixture(scope="session")
def sd_parts(tokenizer: CLIPTokenizer) -> dict[str, Any]:
    return {
        "vae": make_vae(),
        "text_encoder": make_text_encoder(CLIPTextModel, tokenizer, 2),
        "tokenizer": tokenizer,
        "unet": make_unet("sd"),
        "scheduler": make_scheduler(),
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }


@pytest.fixture(scope="session")
def sdxl_parts(tokenizer: CLIPTokenizer) -> dict[str, Any]:
    return {
        "vae": make_vae(),
        "text_encoder": make_text_encoder(CLIPTextModel, tokenizer, 2),
        "text_encoder_2": make_text_encoder(CLIPTextModelWithProjection, tokenizer, 3),
        "tokenizer": tokenizer,
        "tokenizer_2": tokenizer,
        "unet": make_unet("sdxl"),
        "scheduler": make_scheduler(),
    }


@pytest.fixture
def sd(sd_parts: dict[str, Any]) -> StableDiffusionPipeline:
    """A Stable Diffusion pipeline of its own for the test."""
    return quiet(StableDiffusionPipeline(**copy.deepcopy(sd_parts)))


@pytest.fixture
def sdxl(sdxl_parts: dict[str, Any]) -> StableDiffusionXLPipeline:
    """An SDXL pipeline of its own for the test."""
    return quiet(StableDiffusionXLPipeline(**copy.deepcopy(sdxl_parts), add_watermarker=False))
