import itertools
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import halos, layouts

import tiledattn as ta
from tiledattn.backends import reference
from tiledattn.geometry import AttentionPlan, UnwrappedPlan, Virtual, attention_plan, normalize_halo
from tiledattn.geometry import plan as plan_module
from tiledattn.geometry.axis import AxisReach, axis_owners, axis_reach


def reach_by_brute_force(layout, halo):
    axes, tiles = reference._tiles(layout)
    number = {index: t for t, index in enumerate(tiles)}
    tokens = layout.tile_positions
    return [
        sorted(number[s] * tokens + reference._row_major(p, layout.tile) for s, p in reference._outside(axes, i, halo))
        for i in tiles
    ]


@settings(deadline=None)
@given(st.data())
def test_tables_list_every_visible_token_once(data):
    layout = data.draw(layouts())
    plan = attention_plan(layout, normalize_halo(layout, data.draw(halos(layout))))
    starts, index = plan.table
    for tile, expected in enumerate(reach_by_brute_force(layout, plan.halo)):
        kind = plan.class_of_tile[tile]
        found = tile * layout.tile_positions + index[starts[kind] : starts[kind + 1]]
        assert sorted(found.tolist()) == expected
        assert plan.halo_length(kind) == len(expected)


@given(st.data())
def test_rectangles_are_the_tables(data):
    layout = data.draw(layouts())
    plan = attention_plan(layout, normalize_halo(layout, data.draw(halos(layout))))
    for kind, tiles in enumerate(plan.classes):
        assert all(plan.class_of_tile[t] == kind for t in tiles)
        rectangles = plan.rectangles(kind)
        assert sum(int(np.prod(r.shape)) for r in rectangles) == plan.halo_length(kind)
        for r in rectangles:
            assert all(a >= 0 and a + n <= w for a, n, w in zip(r.start, r.shape, layout.tile, strict=True))
            assert all(0 <= t + r.tile_delta < layout.num_tiles for t in tiles)
            for t in tiles:  # the offset is the canvas distance between the two places
                source, own = layout.origins[t + r.tile_delta], layout.origins[t]
                for a, b, start, offset, length in zip(source, own, r.start, r.offset, layout.size, strict=True):
                    assert (a + start - b - offset) % length == 0
    assert sorted(np.concatenate(plan.classes).tolist()) == list(range(layout.num_tiles))


@settings(deadline=None)
@given(st.data(), layouts(), st.booleans())
def test_tables_and_runs_are_the_rectangles_place_by_place(data, layout, unwrapped):
    plan = attention_plan(layout, normalize_halo(layout, data.draw(halos(layout))), unwrapped)
    for kind in range(plan.num_classes):
        expected = [
            r.tile_delta * layout.tile_positions + reference._row_major(place, layout.tile)
            for r in plan.rectangles(kind)
            for place in itertools.product(*(range(a, a + n) for a, n in zip(r.start, r.shape, strict=True)))
        ]
        assert plan.class_table(kind).tolist() == expected
        runs = plan.class_runs(kind)
        assert [token for start, length in runs.tolist() for token in range(start, start + length)] == expected


@settings(deadline=None)
@given(st.data(), layouts(), st.booleans())
def test_boxes_and_runs_are_counted_without_a_list(data, layout, unwrapped):
    plan = attention_plan(layout, normalize_halo(layout, data.draw(halos(layout))), unwrapped)
    assert plan.num_boxes == sum(len(plan.rectangles(kind)) for kind in range(plan.num_classes))
    assert plan.num_runs == sum(len(plan.class_runs(kind)) for kind in range(plan.num_classes))


@settings(deadline=None)
@given(st.data(), layouts(), st.integers(1, 20))
def test_what_is_made_in_batches_is_the_same(data, layout, at_once):
    halo = normalize_halo(layout, data.draw(halos(layout)))
    whole = AttentionPlan(layout, halo)
    _ = whole.table
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan_module, "_AT_ONCE", at_once)
        parts = AttentionPlan(layout, halo)
        _ = parts.table
    assert parts.class_of_tile.tolist() == whole.class_of_tile.tolist()
    for kind in range(whole.num_classes):
        assert parts.rectangles(kind) == whole.rectangles(kind)
    for one, other in zip(parts.table, whole.table, strict=True):
        assert one.tolist() == other.tolist()


@given(st.data(), layouts(axes=(1, 1), most_positions=24))
def test_an_axis_is_seen_position_by_position(data, layout):
    (axis,), (origins,) = layout.axes, layout.axis_origins
    depth = [  # of every position in every tile, below 0 outside
        [min(place, axis.tile - 1 - place) for place in ((p - o) % axis.length for o in origins)]
        for p in range(axis.length)
    ]
    owners = [row.index(max(row)) for row in depth]
    assert axis_owners(axis).tolist() == owners
    halo, room = data.draw(st.integers(0, axis.length + 1)), axis.length - axis.tile
    for index, (segments, origin) in enumerate(zip(axis_reach(axis, halo), origins, strict=True)):
        before = min(halo, room // 2 if axis.wrap else origin)
        after = min(halo, room - room // 2 if axis.wrap else room - origin)
        expected = [
            (index, offset)
            if 0 <= offset < axis.tile
            else (owners[place], (place - origins[owners[place]]) % axis.length)
            for offset in range(-before, axis.tile + after)
            for place in [(origin + offset) % axis.length]
        ]
        found = [(s.source, s.start + i) for s in segments for i in range(s.length)]
        assert found == expected
        assert [s.offset + before for s in segments] == [0, *itertools.accumulate(s.length for s in segments[:-1])]


def test_owner_is_the_deepest_other_tile():
    layout = ta.TileLayout(12, 6, 3)  # origins 0, 3, 6
    plan = attention_plan(layout, (3,))
    # 6 lies deepest in tile 1, 7 as deep in tile 2 (the lower index wins), 8 deepest in tile 2
    assert [tuple(r) for r in plan.rectangles(int(plan.class_of_tile[0]))] == [
        (1, (3,), (2,), (6,)),
        (2, (2,), (1,), (8,)),
    ]


def test_a_wrapped_neighbour_is_seen_the_short_way_round():
    plan = attention_plan(ta.TileLayout(12, 4, 0, True), (2,))
    offsets = {r.tile_delta: r.offset for r in plan.rectangles(int(plan.class_of_tile[0]))}
    assert offsets == {2: (-2,), 1: (4,)}


@pytest.mark.parametrize("overlap", [0, 8])
@pytest.mark.parametrize("wrap", [False, True])
def test_many_tiles_plan_in_seconds_with_small_tables(overlap, wrap):
    step = 64 - overlap
    layout = ta.TileLayout((step * 128 + overlap * (not wrap), step * 256 + overlap * (not wrap)), 64, overlap, wrap)
    assert layout.num_tiles == 32_768
    began = time.perf_counter()
    plan = attention_plan(layout, (16, 16))
    starts, index = plan.table
    assert time.perf_counter() - began < 5
    assert starts.nbytes + index.nbytes + plan.class_of_tile.nbytes < 2 << 20
    assert plan.num_classes <= 9


def test_uneven_periodic_layouts_stay_small():
    layout = ta.TileLayout((4095, 8190), 64, (7, 5), True)
    plan = attention_plan(layout, (16, 16))
    assert plan.num_classes <= 64
    assert plan.table[1].nbytes < 4 << 20


def test_a_table_that_would_fill_memory_is_refused():
    layout = ta.TileLayout((4096, 4096), 64)
    with pytest.raises(ValueError, match=r"halo: a reach of .* needs an index table of .* smaller halo"):
        _ = attention_plan(layout, normalize_halo(layout, "all")).table


@pytest.mark.parametrize("wrap", [False, True])
def test_an_axis_of_which_every_tile_sees_a_million_is_refused_at_once(wrap):
    (axis,) = ta.TileLayout(1 << 20, 1, 0, wrap).axes
    began = time.perf_counter()
    with pytest.raises(
        ValueError, match=r"halo: a reach of 1048576 over 1048576 tiles .* 1,099,511,627,776 segments, more"
    ):
        AxisReach(axis, axis.length)
    assert time.perf_counter() - began < 10
    assert AxisReach(axis, 1).counts.max() == 3


@given(st.data())
def test_pairs_count_every_visible_key(data):
    layout = data.draw(layouts())
    plan = attention_plan(layout, normalize_halo(layout, data.draw(halos(layout))))
    expected = sum(layout.tile_positions + len(h) for h in reach_by_brute_force(layout, plan.halo))
    assert plan.num_pairs == expected * layout.tile_positions


def unwrapped(layout, halo):
    """The unwrapped plan, with its lenders' canvas tiles by number."""
    plan = attention_plan(layout, normalize_halo(layout, halo), unwrapped=True)
    return plan, [*range(layout.num_tiles), *(v.tile for v in plan.virtual)]


@settings(deadline=None)
@given(st.data())
def test_unwrapped_tables_list_the_same_tokens(data):
    layout = data.draw(layouts())
    plan, lenders = unwrapped(layout, data.draw(halos(layout)))
    starts, index = plan.table
    tokens = layout.tile_positions
    for t, expected in enumerate(reach_by_brute_force(layout, plan.halo)):
        kind = plan.class_of_tile[t]
        found = t * tokens + index[starts[kind] : starts[kind + 1]].astype(np.int64)
        assert sorted(lenders[f // tokens] * tokens + f % tokens for f in found) == expected
        assert plan.halo_length(kind) == len(expected)
    assert plan.num_pairs == attention_plan(layout, plan.halo).num_pairs


@settings(deadline=None)
@given(st.data())
def test_virtual_tiles_lie_where_their_offsets_say(data):
    layout = data.draw(layouts())
    plan, lenders = unwrapped(layout, data.draw(halos(layout)))
    turns = [(0,) * len(layout.size)] * layout.num_tiles + [v.turns for v in plan.virtual]
    lent = set()
    for kind, tiles in enumerate(plan.classes):
        for t, r in ((t, r) for t in tiles for r in plan.rectangles(kind)):
            lender = t + r.tile_delta
            lent.add(lender)
            origin, own = layout.origins[lenders[lender]], layout.origins[t]
            for axis, length in enumerate(layout.size):
                assert r.offset[axis] == origin[axis] + turns[lender][axis] * length + r.start[axis] - own[axis]
                # the short way round: no place nearer on the other side
                first, last = r.offset[axis], r.offset[axis] + r.shape[axis] - 1
                if first < 0:
                    assert not layout.wrap[axis] or -first < first + length - layout.tile[axis] + 1
                elif last >= layout.tile[axis]:
                    assert not layout.wrap[axis] or last - layout.tile[axis] + 1 <= length - last
    assert len(set(plan.virtual)) == len(plan.virtual)
    assert set(range(layout.num_tiles, len(lenders))) <= lent
    assert all(any(v.turns) for v in plan.virtual)


def test_a_neighbour_on_both_sides_is_seen_twice():
    plan, _ = unwrapped(ta.TileLayout(9, 4, 0, True), "all")  # origins 0, 3, 6
    assert set(plan.virtual) == {Virtual(2, (-1,)), Virtual(0, (1,))}
    plan, _ = unwrapped(ta.TileLayout(8, 4, 0, True), "all")  # two tiles: each lends on both sides
    assert set(plan.virtual) == {Virtual(1, (-1,)), Virtual(0, (1,))}
    deltas = [[r.tile_delta for r in plan.rectangles(int(kind))] for kind in plan.class_of_tile]
    assert [sorted(t + d for d in row) for t, row in enumerate(deltas)] == [[1, 2], [0, 3]]


def test_the_middle_of_a_tie_lies_behind():
    plan, _ = unwrapped(ta.TileLayout(7, 2, 0, True), "all")  # 5 positions beyond tile 0: 2 ahead, 3 behind
    seen = [(r.offset[0] + i) for r in plan.rectangles(int(plan.class_of_tile[0])) for i in range(r.shape[0])]
    assert sorted(seen) == [-2, -1, 2, 3, 4]


def test_without_a_wrap_the_plain_plan_serves():
    for layout, halo in ((ta.TileLayout(12, 4), 2), (ta.TileLayout((12, 4), 4, 0, (False, True)), 2)):
        plan, _ = unwrapped(layout, halo)
        assert plan == attention_plan(layout, plan.halo)
        assert plan.virtual == ()


def test_tiles_away_from_the_wrap_share_their_tables():
    layout = ta.TileLayout((64, 64 * 256), 64, 0, (False, True))
    plan, _ = unwrapped(layout, 16)
    assert isinstance(plan, UnwrappedPlan)
    assert plan != attention_plan(layout, plan.halo)
    assert plan.num_classes == 3
    assert plan.table[1].nbytes < 1 << 20
    big = ta.TileLayout((64 * 128, 64 * 256), 64, 0, True)
    began = time.perf_counter()
    plan, _ = unwrapped(big, 16)
    assert plan.num_classes == 2 * (128 + 256) - 4 + 1
    assert plan.table[1].nbytes < 32 << 20
    assert time.perf_counter() - began < 5


def test_unwrapped_tables_that_would_fill_memory_are_refused():
    with pytest.raises(ValueError, match=r"halo: a reach of .* needs an index table of .* smaller halo"):
        unwrapped(ta.TileLayout((4096, 4096), 64, 0, True), "all")


def test_unwrapped_boxes_that_would_fill_memory_are_refused():
    began = time.perf_counter()
    with pytest.raises(
        ValueError, match=r"halo: a reach of \(256, 256\) over 4096 tiles needs a list of .* boxes, more than"
    ):
        unwrapped(ta.TileLayout((256, 256), 4, 0, True), "all")
    assert time.perf_counter() - began < 5


def test_virtual_tokens_count_towards_31_bits():
    layout = ta.TileLayout((1 << 10, 3 << 19), (1 << 10, 1 << 19), 0, (False, True))  # tiles of 2^29 tokens
    _ = attention_plan(layout, (0, 1)).table
    plan, _ = unwrapped(layout, (0, 1))
    assert len(plan.virtual) == 2
    with pytest.raises(ValueError, match="layout: 5 tiles of 536870912 tokens pass 2"):
        _ = plan.table


@pytest.mark.parametrize(
    ("halo", "error", "message"),
    [
        (-1, ValueError, "halo: axis 0 is -1; it must be at least 0"),
        ("everything", ValueError, "halo: got 'everything'"),
        (2.5, TypeError, r"halo: got 2.5 \(float\)"),
        ((1, True), TypeError, r"halo: axis 1 is True \(bool\)"),
        ((1, 2, 3), ValueError, "halo: got 3 values"),
        (None, TypeError, "halo: got None"),
    ],
)
def test_bad_halos_are_named(halo, error, message):
    with pytest.raises(error, match=message):
        normalize_halo(ta.TileLayout((8, 8), 4), halo)


def test_a_plan_takes_the_halos_that_operations_take():
    layout = ta.TileLayout((8, 8), 4)
    assert normalize_halo(layout, np.int64(2)) == normalize_halo(layout, (np.int32(2), 2)) == (2, 2)
    assert attention_plan(layout, 2).halo == attention_plan(layout, (2, 2)).halo == (2, 2)
    assert attention_plan(layout, "all").halo == (8, 8)
    for halo, error in ((-4, ValueError), (2.5, TypeError), ("x", ValueError)):
        with pytest.raises(error, match="halo: "):
            attention_plan(layout, halo)


def test_a_halo_may_be_a_list_and_no_bytes():
    layout = ta.TileLayout((8, 8), 4)
    assert attention_plan(layout, [1, 2]) is attention_plan(layout, (1, 2))
    with pytest.raises(TypeError, match="halo: got b'ab'"):
        attention_plan(layout, b"ab")
