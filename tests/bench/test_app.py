"""`tiledattn bench` as a program: what is run, what is kept, what is refused, and that nothing wrong has a speed."""

import json
import re
import sys
import types

import pytest
import torch
from benchmark_run import RUN

import tiledattn as ta
from tiledattn.backends import pytorch
from tiledattn.bench import (
    app,
    attention_cases,
    limits,
    plan,
    registry,
    report,
    runner,
    suite,
    tile_cases,
    timing,
)
from tiledattn.bench.ways import NotOfferedError, Way

SPEED = re.compile(r"\d (s|ms|µs)\b|\d GB/s")
LAYOUT = ta.TileLayout((28, 36), 12, 4)
ABOUT = {**RUN["environment"], "native": {"compiler": "one"}, "library": "ba9876543210"}


def cases():
    both = {"cpu": ("float32", "bfloat16")}
    square = ta.TileLayout((16, 16), 8, 0, True)
    return (
        tile_cases.TileCase("blending", "tiny", both, LAYOUT, 3, quick=True),
        tile_cases.TileCase("extraction", "tiny", {"cpu": ("float32",)}, LAYOUT, 3),
        attention_cases.AttentionCase("attention", "tiny", {"cpu": ("float32",)}, square, (2, 2), 1, 8, 1),
    )


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """A registry of tiny cases, and limits that take no time."""
    monkeypatch.setattr(registry, "cases", cases)
    monkeypatch.setattr(limits, "products_of", lambda device, dtypes: [dict(RUN["limits"][0], dtype=d) for d in dtypes])
    monkeypatch.setattr(limits, "copies", lambda device: [])


@pytest.fixture
def bench(tmp_path):
    """Runs the program with a folder of its own; returns the exit code and the run."""

    def run(*arguments):
        code = app.main([*arguments, "--device", "cpu", "--case-seconds", "0.001", "--out", str(tmp_path / "out")])
        path = tmp_path / "out/benchmark.json"
        return code, json.loads(path.read_text()) if path.is_file() else None

    return run


@pytest.fixture
def counted(monkeypatch):
    """Stands in for the cases' runs and for the environment."""
    fake = types.SimpleNamespace(runs=[], about=ABOUT, stop_at=None)

    def run(case, dtype, device, seconds, wanted, cold):
        if len(fake.runs) == fake.stop_at:
            raise KeyboardInterrupt
        fake.runs.append((registry.label(case, dtype), cold))
        rows = RUN["cases"][0]["rows"]
        return {**RUN["cases"][0], "operation": case.operation, "case": case.name, "dtype": dtype, "rows": rows}

    monkeypatch.setattr(runner, "run", run)
    monkeypatch.setattr(suite.environment, "examine", lambda device: dict(fake.about))
    return fake


def test_a_run_leaves_tables_json_and_a_page(bench, capsys, tmp_path):
    code, data = bench("--case", "blending/*/float32", "extraction")
    assert code == 0
    report.validate(data)
    assert [case["operation"] for case in data["cases"]] == ["blending", "extraction"]
    assert data["command"].startswith("tiledattn bench --case 'blending/*/float32' extraction --device cpu")
    assert {"cores", "protocol", "case_seconds", "threads"} <= set(data["environment"])
    rows = {row["way"]: row for row in data["cases"][0]["rows"]}
    assert rows["torch"]["seconds"] > 0
    assert rows["torch"]["extra_bytes"] is None or rows["torch"]["extra_bytes"] >= 0
    out, err = capsys.readouterr()
    assert out.strip() == (tmp_path / "out/benchmark.md").read_text().strip()
    assert "blending/tiny/float32 (" in err
    assert "benchmark.json" in err


def test_a_planted_wrong_kernel_has_no_speed_anywhere(bench, capsys, tmp_path, monkeypatch):
    right = pytorch.blend_tiles
    monkeypatch.setattr(pytorch, "blend_tiles", lambda *a, **k: right(*a, **k) * 1.001)
    monkeypatch.setattr(tile_cases.TileCase, "_copy", lambda self, inputs: (_ for _ in ()).throw(NotOfferedError("x")))
    code, data = bench("--case", "blending/tiny/float32", "--backend", "torch", "--no-peers")
    assert code == 1
    (row,) = (row for row in data["cases"][0]["rows"] if row["way"] == "torch")
    assert set(row) == {"way", "kind", "failed"}
    assert "errs by" in row["failed"]
    out, err = capsys.readouterr()
    assert "1 results of tiledattn failed their check" in err
    for page in (out, *((tmp_path / f"out/benchmark.{kind}").read_text() for kind in ("md", "html"))):
        assert "wrong, hence no figure" in page
        assert not SPEED.search(page), page
        assert "<svg" not in page


def test_the_same_kernel_unharmed_has_a_speed(bench, capsys, tmp_path):
    code, data = bench("--case", "blending/tiny/float32", "--backend", "torch", "--no-peers")
    assert code == 0
    assert [row["way"] for row in data["cases"][0]["rows"]] == ["torch", "a copy of the same bytes"]
    assert SPEED.search(capsys.readouterr().out)
    assert SPEED.search((tmp_path / "out/benchmark.html").read_text())


def test_cases_that_are_done_are_kept(bench, counted, capsys):
    def run(*options):
        before = len(counted.runs)
        assert bench("--case", "blending", *options)[0] == 0
        return len(counted.runs) - before, "2 cases kept from before (--fresh" in capsys.readouterr().err

    assert run() == (2, False)
    assert run() == (0, True)
    assert run("--fresh") == (2, False)
    assert run("--cold") == (2, False)
    assert run("--cold", "--no-peers") == (2, False)
    counted.about = {**ABOUT, "threads": 1}
    assert run() == (2, False)
    assert bench()[0] == 0
    assert [label for label, _ in counted.runs[-2:]] == ["extraction/tiny/float32", "attention/tiny/float32"]


def names_in(folder):
    return sorted(path.name for path in folder.glob("*.json"))


def test_another_run_is_put_aside(bench, counted, capsys, tmp_path):
    _, first = bench("--case", "blending")
    date = ABOUT["date"]
    for number, options in enumerate((["--cold"], ["--fresh"], ["--no-peers"]), 1):
        (tmp_path / "out/benchmark.json").write_text(json.dumps(first))
        capsys.readouterr()
        assert bench("--case", "blending", *options)[0] == 0
        assert f"it is benchmark-{date}-{number}.json now" in capsys.readouterr().err
        assert json.loads((tmp_path / f"out/benchmark-{date}-{number}.json").read_text()) == first
    (tmp_path / "out/benchmark.json").write_text("notes")
    assert bench("--case", "blending")[0] == 0
    assert (tmp_path / "out/benchmark-before-1.json").read_text() == "notes"


def test_stopped_before_any_case_is_done(bench, counted, capsys, monkeypatch, tmp_path):
    def stopped(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(limits, "products_of", stopped)
    assert app.main(["--device", "cpu", "--fresh", "--json", str(tmp_path / "run.json")]) == 130
    said = capsys.readouterr()
    assert "stopped before any case was done; nothing written" in said.err
    assert said.out == ""
    assert not (tmp_path / "run.json").exists()


def test_nothing_is_written_before_the_first_new_case(bench, counted, monkeypatch, tmp_path):
    _, first = bench("--case", "blending")

    def stopped(*arguments):
        raise KeyboardInterrupt

    for options in (["--fresh"], ["--cold"], ["--cold", "--seconds", "0"], []):
        with monkeypatch.context() as patch:
            patch.setattr(limits, "products_of", stopped)
            code, data = bench(*options)
        assert code == (3 if "--seconds" in options else 130)
        assert data == first
        assert names_in(tmp_path / "out") == ["benchmark.json"]


def test_a_run_that_goes_on_has_all_limits_and_commands(bench, counted):
    bench("--case", "blending", "--dtype", "float32")
    _, data = bench("--case", "blending", "--dtype", "bfloat16")
    assert [entry["dtype"] for entry in data["limits"]] == ["float32", "bfloat16"]
    first, second = data["command"].splitlines()
    assert "--dtype float32" in first
    assert "--dtype bfloat16" in second
    _, again = bench("--case", "blending")
    assert again == data


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
        {"cores": [0]},
        {"protocol": "out of caches"},
        {"commit": "unknown"},
        {"cpu_model": "another"},
        {"packages": {"monai": "1.0"}},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_cases_are_measured_again_where_anything_else_differs(tmp_path, changed):
    about = {**ABOUT, "case_seconds": 6.0, "cores": [0, 1], "protocol": "warm"}
    path = tmp_path / "benchmark.json"
    path.write_text(json.dumps({**RUN, "environment": about}))
    found = {name: RUN.get(name, []) for name in ("command", "limits", "no_product", "cases", "scaling")}
    assert suite.kept(path, about) == found
    assert suite.kept(path, {**about, **changed}) == {}
    path.write_text(json.dumps({**RUN, "environment": {**about, **changed}}))
    assert suite.kept(path, about) == {}
    path.write_text("no JSON")
    assert suite.kept(path, about) == {}


def test_sources_without_a_commit_are_not_kept(tmp_path):
    path = tmp_path / "benchmark.json"
    path.write_text(json.dumps({**RUN, "environment": {**ABOUT, "commit": "unknown"}}))
    assert suite.kept(path, {**ABOUT, "commit": "unknown"}) == {}


def test_stopping_keeps_what_is_done(bench, counted, capsys):
    counted.stop_at = 2
    code, data = bench()
    assert code == 130
    assert len(data["cases"]) == 2
    assert "stopped; the cases that were done are kept" in capsys.readouterr().err
    counted.stop_at = None
    code, data = bench()
    assert (code, len(data["cases"]), len(counted.runs)) == (0, 4, 4)


def test_time_runs_out(bench, counted, capsys):
    code, data = bench("--seconds", "0")
    assert (code, data) == (3, None)
    assert "4 cases were not run: out of time" in capsys.readouterr().err


@pytest.mark.parametrize("there", [None, "another run's"])
def test_a_run_of_nothing_says_so(there, counted, capsys, tmp_path):
    path = tmp_path / "run.json"
    if there:
        path.write_text(there)
    assert app.main(["--device", "cpu", "--seconds", "0", "--json", str(path)]) == 3
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[-1] == "bench: nothing was run, nothing written"
    assert "bench: written" not in err
    assert (path.read_text() if path.exists() else None) == there


def test_no_limit_of_seconds_can_be_said(bench, counted):
    code, data = bench("--seconds", "inf")
    assert (code, len(data["cases"])) == (0, 4)


def test_a_case_without_chosen_ways_is_left_out(bench, capsys, monkeypatch):
    chosen = plan.wanted

    def wanted(*arguments):
        found = chosen(*arguments)
        return lambda way: found(way) and way.name == "a copy of the same bytes"

    monkeypatch.setattr(plan, "wanted", wanted)
    code, data = bench("--case", "attention", "extraction")
    assert (code, [case["operation"] for case in data["cases"]]) == (0, ["extraction"])
    assert "attention/tiny/float32: left out, since it has none of the chosen ways" in capsys.readouterr().err


def test_any_finite_time_of_a_case_is_enough(capsys, tmp_path):
    path = tmp_path / "run.json"
    words = ["--device", "cpu", "--case", "blending/tiny/float32", "--backend", "torch", "--no-peers"]
    assert app.main([*words, "--case-seconds", "1e308", "--json", str(path)]) == 0
    (case,) = json.loads(path.read_text())["cases"]
    assert {row["samples"] for row in case["rows"]} == {timing.MOST_ROUNDS}


def test_a_dry_run_lists_and_runs_nothing(bench, counted, capsys):
    code, data = bench("--dry-run")
    assert (code, data, counted.runs) == (0, None, [])
    lines = capsys.readouterr().out.splitlines()
    amount = cases()[0].amount(torch.float32)
    assert lines[0].startswith(f"blending/tiny/float32: {amount / 1e6:.3g} MB moved, at least")
    assert "ways: " in lines[1]
    assert "MultiDiffusion loop" in lines[1]
    assert "GFLOP" in lines[6]
    assert "4 cases on cpu" in lines[-1]


def test_quick_cases_and_their_seconds(counted, capsys, tmp_path):
    assert app.main(["--quick", "--device", "cpu", "--out", str(tmp_path)]) == 0
    assert [label for label, _ in counted.runs] == ["blending/tiny/float32", "blending/tiny/bfloat16"]
    data = json.loads((tmp_path / "benchmark.json").read_text())
    assert data["environment"]["case_seconds"] == min(app.CASE_SECONDS, suite.QUICK_SECONDS / 2)


def test_json_alone_and_what_became_slower(counted, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    earlier, now = tmp_path / "earlier.json", tmp_path / "now.json"
    assert app.main(["--quick", "--device", "cpu", "--json", str(earlier)]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["earlier.json"]
    data = json.loads(earlier.read_text())
    data["cases"][0]["rows"][0]["seconds"] /= 2
    earlier.write_text(json.dumps(data))
    capsys.readouterr()
    assert app.main(["--quick", "--device", "cpu", "--json", str(now), "--against", str(earlier)]) == 0
    assert "| **2.00** | slower |" in capsys.readouterr().out


def test_a_report_of_what_is_there(bench, counted, capsys, tmp_path):
    path = tmp_path / "out/benchmark.json"
    assert bench("--report")[0] == 2
    assert "--report: can't read" in capsys.readouterr().err
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(RUN))
    code, data = bench("--report")
    assert (code, data, counted.runs) == (0, RUN, [])
    out = capsys.readouterr().out
    assert out.strip() == (tmp_path / "out/benchmark.md").read_text().strip() == report.tables(RUN).strip()
    assert "small" in (tmp_path / "out/benchmark.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--case", "nonsense"],
            "got --case nonsense, which leaves no case on cpu; it has --case 'blending/\\*' 'extraction/\\*'",
        ),
        (["--dtype", "float16"], "got --dtype float16, which leaves no case on cpu; .* in float32, bfloat16"),
        (["--dtype", "int8"], "invalid choice: 'int8'"),
        (["--peer", "nobody"], r"--peer: got 'nobody'; expected \(a part of\) one of 'MultiDiffusion loop'"),
        (["--backend", "nothing"], "--backend: got 'nothing'; expected one of .*'torch'"),
        (["--no-peers", "--peer", "fold"], "--no-peers: got --peer too"),
        (["--threads", "0"], "got 0; expected a whole number of at least 1"),
        (["--seconds", "-1"], "got -1; expected seconds, 0 or more"),
        (["--against", "missing.json"], "--against: can't read 'missing.json'"),
        (["--json", "/proc/nowhere/run.json"], "can't write '/proc/nowhere/run.json'"),
        (["--report", "--against", "run.json"], "--report: got --against too"),
        (["--device", "tpu"], "invalid choice: 'tpu'"),
    ],
)
def test_what_is_refused(arguments, message, capsys, counted, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert app.main(["--device", "cpu", *arguments]) == 2
    assert re.search(message, capsys.readouterr().err)
    assert counted.runs == []


def test_a_backend_that_can_not_run_says_why(capsys, monkeypatch):
    monkeypatch.setattr(ta, "backends", lambda: {"torch": None, "triton": "no GPU"})
    assert app.main(["--device", "cpu", "--backend", "Triton"]) == 2
    assert "got 'Triton', which can't run here: no GPU; expected one of 'torch'" in capsys.readouterr().err


def test_backends_leave_ways_of_other_names_alone():
    pairs = [(cases()[0], "float32")]
    chosen = plan.wanted(pairs, torch.device("cpu"), backends=["torch"], peers=["fold"])
    names = ("torch", "cpu", "torch, compiled", "coupled, no overlap")
    assert [name for name in names if chosen(Way(name, "ours", None))] == [names[0], *names[2:]]
    assert chosen(Way("F.fold", "peer", None))
    assert not chosen(Way("MONAI", "peer", None))
    assert chosen(Way("a copy", "limit", None))


def test_quick_leaves_other_work_out_unless_it_is_named():
    pairs = [(cases()[2], "float32")]
    canvas = Way("whole canvas, as in MAD", "bound", None)
    for options, expected in (({}, True), ({"quick": True}, False), ({"quick": True, "peers": ["MAD"]}, True)):
        assert plan.wanted(pairs, torch.device("cpu"), **options)(canvas) == expected
    assert plan.wanted(pairs, torch.device("cpu"), quick=True)(Way("gather + SDPA", "peer", None))


def test_cuda_without_a_device(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert app.main(["--device", "cuda"]) == 2
    assert "--device: got cuda, but torch sees no CUDA device" in capsys.readouterr().err


def test_help_and_further_programs(capsys, monkeypatch):
    assert app.main(["--help"]) == 0
    assert "tiledattn bench --quick" in capsys.readouterr().out
    monkeypatch.setitem(sys.modules, "tiledattn.bench.quality", types.ModuleType("tiledattn.bench.quality"))
    for name, module in (("quality", "tiledattn.bench.quality.app"), ("scaling", "tiledattn.bench.scaling")):
        fake = types.ModuleType(module)
        fake.main = lambda arguments: 7 if arguments == ["--x", "1"] else 0
        monkeypatch.setitem(sys.modules, module, fake)
        assert app.main([name, "--x", "1"]) == 7


def test_a_bar_on_a_terminal(bench, counted, capsys, monkeypatch):
    pytest.importorskip("tqdm", reason="the bar is tqdm's")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert bench()[0] == 0
    assert "4/4" in capsys.readouterr().err
    monkeypatch.setattr(suite, "find_spec", lambda name: None)
    assert bench("--fresh")[0] == 0
    assert "attention/tiny/float32 (" in capsys.readouterr().err
