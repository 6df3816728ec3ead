"""What a run of the benchmark leaves."""

import copy
import json
import re

import pytest
from benchmark_run import RUN

from bench import record
from tiledattn.bench import notes, report, tables

RIGHT_TIMES = {name: RUN["cases"][0]["rows"][0][name] for name in ("seconds", "spread", "samples", "extra_bytes")}


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
        (
            lambda r: r["limits"][0].update(unit="GB/s"),
            r"limits\[0\]\.name, in GB/s: got 'matrix product'; expected one of copy",
        ),
        (lambda r: r["limits"][1].update(name="disk"), r"limits\[1\]\.name, in GB/s: got 'disk'; expected one of copy"),
        (lambda r: r.update(limits=[]), "limits: got none; expected one or more, since there are cases"),
        (lambda r: r["cases"][1].update(rows=[]), r"cases\[1\]\.rows: got none; expected one or more"),
        (lambda r: r["environment"].pop("protocol"), r"environment\.protocol: missing; expected str"),
        (lambda r: r["environment"].pop("threads"), r"environment\.threads: missing; expected int"),
        (lambda r: r["environment"].update(threads="2"), r"environment\.threads: got str; expected int"),
        (lambda r: r["scaling"][0]["environment"].pop("threads"), r"scaling\[0\]\.environment\.threads: missing"),
        (
            lambda r: r["cases"][2]["rows"][0].update(RIGHT_TIMES, error=1.0, allowed=2e-4),
            r"cases\[2\]\.rows\[0\]: has \['seconds', 'failed'\]; expected exactly one",
        ),
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
        (lambda r: r["cases"][0]["rows"][0].update(error=float("nan")), r"error: got nan; expected a finite"),
        (
            lambda r: r["cases"][0]["rows"][0].update(allowed=float("inf")),
            r"allowed: got inf; expected a finite number",
        ),
        (lambda r: r["cases"][0]["rows"][0].update(error=None), r"rows\[0\]\.error: got NoneType; expected float"),
        (lambda r: r["cases"][0]["rows"][0].update(error=-1.0), r"rows\[0\]\.error: got -1.0; expected 0 or more"),
        (lambda r: r["cases"][0]["rows"][0].update(samples=0), "samples: got 0; expected a positive number of samples"),
        (lambda r: r["cases"][0]["rows"][0].update(spread=float("nan")), "spread: got nan; expected a finite number"),
        (lambda r: r["cases"][0]["rows"][0].update(spread=-0.1), "spread: got -0.1; expected 0 or more"),
        (lambda r: r["cases"][0]["rows"][0].update(seconds=float("inf")), "seconds: got inf; expected a finite number"),
        (lambda r: r["cases"][0]["rows"][0].pop("extra_bytes"), r"rows\[0\]\.extra_bytes: missing"),
        (lambda r: r["cases"][0]["rows"][0].update(kind="limit"), "a limit has none, since nothing judges it"),
        (lambda r: r["cases"][0]["rows"][5].update(way="cpu"), "rows: 'cpu' is there twice; expected each once"),
        (
            lambda r: r["cases"][1]["rows"].append({"way": "a product", "kind": "ours", "skipped": "no"}),
            "cases: 'a product' is of the kinds limit, ours; a limit is one in every case",
        ),
        (lambda r: r["cases"].append(r["cases"][0]), "cases: 'attention/small/float32' is there twice"),
        (lambda r: r["cases"][0].update(amount=float("nan")), r"cases\[0\]\.amount: got nan; expected a finite"),
        (lambda r: r["cases"][0].update(amount=0), "expected a positive amount of work, since its unit is TFLOP/s"),
        (lambda r: r["cases"][0].update(least_bytes=-1.0), "least_bytes: got -1.0; expected 0 or more"),
        (lambda r: r["cases"][0]["rows"][5].update(amount=0), r"rows\[5\]\.amount: got 0; expected a positive"),
        (lambda r: r["limits"][0].update(samples=0), r"limits\[0\]\.samples: got 0"),
        (lambda r: r["cases"][0]["rows"][0].pop("error"), r"rows\[0\]\.error: missing"),
        (lambda r: r["cases"][0]["rows"][0].update(failed="no"), "exactly one of seconds, skipped, failed"),
        (lambda r: r["cases"][0]["rows"][3].pop("skipped"), "exactly one of seconds, skipped, failed"),
        (lambda r: r["cases"][0]["rows"][3].update(skipped=None), r"rows\[3\]\.skipped: got NoneType"),
        (lambda r: r["scaling"][0].update(against="time"), r"scaling\[0\]\.against: got 'time'"),
        (lambda r: r["scaling"][0].update(time_exponent=[1.0, 1.1, 1.2]), r"expected \[value, low, high\]"),
        (lambda r: r["scaling"][0].update(memory_exponent=[float("nan")] * 3), r"memory_exponent: got \[nan"),
        (lambda r: r["scaling"][0].update(points=[]), r"points: got sizes \[\]; expected two or more, ascending"),
        (lambda r: r["scaling"][0]["points"].reverse(), r"got sizes \[16.0, 4.0, 1.0\]"),
        (lambda r: r["scaling"][0].update(fit_from=9), "fit_from: got 9; expected two sizes or more from there on"),
        (lambda r: r["scaling"][0].update(work_exponent="x"), "work_exponent: got str; expected float"),
        (lambda r: r["scaling"][0].pop("command"), r"scaling\[0\]\.command: missing"),
        (lambda r: r["scaling"][0]["environment"].pop("commit"), r"scaling\[0\]\.environment\.commit: missing"),
        (lambda r: r["scaling"].append(r["scaling"][0]), "'attention/canvas area/float32' is there twice"),
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
    assert lines[2:6] == ["```bash", "tiledattn bench --quick", "tiledattn bench scaling", "```"]
    lines = lines[1:]
    assert lines[6] == "| limit | dtype | rate | measured with |"
    assert lines[8] == "| torch's matrix product | float32 | 2 TFLOP/s ± 1% | 2048^3 |"
    assert lines[11] == (
        "| attention | dtype | ours | time | extra memory | TFLOP/s | of torch's matrix product | torch | gather "
        "| no halo (other work, time) |"
    )
    # the fastest of the ways that give this result is bold, ours or not; what gives another result never is
    assert lines[13] == "| small | float32 | `cpu` | **2 ms** ± 5% | 1.5 MB | 0.5 | 25% | 1.5 | 2.5 | 1 ms |"
    assert lines[14] == "| lost | float32 | `cpu` | 2 ms ± 5% | 1.5 MB | 0.5 | 25% |  | **0.5** |  |"
    # what failed has no time, and nothing is compared with it
    assert lines[15] == "| wrong | float32 | none |  |  |  |  |  | **5 µs** |  |"
    assert lines[17] == "- no figure: flex (small, float32): not for this size."
    assert lines[18] == "- **wrong, hence no figure**: cpu (wrong, float32): it errs by 1, more than 0."
    assert lines[22] == (
        "| attention | canvas area | float32 | 1 to 16 tiles, fitted from 4 | 1 ms to 17 ms | 1.04 (1.00 to 1.09) "
        "| 1.00 (1.00 to 1.00) | 1.000 |"
    )
    assert lines[24] == (
        "- exponents of at most 1.05 against canvas area, attention, float32: time 1.04 (1.00 to 1.09) not settled; "
        "memory 1.00 (1.00 to 1.00) reached."
    )
    assert lines[25] == "- a note on the fit"


@pytest.mark.parametrize(
    ("exponent", "verdict"),
    [([1.0, 0.9, 1.05], "reached"), ([1.04, 1.0, 1.06], "not settled"), ([1.1, 1.06, 1.2], "missed")],
)
def test_exponents_against_area_are_judged(exponent, verdict):
    run = broken(lambda r: r["scaling"][0].update(time_exponent=exponent, memory_exponent=None))
    (note,) = notes.verdicts(run)
    assert note.text.endswith(f") {verdict}.")
    assert notes.verdicts(broken(lambda r: r["scaling"][0].update(against="halo"))) == []


def test_scaling_of_another_commit_says_so():
    assert notes.elsewhere(RUN) == []
    run = broken(lambda r: r["scaling"][0].update(environment={**RUN["environment"], "commit": "def"}))
    (note,) = notes.elsewhere(run)
    assert note.text == "measured otherwise than the cases: attention/canvas area/float32: commit def instead of abc."


def test_what_is_above_a_limit_has_a_note():
    assert "above 100%" not in report.tables(RUN)
    run = broken(lambda r: r["limits"][0].update(rate=0.3))
    assert "| 167% |" in report.tables(run)
    assert "- above 100% of torch's matrix product (small, float32; lost, float32): the case ran" in report.tables(run)


def test_what_was_not_compared_is_named_and_ours_does_not_win_by_it():
    def change(run):
        run["cases"][0]["rows"][0].update(error=None, allowed=None)

    run = broken(change)
    text = report.tables(report.validate(run))
    assert "- **not compared**: the results of cpu (small, float32)." in text
    assert "| small | float32 | `cpu` | 2 ms ± 5% | 1.5 MB | 0.5 | 25% | **1.5** | 2.5 |" in text
    row = tables.ways_table(run, "attention").rows[0]
    assert (row[4].strong, row[7].text) == (False, "not compared")


def test_other_work_has_no_ratio_no_rate_and_is_never_bold():
    head, rows = (listed := tables.ways_table(RUN, "attention")).head, listed.rows
    found = {row[2].text: dict(zip(head, row, strict=True)) for row in rows if row[0].text == "small"}
    assert found["no halo"]["kind"].text == "other work"
    assert not found["no halo"]["time"].strong
    assert found["no halo"]["TFLOP/s"].text == found["no halo"]["of torch's matrix product"].text == ""
    # a limit has an amount of its own, ten times the case's
    assert (found["a product"]["TFLOP/s"].text, found["a product"]["of torch's matrix product"].text) == ("1", "50%")


def test_the_text_of_a_run_has_no_number_that_is_not_finite():
    assert json.loads(report.dumps(RUN)) == RUN
    with pytest.raises(ValueError, match="not JSON compliant"):
        report.dumps(broken(lambda r: r["environment"].update(case_seconds=float("nan"))))


def test_fractions_are_of_the_limit_in_the_same_dtype():
    run = broken(lambda r: r["limits"][0].update(dtype="bfloat16"))
    assert "| TFLOP/s | of a product | torch |" in report.tables(run)  # what was taken in turns, where there is one
    run = broken(lambda r: [case.update(unit="GB/s") for case in r["cases"]])
    assert "| GB/s | of torch's copy | of a product |" in report.tables(run)
    assert "| 500 | 1667% |" in report.tables(run)  # a copy has no arithmetic: its dtype makes no difference


def test_a_bar_in_a_name_does_not_end_a_cell():
    run = broken(lambda r: r["cases"][0].update(case="a|b"))
    assert "| a\\|b | float32 |" in report.tables(run)


def test_an_empty_run_has_no_tables():
    run = {**RUN, "limits": [], "cases": [], "scaling": []}
    assert "|" not in report.tables(report.validate(run))


def test_the_newest_result_of_every_device(tmp_path):
    for name in (
        *("a/2026-01-02.json", "a/2026-01-02-3.json", "a/2026-01-10.json", "quality/2026-01-11.json"),
        *("b/2025-12-31.json", "b/2025-12-31-2.json", "b/2025-12-31-10.json", "b/2025-12-30-11.json"),
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert [str(p.relative_to(tmp_path)) for p in record.latest_results(tmp_path)] == [
        "a/2026-01-10.json",
        "b/2025-12-31-10.json",
    ]


KEPT = sorted(path for path in record.RESULTS.glob("*/*.json") if path.parent.name not in record.NO_DEVICES)


def test_a_run_without_cases_needs_no_protocol_and_no_limits():
    run = broken(lambda r: r.update(cases=[], limits=[]))
    del run["environment"]["protocol"]
    assert report.validate(run) == run  # what `tiledattn bench scaling` leaves by itself


@pytest.mark.parametrize("path", KEPT, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_committed_results_are_valid(path):
    data = report.validate(json.loads(path.read_text()))
    assert re.fullmatch(rf"{data['environment']['date']}(-\d+)?", path.stem)
    assert not any("failed" in row for case in data["cases"] for row in case["rows"] if row["kind"] == "ours")


def test_a_copy_in_the_caches_that_is_slower_has_a_note():
    copy_of = {**RUN["limits"][0], "name": "copy", "unit": "GB/s"}

    def said(*rates):
        limits = [{**copy_of, "rate": rate} for rate in rates]
        return "the cores were not this run's alone" in report.tables(broken(lambda r: r.update(limits=limits)))

    assert said(20.0, 1.05)
    assert not said(20.0, 90.0)
    assert not said(20.0)
