"""What users put on a transformer besides tiling: caches, offloading, casting, quantised layers, LoRA."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from diffusers import (
    FasterCacheConfig,
    FirstBlockCacheConfig,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    TaylorSeerCacheConfig,
)
from diffusers.hooks import apply_faster_cache
from diffusers.models.attention_dispatch import AttentionBackendName
from tiny_transformers import CASES
from torch import Tensor, nn

import tiledattn.diffusers as td

from .test_families import error, run

WAN = next(case for case in CASES if case.name == "wan")
WHOLE: dict[str, Any] = {"tile": WAN.tile, "halo": "all", "unit": "latent"}


def steps(model: Any, count: int = 4) -> Tensor:
    """The last of several forwards with falling timesteps on slowly changing latents."""
    call = WAN.call(WAN.size, 2, torch.float32)
    for step in range(count):
        call["timestep"] = torch.full((2,), 900 - 5 * step)
        with model.cache_context("cond"):
            out = run(model, call)
        call["hidden_states"] = call["hidden_states"] * 0.99
    return out


CACHES = {
    "first block": lambda: FirstBlockCacheConfig(threshold=100.0),
    "mag": lambda: MagCacheConfig(num_inference_steps=4, retention_ratio=0.25, threshold=1.0, mag_ratios=torch.ones(4)),
    "pyramid": lambda: PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=(100, 950),
        current_timestep_callback=lambda: 500,
    ),
    "taylorseer": lambda: TaylorSeerCacheConfig(
        cache_interval=2, disable_cache_before_step=1, max_order=1, cache_identifiers=[r"blocks\.\d+\.attn1"]
    ),
}


@pytest.mark.parametrize("name", CACHES)
def test_caches_decide_as_on_the_untiled_model(name: str) -> None:
    untiled, tiled, uncached = WAN.build(), WAN.build(), WAN.build()
    untiled.enable_cache(CACHES[name]())
    tiled.enable_cache(CACHES[name]())
    td.enable_tiling(tiled, **WHOLE)
    want = steps(untiled)
    effect = error(want, steps(uncached))
    assert effect > 1e-4, "the cache did nothing"
    assert error(steps(tiled), want) < 1e-5 + effect / 100  # extrapolation magnifies rounding


@pytest.mark.parametrize("first", ["cache", "tiling"])
def test_faster_cache_is_refused(first: str) -> None:
    model = WAN.build()
    config = FasterCacheConfig(current_timestep_callback=lambda: 500)
    if first == "cache":
        model.enable_cache(config)
        with pytest.raises(NotImplementedError, match=r"FasterCache.*disable_cache"):
            td.enable_tiling(model, **WHOLE)
        return
    td.enable_tiling(model, **WHOLE)
    model.enable_cache(config)
    with pytest.raises(NotImplementedError, match=r"FasterCache.*disable_cache"):
        steps(model, 1)


def test_faster_cache_is_refused_however_it_came() -> None:
    model = WAN.build()
    apply_faster_cache(model, FasterCacheConfig(current_timestep_callback=lambda: 500))
    with pytest.raises(NotImplementedError, match=r"FasterCache.*disable_cache"):
        td.enable_tiling(model, **WHOLE)


@pytest.mark.parametrize("name", CACHES)
def test_a_cache_and_a_moving_grid_exclude_each_other(name: str) -> None:
    """On a wrapped axis every shape stays, and a row is another piece of the canvas at every step."""
    model = WAN.build()
    td.enable_tiling(model, tile=WAN.tile, unit="latent", wrap=True, jitter=0, num_steps=4)
    steps(model, 2)
    model.enable_cache(CACHES[name]())
    with pytest.raises(NotImplementedError, match=r"jitter moves .* a cache .* disable_cache\(\), or leave jitter out"):
        steps(model, 1)
    td.enable_tiling(model, tile=tuple(WAN.size), unit="latent", jitter=0, num_steps=4)  # one tile stays where it is
    steps(model, 1)


@pytest.mark.parametrize("name", ["pyramid", "taylorseer"])
def test_another_attention_backend_is_noticed_behind_a_cache(name: str) -> None:
    model = WAN.build()
    td.enable_tiling(model, **WHOLE)
    model.enable_cache(CACHES[name]())
    for layer in (block.attn1 for block in model.blocks):
        layer.processor._attention_backend = AttentionBackendName.FLEX
    with pytest.raises(RuntimeError, match=r"attn1: its attention did not go through F\.scaled_dot_product_attention"):
        steps(model, 1)


@pytest.mark.parametrize("kind", ["block_level", "leaf_level"])
def test_group_offloading(kind: str) -> None:
    want_model, model = WAN.build(), WAN.build()
    td.enable_tiling(want_model, **WHOLE)
    td.enable_tiling(model, **WHOLE)
    model.enable_group_offload(
        onload_device=torch.device("cpu"),
        offload_device=torch.device("cpu"),
        offload_type=kind,
        num_blocks_per_group=1 if kind == "block_level" else None,
    )
    assert torch.equal(steps(model), steps(want_model))


def test_layerwise_casting() -> None:
    plain, tiled = WAN.build(), WAN.build()
    for model in (plain, tiled):
        model.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    td.enable_tiling(tiled, **WHOLE)
    assert error(steps(tiled), steps(plain)) < 1e-5


class Int8Linear(nn.Module):
    """A linear layer with 8-bit weights, as weight-only quantisation makes them."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.scale = linear.weight.abs().amax(1, keepdim=True) / 127
        self.weight = (linear.weight / self.scale).round().to(torch.int8)
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight.to(x.dtype) * self.scale.to(x.dtype), self.bias)


def test_quantised_layers() -> None:
    plain = WAN.build()
    for block in plain.blocks:
        for layer in (block.attn1, block.attn2):
            layer.to_q, layer.to_k, layer.to_v = (Int8Linear(x) for x in (layer.to_q, layer.to_k, layer.to_v))
    tiled = copy.deepcopy(plain)
    td.enable_tiling(tiled, **WHOLE)
    assert error(steps(tiled), steps(plain)) < 1e-5


def test_fused_projections() -> None:
    plain, tiled = WAN.build(), WAN.build()
    td.enable_tiling(tiled, **WHOLE)
    tiled.fuse_qkv_projections()
    assert error(steps(tiled), steps(plain)) < 1e-5
    tiled.unfuse_qkv_projections()
    assert error(steps(tiled), steps(plain)) < 1e-5


def test_a_deep_copy_is_tiled_on_its_own() -> None:
    model = WAN.build()
    td.enable_tiling(model, **WHOLE)
    want, twin = steps(model), copy.deepcopy(model)
    td.disable_tiling(model)
    assert torch.equal(steps(twin), want)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    td.disable_tiling(twin)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in twin.modules())


def test_another_attention_backend_is_noticed() -> None:
    model = WAN.build()
    td.enable_tiling(model, **WHOLE)
    model.set_attention_backend("_native_math")
    try:
        assert error(steps(model, 1), steps(WAN.build(), 1)) < 1e-5
    finally:
        model.set_attention_backend("native")


def test_an_unknown_processor_is_refused() -> None:
    class Strange:
        _attention_backend = _parallel_config = None

        def __call__(self, attn: Any, hidden_states: Tensor, *args: Any) -> Tensor:
            return hidden_states

    model = WAN.build()
    before = model.blocks[0].attn1.processor
    td.enable_tiling(model, **WHOLE)
    model.blocks[0].attn1.set_processor(Strange())
    with pytest.raises(TypeError, match=r"blocks\.0\.attn1.*Strange.*WanAttnProcessor"):
        steps(model, 1)
    model.blocks[0].attn1.set_processor(before)
    steps(model, 1)
