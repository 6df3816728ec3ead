"""The build script: what it builds, and what it says when it can't."""

import importlib.util
import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("build_script", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def checkout(tmp_path):
    """A copy of what the build reads."""
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "csrc", tmp_path / "csrc")
    shutil.copytree(ROOT / "tiledattn/geometry", tmp_path / "tiledattn/geometry")
    (tmp_path / "tiledattn/__init__.py").touch()
    return tmp_path


def build(checkout, *command, **environment):
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TILEDATTN_")}
    return subprocess.run(
        [sys.executable, "setup.py", "-q", *command],
        cwd=checkout,
        env={**kept, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({"CXX": "/nonexistent/c++"}, "no C++ compiler was found (/nonexistent/c++ not on PATH)"),
        ({"TILEDATTN_NO_EXT": "1"}, "built with TILEDATTN_NO_EXT=1"),
    ],
)
def test_without_a_compiler_the_wheel_is_pure_and_says_why(checkout, environment, reason):
    done = build(checkout, "bdist_wheel", **environment)
    assert done.returncode == 0, done.stderr
    (wheel,) = (checkout / "dist").glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    assert json.loads((checkout / "build/lib/tiledattn/_build.json").read_text())["reason"] == reason


def test_a_compiler_that_fails_is_named(checkout):
    compiler = checkout / "broken"
    compiler.write_text("#!/bin/sh\necho 'fatal error: no such thing' >&2\nexit 1\n")
    compiler.chmod(0o755)
    environment = {"CXX": str(compiler), "TILEDATTN_CUDA": "0"}
    done = build(checkout, "build_ext", "--inplace", **environment)
    assert done.returncode == 0, done.stderr
    reason = json.loads((checkout / "tiledattn/_build.json").read_text())["reason"]
    assert "fatal error: no such thing" in reason
    assert "\n" not in reason
    done = build(checkout, "build_ext", "--inplace", TILEDATTN_NO_EXT="0", **environment)
    assert done.returncode != 0
    assert "TILEDATTN_NO_EXT=0, but the native library can't be built" in done.stderr


def test_a_library_that_is_no_longer_wanted_goes(checkout):
    stale = checkout / "tiledattn/_C.abi3.so"
    stale.touch()
    assert build(checkout, "build_ext", "--inplace", TILEDATTN_NO_EXT="1").returncode == 0
    assert not stale.exists()


def test_architectures_become_options(script, monkeypatch):
    monkeypatch.delenv("TILEDATTN_CUDA_ARCHS", raising=False)
    flags = " ".join(script.cuda_architectures())
    assert flags.count("-gencode") == 3
    for code in ("code=sm_80", "code=sm_90a", "arch=compute_80,code=compute_80"):
        assert code in flags
    monkeypatch.setenv("TILEDATTN_CUDA_ARCHS", "120 100a")
    assert script.cuda_architectures()[1::2] == [
        "arch=compute_120,code=sm_120",
        "arch=compute_100a,code=sm_100a",
        "arch=compute_120,code=compute_120",
    ]
    monkeypatch.setenv("TILEDATTN_CUDA_ARCHS", "hopper")
    with pytest.raises(SystemExit, match="got 'hopper'; expected architectures such as '80;90a'"):
        script.cuda_architectures()


def step(script, folder, name, text):
    source = folder / f"{name}.txt"
    source.write_text(text)
    command = [sys.executable, "-c", "import sys, shutil; shutil.copy(*sys.argv[1:])", source, folder / f"{name}.o"]
    return script.Step(folder / f"{name}.o", [source], [str(word) for word in command], None)


@pytest.mark.parametrize("ninja", [True, False])
def test_only_what_changed_is_built(script, tmp_path, monkeypatch, ninja):
    if ninja and not shutil.which("ninja", path=f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"):
        pytest.skip("ninja is not installed")
    if not ninja:
        monkeypatch.setattr(script.shutil, "which", lambda *args, **kwargs: None)
    folder = tmp_path / "with space $"
    folder.mkdir()
    steps = [step(script, folder, name, name) for name in ("a", "b")]
    made = []
    for _ in range(2):
        script.build(steps, folder)
        made.append([s.output.stat().st_mtime_ns for s in steps])
    assert made[0] == made[1]
    steps[0].inputs[0].write_text("changed")
    script.build(steps, folder)
    assert steps[0].output.read_text() == "changed"
    assert steps[1].output.stat().st_mtime_ns == made[0][1]
