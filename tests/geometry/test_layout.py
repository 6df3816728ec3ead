import itertools
import pickle
import time

import numpy as np
import pytest
from hypothesis import given
from support import layouts

import tiledattn as ta
from tiledattn.geometry import layout as layout_module


def test_origins_of_the_design():
    layout = ta.TileLayout(size=(10, 9), tile=(4, 4), overlap=(0, 1), wrap=(False, True))
    assert layout.axis_origins == ((0, 4, 6), (0, 3, 6))
    assert layout.grid == (3, 3)
    assert layout.num_tiles == 9
    assert layout.origins[3:5] == ((4, 0), (4, 3))


def test_periodic_tiles_spread_evenly_on_the_shared_grid():
    layout = ta.TileLayout(28, 8, 0, True)  # 4 tiles of 8 on 28 positions, grid of 4
    assert layout.axis_origins == ((0, 4, 12, 20),)
    assert all(origin % 4 == 0 for origin in layout.axis_origins[0])


def test_one_tile_on_an_axis_that_it_fills():
    assert ta.TileLayout(8, 8, 3, True).axis_origins == ((0,),)


@given(layouts())
def test_every_position_is_covered_and_overlaps_hold(layout):
    for axis, origins in zip(layout.axes, layout.axis_origins, strict=True):
        assert list(origins) == sorted(set(origins))
        covered = {(o + r) % axis.length for o in origins for r in range(axis.tile)}
        assert covered == set(range(axis.length))
        gaps = [b - a for a, b in itertools.pairwise(origins)]
        if axis.wrap and len(origins) > 1:
            gaps.append(axis.length - origins[-1] + origins[0])
        assert all(axis.tile - gap >= axis.overlap for gap in gaps)


@given(layouts())
def test_scaled_divides_the_origins(layout):
    double = ta.TileLayout(*[[2 * v for v in x] for x in (layout.size, layout.tile, layout.overlap)], layout.wrap)
    half = double.scaled(2)
    assert half == layout
    assert hash(half) == hash(layout)
    assert all(a == tuple(2 * v for v in b) for a, b in zip(double.origins, half.origins, strict=True))


@given(layouts())
def test_ints_and_pickle_round_trip(layout):
    assert ta.TileLayout.from_ints(layout.as_ints()) == layout
    assert pickle.loads(pickle.dumps(layout)) == layout


def test_scaled_names_what_does_not_divide():
    with pytest.raises(ValueError, match=r"overlap on axis 1 is 6.*4 does not divide.*nearest that work are 4 and 8"):
        ta.TileLayout((16, 16), (8, 8), (4, 6)).scaled(4)
    with pytest.raises(ValueError, match=r"tile on axis 0 is 2, which 4 does not divide; the least is 4"):
        ta.TileLayout(8, 2).scaled(4)
    with pytest.raises(ValueError, match="factor: axis 0 is 0"):
        ta.TileLayout(8, 4).scaled(0)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"size": (8, 8, 8, 8), "tile": 4}, ValueError, "size: got 4 axes"),
        ({"size": (), "tile": 4}, ValueError, "size: got 0 axes"),
        ({"size": (8, 8), "tile": (4,)}, ValueError, "tile: got 1 values .* the canvas has 2 axes"),
        ({"size": (8, 8), "tile": (4, 9)}, ValueError, "tile: axis 1 is 9; it must be between 1 and the canvas's 8"),
        ({"size": (8, 8), "tile": (4, 0)}, ValueError, "tile: axis 1 is 0"),
        ({"size": (8, -8), "tile": 4}, ValueError, "size: axis 1 is -8"),
        ({"size": 8, "tile": 4, "overlap": 4}, ValueError, "overlap: axis 0 is 4; it must be between 0 and 3"),
        ({"size": 8, "tile": 4, "overlap": -1}, ValueError, "overlap: axis 0 is -1"),
        ({"size": 8.0, "tile": 4}, TypeError, "size: got 8.0"),
        ({"size": b"ab", "tile": 4}, TypeError, "size: got b'ab'"),
        (
            {"size": 10**12, "tile": 1},
            ValueError,
            r"tile: axis 0 would have 1,000,000,000,000 tiles \(size .*\), more than 1,048,576; use larger tiles$",
        ),
        (
            {"size": (8, 10**9 + 5), "tile": (4, 10**9), "overlap": (0, 10**9 - 1), "wrap": True},
            ValueError,
            r"tile: axis 1 would have 1,000,000,005 tiles .*, more than 1,048,576; .* or a smaller overlap$",
        ),
        ({"size": (8, True), "tile": 4}, TypeError, r"size: axis 1 is True \(bool\)"),
        ({"size": 8, "tile": 4, "overlap": 0.25}, TypeError, "overlap: got 0.25"),
        ({"size": 8, "tile": "4"}, TypeError, "tile: axis 0 is '4'"),
        ({"size": 8, "tile": 4, "wrap": 1}, TypeError, "wrap: got 1"),
        ({"size": 8, "tile": 4, "wrap": (True, True)}, ValueError, "wrap: got 2 values"),
        ({"size": 8, "tile": 4, "wrap": "x"}, TypeError, "wrap: got 'x'"),
    ],
)
def test_bad_values_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        ta.TileLayout(**arguments)


@given(layouts())
def test_the_tiles_that_are_counted_are_those_that_there_are(layout):
    assert layout.grid == tuple(map(len, layout.axis_origins))
    arguments = layout.size, layout.tile, layout.overlap, layout.wrap
    most = max(layout.grid)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout_module, "MAX_AXIS_TILES", most)
        assert ta.TileLayout(*arguments) == layout
        patch.setattr(layout_module, "MAX_AXIS_TILES", most - 1)
        with pytest.raises(ValueError, match=f"axis {layout.grid.index(most)} would have {most} tiles .* {most - 1};"):
            ta.TileLayout(*arguments)


@pytest.mark.parametrize("wrap", [False, True])
def test_the_most_tiles_of_an_axis(wrap):
    most = layout_module.MAX_AXIS_TILES
    assert ta.TileLayout(3 * most, 3, 0, wrap).num_tiles == most
    with pytest.raises(ValueError, match="axis 0 would have 1,048,577 tiles"):
        ta.TileLayout(3 * most + 1, 3, 0, wrap)


@pytest.mark.parametrize("wrap", [False, True])
def test_too_many_tiles_are_refused_before_they_are_listed(wrap):
    began = time.perf_counter()
    with pytest.raises(ValueError, match=r"axis 0 would have [0-9,]{13} tiles"):
        ta.TileLayout(2 * 10**9 + 5, 10**9, 10**9 - 1, wrap)
    assert time.perf_counter() - began < 0.5
    one = ta.TileLayout(10**9, 10**9, 10**9 - 1, wrap)  # one tile, whatever the overlap
    assert one.num_tiles == 1


def test_layouts_are_immutable():
    layout = ta.TileLayout(8, 4)
    with pytest.raises(AttributeError):
        layout.tile = (2,)


def test_integers_of_numpy_are_integers():
    layout = ta.TileLayout((np.int64(12), 8), np.int32(4), np.uint8(1))
    assert layout == ta.TileLayout((12, 8), 4, 1)
    assert {type(n) for n in (*layout.size, *layout.tile, *layout.overlap)} == {int}
    assert layout.scaled(np.int64(1)) == layout
    with pytest.raises(TypeError, match=r"tile: got np\.float64"):
        ta.TileLayout((12, 8), np.float64(4))
