"""Large results lie in memory for which huge pages were asked."""

import pathlib

import pytest
import torch

import tiledattn as ta
from tiledattn.backends import native

SWITCH = pathlib.Path("/sys/kernel/mm/transparent_hugepage/enabled")

pytestmark = [
    pytest.mark.skipif(native.probe() is not None, reason=str(native.probe())),
    pytest.mark.skipif(not SWITCH.is_file(), reason="a system without transparent huge pages"),
]


def huge_pages_are_asked_for(x):
    """Whether the mapping around the middle of x carries the advice."""
    middle = x.data_ptr() + x.nbytes // 2
    inside = False
    for line in pathlib.Path("/proc/self/smaps").read_text().splitlines():
        first, *rest = line.split()
        if "-" in first and not first.endswith(":"):
            begin, end = (int(place, 16) for place in first.split("-"))
            inside = begin <= middle < end
        elif inside and first == "VmFlags:":
            return "hg" in rest
    raise AssertionError(f"no mapping holds {middle:#x}")


def test_large_results_ask_for_huge_pages():
    """Larger than what the allocator keeps: each lies in a mapping of its own."""
    layout = ta.TileLayout((2048, 2048), 1024)
    tiles = ta.extract_tiles(torch.ones(1, 4, 2048, 2048), layout, backend="cpu")
    assert huge_pages_are_asked_for(tiles)
    assert huge_pages_are_asked_for(ta.blend_tiles(tiles, layout, backend="cpu"))
    assert huge_pages_are_asked_for(ta.pad_tiles(tiles, layout, 1, backend="cpu"))
    q = torch.ones(64, 1, 16, 64, 256)
    assert huge_pages_are_asked_for(ta.cross_tile_attention(q, q, q, ta.TileLayout((32, 32), 4), 0, backend="cpu"))


def test_other_memory_is_left_alone():
    assert not huge_pages_are_asked_for(torch.ones(16 << 20))
