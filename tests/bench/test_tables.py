"""What the tables of a run say of it."""

import copy

import pytest
from benchmark_run import RUN

from tiledattn.bench import html, report, tables


def broken(change):
    run = copy.deepcopy(RUN)
    change(run)
    return run


@pytest.mark.parametrize("others", ["bound", "nobody", "skipped"])
def test_ours_is_not_bold_where_no_peer_was_timed(others):
    """Panorama at the same overlap may be faster: it is other work, so that neither wins."""

    def change(run):
        ours, torchs, gather = run["cases"][0]["rows"][:3]
        peer = {"way": "gather", "kind": "peer", "skipped": "no memory"}
        panorama = {**gather, "way": "Panorama", "kind": "bound", "seconds": 0.0019}
        run["cases"] = [run["cases"][0]]
        run["cases"][0]["rows"] = [ours, torchs, *{"bound": [panorama], "nobody": [], "skipped": [peer]}[others]]

    run = report.validate(broken(change))
    assert tables.winner(run["cases"][0]) is None
    for table in (tables.operation_tables(run)[0], tables.ways_table(run, "attention")):
        assert not any(cell.strong for row in table.rows for cell in row)
    assert "<strong>" not in html.page(run)


def test_a_limit_that_is_widely_spread_has_a_note():
    assert "are rough" not in report.tables(broken(lambda r: r["limits"][0].update(spread=0.2)))
    text = report.tables(broken(lambda r: r["limits"][0].update(spread=1.25)))
    assert "| 2 TFLOP/s ± 125% |" in text
    assert (
        "- spread by more than 20%: torch's matrix product, float32, 2048^3: fractions of such a rate are rough."
        in text
    )
