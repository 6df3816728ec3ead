"""What diffusers' caches between steps (`enable_cache`, or its `apply_...` functions) can and can't do on tiles."""

from __future__ import annotations

from typing import Any

from torch import nn

# names of the caches' hooks in diffusers' registries
_HALVES = ("faster_cache_denoiser", "faster_cache_block")
_ATTENTION = ("pyramid_attention_broadcast", "taylorseer_cache")
_BLOCKS = ("fbc_leader_block_hook", "mag_cache_leader_block_hook", "sea_cache_root", "sea_cache_leader_block")
# of diffusers' attention backends those that call F.scaled_dot_product_attention
_BY_TORCH = ("native", "_native_cudnn", "_native_efficient", "_native_flash", "_native_math")


def check_caches(model: nn.Module) -> None:
    """Raises NotImplementedError for a cache that tells guidance copies apart by their place in the batch."""
    if type(getattr(model, "_cache_config", None)).__name__ == "FasterCacheConfig" or _has(model, _HALVES):
        raise NotImplementedError(
            f"{type(model).__name__}: can't be tiled with FasterCache, which takes one half of the batch for the "
            "unconditional copies, where a tiled batch has tiles; call disable_cache(), or use FirstBlockCache"
        )


def check_still(model: nn.Module) -> None:
    """Raises NotImplementedError for any cache: what it keeps of a step is another piece of the canvas at the next."""
    if any(_has(module, _HALVES + _ATTENTION + _BLOCKS) for module in model.modules()):
        raise NotImplementedError(
            f"{type(model).__name__}: jitter moves the tiles at every step, and a cache between steps would put what "
            "it kept of one step in another place at the next; call disable_cache(), or leave jitter out"
        )


def may_skip(layer: Any) -> bool:
    """Whether a cache may answer in an attention layer's place, with what it has seen of all tiles before.

    False where the layer attends past `F.scaled_dot_product_attention`: whether it was skipped can't be told then.
    """
    return _has(layer, _ATTENTION) and _attention_backend(layer) in _BY_TORCH


def _has(module: nn.Module, names: tuple[str, ...]) -> bool:
    registry = getattr(module, "_diffusers_hook", None)
    return registry is not None and any(name in registry.hooks for name in names)


def _attention_backend(layer: Any) -> str:
    """The name of the backend that diffusers dispatches a layer's attention to."""
    own = getattr(layer.processor, "_attention_backend", None)
    if own is None:
        from diffusers.models.attention_dispatch import _AttentionBackendRegistry

        own, _ = _AttentionBackendRegistry.get_active_backend()
    return str(getattr(own, "value", own))
