"""A run is kept where it belongs, unless something in it is wrong."""

import copy
import json

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


def test_a_run_with_a_wrong_result_is_not_kept(tmp_path):
    with pytest.raises(ValueError, match=r"not kept, since results failed their check: cpu \(wrong, float32\)"):
        record.record(write(tmp_path, RUN), tmp_path / "results")
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda run: run.update(limits=[]), "limits of the machine are missing: matrix product"),
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
