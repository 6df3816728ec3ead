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


def test_it_is_listed(capsys):
    assert main(["--help"]) == 0
    assert "Time tiledattn beside its peers" in capsys.readouterr().out


def test_its_help_has_examples(capsys):
    assert main(["bench", "--help"]) == 0
    assert "tiledattn bench --quick" in capsys.readouterr().out
