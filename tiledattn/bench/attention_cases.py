"""Cross-tile attention: cases and ways."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import tiledattn as ta
from tiledattn.geometry import attention_plan

from . import peers, peers_optional
from .attention_judge import GATHERED_BEFORE, NATTEN, NO_HALO, WHOLE_CANVAS, AttentionJudge, halo_of, rows_by_definition
from .variants import sm90_way
from .ways import Call, Case, Inputs, Judge, NotOfferedError, Way, our_backends, random

__all__ = ["CASES", "AttentionCase", "AttentionJudge", "OverheadCase", "halo_of", "rows_by_definition"]

SDPA: Mapping[str, Mapping[str, SDPBackend | None]] = {
    "cpu": {"": None, "math": SDPBackend.MATH},  # PyTorch's own choice on a CPU is its flash kernel
    "cuda": {
        "flash": SDPBackend.FLASH_ATTENTION,
        "cuDNN": SDPBackend.CUDNN_ATTENTION,
        "efficient": SDPBackend.EFFICIENT_ATTENTION,
        "math": SDPBackend.MATH,
    },
}
MOST_FLEX_TOKENS = {"cpu": 10000, "cuda": None}
MOST_DENSE_TOKENS = {"cpu": 4096, "cuda": 16384}
MOST_WHOLE_POSITIONS = {"cpu": 10000, "cuda": 300000}
MOST_MATH_BYTES = {"cpu": 1 << 29, "cuda": 1 << 34}  # of the scores, which it holds all at once


@dataclass(frozen=True)
class AttentionCase(Case):
    """Self-attention of all tiles, forward.

    Useful work counts every score that the plan needs once: 4 * D floating-point operations for each query and each
    key that it sees (two products), over heads and batch. The softmax, masks, padding to blocks, gathering, and what a
    way computes beyond these pairs count for nothing.

    Attributes:
        layout: tiles, in tokens; periodic, so that all tiles see equally many.
        halo: reach per axis, in tokens.
        heads: H.
        dim: D.
        batch: B.
        prefix: leading tokens of each tile's sequence that lie on no canvas; queries there see their own sequence.
    """

    layout: ta.TileLayout
    halo: tuple[int, ...]
    heads: int
    dim: int
    batch: int
    prefix: int = field(default=0, kw_only=True)

    unit = "TFLOP/s"

    @property
    def pairs(self) -> int:
        """Queries times the keys that they see, over all tiles."""
        tokens = self.layout.tile_positions
        with_prefix = tokens * self.prefix + self.prefix * (self.prefix + tokens)
        return attention_plan(self.layout, self.halo).num_pairs + self.layout.num_tiles * with_prefix

    def amount(self, dtype: torch.dtype) -> float:
        """Two products of queries and keys."""
        return 4.0 * self.pairs * self.batch * self.heads * self.dim

    def least_bytes(self, dtype: torch.dtype) -> float:
        """Queries, keys and values read once, the result written once."""
        return 4.0 * math.prod(self._shape()) * dtype.itemsize

    def _shape(self) -> tuple[int, ...]:
        tokens = self.prefix + self.layout.tile_positions
        return self.layout.num_tiles, self.batch, tokens, self.heads, self.dim

    def inputs(self, device: torch.device, dtype: torch.dtype, seed: int) -> Inputs:
        """Queries, keys and values [T, B, S, H, D]."""
        return random((3, *self._shape()), device, dtype, seed).unbind(0)

    def ours(self, device: torch.device) -> list[Way]:
        """Every backend of the package that runs on the device, and the kernel for sm_90a."""
        attend = partial(ta.cross_tile_attention, layout=self.layout, halo=self.halo, num_prefix_tokens=self.prefix)
        names = our_backends(device)
        found = [Way(name, "ours", partial(_plain_call, partial(attend, backend=name))) for name in names]
        return [*found, sm90_way(attend, device)] if "cuda" in names else found

    def ways(self, device: torch.device, dtype: torch.dtype) -> list[Way]:
        """Ours, the peers, and what does other work: gather untimed, no halo, the whole canvas, NATTEN's windows.

        What a peer makes in `prepare` (block masks, dense masks, keys and values "gathered before") stays in memory
        and is in neither its time nor its extra memory, which are those of a call.
        """
        return [
            *self.ours(device),
            *self._gathered(device),
            *self._flash(device, dtype),
            Way("FlexAttention", "peer", MadeOnce(partial(self._flex, device))),
            Way("SDPA, dense mask", "peer", MadeOnce(partial(self._dense, device))),
            Way(NO_HALO, "bound", partial(_plain_call, peers.without_halo)),
            Way(WHOLE_CANVAS, "bound", MadeOnce(partial(self._whole, device))),
            Way(NATTEN, "bound", partial(self._natten, device)),
        ]

    def judge(self, inputs: Inputs, yardstick: torch.dtype | None = None) -> Judge:
        """By `AttentionJudge`: every row of every tile, batch entry and head."""
        return AttentionJudge(self.layout, self.halo, inputs, yardstick, self.prefix).verdict

    def _rows(self, device: torch.device) -> Tensor:
        return peers.gathered_rows(self.layout, self.halo, device, self.prefix)

    def places(self, device: torch.device) -> Tensor:
        """What each tile sees of each batch entry, for `peers.gather`."""
        return peers.of_batch(self._rows(device), self.prefix + self.layout.tile_positions, self.batch)

    def _gathered(self, device: torch.device) -> list[Way]:
        """Gathered keys and values with every kind of SDPA, the gather timed and not."""
        found = []
        for name, kind in SDPA[device.type].items():
            label = f"SDPA {name}".strip()
            found.append(Way(f"gather + {label}", "peer", partial(self._gather_and_attend, device, kind)))
            found.append(Way(f"{label}, {GATHERED_BEFORE}", "bound", partial(self._attend_gathered, device, kind)))
        return found

    def _gather_and_attend(self, device: torch.device, kind: SDPBackend | None, inputs: Inputs) -> Call:
        self.refuse_scores(kind, self._rows(device))
        (q, k, v), places = inputs, self.places(device)
        return with_kind(kind, lambda: peers.gather_and_attend(q, k, v, places, self.prefix))

    def _attend_gathered(self, device: torch.device, kind: SDPBackend | None, inputs: Inputs) -> Call:
        self.refuse_scores(kind, self._rows(device))
        places = self.places(device)
        q, keys, values = inputs[0], peers.gather(inputs[1], places), peers.gather(inputs[2], places)
        return with_kind(kind, lambda: peers.attend_gathered(q, keys, values, self.prefix))

    def refuse_scores(self, kind: SDPBackend | None, rows: Tensor, copies: int = 1) -> None:
        """Raises NotOfferedError where SDPA math would hold too many scores at once."""
        size = 4 * copies * rows.numel() * self.layout.tile_positions * self.batch * self.heads
        most = MOST_MATH_BYTES[rows.device.type]
        if kind == SDPBackend.MATH and size > most:
            raise NotOfferedError(f"SDPA math would hold scores of {size:.1e} bytes; measured up to {most:.1e}")

    def _flash(self, device: torch.device, dtype: torch.dtype) -> list[Way]:
        if device.type != "cuda":  # one line says so
            return [
                Way("gather + FlashAttention", "peer", partial(self._flash_call, "flash_attn", device, dtype, True))
            ]
        found = []
        for label, package in (("FlashAttention", "flash_attn"), ("FlashAttention 3", "flash_attn_interface")):
            call = partial(self._flash_call, package, device, dtype)
            found.append(Way(f"gather + {label}", "peer", partial(call, True)))
            found.append(Way(f"{label}, {GATHERED_BEFORE}", "bound", partial(call, False)))
        return found

    def _flash_call(self, package: str, device: torch.device, dtype: torch.dtype, timed: bool, inputs: Inputs) -> Call:
        attend, places = peers_optional.flash_attention(package, device, dtype, self.prefix), self.places(device)
        q, k, v = inputs

        def ready() -> tuple[Tensor, Tensor]:
            return peers.gather(k, places), peers.gather(v, places)

        before = None if timed else ready()

        def call() -> Tensor:
            keys, values = before or ready()
            return attend(q.flatten(0, 1), keys, values).view(q.shape)

        return call

    def _flex(self, device: torch.device) -> peers.Attend:
        tokens, most = self.prefix + self.layout.tile_positions, MOST_FLEX_TOKENS[device.type]
        return peers.flex_attention(tokens, self._rows(device), most, self.prefix)

    def _dense(self, device: torch.device) -> peers.Attend:
        tokens, most = self.prefix + self.layout.tile_positions, MOST_DENSE_TOKENS[device.type]
        return peers.dense_attention(tokens, self._rows(device), most, self.prefix)

    def _whole(self, device: torch.device) -> peers.Attend:
        return peers.whole_canvas(self.layout, MOST_WHOLE_POSITIONS[device.type], self.prefix)

    def _natten(self, device: torch.device, inputs: Inputs) -> Call:
        attend = peers_optional.natten(self.layout, self.halo, device, self.prefix)
        return _plain_call(attend, tuple(peers.merged(x, self.layout) for x in inputs))


@dataclass(frozen=True)
class OverheadCase(AttentionCase):
    """So little work that the call itself is what takes the time."""

    unit = ""

    def ways(self, device: torch.device, dtype: torch.dtype) -> list[Way]:
        """Ours, and SDPA without a halo."""
        return [*self.ours(device), Way(NO_HALO, "bound", partial(_plain_call, peers.without_halo))]


def _plain_call(attend: peers.Attend, inputs: Inputs) -> Call:
    return lambda: attend(*inputs)


def with_kind(kind: SDPBackend | None, call: Call) -> Call:
    """The call with that kernel of SDPA and no other; None leaves the choice to PyTorch."""
    if kind is None:
        return call

    def run() -> Any:
        with sdpa_kernel(kind):
            return call()

    return run


class MadeOnce:
    """A way whose function is made once for all sets of inputs."""

    def __init__(self, make: Callable[[], peers.Attend]) -> None:
        self._make = make

    @cached_property
    def attend(self) -> peers.Attend:
        """The function."""
        return self._make()

    def __call__(self, inputs: Inputs) -> Call:
        """Its call on some inputs."""
        return _plain_call(self.attend, inputs)


def _case(
    name: str,
    dtypes: Mapping[str, tuple[str, ...]],
    grid: tuple[int, ...],
    tile: tuple[int, ...],
    halo: int | tuple[int, ...],
    heads: int,
    dim: int,
    batch: int,
    quick: bool = False,
) -> AttentionCase:
    """Tiles side by side on a periodic canvas."""
    size = tuple(g * w for g, w in zip(grid, tile, strict=True))
    reach = (halo,) * len(tile) if isinstance(halo, int) else halo
    title, layout = f"{name}, H{heads} D{dim} B{batch}", ta.TileLayout(size, tile, 0, True)
    return AttentionCase("attention", title, dtypes, layout, reach, heads, dim, batch, quick=quick)


_BOTH = {"cpu": ("float32", "bfloat16"), "cuda": ("bfloat16", "float32", "tf32")}
_HALF = {"cuda": ("bfloat16", "float16")}
_HALF_ON_GPU = {"cpu": ("float32", "bfloat16"), "cuda": ("bfloat16",)}
_BFLOAT16 = {"cuda": ("bfloat16",)}
_TINY = ta.TileLayout((8, 8), 4)

CASES: list[Case] = [
    _case("3x3 tiles of 32x32, halo 8", _BOTH, (3, 3), (32, 32), 8, 4, 64, 2, quick=True),
    _case("4x4 tiles of 16x16, halo 4", _BOTH, (4, 4), (16, 16), 4, 8, 64, 2, quick=True),
    _case("2x2 tiles of 64x64, halo 16", _HALF_ON_GPU, (2, 2), (64, 64), 16, 24, 128, 1),
    _case("4x4 tiles of 64x64, halo 16", _HALF, (4, 4), (64, 64), 16, 24, 128, 1),
    _case("4x4 tiles of 64x64, halo 16", _HALF, (4, 4), (64, 64), 16, 20, 64, 2),
    _case("4x4 tiles of 32x32, halo 8", _BFLOAT16, (4, 4), (32, 32), 8, 24, 128, 2),
    _case("2x2x2 tiles of 8x32x32, halo 2x8x8", _BFLOAT16, (2, 2, 2), (8, 32, 32), (2, 8, 8), 12, 128, 1),
    OverheadCase(
        "overhead of a call", "2x2 tiles of 4x4, halo 2, H2 D16 B1", _BOTH, _TINY, (2, 2), 2, 16, 1, quick=True
    ),
]
