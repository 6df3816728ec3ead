"""The tile kernels run on a CPU by the emulator: the tables are the backend's own, memory is hemmed in and watched."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from typing import Any

import torch
from emulation import emulated
from torch import Tensor

import tiledattn as ta
from tiledattn.backends import cuda_tiles

CPU = torch.device("cpu")
TYPES = {torch.float16: 0, torch.bfloat16: 1, torch.float32: 2, torch.float64: 3}
MARGIN = 64  # elements before and behind a result that must stay as they are


def library() -> ctypes.CDLL:
    found = emulated("tiles_emulated.cpp")
    for name in ("emulate_extract", "emulate_pad", "emulate_blend", "find_spot", "count_served"):
        getattr(found, name).restype = ctypes.c_char_p
    found.divide.restype = ctypes.c_uint32
    found.divide.argtypes = [ctypes.c_int64, ctypes.c_uint32]
    found.count_tiles.restype = found.width_of.restype = ctypes.c_int64
    return found


def ints(values: Sequence[int]) -> Any:
    return (ctypes.c_int64 * len(values))(*values)


def three(values: Sequence[int], missing: int) -> list[int]:
    return [missing] * (3 - len(values)) + list(values)


class Run:
    """Emulated calls: `vector` limits the elements of an access, `threads` those of a block, `many` those of a call
    before each serves more rows; results lie `shift` elements off.
    """

    def __init__(self, vector: int = 16, threads: int = 64, many: int = 1 << 21, seed: int = 0, shift: int = 0) -> None:
        self.limits, self.seed, self.shift = [vector, threads, many], seed, shift
        self.used = 0  # elements that an access moved
        self.ranges: list[int] = []

    def _name(self, tensor: Tensor, writable: bool = False) -> int:
        storage, begin = tensor.untyped_storage(), tensor.data_ptr()
        if tensor.numel():
            last = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
            self.ranges += [begin, begin + (last + 1) * tensor.element_size(), writable]
        assert storage.data_ptr() <= begin
        return begin

    def _axes(self, layout: ta.TileLayout) -> Any:
        values = [(1, 1, 0, 0)] * (3 - len(layout.axes)) + [
            (a.length, a.tile, a.overlap, int(a.wrap)) for a in layout.axes
        ]
        return ints([x for axis in values for x in axis])

    def _image(self, x: Tensor, lead: int) -> Any:
        strides = [0 if n == 1 else s for n, s in zip(x.shape, x.stride(), strict=True)]
        if x.shape[-1] == 1:
            strides[-1] = 1
        head = ([0] * (3 - lead) + strides[:lead])[-3:]
        return ints([self._name(x), *x.shape[lead - 2 : lead], *head, *three(strides[lead:], 0)])

    def _tables(self, tables: Sequence[Tensor]) -> Any:
        return ints(three([self._name(table) for table in tables], 0))

    def _result(self, shape: Sequence[int], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Memory for a result between margins, all of it NaN, the result `shift` elements off 64 bytes."""
        count = math.prod(shape)
        buffer = torch.full((count + 2 * MARGIN + self.shift,), math.nan, dtype=dtype)
        first = MARGIN + self.shift
        return buffer, buffer[first : first + count].view(list(shape))

    def _options(self, x: Tensor, unit: int, out: Tensor) -> Any:
        pointer = self._name(out, True)
        head = [TYPES[x.dtype], unit, pointer, *self.limits, self.seed, len(self.ranges) // 3]
        return ints([*head, *self.ranges])

    def _finish(self, error: bytes | None, vector: Any, buffer: Tensor, out: Tensor) -> Tensor:
        if error is not None:
            raise RuntimeError(error.decode())
        self.used = vector.value
        edge = MARGIN + self.shift
        assert bool(buffer[:edge].isnan().all())
        assert bool(buffer[edge + out.numel() :].isnan().all())
        return out

    def extract_tiles(
        self, canvas: Tensor, layout: ta.TileLayout, tables: cuda_tiles.PlaceTables | None = None
    ) -> Tensor:
        self.ranges.clear()
        places, unit = tables or cuda_tiles.extract_tables(layout, CPU)
        buffer, out = self._result((layout.num_tiles, *canvas.shape[:2], *layout.tile), canvas.dtype)
        image, entries, vector = self._image(canvas, 2), self._tables(places), ctypes.c_int64()
        options = self._options(canvas, unit, out)
        error = library().emulate_extract(self._axes(layout), image, entries, options, ctypes.byref(vector))
        return self._finish(error, vector, buffer, out)

    def pad_tiles(
        self,
        tiles: Tensor,
        layout: ta.TileLayout,
        pad: cuda_tiles.Pad,
        tables: cuda_tiles.PlaceTables | None = None,
    ) -> Tensor:
        self.ranges.clear()
        places, unit = tables or cuda_tiles.pad_tables(layout, pad, CPU)
        padded = [before + w + after for w, (before, after) in zip(layout.tile, pad, strict=True)]
        buffer, out = self._result((*tiles.shape[:3], *padded), tiles.dtype)
        image, entries, vector = self._image(tiles, 3), self._tables(places), ctypes.c_int64()
        rings = ints([x for ends in [(0, 0)] * (3 - len(pad)) + list(pad) for x in ends])
        options = self._options(tiles, unit, out)
        error = library().emulate_pad(self._axes(layout), image, entries, rings, options, ctypes.byref(vector))
        return self._finish(error, vector, buffer, out)

    def blend_tiles(
        self,
        tiles: Tensor,
        layout: ta.TileLayout,
        weights: Sequence[Tensor],
        tables: cuda_tiles.PlaceTables | None = None,
    ) -> Tensor:
        self.ranges.clear()
        covers, unit = tables or cuda_tiles.blend_tables(layout, CPU)
        buffer, out = self._result((*tiles.shape[1:3], *layout.size), tiles.dtype)
        image, entries, vector = self._image(tiles, 3), self._tables(covers), ctypes.c_int64()
        counts, windows = ints(three([c.shape[1] for c in covers], 1)), self._tables(weights)
        options = self._options(tiles, unit, out)
        error = library().emulate_blend(
            self._axes(layout), image, entries, counts, windows, options, ctypes.byref(vector)
        )
        return self._finish(error, vector, buffer, out)
