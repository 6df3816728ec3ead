"""A Stable Diffusion of random weights, small enough to paint in milliseconds: 16x16 pixels native, 2x reduction."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory):
    """A CLIP tokenizer, for pipelines that have one."""
    pytest.importorskip("transformers")
    from tiny_pipeline import make_tokenizer

    return make_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that `from_pretrained` opens."""
    pytest.importorskip("diffusers")
    pytest.importorskip("transformers")
    from tiny_pipeline import save_tiny_model

    return save_tiny_model(tmp_path_factory.mktemp("tiny"))
