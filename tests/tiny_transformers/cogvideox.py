"""Tiny CogVideoX: 2b (absolute positions), 5b (rotary), 1.5 (patches of two frames, ofs)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import CogVideoXPipeline, CogVideoXTransformer3DModel
from tiny_diffusers import shake

from .case import Case, Size, randn

ROTARY = {"use_rotary_positional_embeddings": True}
NEWER = {**ROTARY, "patch_size_t": 2, "ofs_embed_dim": 8, "sample_height": 32, "sample_width": 32}


def make_cogvideox(**options: Any) -> Callable[[], Any]:
    """A model of two layers, trained on 5 latent frames of 4x8."""
    config: dict[str, Any] = {
        "num_attention_heads": 2,
        "attention_head_dim": 16,
        "in_channels": 4,
        "out_channels": 4,
        "time_embed_dim": 8,
        "text_embed_dim": 16,
        "num_layers": 2,
        "sample_width": 8,
        "sample_height": 4,
        "sample_frames": 17,
        "max_text_seq_length": 6,
    }
    return lambda: shake(CogVideoXTransformer3DModel(**{**config, **options}))


def rotary_table(model: Any, size: Size) -> Any:
    """The table that the pipeline passes for `size` latents."""

    class Pipe:
        vae_scale_factor_spatial = 1
        transformer = model

    prepare: Any = CogVideoXPipeline._prepare_rotary_positional_embeddings
    return prepare(Pipe, size[1], size[2], size[0], torch.device("cpu"))


def call_cogvideox(**options: Any) -> Callable[[Size, int, torch.dtype], dict[str, Any]]:
    """Calls for `make_cogvideox` with the same options."""
    model = make_cogvideox(**options)() if options else None

    def call(size: Size, batch: int, dtype: torch.dtype) -> dict[str, Any]:
        arguments = {
            "hidden_states": randn(batch, 4, *size, dtype=dtype).transpose(1, 2),
            "encoder_hidden_states": randn(batch, 6, 16, dtype=dtype, seed=1),
            "timestep": torch.full((batch,), 500),
        }
        if model is not None:
            arguments["image_rotary_emb"] = rotary_table(model, size)
        if "ofs_embed_dim" in options:
            arguments["ofs"] = torch.full((1,), 2.0, dtype=dtype)
        return arguments

    return call


CASES: tuple[Case, ...] = (
    Case("cogvideox-2b", "CogVideoXFamily", make_cogvideox(), call_cogvideox(), (7, 4, 12), (5, 4, 8)),
    Case("cogvideox-5b", "CogVideoXFamily", make_cogvideox(**ROTARY), call_cogvideox(**ROTARY), (7, 8, 8), (5, 4, 8)),
    Case("cogvideox-1.5", "CogVideoXFamily", make_cogvideox(**NEWER), call_cogvideox(**NEWER), (6, 4, 12), (4, 4, 8)),
)
