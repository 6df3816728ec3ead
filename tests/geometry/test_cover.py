import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tiledattn.geometry.axis import Axis, axis_origins, axis_owners
from tiledattn.geometry.cover import axis_cover, axis_ring_table, axis_run


@st.composite
def axes(draw):
    length = draw(st.integers(1, 40))
    tile = draw(st.integers(1, length))
    return Axis(length, tile, draw(st.integers(0, tile - 1)), draw(st.booleans()))


def covering_tiles(axis, position):
    """(tile, place) of all tiles that hold the position, one tile at a time."""
    found = []
    for index, origin in enumerate(axis_origins(axis)):
        for place in range(axis.tile):
            if (origin + place) % axis.length == position:
                found.append((index, place))
    return found


@given(axes())
def test_cover_lists_every_covering_tile_in_ascending_order(axis):
    cover = axis_cover(axis)
    width = cover.tile.shape[1]
    assert cover.tile.shape == cover.local.shape == (axis.length, width)
    expected = [covering_tiles(axis, position) for position in range(axis.length)]
    assert width == max(map(len, expected))
    for position, pairs in enumerate(expected):
        got = list(zip(cover.tile[position].tolist(), cover.local[position].tolist(), strict=True))
        assert got == pairs + [(-1, -1)] * (width - len(pairs))


@given(axes(), st.integers(0, 9), st.integers(0, 9))
@settings(max_examples=60)
def test_ring_table_names_own_tile_owners_and_the_outside(axis, before, after):
    ring = axis_ring_table(axis, before, after)
    origins, owners = axis_origins(axis), axis_owners(axis)
    assert ring.source.shape == ring.local.shape == (len(origins), before + axis.tile + after)
    for index, origin in enumerate(origins):
        for column in range(before + axis.tile + after):
            position = origin + column - before
            got = (int(ring.source[index, column]), int(ring.local[index, column]))
            if not axis.wrap and not 0 <= position < axis.length:
                assert got == (-1, -1)
                continue
            place = (position - origin) % axis.length
            source = index if place < axis.tile else int(owners[position % axis.length])
            assert got == (source, (position - origins[source]) % axis.length)


@given(axes(), st.sampled_from([1, 2, 4, 8]))
def test_runs_stay_together_in_every_tile(axis, limit):
    run = axis_run(axis, limit)
    assert limit % run == 0
    cover = axis_cover(axis)
    for first in range(0, axis.length, run):
        for step in range(1, run):
            assert np.array_equal(cover.tile[first + step], cover.tile[first])
            covered = cover.tile[first] >= 0
            assert np.array_equal(
                (cover.local[first + step] - cover.local[first])[covered], np.full(covered.sum(), step)
            )


@pytest.mark.parametrize(
    ("axis", "run"),
    [
        (Axis(128, 64, 16, False), 8),
        (Axis(128, 64, 8, True), 8),
        (Axis(90, 30, 10, False), 2),
        (Axis(7, 7, 0, False), 1),
    ],
)
def test_run_lengths(axis, run):
    assert axis_run(axis, 8) == run


def test_tables_are_shared_and_read_only():
    axis = Axis(12, 5, 2, True)
    assert axis_cover(axis) is axis_cover(Axis(12, 5, 2, True))
    with pytest.raises(ValueError, match="read-only"):
        axis_cover(axis).tile[0, 0] = 7
    with pytest.raises(ValueError, match="read-only"):
        axis_ring_table(axis, 1, 1).source[0, 0] = 7
