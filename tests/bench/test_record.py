"""A run is kept where it belongs, unless something in it is wrong."""

import copy
import importlib.util
import json
from pathlib import Path

import pytest
from benchmark_run import RUN

from bench import record


def write(folder, run):
    path = folder / "benchmark.json"
    path.write_text(json.dumps(run))
    return path


def test_a_run_is_kept_by_device_and_date(tmp_path):
    run = copy.deepcopy(RUN)
    run["environment"]["device_name"] = "x86_64 with AVX2, AVX-512; 2 cores"
    run["cases"].pop()
    target = record.record(write(tmp_path, run), tmp_path / "results")
    assert target == tmp_path / "results/x86-64-with-avx2-avx-512-2-cores/2026-01-02.json"
    assert json.loads(target.read_text()) == run


def right(commit):
    """A run that can be kept."""
    run = copy.deepcopy(RUN)
    run["environment"]["commit"] = commit
    run["cases"].pop()
    return run


def test_an_earlier_run_of_the_same_day_stays(tmp_path):
    results = tmp_path / "results"
    kept = [record.record(write(tmp_path, right(commit)), results) for commit in "abc"]
    assert [path.name for path in kept] == ["2026-01-02.json", "2026-01-02-2.json", "2026-01-02-3.json"]
    for path, commit in zip(kept, "abc", strict=True):
        assert json.loads(path.read_text()) == right(commit)
        assert record.record(write(tmp_path, right(commit)), results) == path  # it's there already
    assert record.latest_results(results) == [kept[-1]]
    kept[0].write_text("notes")
    assert record.record(write(tmp_path, right("a")), results).name == "2026-01-02-4.json"
    assert kept[0].read_text() == "notes"


def test_the_page_of_quality_has_the_newest_run_of_a_day(tmp_path, monkeypatch):
    spec = importlib.util.spec_from_file_location("generate", Path(__file__).parents[2] / "docs/generate.py")
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    monkeypatch.setattr(generate, "HERE", tmp_path / "docs")
    monkeypatch.setattr(generate.quality_results, "validate", lambda run: run)
    monkeypatch.setattr(generate.quality, "tables", lambda run: "")
    folder = tmp_path / "bench/results/quality/a-processor"
    folder.mkdir(parents=True)
    for name in ("2026-01-01", "2026-01-02", "2026-01-02-2", "2026-01-02-10"):
        (folder / f"{name}.json").write_text(json.dumps({"environment": RUN["environment"], "command": name}))
    assert generate.quality_tables().endswith("`2026-01-02-10`\n\n")


def test_a_run_with_a_wrong_result_is_not_kept(tmp_path):
    with pytest.raises(ValueError, match=r"not kept, since results failed their check: cpu \(wrong, float32\)"):
        record.record(write(tmp_path, RUN), tmp_path / "results")
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda run: run["limits"].pop(0), "limits of the machine are missing: matrix product"),
        (lambda run: run["cases"][0].update(unit="GB/s") or run["limits"].pop(), "are missing: copy"),
        (
            lambda run: run["cases"][0]["rows"][0].update(error=None, allowed=None),
            r"results were not compared: cpu \(small, float32\)",
        ),
    ],
)
def test_a_run_that_lacks_limits_or_comparisons_is_not_kept(tmp_path, change, message):
    run = copy.deepcopy(RUN)
    run["cases"].pop()
    change(run)
    with pytest.raises(ValueError, match=f"not kept, since .*{message}"):
        record.record(write(tmp_path, run), tmp_path / "results")
    assert not (tmp_path / "results").exists()


def test_what_is_no_run_is_refused(tmp_path):
    with pytest.raises(ValueError, match="environment: missing"):
        record.record(write(tmp_path, {"format": 2, "command": ""}), tmp_path / "results")
