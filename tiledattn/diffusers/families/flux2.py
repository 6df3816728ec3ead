"""Flux2Transformer2DModel: Flux.2 dev and klein."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .flux import FluxFamily


class Flux2Family(FluxFamily):
    """Flux.2: as Flux.1, with positions (image, row, column, word) and fused projections."""

    name = "Flux.2"
    classes = ("Flux2Transformer2DModel",)
    pipelines = ("Flux2Pipeline", "Flux2KleinPipeline")
    hub = "black-forest-labs/FLUX.2-klein-4B"
    required = ("timestep", "encoder_hidden_states", "img_ids", "txt_ids")
    repeated = ("encoder_hidden_states",)
    passed = ("guidance", "joint_attention_kwargs", "num_ref_tokens", "ref_fixed_timestep", "return_dict")
    refused = dict.fromkeys(
        ("kv_cache", "kv_cache_mode"), "keys of reference images from an earlier step, in another order of tokens"
    )
    # those with a cache do the same where there is none
    processors = (
        "Flux2AttnProcessor",
        "Flux2ParallelSelfAttnProcessor",
        "Flux2KVAttnProcessor",
        "Flux2KVParallelSelfAttnProcessor",
    )

    def encode(self, pipe: Any, prompt: str) -> dict[str, Tensor]:
        """Text of several layers of the text encoder."""
        return {"encoder_hidden_states": pipe.encode_prompt(prompt)[0]}
