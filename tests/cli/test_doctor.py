"""What `tiledattn doctor` says of backends and of the native library."""

import json
import sys

import pytest

pytest.importorskip("typer")
pytest.importorskip("rich")

from tiledattn import dispatch
from tiledattn.backends import native_library
from tiledattn.backends.cuda_attention import SM90_VARIABLE
from tiledattn.cli import examining, main

BUILT = {
    "reason": None,
    "compiler": "g++ 12.2",
    "instruction_sets": ["portable", "avx2"],
    "cuda": "13.0",
    "cuda_architectures": ["sm_80", "compute_80"],
    "cuda_reason": None,
}


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (
            {**BUILT, "instruction_set": "avx2"},
            {
                "CPU kernels": "avx2 in use, of portable, avx2",
                "CUDA kernels": "CUDA 13.0, for sm_80, compute_80",
                "built by": "g++ 12.2",
            },
        ),
        (
            {**BUILT, "instruction_set": "avx2", "cuda": None, "cuda_reason": "no nvcc was found"},
            {
                "CPU kernels": "avx2 in use, of portable, avx2",
                "CUDA kernels": "none (no nvcc was found)",
                "built by": "g++ 12.2",
            },
        ),
        (
            {**BUILT, "reason": "switched off"},
            {
                "not used": "switched off",
                "CPU kernels": "portable, avx2",
                "CUDA kernels": "CUDA 13.0, for sm_80, compute_80",
                "built by": "g++ 12.2",
            },
        ),
        ({"reason": "no compiler"}, {"not used": "no compiler"}),
    ],
    ids=["all", "no CUDA", "not used", "not built"],
)
def test_the_native_library(facts, expected):
    assert dict(examining._native(facts)) == expected


def test_every_backend_and_what_it_was_checked_on(capsys):
    report = examining.examine()
    assert list(report["checked_on"]) == list(report["backends"])
    assert main(["doctor"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for backend in dispatch.capabilities():
        assert all(device in text for device in backend.proven_on)
    if not all(backend.proven_on for backend in dispatch.capabilities()):
        assert "no real GPU yet" in text


@pytest.mark.parametrize(
    ("name", "value"), [(native_library.LIBRARY_VARIABLE, "/somewhere/library.so"), (SM90_VARIABLE, "1")]
)
def test_variables_that_change_something_are_shown(monkeypatch, capsys, name, value):
    monkeypatch.setenv(name, value)
    assert examining.examine()["environment"][name] == value
    assert main(["doctor"]) == 0
    assert f"{name} is {value}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("asked", "reasons", "expected"),
    [
        ("cuda", {"cuda": "no CUDA device", "torch": None}, "is cuda, which can't run here: no CUDA device; "),
        ("gpu", {"cuda": None, "torch": None}, "is gpu, which isn't known; known are auto, cuda, torch; "),
        ("cuda", {"cuda": None}, None),
        ("auto", {"cuda": "no CUDA device"}, None),
        ("", {"cuda": "no CUDA device"}, None),
    ],
)
def test_a_backend_that_the_environment_asks_for_in_vain(asked, reasons, expected):
    line = f"TILEDATTN_BACKEND {expected}calls that say auto will raise"
    assert examining._problems(asked, reasons) == ([line] if expected else [])


def test_a_backend_that_cannot_run_is_a_line_and_exit_code_1(monkeypatch, capsys):
    reason = "no CUDA device " + "of a kind that is supported, " * 9
    monkeypatch.setattr("tiledattn.backends", lambda: {"cuda": reason, "torch": None})
    monkeypatch.setenv(dispatch.ENVIRONMENT_VARIABLE, "cuda")
    assert main(["doctor"]) == 1
    line = f"TILEDATTN_BACKEND is cuda, which can't run here: {reason}; calls that say auto will raise"
    assert line in capsys.readouterr().out.splitlines()
    assert main(["doctor", "--json"]) == 1
    monkeypatch.setenv(dispatch.ENVIRONMENT_VARIABLE, "torch")
    assert main(["doctor"]) == 0


@pytest.mark.parametrize("missing", ["rich", "typer"])
def test_without_the_packages_of_the_command_line_it_is_plain_text(missing, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, missing, None)
    assert main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"tiledattn {report['tiledattn']}  Python ")
    assert {title for title, _ in examining.sections(report)} <= set(lines)
    assert [line for line in lines if line.startswith("reference") and line.endswith("runs here")]
    monkeypatch.setenv(dispatch.ENVIRONMENT_VARIABLE, "nothing")
    assert main(["doctor"]) == 1
    assert "is nothing, which isn't known" in capsys.readouterr().out.splitlines()[-1]
    assert main(["doctor", "--help"]) == 1
    assert f"needs {missing}" in capsys.readouterr().err
