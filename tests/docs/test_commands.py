"""Command lines in the documentation are ones that the programs take."""

from __future__ import annotations

import importlib.util
import io
import os
import re
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from functools import cache

import pytest

pytest.importorskip("typer")

from .pages import ROOT, commands, pages, read

TILEDATTN = [(page, words[1:]) for page in pages() for words in commands(read(page), "tiledattn")]
PYTHON = [(page, words[1:]) for page in pages() for words in commands(read(page), "python")]
MAKE = sorted({word for page in pages() for words in commands(read(page), "make") for word in words[1:]})


def problem(words: list[str]) -> str | None:
    """Why `tiledattn` with these words would be refused before it does anything; None where it would not."""
    import typer

    from tiledattn.cli.app import app

    group = typer.main.get_command(app)
    words = words if len(words) > 1 else [*words, "--help"]  # a command by its name alone
    if words and words[0] == "bench":
        return unknown_options(words)
    try:
        with group.make_context("tiledattn", list(words[:1]), resilient_parsing=True) as outer:
            name, command, rest = group.resolve_command(outer, list(words))
            with command.make_context(name, rest, parent=outer):
                return None
    except Exception as error:
        asked_for_help = getattr(error, "exit_code", 1) == 0
        return None if asked_for_help else f"{type(error).__name__}: {error}"


def unknown_options(words: list[str]) -> str | None:
    """For a program that reads its own arguments: options that its `--help` doesn't know."""
    from tiledattn.cli import main

    command = words[:2] if words[1:2] and not words[1].startswith("-") else words[:1]
    said = io.StringIO()
    with redirect_stdout(said), redirect_stderr(said):
        code = main([*command, "--help"])
    unknown = {word.split("=")[0] for word in words if word.startswith("--")} - options_in(said.getvalue())
    return f"unknown: {sorted(unknown)} (exit code {code})" if unknown or code else None


def options_in(text: str) -> set[str]:
    """The options that a help text names."""
    return set(re.findall(r"--[a-z][a-z-]*", text))


@pytest.mark.parametrize(
    ("page", "words"), TILEDATTN, ids=[f"{page}: {' '.join(words)[:50]}" for page, words in TILEDATTN]
)
def test_commands_are_understood(page: str, words: list[str]) -> None:
    assert problem(words) is None


def test_there_are_commands() -> None:
    assert len(TILEDATTN) >= 8
    assert {"demo", "test", "docs"} <= set(MAKE)


@pytest.mark.parametrize("words", ["plot --sizes 64x64 --tile 32", "paint", "generate --steps many"])
def test_a_wrong_command_is_noticed(words: str) -> None:
    assert problem(words.split()) is not None


def unknown_to_script(words: list[str]) -> str | None:
    """Why `python` with these words would be refused: no such module or file, or options that `--help` doesn't know."""
    place, rest = (words[:2], words[2:]) if words[0] == "-m" else (words[:1], words[1:])
    exists = importlib.util.find_spec(place[1]) if place[0] == "-m" else (ROOT / place[0]).exists()
    if not exists:
        return f"there is no {place[-1]}"
    told = help_of(*place)
    unknown = {word.split("=")[0] for word in rest if word.startswith("--")} - options_in(told.stdout)
    return f"unknown: {sorted(unknown)}, {told.stderr[-500:]}" if unknown or told.returncode else None


@cache
def help_of(*place: str) -> subprocess.CompletedProcess[str]:
    """What a script or module (`-m`, name) says to `--help`."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    call = [sys.executable, *place, "--help"]
    return subprocess.run(call, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.parametrize(("page", "words"), PYTHON, ids=[f"{page}: {' '.join(words)[:50]}" for page, words in PYTHON])
def test_scripts_and_modules_are_there_and_know_the_options(page: str, words: list[str]) -> None:
    assert unknown_to_script(words) is None


@pytest.mark.parametrize("words", ["-m tiledattn.no_such_module", "docs/none.py", "docs/generate.py --chekc"])
def test_a_wrong_script_is_noticed(words: str) -> None:
    assert unknown_to_script(words.split()) is not None


@pytest.mark.parametrize("target", MAKE)
def test_make_has_the_targets(target: str) -> None:
    rules = (ROOT / "Makefile").read_text()
    assert "=" in target or re.search(rf"^{re.escape(target)}:", rules, flags=re.MULTILINE)


def test_commands_are_found() -> None:
    page = "```\ntiledattn plot --size 8x8 \\\n  --tile 4  # draws\n$ make test | tail\n```\n"
    page += "```python\ntiledattn = 1\n```\n"
    assert commands(page, "tiledattn") == [["tiledattn", "plot", "--size", "8x8", "--tile", "4"]]
    page += "Say `make docs` or `python a.py --b`, not `make [x]`; `make` alone is a program."
    assert commands(page, "make") == [["make", "test"], ["make", "docs"]]
    assert commands(page, "python") == [["python", "a.py", "--b"]]
