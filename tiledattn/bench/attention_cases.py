"""Cross-tile attention: cases, ways and their judge."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import tiledattn as ta
from tiledattn.backends import reference
from tiledattn.geometry import attention_plan

from . import peers
from .variants import sm90_way
from .ways import Call, Case, Inputs, Judge, Verdict, Way, budget, our_backends, random

SDPA = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cuDNN": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
MOST_FLEX_TOKENS = {"cpu": 10000, "cuda": None}
MOST_DENSE_TOKENS = {"cpu": 4096, "cuda": 16384}
PRODUCT_SIZE = {"cpu": 2048, "cuda": 8192}
JUDGED_ROWS = {"cpu": 24, "cuda": 128}  # of every tile, batch entry and head


@dataclass(frozen=True)
class AttentionCase(Case):
    """Self-attention of all tiles, forward."""

    layout: ta.TileLayout
    halo: tuple[int, ...]
    heads: int
    dim: int
    batch: int

    unit = "TFLOP/s"

    def amount(self, dtype: torch.dtype) -> float:
        """Two products of queries and keys."""
        return 4.0 * attention_plan(self.layout, self.halo).num_pairs * self.batch * self.heads * self.dim

    def inputs(self, device: torch.device, dtype: torch.dtype, seed: int) -> Inputs:
        """Queries, keys and values [T, B, N, H, D]."""
        shape = (3, self.layout.num_tiles, self.batch, self.layout.tile_positions, self.heads, self.dim)
        return random(shape, device, dtype, seed).unbind(0)

    def ours(self, device: torch.device) -> list[Way]:
        """Every backend of the package that runs on the device, and the kernel for sm_90a."""
        attend = partial(ta.cross_tile_attention, layout=self.layout, halo=self.halo)
        names = our_backends(device)
        found = [Way(name, "ours", partial(_plain_call, partial(attend, backend=name))) for name in names]
        return [*found, sm90_way(attend, device)] if "cuda" in names else found

    def ways(self, device: torch.device, dtype: torch.dtype) -> list[Way]:
        """Ours, gathered K/V with each kind of SDPA, FlexAttention, a dense mask, no halo, the matrix product."""
        rows, tokens = peers.gathered_rows(self.layout, self.halo, device), self.layout.tile_positions
        kinds = SDPA if device.type == "cuda" else {"": None}
        found = self.ours(device)
        for name, kind in kinds.items():
            label = f"SDPA {name}".strip()
            found.append(Way(f"gather + {label}", "peer", partial(_gather_and_attend, rows, kind)))
            found.append(Way(f"{label}, gathered before", "peer", partial(_attend_gathered, rows, kind)))
        flex = partial(peers.flex_attention, tokens, rows, MOST_FLEX_TOKENS[device.type])
        dense = partial(peers.dense_attention, tokens, rows, MOST_DENSE_TOKENS[device.type])
        return [
            *found,
            Way("FlexAttention", "peer", MadeOnce(flex)),
            Way("SDPA, dense mask", "peer", MadeOnce(dense)),
            Way("SDPA, no halo", "bound", partial(_plain_call, peers.without_halo)),
            matrix_product(device, dtype),
        ]

    def judge(self, inputs: Inputs, yardstick: torch.dtype | None = None) -> Judge:
        """Some rows of every tile, batch entry and head, against float64."""
        return AttentionJudge(self.layout, self.halo, inputs, yardstick).verdict


@dataclass(frozen=True)
class OverheadCase(AttentionCase):
    """So little work that the call itself is what takes the time."""

    unit = ""

    def ways(self, device: torch.device, dtype: torch.dtype) -> list[Way]:
        """Ours, and SDPA without a halo."""
        return [*self.ours(device), Way("SDPA, no halo", "bound", partial(_plain_call, peers.without_halo))]


def matrix_product(device: torch.device, dtype: torch.dtype) -> Way:
    """What the machine's matrix units do at best: a square product in the same precision."""
    size = PRODUCT_SIZE[device.type]

    def prepare(inputs: Inputs) -> Call:
        a, b = random((2, size, size), device, dtype, 0).unbind(0)
        return lambda: a @ b

    return Way(f"a product of {size}^3", "limit", prepare)


def product_flop(device: torch.device) -> float:
    return 2.0 * PRODUCT_SIZE[device.type] ** 3


def _plain_call(attend: peers.Attend, inputs: Inputs) -> Call:
    return lambda: attend(*inputs)


def _gather_and_attend(rows: Tensor, kind: SDPBackend | None, inputs: Inputs) -> Call:
    return _with_kind(kind, lambda: peers.gather_and_attend(*inputs, rows))


def _attend_gathered(rows: Tensor, kind: SDPBackend | None, inputs: Inputs) -> Call:
    q, keys, values = inputs[0], peers.gather(inputs[1], rows), peers.gather(inputs[2], rows)
    return _with_kind(kind, lambda: peers.attend_gathered(q, keys, values))


def _with_kind(kind: SDPBackend | None, call: Call) -> Call:
    if kind is None:
        return call

    def run() -> Tensor:
        with sdpa_kernel(kind):
            return call()

    return run


class MadeOnce:
    """A way whose function is made once for all sets of inputs."""

    def __init__(self, make: partial[peers.Attend]) -> None:
        self._make = make

    @cached_property
    def attend(self) -> peers.Attend:
        return self._make()

    def __call__(self, inputs: Inputs) -> Call:
        return _plain_call(self.attend, inputs)


class AttentionJudge:
    """Sampled rows in float64 and in plain PyTorch; who sees what is asked of the reference, not of a plan."""

    def __init__(
        self, layout: ta.TileLayout, halo: tuple[int, ...], inputs: Inputs, yardstick: torch.dtype | None = None
    ) -> None:
        q = inputs[0]
        plainly = tuple(x.to(yardstick or x.dtype) for x in inputs)
        tokens = layout.tile_positions
        some = torch.randperm(tokens, generator=torch.Generator().manual_seed(1))[: JUDGED_ROWS[q.device.type]]
        self.rows = torch.cat([some, torch.tensor([0, tokens - 1])]).unique().to(q.device)
        self.results: dict[tuple[bool, bool], Tensor] = {}  # by (with halo, exact)
        for with_halo in (True, False):
            lists = [_halo_of(layout, halo, t) if with_halo else ([], []) for t in range(layout.num_tiles)]
            for exact in (True, False):
                self.results[with_halo, exact] = torch.stack(
                    [self._tile(inputs if exact else plainly, t, *lists[t], exact) for t in range(layout.num_tiles)]
                )

    def _tile(self, inputs: Inputs, tile: int, tiles: list[int], tokens: list[int], exact: bool) -> Tensor:
        q, k, v = inputs
        at = torch.tensor(tiles, dtype=torch.long), torch.tensor(tokens, dtype=torch.long)
        u, n = (x.to(q.device) for x in at)
        keys, values = (torch.cat([x[tile], x[u, :, n].transpose(0, 1)], 1).transpose(1, 2) for x in (k, v))
        rows = q[tile][:, self.rows].transpose(1, 2)
        if exact:
            weights = (rows.double() @ keys.double().transpose(2, 3) * q.shape[-1] ** -0.5).softmax(-1)
            return weights @ values.double()
        return F.scaled_dot_product_attention(rows, keys.contiguous(), values.contiguous())

    def verdict(self, found: Tensor, way: Way) -> Verdict:
        """Of the sampled rows; a NaN or infinity anywhere fails."""
        if not bool(found.isfinite().all()):
            return Verdict(float("inf"), 0.0)
        with_halo = way.kind != "bound"
        rows = found[:, :, self.rows].transpose(2, 3)
        return budget(rows, self.results[with_halo, False], self.results[with_halo, True])


def rows_by_definition(layout: ta.TileLayout, halo: tuple[int, ...], device: torch.device) -> Tensor:
    """As `peers.gathered_rows`, asked of the reference and not of a plan."""
    tokens = layout.tile_positions
    lists = []
    for tile in range(layout.num_tiles):
        tiles, places = (torch.tensor(x, dtype=torch.long) for x in _halo_of(layout, halo, tile))
        lists.append(torch.cat([torch.arange(tokens) + tile * tokens, tiles * tokens + places]))
    return torch.stack(lists).to(device)


def _halo_of(layout: ta.TileLayout, halo: tuple[int, ...], tile: int) -> tuple[list[int], list[int]]:
    """Tiles and tokens of a tile's halo, by the definition."""
    axes, tiles = reference._tiles(layout)
    number = {index: t for t, index in enumerate(tiles)}
    found = list(reference._outside(axes, tiles[tile], halo))
    return [number[u] for u, _ in found], [reference._row_major(place, layout.tile) for _, place in found]


def _case(
    name: str,
    dtypes: dict[str, tuple[str, ...]],
    grid: tuple[int, ...],
    tile: tuple[int, ...],
    halo: int | tuple[int, ...],
    heads: int,
    dim: int,
    batch: int,
) -> AttentionCase:
    """Tiles side by side on a periodic canvas."""
    size = tuple(g * w for g, w in zip(grid, tile, strict=True))
    reach = (halo,) * len(tile) if isinstance(halo, int) else halo
    title = f"{name}, H{heads} D{dim} B{batch}"
    return AttentionCase("attention", title, dtypes, ta.TileLayout(size, tile, 0, True), reach, heads, dim, batch)


_BOTH = {"cpu": ("float32", "bfloat16"), "cuda": ("bfloat16", "float32", "tf32")}
_HALF = {"cuda": ("bfloat16", "float16")}
_HALF_ON_GPU = {"cpu": ("float32", "bfloat16"), "cuda": ("bfloat16",)}

CASES: list[Case] = [
    _case("3x3 tiles of 32x32, halo 8", _BOTH, (3, 3), (32, 32), 8, 4, 64, 2),
    _case("4x4 tiles of 16x16, halo 4", _BOTH, (4, 4), (16, 16), 4, 8, 64, 2),
    _case("2x2 tiles of 64x64, halo 16", _HALF_ON_GPU, (2, 2), (64, 64), 16, 24, 128, 1),
    _case("4x4 tiles of 64x64, halo 16", _HALF, (4, 4), (64, 64), 16, 24, 128, 1),
    _case("4x4 tiles of 64x64, halo 16", _HALF, (4, 4), (64, 64), 16, 20, 64, 2),
    _case("4x4 tiles of 32x32, halo 8", {"cuda": ("bfloat16",)}, (4, 4), (32, 32), 8, 24, 128, 2),
    _case("2x2x2 tiles of 8x32x32, halo 2x8x8", {"cuda": ("bfloat16",)}, (2, 2, 2), (8, 32, 32), (2, 8, 8), 12, 128, 1),
    OverheadCase(
        "overhead of a call", "2x2 tiles of 4x4, halo 2, H2 D16 B1", _BOTH, ta.TileLayout((8, 8), 4), (2, 2), 2, 16, 1
    ),
]
