"""The attention processor that lets the queries of a tile see their neighbours."""

from __future__ import annotations

from typing import Any, Literal, Protocol

import torch
from diffusers.models.attention_processor import (
    Attention,
    AttnProcessor,
    AttnProcessor2_0,
    FusedAttnProcessor2_0,
    SlicedAttnProcessor,
    XFormersAttnProcessor,
)
from torch import Tensor

from ..geometry import TileLayout
from ..ops import cross_tile_attention
from .frame import Frame
from .joining import covers_once, join_tokens, split_tokens


class HasFrame(Protocol):
    """Whoever knows the forward pass under way."""

    @property
    def frame(self) -> Frame | None:
        """The pass under way, or None."""


class CrossTileAttnProcessor:
    """Processor for `diffusers.models.attention_processor.Attention` whose self-attention crosses tile borders.

    `enable_tiling` puts it on the self-attention layers; there is no need to construct it. Made without arguments it
    may replace a stock processor anywhere: without an active tiling it calls the stock processor, bit for bit, and
    `enable_tiling` makes it cross borders.

    Args:
        tiling: what knows the forward pass under way, in which it takes part; None: never crosses borders.
        original: the processor it stands for, called whenever no tiling is active and for cross-attention; None means
            `AttnProcessor2_0()`. It also says how the layer projects (`FusedAttnProcessor2_0`: `to_qkv`).
    """

    _attention_backend = None
    _parallel_config = None

    def __init__(self, tiling: HasFrame | None = None, original: Any = None) -> None:
        self.tiling = tiling
        self.original = AttnProcessor2_0() if original is None else original

    def __call__(
        self,
        attn: Attention,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Tensor:
        """Attention of one layer.

        Args:
            attn: the layer.
            hidden_states: `[T*B, N, C]` or `[T*B, C, h, w]`, the tile index slow; of joined tiles the canvas's,
                `[B, H*W, C]` or `[B, C, H, W]`.
            encoder_hidden_states: given: cross-attention, which stays stock.
            attention_mask: refused under tiling for self-attention.
            temb: passed on to the layer's `spatial_norm`.

        Returns:
            Like `hidden_states`.
        """
        frame = None if self.tiling is None else self.tiling.frame
        alone = frame is None or frame.layout.num_tiles == 1 or (frame.halo_weight == 0 and not frame.joined)
        if frame is None or alone or encoder_hidden_states is not None:
            out: Tensor = self.original(attn, hidden_states, encoder_hidden_states, attention_mask, temb)
            return out
        if attention_mask is not None:
            raise ValueError(
                "attention_mask: a mask on self-attention is per canvas and can't be cut into tiles yet; "
                "pass None, or disable_tiling"
            )
        residual = hidden_states
        if attn.spatial_norm is not None:
            hidden_states = attn.spatial_norm(hidden_states, temb)
        shape = hidden_states.shape
        if hidden_states.ndim == 4:
            hidden_states = hidden_states.flatten(2).transpose(1, 2)
        if attn.group_norm is not None:
            hidden_states = attn.group_norm(hidden_states.transpose(1, 2)).transpose(1, 2)
        hidden_states = self._attend(attn, hidden_states, frame)
        hidden_states = attn.to_out[0](hidden_states)
        hidden_states = attn.to_out[1](hidden_states)
        if residual.ndim == 4:
            hidden_states = hidden_states.transpose(-1, -2).reshape(shape)
        if attn.residual_connection:
            hidden_states = hidden_states + residual
        result: Tensor = hidden_states / attn.rescale_output_factor
        return result

    def _attend(self, attn: Attention, hidden_states: Tensor, frame: Frame) -> Tensor:
        """Projections and attention: [T*B, N, C] -> [T*B, N, H*D], or [B, H*W, C] -> [B, H*W, H*D]."""
        rows, tokens, _ = hidden_states.shape
        tiles = frame.layout.num_tiles
        factor = frame.token_factor(tokens)
        if factor is None or (not frame.joined and rows % tiles):
            what = f"a canvas of {frame.layout.size}" if frame.joined else f"{tiles} tiles of {frame.layout.tile}"
            raise ValueError(
                f"self-attention got {rows} sequences of {tokens} tokens, which are no level of {what} positions; "
                "something merges or drops tokens (ToMe?): turn it off, or use halo=0"
            )
        layout, halo = frame.layout.scaled(factor), frame.level_halo(factor)
        if not frame.joined:
            return self._attend_tiles(attn, *self._project(attn, hidden_states), layout, halo, frame)
        halo = halo if frame.halo_weight > 0 else (0, 0)
        if covers_once(layout):  # one copy before the projections is less than three behind them
            query, key, value = self._project(attn, split_tokens(hidden_states, layout))
            return join_tokens(self._attend_tiles(attn, query, key, value, layout, halo, frame), layout)
        query, key, value = self._project(attn, hidden_states)
        with frame.pause():
            # one after the other: the canvas's are not needed beside those of the tiles
            query = split_tokens(query, layout, frame.backend)
            key = split_tokens(key, layout, frame.backend)
            value = split_tokens(value, layout, frame.backend)
            out = self._attend_tiles(attn, query, key, value, layout, halo, frame)
            return join_tokens(out, layout, frame.window, frame.backend)

    def _project(self, attn: Attention, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values [rows, N, H*D] of [rows, N, C]."""
        if isinstance(self.original, FusedAttnProcessor2_0):
            query, key, value = attn.to_qkv(hidden_states).chunk(3, dim=-1)
        else:
            query, key, value = attn.to_q(hidden_states), attn.to_k(hidden_states), attn.to_v(hidden_states)
        return query, key, value

    def _attend_tiles(
        self,
        attn: Attention,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        layout: TileLayout,
        halo: tuple[int, ...] | Literal["all"],
        frame: Frame,
    ) -> Tensor:
        """Projections [T*B, N, H*D] -> [T*B, N, H*D]."""
        (rows, tokens, _), tiles = query.shape, layout.num_tiles
        heads = (tiles, rows // tiles, tokens, attn.heads, key.shape[-1] // attn.heads)  # [T, B, N, H, D]
        query, key, value = query.view(heads), key.view(heads), value.view(heads)
        if attn.norm_q is not None:
            query = attn.norm_q(query)
        if attn.norm_k is not None:
            key = attn.norm_k(key)
        query, key = query.to(value.dtype), key.to(value.dtype)  # under autocast such norms give float32
        with frame.pause():
            out = cross_tile_attention(
                query,
                key,
                value,
                layout,
                halo,
                halo_weight=frame.halo_weight,
                scale=self._scale(attn),
                backend=frame.backend,
            )
        assert isinstance(out, torch.Tensor)
        return out.reshape(rows, tokens, -1)

    def _scale(self, attn: Attention) -> float | None:
        """What the original multiplies logits by; None: 1 / sqrt(head dim)."""
        if isinstance(self.original, (AttnProcessor, XFormersAttnProcessor, SlicedAttnProcessor)):
            return float(attn.scale)
        return None
