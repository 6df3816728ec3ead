"""The portable kernels on 64-bit ARM: compiled by a cross compiler and run by an emulator, without torch."""

import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
NATIVE = platform.machine() in ("aarch64", "arm64")
COMPILER = os.environ.get("TILEDATTN_ARM_CXX", "g++" if NATIVE else "aarch64-linux-gnu-g++")
EMULATOR = [] if NATIVE else [os.environ.get("TILEDATTN_ARM_EMULATOR", "qemu-aarch64")]
MISSING = [tool for tool in (COMPILER, *EMULATOR) if shutil.which(tool) is None]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        bool(MISSING), reason=f"{' and '.join(MISSING)} not found (Debian: g++-aarch64-linux-gnu, qemu-user)"
    ),
]


def run(*command, check=True):
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False)
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    """Everything of csrc but the bindings and CUDA, with the warnings of the build."""
    folder = tmp_path_factory.mktemp("arm")
    sources = [path for path in sorted((ROOT / "csrc").glob("*.cpp")) if not path.name.startswith("bindings")]
    sources += sorted((ROOT / "csrc/cpu").glob("*.cpp")) + [ROOT / "tests/arm/driver.cpp"]
    flags = [
        "-std=c++17",
        "-O2",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-Wno-error=maybe-uninitialized",
        f"-I{ROOT}/csrc",
        f"-I{ROOT}/csrc/include",
    ]
    isa = [
        "-DTILEDATTN_ISA=portable",
        "-DTILEDATTN_ISA_PORTABLE",
        "-fno-math-errno",
        "-fno-trapping-math",
        "-ffp-contract=off",
    ]
    for source in sources:
        extra = isa if source.parent.name == "cpu" else []
        run(COMPILER, *flags, *extra, "-c", source, "-o", folder / f"{source.stem}.o")
    run(COMPILER, "-static", *sorted(folder.glob("*.o")), "-o", folder / "driver")
    return folder / "driver"


@pytest.mark.timeout(600)
def test_results_are_right(driver):
    printed = run(*EMULATOR, driver).stdout
    assert printed.endswith("portable, 0 wrong\n")
    assert printed.count("right") >= 3 * (3 * 2 * 5 + 4 + 2 + 2)


@pytest.mark.timeout(600)
def test_planted_faults_are_noticed(driver):
    done = run(*EMULATOR, driver, "fault", check=False)
    assert done.returncode == 1
    assert "right" not in done.stdout
