"""The command line without painting: help, exit codes, plot, doctor, and what happens without its packages."""

from __future__ import annotations

import builtins
import errno
import json
import os
import runpy
import subprocess
import sys
import time

import pytest

import tiledattn
from tiledattn.cli import main

pytest.importorskip("typer")
pytest.importorskip("matplotlib")

from typer.testing import CliRunner

from tiledattn.cli.app import app
from tiledattn.cli.command import parse_extent, parse_halo, parse_size, parse_wrap
from tiledattn.files import check_writable, whole_file

COMMANDS = ("demo", "generate", "plot", "doctor")


def test_help_lists_the_commands():
    shown = CliRunner().invoke(app, ["--help"])
    assert shown.exit_code == 0
    assert all(name in shown.output for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example(name):
    shown = CliRunner().invoke(app, [name, "--help"])
    assert shown.exit_code == 0
    assert f"tiledattn {name} " in shown.output


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == tiledattn.__version__


@pytest.mark.parametrize(
    "arguments",
    [["nosuch"], ["plot"], ["plot", "--nosuch"], ["demo", "--tiles", "3"], ["generate", "-p", "a", "--steps", "0"]],
)
def test_bad_usage_is_2(arguments, capsys):
    assert main(arguments) == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--size", "512", "--size: got '512'; expected WxH"),
        ("--size", "0x64", "--size: got '0x64'"),
        ("--tile", "a", "--tile: got 'a'; expected a number such as 64"),
        ("--tile", "4096", "error: --tile: height is 4096; it must be between 1 and the canvas's 512"),
        ("--overlap", "128x0", "error: --overlap: width is 128; it must be between 0 and 127"),
        ("--halo", "some", "--halo: got 'some'"),
        ("--wrap", "z", "--wrap: got 'z'; expected none, x, y or xy"),
        ("--highlight", "99", "error: --highlight: got 99; the layout has tiles 0 to 31"),
        ("--out", "layout.xyz", "error: --out: got 'layout.xyz'; its ending"),
    ],
)
def test_bad_values_are_one_line_and_2(option, value, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["plot", "--size", "1024x512", "--tile", "128", option, value]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert message in lines[0]
    assert not list(tmp_path.iterdir())


def test_debug_shows_the_traceback(capsys):
    assert main(["plot", "--size", "512", "--tile", "128", "--debug"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_plot_draws_the_layout(tmp_path, capsys):
    out = tmp_path / "new" / "layout.png"
    arguments = ["plot", "--size", "1024x512", "--tile", "128", "--overlap", "16", "--halo", "32x16"]
    arguments += ["--wrap", "x", "--out"]
    assert main([*arguments, str(out)]) == 0
    assert "50 tiles, 5 rows x 10 columns; 1.56 positions computed per canvas position" in capsys.readouterr().out
    assert out.read_bytes().startswith(b"\x89PNG")
    assert main(["plot", "--size", "64x64", "--tile", "64", "--out", str(out)]) == 0
    assert capsys.readouterr().out.endswith("1 tile, 1 row x 1 column; 1.00 positions computed per canvas position\n")


def test_ctrl_c_is_130_and_leaves_no_file(tmp_path, monkeypatch, capsys):
    from matplotlib.figure import Figure

    def interrupted(self, name, **options):
        with open(name, "wb") as file:
            file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(Figure, "savefig", interrupted)
    assert main(["plot", "--size", "64x64", "--tile", "32", "--out", str(tmp_path / "layout.png")]) == 130
    assert not list(tmp_path.iterdir())
    assert "stopped" in capsys.readouterr().err


def test_an_error_of_the_system_is_one_line_and_1(tmp_path, monkeypatch, capsys):
    from matplotlib.figure import Figure

    def full(self, name, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Figure, "savefig", full)
    assert main(["plot", "--size", "64x64", "--tile", "32", "-o", str(tmp_path / "layout.png")]) == 1
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("out", "reason"),
    [
        ("file/layout.png", "Not a directory"),
        ("folder.png", "a folder is in its place"),
        ("pipe.png", "no regular file"),
        (f"{'a' * 260}.png", "File name too long"),
        ("file/made/layout.png", "Not a directory"),
    ],
)
def test_a_file_that_cannot_be_written_is_one_line_and_2(out, reason, tmp_path, monkeypatch, capsys):
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.setattr(tiledattn.TileLayout, "plot", None)
    assert main(["plot", "--size", "64x64", "--tile", "32", "-o", str(tmp_path / out)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("tiledattn: error: --out: can't write ")
    assert reason in lines[0]
    assert sorted(tmp_path.rglob("*")) == before


def test_the_longest_name_and_a_link_are_written(tmp_path):
    place = tmp_path / f"{'a' * 251}.png"
    link = tmp_path / "link.png"
    link.symlink_to(tmp_path / "new" / "target.png")
    for path in (place, link):
        with whole_file(path) as temporary:
            temporary.write_text("whole")
        assert path.read_text() == "whole"
    assert link.is_symlink()
    assert (tmp_path / "new" / "target.png").is_file()


def test_a_trial_leaves_no_folder(tmp_path):
    check_writable(tmp_path / "a" / "b" / "c.png")
    assert not list(tmp_path.iterdir())


def test_ctrl_c_during_the_imports_is_130(monkeypatch, capsys):
    def interrupted(name, *arguments):
        if name == "typer":
            raise KeyboardInterrupt
        return imported(name, *arguments)

    imported = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", interrupted)
    assert main(["--help"]) == 130
    assert capsys.readouterr().err == "tiledattn: stopped\n"


def test_ctrl_c_in_a_finaliser_is_not_lost(tmp_path, monkeypatch, capsys):
    class Finalised:
        def __del__(self):
            raise KeyboardInterrupt

    def slow(self, *arguments, **options):
        Finalised()
        for _ in range(500):
            time.sleep(0.01)

    monkeypatch.setattr(tiledattn.TileLayout, "plot", slow)
    before = sys.unraisablehook
    assert main(["plot", "--size", "64x64", "--tile", "32", "-o", str(tmp_path / "layout.png")]) == 130
    assert capsys.readouterr().err == "tiledattn: stopped; no file was left half-written\n"
    assert sys.unraisablehook is before


def test_doctor_prints_versions_devices_and_backends(capsys):
    import torch

    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    for part in (tiledattn.__version__, torch.__version__, "cpu", "reference", "TILEDATTN_BACKEND"):
        assert part in text
    for reason in filter(None, tiledattn.backends().values()):
        assert reason.split()[0] in text


def test_doctor_json_is_json_and_agrees_with_the_library(capsys, monkeypatch):
    import torch

    for name in list(os.environ):
        if name.startswith("TILEDATTN_") and name != "TILEDATTN_NO_EXT":
            monkeypatch.delenv(name)
    monkeypatch.setenv("TILEDATTN_BACKEND", "torch")
    assert main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["tiledattn"] == tiledattn.__version__
    assert report["packages"]["torch"] == torch.__version__
    assert report["backends"] == tiledattn.backends()
    assert report["devices"][0]["device"] == "cpu"
    native = tiledattn.backends()["cpu"] is None
    assert report["automatic"]["cpu"]["float32"].startswith("cpu" if native else "torch")
    assert report["native"]["reason"] == tiledattn.backends()["cpu"]
    assert not native or report["native"]["instruction_set"] in report["native"]["instruction_sets"]
    without = {"TILEDATTN_NO_EXT": os.environ["TILEDATTN_NO_EXT"]} if "TILEDATTN_NO_EXT" in os.environ else {}
    assert report["environment"] == {"TILEDATTN_BACKEND": "torch", **without}
    assert report["problems"] == []


@pytest.mark.parametrize("name", ["nosuch", "[/x]"])
def test_doctor_notes_an_unknown_backend_and_prints_markup_as_it_is(name, capsys, monkeypatch):
    monkeypatch.setenv("TILEDATTN_BACKEND", name)
    assert main(["doctor"]) == 1
    assert f"TILEDATTN_BACKEND is {name}, which isn't known; known are auto, " in capsys.readouterr().out
    assert main(["doctor", "--json"]) == 1
    assert len(json.loads(capsys.readouterr().out)["problems"]) == 1


def test_doctor_escapes_what_the_system_says(capsys, monkeypatch):
    from tiledattn.cli import doctor

    report = {
        "tiledattn": "1[/a]",
        "python": "3[/a]",
        "platform": "x[/a]",
        "packages": {"numpy": "2[/a]"},
        "cuda": "[/a]",
        "hip": "[/a]",
        "devices": [{"device": "cpu[/a]", "name": "[/a]", "threads": "[/a]"}],
        "backends": {"triton[/a]": "[/a]"},
        "checked_on": {"triton[/a]": ["[/a]"]},
        "native": {"reason": "[/a]"},
        "automatic": {"cpu[/a]": {"float32": "[/a]"}},
        "environment": {"NAME": "[/a]"},
        "problems": ["[/a]"],
    }
    monkeypatch.setattr(doctor, "examine", lambda: report)
    assert main(["doctor"]) == 1
    assert capsys.readouterr().out.count("[/a]") == 18


def test_doctor_names_the_extra_of_a_missing_package(capsys, monkeypatch):
    import importlib.metadata

    known = importlib.metadata.version

    def version(name):
        if name == "peft":
            raise importlib.metadata.PackageNotFoundError(name)
        return known(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert main(["doctor"]) == 0
    assert "pip install 'tiledattn[diffusers]'" in capsys.readouterr().out


def test_without_typer_one_sentence_names_the_extra(tmp_path):
    code = "import sys; sys.modules['typer'] = None\nfrom tiledattn.cli import main\nsys.exit(main(['--help']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.strip().splitlines() == [
        "tiledattn: the command line needs typer, which is not installed: pip install 'tiledattn[cli]'"
    ]


@pytest.mark.parametrize(
    ("arguments", "blocked", "extra"),
    [
        (["plot", "--size", "64x64", "--tile", "32"], "rich", "cli"),
        (["plot", "--size", "64x64", "--tile", "32"], "matplotlib", "cli"),
        (["generate", "-p", "a"], "diffusers", "diffusers"),
        (["demo"], "transformers", "diffusers"),
    ],
)
def test_a_missing_package_is_one_line_that_names_the_extra(arguments, blocked, extra, tmp_path, monkeypatch, capsys):
    for name in [blocked, *(name for name in sys.modules if name.startswith(f"{blocked}."))]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    lines = printed.err.strip().splitlines()
    assert len(lines) == 1
    assert f"pip install 'tiledattn[{extra}]'" in lines[0]
    assert not list(tmp_path.iterdir())


def test_help_imports_nothing_heavy():
    code = (
        "import sys\nfrom tiledattn.cli import main\n"
        "main(['--help'])\n"
        "heavy = {'diffusers', 'transformers', 'matplotlib', 'triton', 'PIL'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_python_m_runs_the_same(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["tiledattn", "--version"])
    with pytest.raises(SystemExit) as stop:
        runpy.run_module("tiledattn", run_name="__main__")
    assert stop.value.code == 0
    assert capsys.readouterr().out.strip() == tiledattn.__version__


def test_option_texts():
    assert parse_size("512x64") == (64, 512)
    assert parse_extent("64") == 64
    assert parse_extent("128X64") == (64, 128)
    assert parse_halo("all") == "all"
    assert parse_halo("16x0") == (0, 16)
    assert [parse_wrap(w) for w in ("none", "x", "y", "xy")] == [
        (False, False),
        (False, True),
        (True, False),
        (True, True),
    ]


def test_doctor_says_why_there_is_no_native_library(capsys, monkeypatch):
    from tiledattn.backends import native_library

    monkeypatch.setattr(native_library, "load", lambda: "no native library: no C++ compiler was found")
    assert main(["doctor"]) == 0
    assert capsys.readouterr().out.count("no C++ compiler was found") >= 2  # the backend and the library


def test_doctor_lists_a_gpu_and_what_is_taken_there(monkeypatch):
    import torch

    from tiledattn import dispatch
    from tiledattn.cli.examining import examine

    facts = type("Facts", (), {"name": "A GPU", "major": 9, "minor": 0, "total_memory": 80 * 2**30})
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: facts)
    reasons = {"float32": {"triton": "its self-check erred", "torch": None}}
    monkeypatch.setattr(
        dispatch,
        "explain",
        lambda op, device, dtype, head_dim: reasons.get(
            str(dtype).removeprefix("torch."), {"triton": None, "torch": None}
        ),
    )
    report = examine()
    gpu = report["devices"][1]
    assert (gpu["device"], gpu["name"], gpu["capability"], gpu["memory_gib"]) == ("cuda:0", "A GPU", "9.0", 80.0)
    assert report["automatic"]["cuda:0"]["bfloat16"] == "triton, whose self-check passed on this device"
    assert report["automatic"]["cuda:0"]["float32"] == "torch (passed over triton: its self-check erred)"
