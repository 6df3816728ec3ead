"""What a run of the benchmark leaves."""

import copy
import json

import pytest
from benchmark_run import RUN

from bench import report
from bench.__main__ import earlier


def test_a_run_is_valid_and_survives_json():
    assert report.validate(json.loads(json.dumps(RUN))) == RUN


@pytest.mark.parametrize(
    ("commit", "goes_on"),
    [("93edb53", True), ("93edb53-dirty-0123456789ab", True), ("93edb53-dirty", False), ("unknown", False)],
)
def test_an_interrupted_run_goes_on_where_the_commit_names_the_sources(tmp_path, commit, goes_on):
    run = broken(lambda r: r["environment"].update(commit=commit))
    path = tmp_path / "benchmark.json"
    path.write_text(json.dumps(run))
    assert earlier(path, run["environment"]) == (run["cases"] if goes_on else [])


def broken(change):
    run = copy.deepcopy(RUN)
    change(run)
    return run


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.update(format=2), "format: got 2; expected 1"),
        (lambda r: r.pop("cases"), "cases: missing"),
        (lambda r: r["environment"].pop("commit"), r"environment\.commit: missing"),
        (lambda r: r["cases"][0].update(unit="miles"), r"cases\[0\]\.unit: got 'miles'"),
        (lambda r: r["cases"][0].update(amount="much"), r"cases\[0\]\.amount: got str; expected float"),
        (lambda r: r["cases"][0]["rows"][2].update(kind="foe"), r"rows\[2\]\.kind: got 'foe'"),
        (lambda r: r["cases"][0]["rows"][0].update(seconds=0), "expected a positive time"),
        (lambda r: r["cases"][0]["rows"][0].update(seconds=True), "got bool; expected float"),
        (lambda r: r["cases"][0]["rows"][0].update(error=1.0), "yet there is a time"),
        (lambda r: r["cases"][0]["rows"][0].update(error=float("nan")), "yet there is a time"),
        (lambda r: r["cases"][0]["rows"][0].pop("error"), r"rows\[0\]\.error: missing"),
        (lambda r: r["cases"][0]["rows"][0].update(failed="no"), "exactly one of seconds, skipped, failed"),
        (lambda r: r["cases"][0]["rows"][3].pop("skipped"), "exactly one of seconds, skipped, failed"),
    ],
)
def test_what_is_no_run_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        report.validate(broken(change))


def test_the_table():
    lines = report.tables(RUN).splitlines()
    assert lines[0] == "a processor; torch 2.13, 2 threads; commit abc, 2026-01-02."
    assert lines[2] == "| attention | dtype | ours | time | TFLOP/s | of a product | torch | gather | flex |"
    assert lines[4] == "| small | float32 | `cpu` | 2 ms ± 5% | 0.5 | 50% | 1.5 | 2.5 | – |"
    # what failed has no time, and nothing is compared with it
    assert lines[5] == "| wrong | float32 | none |  |  |  |  | 5 µs |  |"
    assert "no figure: flex (small, float32): not for this size." in lines[7]
    assert "wrong, hence no figure**: cpu (wrong, float32): it errs by 1, more than 0." in lines[8]


def test_the_newest_result_of_every_device(tmp_path):
    for name in ("a/2026-01-02.json", "a/2026-01-10.json", "b/2025-12-31.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [str(p.relative_to(tmp_path)) for p in report.latest_results(tmp_path)] == [
        "a/2026-01-10.json",
        "b/2025-12-31.json",
    ]


@pytest.mark.parametrize("path", report.latest_results(), ids=lambda path: path.parent.name)
def test_committed_results_are_valid(path):
    data = report.validate(json.loads(path.read_text()))
    assert data["environment"]["date"] == path.stem
    assert not any("failed" in row for case in data["cases"] for row in case["rows"] if row["kind"] == "ours")
