"""A tiny model on disk, and a run of it that tests may read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that `from_pretrained` opens."""
    pytest.importorskip("diffusers")
    pytest.importorskip("transformers")
    from tiny_pipeline import save_tiny_model

    return save_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def tiny_run(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Path]:
    """The arguments of a run of the tiny model, and the folder that it wrote to."""
    from tiledattn.bench.quality.app import main

    out = tmp_path_factory.mktemp("quality")
    arguments = ["--model", str(tiny_model), "--prompt", "a", "--steps", "2", "--tiles", "4", "--seeds", "3"]
    arguments += ["--rounds", "2", "--halo", "4", "all", "--overlap", "50%", "--out", str(out)]
    assert main(arguments) == 0
    return arguments, out


@pytest.fixture
def run_data(tiny_run: tuple[list[str], Path]) -> dict:
    """The JSON of that run."""
    return json.loads((tiny_run[1] / "quality.json").read_text())
