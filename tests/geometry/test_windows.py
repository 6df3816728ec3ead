import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import layouts

from tiledattn.geometry import WINDOWS, normalized_windows, window_weights
from tiledattn.geometry.windows import normalize_axis


@given(st.sampled_from(WINDOWS), st.integers(1, 40), st.data())
def test_windows_are_strictly_positive_and_symmetric(kind, tile, data):
    weights = window_weights(kind, tile, data.draw(st.integers(0, tile - 1)))
    assert weights.shape == (tile,)
    assert (weights > 0).all()
    np.testing.assert_allclose(weights, weights[::-1], rtol=1e-9)


@given(layouts(), st.sampled_from(WINDOWS))
def test_weights_sum_to_one_at_every_position(layout, kind):
    tables = normalized_windows(layout, kind)
    for axis, origins, table in zip(layout.axes, layout.axis_origins, tables, strict=True):
        total = np.zeros(axis.length)
        for origin, weights in zip(origins, table, strict=True):
            np.add.at(total, (origin + np.arange(axis.tile)) % axis.length, weights)
        np.testing.assert_allclose(total, 1.0, rtol=1e-12)


def test_ramps_are_as_long_as_the_overlap():
    linear = window_weights("linear", 8, 3)
    assert (linear[3:5] == 1).all()
    assert linear[:3].tolist() == pytest.approx([1 / 6, 3 / 6, 5 / 6])
    assert window_weights("hann", 6, 0).tolist() == [1.0] * 6


def test_unknown_window_is_named():
    with pytest.raises(ValueError, match=r"window: got 'hamming'; known are uniform, hann"):
        window_weights("hamming", 8, 2)


@pytest.mark.parametrize(("tile", "overlap"), [(0, 0), (-8, 2), (8, 8), (8, -1)])
def test_a_tile_that_is_none_is_refused(tile, overlap):
    with pytest.raises(ValueError, match=f"tile, overlap: got {tile} and {overlap}"):
        window_weights("hann", tile, overlap)


@given(layouts(axes=(1, 1)), st.data())
def test_a_window_times_a_number_weighs_alike(layout, data):
    weights = np.asarray(data.draw(st.lists(st.floats(0.01, 100), min_size=layout.tile[0], max_size=layout.tile[0])))
    for factor in (1e-250, 1e250):
        np.testing.assert_allclose(
            normalize_axis(layout.axes[0], weights * factor), normalize_axis(layout.axes[0], weights), rtol=1e-12
        )
