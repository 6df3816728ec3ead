"""Kernels compiled ahead of time for GPUs that need not be there: registers, spills, shared memory, instructions."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

HERE = Path(__file__).parent
ARCHS = ["sm_80", "sm_90", "sm_100", "gfx942"]
CONSUMER = ["sm_86", "sm_89", "sm_120"]
# bytes of shared memory that a program may have
SHARED = {"sm_80": 166912, "sm_86": 101376, "sm_89": 101376, "sm_90": 232448, "sm_100": 232448, "sm_120": 101376}
SHARED["gfx942"] = 65536
# registers of a thread at head dims 64 and 128; of gfx942's 512, 256 let two waves share a unit
REGISTERS = {"sm_80": (255, 255), "sm_90": (240, 208), "sm_100": (208, 240), "gfx942": (304, 304)}
MATRIX = {"sm_80": "HMMA", "sm_90": "HGMMA", "sm_100": "UTCHMMA", "gfx942": "v_mfma_f32"}


def compile_all(cases):
    """Reports by case, from one process without the interpreter."""
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(HERE.parents[2])]))
    done = subprocess.run(
        [sys.executable, str(HERE / "compile_kernels.py")],
        input=json.dumps(cases),
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    reports = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(reports) == len(cases)
    return reports


def attention(arch, dtype, head_dim, **options):
    return {"op": "attention", "arch": arch, "dtype": dtype, "head_dim": head_dim, **options}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("arch", ARCHS)
def test_half_precision_attention(arch):
    """No spills, bounded registers, the generation's matrix instructions, copies that overlap with them."""
    cases = [attention(arch, dtype, dim) for dtype in ("bfloat16", "float16") for dim in (64, 128)]
    for report in compile_all(cases):
        assert report["spills"] == 0, report
        assert report["registers"] <= REGISTERS[arch][report["head_dim"] == 128], report
        assert report["shared"] <= SHARED[arch], report
        assert any(name.startswith(MATRIX[arch]) for name in report["matrix"]), report
        assert arch == "gfx942" or report["async_copies"] > 0, report


# the same for the gradients of queries, and of keys and values
BACKWARD_REGISTERS = {
    "rows": {"sm_80": (255, 255), "sm_90": (168, 208), "sm_100": (128, 128), "gfx942": (256, 304)},
    "keys": {"sm_80": (240, 192), "sm_90": (232, 255), "sm_100": (224, 208), "gfx942": (256, 304)},
}


def gradient(arch, dtype, head_dim, part, **options):
    return {"op": "attention_backward", "arch": arch, "dtype": dtype, "head_dim": head_dim, "part": part, **options}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("arch", ARCHS)
def test_half_precision_gradients(arch):
    cases = [
        gradient(arch, dtype, dim, part)
        for dtype in ("bfloat16", "float16")
        for dim in (64, 128)
        for part in ("rows", "keys")
    ]
    for report in compile_all(cases):
        assert report["spills"] == 0, report
        assert report["registers"] <= BACKWARD_REGISTERS[report["part"]][arch][report["head_dim"] == 128], report
        assert report["shared"] <= SHARED[arch], report
        assert any(name.startswith(MATRIX[arch]) for name in report["matrix"]), report
        assert arch == "gfx942" or report["async_copies"] > 0, report


@pytest.mark.timeout(600)
def test_variants_of_gradients():
    """On the current generation, what masks, wide offsets, no halo and sums in float32 add; the first kernel of all."""
    variants = [{"mask": True, "sums": "float32"}, {"wide": True}, {"halo": False}]
    cases = [gradient("sm_90", "float16", 64, part, **variant) for part in ("rows", "keys") for variant in variants]
    cases += [gradient(arch, "bfloat16", 128, "delta") for arch in ("sm_80", "sm_90", "gfx942")]
    for report in compile_all(cases):
        assert report["spills"] == 0, report
        assert report["shared"] <= SHARED[report["arch"]], report


VARIANTS = [
    {"mask": True},
    {"bias": True, "wide": True},
    {"halo": False},
    {"rows": 64},
]


@pytest.mark.timeout(600)
def test_variants_of_attention():
    """On the current generation, what masks, biases, wide offsets and short sequences add."""
    cases = [attention("sm_90", "bfloat16", 128, **variant) for variant in VARIANTS]
    cases += [attention("sm_90", "float16", dim) for dim in (40, 256)]
    cases += [attention("gfx942", "float16", 40, mask=True, bias=True), attention("sm_80", "float32", 64)]
    for report in compile_all(cases):
        assert report["shared"] <= SHARED[report["arch"]], report
        assert report["dtype"] == "float32" or report["spills"] == 0, report


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("arch", [*ARCHS, *CONSUMER])
def test_everything_fits(arch):
    dims = (16, 40, 64, 72, 80, 96, 128, 256)
    cases = [attention(arch, "bfloat16", dim, rows=rows) for dim in dims for rows in (64, 4096)]
    cases += [attention(arch, "float16", dim, **variant) for dim in (64, 128) for variant in VARIANTS]
    cases += [attention(arch, "float32", dim) for dim in (64, 128, 256)]
    cases += [] if arch == "gfx942" else [attention(arch, "float32", dim, tf32=True) for dim in (64, 128, 256)]
    for report in compile_all(cases):
        assert report["shared"] <= SHARED[arch], report
        if report["dtype"] != "float32" and report["head_dim"] in (64, 128) and "rows" in report:
            assert report["spills"] == 0, report


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("arch", [*ARCHS, *CONSUMER])
def test_every_gradient_fits(arch):
    parts = ("rows", "keys")
    cases = [gradient(arch, "bfloat16", dim, part) for dim in (16, 40, 64, 80, 96, 128, 256) for part in parts]
    cases += [gradient(arch, "float32", dim, part) for dim in (64, 128, 256) for part in parts]
    if arch != "gfx942":
        cases += [gradient(arch, "float32", dim, part, tf32=True) for dim in (64, 128, 256) for part in parts]
    for report in compile_all(cases):
        assert report["shared"] <= SHARED[arch], report
        if report["dtype"] != "float32" and report["head_dim"] in (64, 128):
            assert report["spills"] == 0, report


@pytest.mark.timeout(600)
def test_tile_kernels():
    cases = [
        {"op": "tiles", "arch": arch, "dtype": "float16", "kernel": kernel, "run": run}
        for arch in ARCHS
        for kernel, run in (("extract", 8), ("blend", 8), ("pad", 1))
    ]
    cases.append({"op": "tiles", "arch": "sm_90", "dtype": "float32", "kernel": "extract", "run": 1, "wide": True})
    cases.append(
        {"op": "tiles", "arch": "sm_90", "dtype": "bfloat16", "kernel": "blend", "run": 2, "covers": [1, 3, 7]}
    )
    for report in compile_all(cases):
        assert report["spills"] == 0, report
        assert report["registers"] <= 255, report


def test_spills_are_noticed():
    """A block far too large for its warps."""
    (report,) = compile_all([attention("sm_80", "bfloat16", 128, halo=False, config=[128, 64, 4, 1])])
    assert report["spills"] > 0
