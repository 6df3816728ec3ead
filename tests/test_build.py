"""The build script: what it builds, and what it says when it can't."""

import importlib.util
import json
import os
import pathlib
import platform
import re
import shutil
import subprocess
import sys
import zipfile

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


@pytest.mark.skipif(platform.machine() != "x86_64", reason="AMX is of x86-64")
@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")
def test_an_assembler_that_does_not_know_amx_leaves_it_out(script, tmp_path, monkeypatch):
    compiler = tmp_path / "older"  # fails on what is given to it on stdin
    compiler.write_text('#!/bin/sh\nfor word in "$@"; do [ "$word" = - ] && exit 1; done\nexec c++ "$@"\n')
    compiler.chmod(0o755)
    monkeypatch.setenv("TILEDATTN_CUDA", "0")
    for name, known in (("c++", script.assembles_amx(["c++"])), (str(compiler), False)):
        monkeypatch.setenv("CXX", name)
        rules = script.Rules(tmp_path)
        assert ("amx" in rules.instruction_sets) == known
        compiled = [step.command for step in rules.steps if step.depfile is not None]
        assert all(("-DTILEDATTN_WITHOUT_AMX" in command) != known for command in compiled)


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


@pytest.mark.parametrize("unset", ["", " ;, "])
def test_no_architectures_are_the_default_ones(script, monkeypatch, unset):
    monkeypatch.setenv("TILEDATTN_CUDA_ARCHS", unset)
    assert script.architecture_names() == ["80", "90a"]


@pytest.mark.parametrize("name", ["75", "70", "53"])
def test_architectures_below_80_are_refused(script, monkeypatch, name):
    monkeypatch.setenv("TILEDATTN_CUDA_ARCHS", f"80;{name}")
    with pytest.raises(SystemExit, match=f"TILEDATTN_CUDA_ARCHS: got '{name}'; 80 is the least"):
        script.architecture_names()


STUB = """#!/bin/sh
[ "$1" = --version ] && echo "stub, release 13.0, V13" && exit
while [ $# -gt 0 ]; do
  case "$1" in
    -o) echo "$0" >"$2" ;;
    -MF) echo "$0:" >"$2" ;;
  esac
  shift
done
"""


class Stubs:
    """A C++ compiler and an nvcc that make files and compile nothing."""

    def __init__(self, folder, monkeypatch):
        self.folder, self.monkeypatch = folder, monkeypatch
        for variable, name in (("CXX", "g++"), ("NVCC", "nvcc")):
            monkeypatch.setenv(variable, self.put(name, STUB))
        for name in [name for name in os.environ if name.startswith("TILEDATTN_")]:
            monkeypatch.delenv(name)

    def put(self, name, text):
        path = self.folder / name
        path.write_text(text)
        path.chmod(0o755)
        return str(path)

    def fail(self, name, message):
        self.put(name, f'#!/bin/sh\necho "here it says:\n{message}" >&2\nexit 1\n')


@pytest.fixture
def stubs(tmp_path, monkeypatch):
    folder = tmp_path / "programs"
    folder.mkdir()
    return Stubs(folder, monkeypatch)


@pytest.fixture(params=[True, False], ids=["ninja", "no ninja"])
def ninja(request, script, monkeypatch):
    which = shutil.which
    if request.param and not which("ninja", path=f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"):
        pytest.skip("ninja is not installed")
    if not request.param:
        monkeypatch.setattr(script.shutil, "which", lambda name, **rest: None if name == "ninja" else which(name))


NVCC_SAYS = ["ccc.h:9: #error -- unsupported GNU version!", "nvcc fatal   : Unsupported gpu architecture 'compute_90a'"]


@pytest.mark.usefixtures("ninja")
@pytest.mark.parametrize("message", NVCC_SAYS)
def test_where_nvcc_fails_the_cpu_kernels_are_left(script, stubs, tmp_path, message):
    stubs.fail("nvcc", message)
    rules = script.make_library(tmp_path / "build")
    assert rules.no_cuda == f"nvcc failed when tiledattn was built: {message}"
    assert rules.library.read_text().strip() == str(stubs.folder / "g++")
    assert all("TILEDATTN_CUDA" not in word for step in rules.steps for word in step.command)
    stubs.monkeypatch.setenv("TILEDATTN_CUDA", "1")
    with pytest.raises(script.CannotBuildError, match=re.escape(message)):
        script.make_library(tmp_path / "build")


@pytest.mark.usefixtures("ninja")
def test_where_the_host_compiler_fails_cuda_is_not_blamed(script, stubs, tmp_path):
    stubs.fail("g++", "fatal error: no such thing")
    with pytest.raises(script.CannotBuildError, match=r"g\+\+ failed when tiledattn was built: fatal error: no such"):
        script.make_library(tmp_path / "build")


def test_the_report_says_what_nvcc_said(stubs, checkout):
    stubs.fail("nvcc", NVCC_SAYS[0])
    done = build(checkout, "build_ext", "--inplace")
    assert done.returncode == 0, done.stderr
    report = json.loads((checkout / "tiledattn/_build.json").read_text())
    assert report["reason"] is report["cuda"] is None
    assert report["cuda_reason"].endswith(NVCC_SAYS[0])
    assert (checkout / "tiledattn/_C.abi3.so").is_file()


@pytest.mark.parametrize(
    ("environment", "reason"),
    [
        ({}, "#error -- unsupported GNU version!"),
        ({"NVCC": "/nonexistent/nvcc"}, "no nvcc was found when tiledattn was built (NVCC=/nonexistent/nvcc)"),
        ({"CXX": "/nonexistent/c++"}, "no C++ compiler was found (/nonexistent/c++ not on PATH)"),
        ({"TILEDATTN_SANITIZE": "1"}, "built with sanitizers"),
    ],
)
def test_cuda_kernels_that_are_asked_for_are_built_or_the_build_fails(stubs, checkout, environment, reason):
    stubs.fail("nvcc", NVCC_SAYS[0])
    done = build(checkout, "build_ext", "--inplace", TILEDATTN_CUDA="1", **environment)
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("TILEDATTN_CUDA=1, but the CUDA kernels can't be built: ")
    assert last.endswith(reason)


def test_sanitizers_are_the_reason_for_no_cuda_kernels(script, stubs, tmp_path):
    stubs.monkeypatch.setenv("TILEDATTN_SANITIZE", "1")
    assert script.Rules(tmp_path).no_cuda == "built with sanitizers"


@pytest.mark.parametrize("command", ["{}", "ccache {}", "{} -m64", "ccache {} -m64 --sysroot /tmp", "env -u A {}"])
def test_nvcc_is_given_the_compiler_without_its_launcher(script, stubs, tmp_path, command):
    stubs.monkeypatch.setenv("PATH", f"{stubs.folder}:{os.environ['PATH']}")
    stubs.put("ccache", STUB)
    compiler = str(stubs.folder / "g++")
    stubs.monkeypatch.setenv("CXX", command.format(compiler))
    steps = [step for step in script.Rules(tmp_path).steps if "-ccbin" in step.command]
    assert len(steps) > 2
    for step in steps:
        assert step.command[step.command.index("-ccbin") + 1] == compiler


@pytest.mark.usefixtures("ninja")
def test_what_other_flags_change_is_built_again(script, stubs, tmp_path):
    def made(**environment):
        for name, value in environment.items():
            stubs.monkeypatch.setenv(name, value)
        rules = script.make_library(tmp_path)
        return {step.output.name: step.output.stat().st_mtime_ns for step in rules.steps}

    def changed(before, after):
        return {name for name, time in after.items() if before.get(name) != time}

    without = made(TILEDATTN_CUDA="0")
    assert made() == without
    with_cuda = made(TILEDATTN_CUDA="1")
    assert {"_C.abi3.so", "cuda.tiles.o", "cuda.attention_sm90.o"} <= changed(without, with_cuda)
    assert not any("avx" in name for name in changed(without, with_cuda))
    other = made(TILEDATTN_CUDA_ARCHS="80;90a;120")
    assert changed(with_cuda, other) == {"cuda.attention_sm80.o", "cuda.device.o", "cuda.tiles.o", "_C.abi3.so"}
    assert changed(other, made(CXX=os.environ["CXX"] + " -m64")) > {"tiles.cuda.o", "copy_kernel.portable.o"}


def test_a_build_by_ninja_and_one_without_know_of_each_other(script, stubs, tmp_path, monkeypatch):
    which = shutil.which
    if not which("ninja", path=f"{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"):
        pytest.skip("ninja is not installed")
    places = []
    for has_ninja, flag in [(True, "-DA"), (False, "-DB"), (True, "-DA"), (False, "-DB")]:
        hidden = "" if has_ninja else "ninja"
        monkeypatch.setattr(
            script.shutil, "which", lambda name, hide=hidden, **o: None if name == hide else which(name, **o)
        )
        monkeypatch.setenv("TILEDATTN_CUDA", "0")
        monkeypatch.setenv("CXX", f"{stubs.folder / 'g++'} {flag}")
        rules = script.make_library(tmp_path)
        places.append(rules.steps[0].output.stat().st_mtime_ns)
    assert len(set(places)) == 4


def test_one_header_includes_the_intrinsics():
    """GCC warns of thousands of lines in its own header, unless it is included with these warnings off."""
    found = {path.name for path in (ROOT / "csrc").rglob("*") if path.is_file() and "immintrin.h" in path.read_text()}
    assert found == {"intrinsics.h"}


@pytest.mark.skipif(shutil.which("g++") is None or platform.machine() != "x86_64", reason="g++ for x86-64")
def test_avx512_compiles_without_a_warning(script, tmp_path):
    flags = [*script.X86_FLAGS["avx512"], "-DTILEDATTN_ISA=avx512", "-DTILEDATTN_ISA_AVX512", "-Wall", "-Wextra", "-O1"]
    command = ["g++", "-std=c++17", *flags, f"-I{ROOT / 'csrc/include'}", f"-I{ROOT / 'csrc'}"]
    source = ROOT / "csrc/cpu/blend_kernel.cpp"
    done = subprocess.run(
        [*command, "-c", source, "-o", tmp_path / "a.o"], capture_output=True, text=True, check=False, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")


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


OTHER = os.environ.get("TILEDATTN_OTHER_PYTHON")

# what somebody does who installed the wheel
FIRST_CALLS = """
import json, os, sys, torch
import tiledattn as ta
assert os.path.dirname(ta.__file__) == os.path.join(sys.argv[1], "tiledattn"), ta.__file__
layout = ta.TileLayout((24, 40), (12, 10), 0, (False, True))
errors = []
for dtype in (torch.float32, torch.bfloat16):
    q, k, v = torch.randn(3, layout.num_tiles, 1, layout.tile_positions, 2, 64).to(dtype)
    found = ta.cross_tile_attention(q, k, v, layout, 3, backend="cpu").double()
    exact = ta.cross_tile_attention(q.double(), k.double(), v.double(), layout, 3, backend="reference")
    errors.append(float((found - exact).norm() / exact.norm()) / torch.finfo(dtype).eps)
layout, x = ta.TileLayout((24, 40), (12, 16), (4, 8)), torch.randn(1, 4, 24, 40)
back = ta.blend_tiles(ta.extract_tiles(x, layout, backend="cpu"), layout, backend="cpu")
errors.append(float((back - x).norm() / x.norm()) / torch.finfo(x.dtype).eps)
print(json.dumps([sys.version_info[:2], torch.__version__, errors]))
"""


def output_of(*command, **options):
    done = subprocess.run(
        [str(w) for w in command], capture_output=True, text=True, check=False, timeout=240, **options
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of this checkout; what is compiled already is used."""
    folder = tmp_path_factory.mktemp("wheel")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TILEDATTN_")}
    steps = ["build", "--build-lib", folder / "lib", "bdist_wheel", "--skip-build", "--bdist-dir", folder / "bdist"]
    output_of(
        sys.executable, "setup.py", "-q", *steps, "--dist-dir", folder, cwd=ROOT, env={**kept, "TILEDATTN_NO_EXT": "0"}
    )
    (wheel,) = folder.glob("*.whl")
    return wheel


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(OTHER is None, reason="TILEDATTN_OTHER_PYTHON is not set: the path of another Python with torch")
def test_the_wheel_serves_another_python(wheel, tmp_path):
    assert re.search("-cp310-abi3-linux_", wheel.name)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("TILEDATTN_", "PYTHON"))}
    options = {"cwd": tmp_path, "env": environment}
    site = tmp_path / "site"
    output_of(OTHER, "-m", "pip", "install", "-q", "--no-deps", "--no-index", "--target", site, wheel, **options)
    environment["PYTHONPATH"] = str(site)
    version, torch, errors = json.loads(output_of(OTHER, "-c", FIRST_CALLS, site, **options))
    assert (*version,) != sys.version_info[:2], "the same version of Python proves nothing"
    assert max(errors) <= 4, (torch, errors)
    has_typer = output_of(OTHER, "-c", "import importlib.util as u; print(u.find_spec('typer') is not None)", **options)
    if has_typer.strip() == "True":
        assert re.search(r"cpu +runs here", output_of(OTHER, "-m", "tiledattn", "doctor", **options))


@pytest.mark.slow
def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    if not (ROOT / ".git").exists():
        pytest.skip("what belongs to the package is asked of git, and this is no checkout")
    tracked = output_of("git", "ls-files", "--cached", "--others", "--exclude-standard", "tiledattn", cwd=ROOT).split()
    built = {"tiledattn/_C.abi3.so", "tiledattn/_build.json"}
    with zipfile.ZipFile(wheel) as archive:
        found = {name for name in archive.namelist() if not name.split("/")[0].endswith(".dist-info")}
    assert found == {*tracked, *built}
