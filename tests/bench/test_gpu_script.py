"""bench/gpu.sh, as far as it goes without a GPU, and what it calls."""

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest

from tiledattn.bench import environment

ROOT = pathlib.Path(__file__).parent.parent.parent
SCRIPT = ROOT / "bench/gpu.sh"
STAGES = ["environment", "build", "tests", "sanitizers", "benchmark", "scaling", "quality"]
LIMIT = 110  # seconds that nothing here takes unless it hangs, below pytest's own
pytestmark = pytest.mark.skipif(not shutil.which("timeout"), reason="needs GNU timeout")

# stands in for Python: notes its arguments, then does as told
STUB = """#!/bin/sh
echo "$@" "TILEDATTN_CUDA=$TILEDATTN_CUDA" >> {notes}
case "$*" in
  *"{breaks}"*) echo "{breaks} is broken" >&2; exit {status} ;;
  *"{hangs}"*) sleep 300 ;;
  *bench.environment*) echo '{{"date": "today"}}' ;;
esac
"""


@pytest.fixture
def script(tmp_path):
    """Runs the script with a stub for Python; returns the finished process and what the stub was called with."""
    notes = tmp_path / "notes"

    def run(*arguments, breaks="~none~", status=5, hangs="~none~", script=SCRIPT, python=None, **options):
        stub = python or tmp_path / "python"
        stub.write_text(STUB.format(notes=notes, breaks=breaks, status=status, hangs=hangs))
        stub.chmod(0o755)
        notes.write_text("")
        call = subprocess.run if "start" not in options else subprocess.Popen
        clean = {name: value for name, value in os.environ.items() if name not in ("TILEDATTN_CUDA", "PYTHON")}
        chosen = {} if python else {"PYTHON": str(stub)}
        extra = (
            {"capture_output": True, "check": False, "timeout": LIMIT}
            if call is subprocess.run
            else {"stderr": -1, "stdout": -1}
        )
        done = call(
            [str(script), *arguments],
            env={**clean, **chosen, "TILEDATTN_COMMIT": options.get("commit", "abc")},
            cwd=tmp_path,
            text=True,
            **extra,
        )
        return done, notes

    return run


def test_help_and_list(script):
    assert script("--help")[0].stdout.startswith("usage: bench/gpu.sh OUT")
    assert script("--list")[0].stdout.split() == STAGES


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "usage:"),
        (("out", "--only", "nonsense"), "--only: got nonsense; expected one of environment build"),
        (("out", "--what"), "got --what"),
        (("out", "other"), "got two folders, out and other"),
        (("out", "--seconds", "0"), "--seconds: got 0; expected a whole number"),
        (("out", "--device", "tpu"), "--device: got tpu; expected cuda or cpu"),
        (("out", "--device"), "--device needs a value"),
        (("out", "--seconds"), "--seconds needs a value"),
        (("out", "--only"), "--only needs a value"),
        (("out", "--only", ""), "--only: got ; expected one of environment build"),
    ],
)
def test_wrong_usage(script, arguments, message):
    done, _ = script(*arguments)
    assert done.returncode == 2
    assert message in done.stderr


def test_stages_run_once_and_go_on_where_they_stopped(script, tmp_path):
    out = tmp_path / "out"
    done, notes = script("out", "--device", "cpu", breaks="bench.gpu.sanitize")
    assert done.returncode == 1
    assert "sanitizers: failed with status 5" in done.stdout
    assert "bench.gpu.sanitize is broken" in done.stdout
    assert [p.stem for p in sorted(out.glob("*.done"))] == sorted({*STAGES} - {"sanitizers"})
    assert json.loads((out / "environment.json").read_text()) == {"date": "today"}
    done, notes = script("out", "--device", "cpu")
    assert done.returncode == 0
    assert notes.read_text().splitlines() == [
        "-m tiledattn.bench.environment --missing cpu TILEDATTN_CUDA=",
        "-m bench.gpu.sanitize --device cpu TILEDATTN_CUDA=",
    ]
    assert "sanitizers: skipped: no GPU to sanitize" in done.stdout
    assert "tests: done in" in done.stdout
    done, notes = script("out", "--device", "cpu", "--only", "build", "--force")
    assert "setup.py" in notes.read_text()
    assert "pytest" not in notes.read_text()
    done, notes = script("out", "--device", "cpu", "--only", "tests", commit="another")
    assert "pytest -m gpu" in notes.read_text()
    assert not list(out.glob(".*"))


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """The script in a tree of its own, without git; returns its path."""
    folder = tmp_path / "copy"
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path))
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    for name in ("bench", "tests", "csrc"):
        (folder / name).mkdir(parents=True)
    (folder / "csrc/kernel.cu").write_text("one")
    return pathlib.Path(shutil.copy(SCRIPT, folder / "bench"))


def git(folder, *arguments):
    me = ("-c", "user.name=me", "-c", "user.email=me@example.com")
    subprocess.run(["git", "-C", str(folder), *me, *arguments], check=True, capture_output=True)


@pytest.mark.parametrize("kind", ["no git", "no git, called unknown", "a dirty tree"])
def test_without_a_commit_a_stage_is_done_again_once_sources_change(script, copy, tmp_path, kind):
    folder = tmp_path / "copy"
    kernel = folder / "csrc/kernel.cu"
    if kind == "a dirty tree":
        git(folder, "init", "-q")
        git(folder, "add", "-A")
        git(folder, "commit", "-q", "-m", "all")
    options = {"script": copy, "commit": "unknown" if kind.endswith("unknown") else ""}
    runs = []
    for text in ("three", "three", "four"):
        kernel.write_text(text)
        (folder / "csrc/kernel.o").write_text(f"{len(runs)}")  # what a build leaves counts for nothing
        done, notes = script("copy/out", "--device", "cpu", "--only", "build", **options)
        assert done.returncode == 0, done.stderr
        runs.append("setup.py" in notes.read_text())
    assert runs == [True, False, True]


def test_on_a_gpu_the_cuda_kernels_must_build(script):
    _, notes = script("out", "--device", "cuda", "--only", "build")
    assert "setup.py -q build_ext --inplace TILEDATTN_CUDA=1\n" in notes.read_text()
    _, notes = script("out", "--device", "cpu", "--only", "build")
    assert "setup.py -q build_ext --inplace TILEDATTN_CUDA=\n" in notes.read_text()


@pytest.mark.parametrize("stage", STAGES)
def test_any_stage_ends_with_2_where_something_is_missing(script, tmp_path, stage):
    done, notes = script("out", "--device", "cpu", "--only", stage, breaks="bench.environment")
    assert done.returncode == 2, done.stdout
    assert "| bench.environment is broken" in done.stdout
    assert len(notes.read_text().splitlines()) == 1
    assert not list((tmp_path / "out").glob("*.done"))


def test_what_is_missing_is_looked_for_once(script):
    _, notes = script("out", "--device", "cpu", "--only", "tests", "--only", "sanitizers", breaks="pytest")
    assert notes.read_text().count("bench.environment --missing cpu") == 1


@pytest.mark.parametrize("where", [".venv/bin/python", "path/python3"])
def test_without_python_it_takes_that_of_the_repository_or_of_the_path(script, copy, tmp_path, monkeypatch, where):
    python = tmp_path / "copy" / where
    python.parent.mkdir(parents=True)
    monkeypatch.setenv("PATH", str(tmp_path / "copy/path"), prepend=os.pathsep)
    _, notes = script("out", "--device", "cpu", "--only", "benchmark", script=copy, python=python)
    assert "-m tiledattn.bench --device cpu" in notes.read_text()


def test_a_stage_that_hangs_is_stopped(script, tmp_path):
    done, _ = script("out", "--device", "cpu", "--only", "environment", "--seconds", "40", hangs="bench.environment")
    assert re.search("environment: stopped after its [12] s", done.stdout)
    assert done.returncode == 2


def test_stopping_leaves_nothing_half_written(script, tmp_path):
    running, notes = script("out", "--device", "cpu", "--only", "benchmark", hangs="bench --device", start=True)
    until = time.monotonic() + LIMIT
    while "bench --device" not in notes.read_text():
        assert running.poll() is None, running.communicate()
        assert time.monotonic() < until
        time.sleep(0.05)
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=max(1.0, until - time.monotonic()))
    assert running.returncode == 130, out
    assert "the same command goes on" in err
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["benchmark.log"]


def test_scaling_and_quality_fill_the_time_that_is_left(script, tmp_path):
    only = [word for stage in STAGES[-2:] for word in ("--only", stage)]
    done, notes = script("out", "--device", "cpu", *only, "--seconds", "50")
    assert done.returncode == 0
    assert "scaling: left out: less than 60 s are left" in done.stdout
    assert notes.read_text() == ""
    done, notes = script("out", "--device", "cpu", *only, "--seconds", "70", breaks="import diffusers")
    assert done.returncode == 0
    assert f"-m tiledattn.bench scaling --quick --device cpu --json {tmp_path}/out/benchmark.json" in notes.read_text()
    assert f"-m tiledattn.bench --report --out {tmp_path}/out" in notes.read_text()
    assert "quality: skipped: diffusers is not installed" in done.stdout
    done, notes = script("out", "--device", "cpu", *only, "--seconds", "70", "--force", breaks="bench quality")
    assert done.returncode == 1
    assert f"-m tiledattn.bench quality --quick --device cpu --out {tmp_path}/out/quality" in notes.read_text()


def test_what_is_cut_short_is_no_failure_only_where_it_may_be(script, tmp_path, copy):
    copy.write_text(SCRIPT.read_text().replace("LEAST_OPTIONAL=60", "LEAST_OPTIONAL=1"))
    options = {"script": copy, "hangs": "bench scaling"}
    done, _ = script("out", "--device", "cpu", "--only", "scaling", "--seconds", "2", **options)
    assert re.search("scaling: stopped after its [12] s", done.stdout)
    assert done.returncode == 0
    assert not list((tmp_path / "out").glob("*.done"))
    done, _ = script("out", "--device", "cpu", "--only", "tests", "--seconds", "3", script=copy, hangs="pytest")
    assert done.returncode == 1


def test_a_benchmark_that_its_time_cut_short_goes_on_and_is_no_failure(script, tmp_path):
    only = ("--only", "benchmark", "--only", "scaling")
    done, notes = script("out", "--device", "cpu", *only, breaks="bench --device", status=3)
    assert re.search(r"benchmark: out of time after \d+ s; the same command goes on here", done.stdout)
    assert done.returncode == 0
    assert [p.name for p in (tmp_path / "out").glob("*.done")] == ["scaling.done"]
    done, notes = script("out", "--device", "cpu", *only)
    assert "-m tiledattn.bench --device cpu" in notes.read_text()
    assert "bench scaling" not in notes.read_text()
    done, _ = script("out", "--device", "cpu", "--only", "tests", breaks="pytest", status=3)
    assert done.returncode == 1


def test_without_a_gpu_it_says_what_is_missing(tmp_path, monkeypatch):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    done = subprocess.run(
        [str(SCRIPT), str(tmp_path / "out")],
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 2
    lines = [line.removeprefix("  | ") for line in done.stdout.splitlines()]
    first = lines.index(f"with {sys.executable} (set PYTHON to change it):")
    assert lines[first + 1].startswith("missing: ")
    assert "missing: a CUDA device: torch" in done.stdout


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setattr(environment, "find_spec", lambda name: None if name in ("triton", "torch") else object())
    assert environment.missing_for("cuda") == [
        "torch: pip install 'torch>=2.10'",
        "triton: pip install 'triton>=3.6'",
    ]
    assert environment.missing_for("cpu") == ["torch: pip install 'torch>=2.10'"]


def test_the_environment_is_complete():
    about = environment.examine("cpu")
    assert about["date"].count("-") == 2
    assert about["device_name"]
    assert json.loads(json.dumps(about)) == about


def test_commands_that_are_missing_fail_or_hang_give_none():
    assert environment.output_of("no-such-command") is None
    assert environment.output_of("false") is None
    assert environment.output_of("echo", "words") == "words"


def test_sources_are_named_by_what_is_in_them(monkeypatch, tmp_path):
    package = tmp_path / "tiledattn"
    package.mkdir()
    (package / "a.py").write_text("one")
    monkeypatch.delenv("TILEDATTN_COMMIT", raising=False)
    monkeypatch.setattr(environment, "PACKAGE", package)
    monkeypatch.setattr(environment, "ROOT", tmp_path)
    first = environment.commit()  # an installed package is no checkout
    assert re.fullmatch("sources-[0-9a-f]{12}", first)
    assert environment.commit() == first
    (tmp_path / ".git").touch()
    for described, expected in (("abc", "abc"), ("abc-dirty", first.replace("sources", "abc-dirty")), (None, first)):
        monkeypatch.setattr(environment, "output_of", lambda *words, described=described: described)
        assert environment.commit() == expected
    (package / "a.py").write_text("two")
    assert environment.commit() != first
    monkeypatch.setenv("TILEDATTN_COMMIT", "named")
    assert environment.commit() == "named"
