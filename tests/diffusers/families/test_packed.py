"""Where the images of a packed sequence are, out of the positions of their tokens."""

from __future__ import annotations

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from tiledattn.diffusers.families.packed import grids_of_ids, ids_of_grid

GRIDS = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=3)


def ids_of(grids: list[tuple[int, int]]) -> torch.Tensor:
    """Positions (image, row, column, word) of images that follow one another."""
    return torch.cat([ids_of_grid(torch.tensor([10.0 * i, 0, 0, 0]), grid) for i, grid in enumerate(grids)])


@given(GRIDS, st.sampled_from([torch.float32, torch.bfloat16, torch.int64]))
def test_grids_are_found(grids: list[tuple[int, int]], dtype: torch.dtype) -> None:
    assert grids_of_ids("img_ids", ids_of(grids).to(dtype)) == grids


@pytest.mark.parametrize("grid", [(1, 600), (600, 1), (3, 511), (260, 260)])
def test_grids_are_found_in_rounded_positions(grid: tuple[int, int]) -> None:
    assert grids_of_ids("img_ids", ids_of([grid, grid]).bfloat16()) == [grid, grid]


@given(GRIDS, st.data())
def test_other_positions_are_refused(grids: list[tuple[int, int]], data: st.DataObject) -> None:
    ids = ids_of(grids)
    token = data.draw(st.integers(0, len(ids) - 1))
    axis = data.draw(st.integers(1, 3))
    assume(axis < 3 or all(height * width > 1 for height, width in grids))  # one token may be any word's
    ids[token, axis] += data.draw(st.sampled_from([-1, 100]))
    with pytest.raises(ValueError, match="img_ids: the positions of tokens"):
        grids_of_ids("img_ids", ids)
