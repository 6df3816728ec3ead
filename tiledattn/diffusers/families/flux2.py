"""Flux2Transformer2DModel: Flux.2 dev and klein."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from .flux import FluxFamily

_LONG = 4300  # tokens; from here on the number of steps doesn't matter


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

    shift_breaks = (_LONG,)

    def shift(self, config: Mapping[str, Any], tokens: int, num_steps: int) -> float:
        """The pipeline's fit to measured shifts: a line for 10 steps, one for 200, and between them by the steps."""
        many = 0.00016927 * tokens + 0.45666666
        if tokens > _LONG:
            return many
        few = 8.73809524e-05 * tokens + 1.89833333
        slope = (many - few) / 190
        return slope * num_steps + (many - 200 * slope)

    image_prompts = None

    def encode(self, pipe: Any, prompt: str) -> dict[str, Tensor]:
        """Text of several layers of the text encoder."""
        return {"encoder_hidden_states": pipe.encode_prompt(prompt)[0]}
