import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import halos, layouts

import tiledattn as ta
from tiledattn.geometry import attention_plan, normalize_halo, reverse, reversed_plan


def lending_cells(plan):
    """Per lender its cells, as (tokens, borrowers)."""
    starts, cells, tokens, borrowers = reversed_plan(plan).table
    for lender, kind in enumerate(reversed_plan(plan).class_of_lender):
        yield (
            lender,
            [
                (tokens[first : first + count], lender + borrowers[at : at + width])
                for first, count, at, width in cells[starts[kind] : starts[kind + 1]]
            ],
        )


def assert_reversed(plan):
    """The reversed table lists what the plan's table lists, each pair of borrower and token once, and nothing else."""
    size = plan.layout.tile_positions
    starts, index = plan.table
    listed = []
    for t, kind in enumerate(plan.class_of_tile):
        listed += [(t, flat) for flat in (t * size + index[starts[kind] : starts[kind + 1]].astype(np.int64)).tolist()]
    found = []
    for lender, cells in lending_cells(plan):
        for tokens, borrowers in cells:
            found += [(t, lender * size + token) for t in borrowers.tolist() for token in tokens.tolist()]
    assert sorted(found) == sorted(listed)


@settings(deadline=None)
@given(st.data(), st.booleans())
def test_the_reversed_table_lists_the_same_pairs(data, unwrapped):
    layout = data.draw(layouts())
    plan = attention_plan(layout, normalize_halo(layout, data.draw(halos(layout))), unwrapped)
    assert_reversed(plan)
    assert len(reversed_plan(plan).class_of_lender) == layout.num_tiles + len(plan.virtual)
    for _, cells in lending_cells(plan):
        assert sorted(np.concatenate([tokens for tokens, _ in cells]).tolist()) == [*range(layout.tile_positions)]
        assert len({tuple(borrowers) for _, borrowers in cells}) == len(cells)
        for tokens, borrowers in cells:
            assert len(tokens) > 0
            assert (np.diff(tokens) > 0).all()
            assert (np.diff(borrowers) > 0).all()
            assert ((borrowers >= 0) & (borrowers < layout.num_tiles)).all()


@given(layouts())
def test_both_ways_to_build_it_agree(layout):
    plan = attention_plan(layout, normalize_halo(layout, 2))
    (classes, cells), (other_classes, other_cells) = reverse._from_axes(plan), reverse._from_boxes(plan)
    for a, b in zip(classes, other_classes, strict=True):
        for one, other in zip(cells[a], other_cells[b], strict=True):
            assert one.tokens.tolist() == other.tokens.tolist()
            assert one.borrowers.tolist() == other.borrowers.tolist()


def test_a_wrong_table_is_noticed():
    plan = attention_plan(ta.TileLayout(15, 5), (2,))
    assert_reversed(plan)
    reversed_plan(plan).table.borrowers[0] += 1
    with pytest.raises(AssertionError):
        assert_reversed(plan)
    reversed_plan.cache_clear()


def test_cells_of_a_row_of_tiles():
    plan = attention_plan(ta.TileLayout(12, 4), (2,))
    (_, first), (_, middle), _ = lending_cells(plan)
    assert [(tokens.tolist(), borrowers.tolist()) for tokens, borrowers in first] == [([0, 1], []), ([2, 3], [1])]
    assert [(tokens.tolist(), borrowers.tolist()) for tokens, borrowers in middle] == [([0, 1], [0]), ([2, 3], [2])]


@pytest.mark.parametrize("overlap", [0, 8])
@pytest.mark.parametrize("wrap", [False, True])
def test_many_tiles_are_reversed_at_once(overlap, wrap):
    step = 64 - overlap
    layout = ta.TileLayout((step * 128 + overlap * (not wrap), step * 256 + overlap * (not wrap)), 64, overlap, wrap)
    plan = attention_plan(layout, (16, 16))
    began = time.perf_counter()
    found = reversed_plan(plan)
    table = found.table
    assert time.perf_counter() - began < 2
    assert len(found.class_of_lender) == 32_768
    assert sum(part.nbytes for part in table) < 2 << 20


def test_a_reversed_table_that_would_fill_memory_is_refused(monkeypatch):
    plan = attention_plan(ta.TileLayout((16, 16), 4), (16, 16))
    monkeypatch.setattr(reverse, "MAX_TABLE_ENTRIES", 100)
    with pytest.raises(ValueError, match=r"halo: a reach of .* reversed table of .* smaller halo"):
        _ = reverse.ReversedPlan(plan).table
