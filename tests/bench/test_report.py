"""What a run of the benchmark leaves."""

import copy
import json

import pytest
from benchmark_run import RUN

import tiledattn.bench.__main__ as command
from bench import record
from tiledattn.bench import report, runner
from tiledattn.bench.__main__ import earlier


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


@pytest.mark.parametrize(
    "changed",
    [
        {"threads": 1},
        {"device": "cuda"},
        {"torch": "2.14"},
        {"native": {"compiler": "another"}},
        {"library": "0123456789ab"},
        {"case_seconds": 3.0},
        {"date": "2026-01-03"},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_cases_are_measured_again_where_anything_else_differs(tmp_path, changed):
    about = {**RUN["environment"], "native": {"compiler": "one"}, "library": "ba9876543210", "case_seconds": 6.0}
    path = tmp_path / "benchmark.json"
    path.write_text(json.dumps({**RUN, "environment": about}))
    assert earlier(path, about) == RUN["cases"]
    assert earlier(path, {**about, **changed}) == []
    path.write_text(json.dumps(RUN))  # of a run that did not say so much
    assert earlier(path, about) == []


def test_the_command_says_how_many_cases_it_keeps(tmp_path, monkeypatch, capsys):
    fakes = {"run": [], "examine": RUN["environment"]}
    case = RUN["cases"][0]
    monkeypatch.setattr(command.environment, "examine", lambda device: fakes["examine"])
    monkeypatch.setattr(runner, "chosen", lambda device, only: [(Named(case), "float32")])
    monkeypatch.setattr(runner, "run", lambda *given: fakes["run"].append(given[3]) or case)
    monkeypatch.setattr(runner, "label", lambda *pair: "label")

    def run(*options):
        monkeypatch.setattr("sys.argv", ["bench", "--device", "cpu", "--out", str(tmp_path), *options])
        before = len(fakes["run"])
        assert command.main() == 0
        return len(fakes["run"]) - before, "bench: 1 cases kept from before (--fresh measures again)\n" in (
            capsys.readouterr().err
        )

    assert run() == (1, False)
    assert run() == (0, True)
    assert run("--case-seconds", "3") == (1, False)
    assert run("--case-seconds", "3", "--fresh") == (1, False)
    fakes["examine"] = {**RUN["environment"], "threads": 1}
    assert run("--case-seconds", "3") == (1, False)
    assert run("--case-seconds", "3") == (0, True)


class Named:
    """As much of a case as the command reads."""

    def __init__(self, case):
        self.operation, self.name = case["operation"], case["case"]


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
    assert [str(p.relative_to(tmp_path)) for p in record.latest_results(tmp_path)] == [
        "a/2026-01-10.json",
        "b/2025-12-31.json",
    ]


@pytest.mark.parametrize("path", record.latest_results(), ids=lambda path: path.parent.name)
def test_committed_results_are_valid(path):
    data = report.validate(json.loads(path.read_text()))
    assert data["environment"]["date"] == path.stem
    assert not any("failed" in row for case in data["cases"] for row in case["rows"] if row["kind"] == "ours")
