"""`tiledattn bench` passes its words on."""

import pytest

from tiledattn.bench import app
from tiledattn.cli import main


@pytest.mark.parametrize("code", [0, 1, 2, 3, 130])
def test_words_and_exit_code_are_passed_on(code, monkeypatch):
    seen = []
    monkeypatch.setattr(app, "main", lambda words: seen.append(list(words)) or code)
    words = ["quality", "--case", "a*", "--help", "--seconds", "3", "-h"]
    assert main(["bench", *words]) == code
    assert seen == [words]


@pytest.mark.parametrize(
    ("option", "values", "expected"),
    [
        ("--threads", ("x", "1.5", "0", "-2"), "a whole number of at least 1"),
        ("--seconds", ("nan", "soon", "-1"), "seconds, 0 or more"),
        ("--case-seconds", ("inf", "nan", "1e999", "0", "-1", "long"), "a finite number of seconds above 0"),
    ],
)
def test_numbers_that_do_not_work_are_refused(option, values, expected, capsys):
    for value in values:
        assert main(["bench", option, value]) == 2
        assert f"argument {option}: got {value}; expected {expected}\n" in capsys.readouterr().err


def test_it_is_listed(capsys):
    assert main(["--help"]) == 0
    assert "Time tiledattn beside its peers" in capsys.readouterr().out


def test_its_help_has_examples(capsys):
    assert main(["bench", "--help"]) == 0
    assert "tiledattn bench --quick" in capsys.readouterr().out
