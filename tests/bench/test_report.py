"""What a run of the benchmark leaves."""

import copy
import json

import pytest
from benchmark_run import RUN

from bench import record
from tiledattn.bench import report


def test_a_run_is_valid_and_survives_json():
    assert report.validate(json.loads(json.dumps(RUN))) == RUN


def broken(change):
    run = copy.deepcopy(RUN)
    change(run)
    return run


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r.update(format=1), "format: got 1; expected 2: measure again"),
        (lambda r: r.pop("format"), "format: missing"),
        (lambda r: r.pop("cases"), "cases: missing"),
        (lambda r: r.pop("scaling"), "scaling: missing"),
        (lambda r: r.update(limits={}), "limits: got dict; expected list"),
        (lambda r: r["environment"].pop("commit"), r"environment\.commit: missing"),
        (
            lambda r: r["limits"][1].update(unit="miles"),
            r"limits\[1\]\.unit: got 'miles'; expected one of TFLOP/s",
        ),
        (lambda r: r["limits"][0].update(rate=0.0), r"limits\[0\]\.rate: got 0.0; expected a positive rate"),
        (lambda r: r["limits"][0].pop("what"), r"limits\[0\]\.what: missing"),
        (lambda r: r["cases"][0].update(unit="miles"), r"cases\[0\]\.unit: got 'miles'"),
        (lambda r: r["cases"][0].update(amount="much"), r"cases\[0\]\.amount: got str; expected float"),
        (lambda r: r["cases"][0].pop("least_bytes"), r"cases\[0\]\.least_bytes: missing"),
        (lambda r: r["cases"].append(1), r"cases\[3\]: got int; expected an object"),
        (lambda r: r["cases"][0]["rows"][2].update(kind="foe"), r"rows\[2\]\.kind: got 'foe'"),
        (lambda r: r["cases"][0]["rows"][0].update(seconds=0), "expected a positive time"),
        (lambda r: r["cases"][0]["rows"][0].update(seconds=True), "got bool; expected float"),
        (lambda r: r["cases"][0]["rows"][0].update(extra_bytes=-1), r"rows\[0\]\.extra_bytes: got -1"),
        (lambda r: r["cases"][0]["rows"][0].update(error=1.0), "yet there is a time"),
        (lambda r: r["cases"][0]["rows"][0].update(error=float("nan")), "yet there is a time"),
        (lambda r: r["cases"][0]["rows"][0].pop("error"), r"rows\[0\]\.error: missing"),
        (lambda r: r["cases"][0]["rows"][0].update(failed="no"), "exactly one of seconds, skipped, failed"),
        (lambda r: r["cases"][0]["rows"][3].pop("skipped"), "exactly one of seconds, skipped, failed"),
        (lambda r: r["cases"][0]["rows"][3].update(skipped=None), r"rows\[3\]\.skipped: got NoneType"),
        (lambda r: r["scaling"][0].update(against="time"), r"scaling\[0\]\.against: got 'time'"),
        (lambda r: r["scaling"][0].update(time_exponent=[1.0, 1.1, 1.2]), r"expected \[value, low, high\]"),
        (lambda r: r["scaling"][0].update(memory_exponent=[float("nan")] * 3), r"memory_exponent: got \[nan"),
        (lambda r: r["scaling"][0]["points"][1].update(x=0), r"points\[1\]\.x: got 0; expected a positive size"),
        (lambda r: r["scaling"][0]["points"][1].update(memory_bytes=1.5), r"memory_bytes: got 1.5"),
    ],
)
def test_what_is_no_run_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        report.validate(broken(change))


def test_the_tables():
    lines = report.tables(RUN).splitlines()
    assert lines[0] == 'a processor; torch 2.13; 2 threads; protocol "warm"; commit abc, 2026-01-02.'
    assert lines[2:5] == ["```bash", "tiledattn bench --quick", "```"]
    assert lines[6] == "| limit | dtype | rate | measured with |"
    assert lines[8] == "| matrix product | float32 | 2 TFLOP/s ± 1% | 2048^3 |"
    assert lines[11] == (
        "| attention | dtype | ours | time | extra memory | TFLOP/s | of the matrix product | torch | gather "
        "| no halo (other work) |"
    )
    # the fastest of the ways that give this result is bold, ours or not; what gives another result never is
    assert lines[13] == "| small | float32 | `cpu` | **2 ms** ± 5% | 1.5 MB | 0.5 | 25% | 1.5 | 2.5 | 0.5 |"
    assert lines[14] == "| lost | float32 | `cpu` | 2 ms ± 5% | 1.5 MB | 0.5 | 25% |  | **0.5** |  |"
    # what failed has no time, and nothing is compared with it
    assert lines[15] == "| wrong | float32 | none |  |  |  |  |  | **5 µs** |  |"
    assert lines[17] == "- no figure: flex (small, float32): not for this size."
    assert lines[18] == "- **wrong, hence no figure**: cpu (wrong, float32): it errs by 1, more than 0."
    assert lines[22] == (
        "| attention | canvas area | float32 | 1 to 16 tiles, fitted from 4 | 1 ms to 17 ms | 1.04 (1.00 to 1.09) "
        "| 1.00 (1.00 to 1.00) | 1.000 |"
    )
    assert lines[24] == "- a note on the fit"


def test_fractions_are_of_the_limit_in_the_same_dtype():
    run = broken(lambda r: r["limits"][0].update(dtype="bfloat16"))
    assert "| TFLOP/s | of a product | torch |" in report.tables(run)  # what was taken in turns, where there is one
    run = broken(lambda r: [case.update(unit="GB/s") for case in r["cases"]])
    assert "| GB/s | of the copy | of a product |" in report.tables(run)
    assert "| 500 | 1667% |" in report.tables(run)  # a copy has no arithmetic: its dtype makes no difference


def test_a_bar_in_a_name_does_not_end_a_cell():
    run = broken(lambda r: r["cases"][0].update(case="a|b"))
    assert "| a\\|b | float32 |" in report.tables(run)


def test_an_empty_run_has_no_tables():
    run = {**RUN, "limits": [], "cases": [], "scaling": []}
    assert "|" not in report.tables(report.validate(run))


def test_the_newest_result_of_every_device(tmp_path):
    for name in ("a/2026-01-02.json", "a/2026-01-10.json", "b/2025-12-31.json", "quality/2026-01-11.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [str(p.relative_to(tmp_path)) for p in record.latest_results(tmp_path)] == [
        "a/2026-01-10.json",
        "b/2025-12-31.json",
    ]


@pytest.mark.parametrize("path", record.latest_results(), ids=lambda path: path.parent.name)
def test_committed_results_are_valid(path):
    data = report.validate(json.loads(path.read_text()))
    assert data["environment"]["date"] == path.stem
    assert not any("failed" in row for case in data["cases"] for row in case["rows"] if row["kind"] == "ours")
