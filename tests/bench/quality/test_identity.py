"""What is kept is for the same weights, scheduler and sources only."""

from __future__ import annotations

import pytest

from tiledattn.bench.quality.identity import identity, made_by, sources


@pytest.fixture
def pipe(tiny_model):
    from diffusers import DiffusionPipeline

    return DiffusionPipeline.from_pretrained(tiny_model, local_files_only=True)


def test_the_same_model_is_the_same(pipe):
    assert identity(pipe) == identity(pipe)
    assert identity(pipe)["dtype"] == ["float32"]


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_the_last_value_of_every_model_counts(pipe, part):
    import torch

    before = identity(pipe)
    with torch.no_grad():
        [*getattr(pipe, part).parameters()][-1].view(-1)[-1] += 1
    assert identity(pipe)["weights"] != before["weights"]


def test_the_scheduler_and_the_dtype_count(pipe):
    import torch

    before = identity(pipe)
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, num_train_timesteps=77)
    assert identity(pipe)["scheduler"] != before["scheduler"]
    assert identity(pipe.to(torch.float16))["dtype"] == ["float16"]


def test_sources_that_only_measure_do_not_count(tmp_path):
    for name in ("geometry.py", "cli/demo.py", "metrics/seams.py", "bench/quality/painting.py", "bench/timing.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("1")
    before = sources(tmp_path)
    for name in ("cli/demo.py", "metrics/seams.py", "bench/timing.py"):
        (tmp_path / name).write_text("2")
    assert sources(tmp_path) == before
    for name in ("geometry.py", "bench/quality/painting.py"):
        (tmp_path / name).write_text("2")
        assert sources(tmp_path) != before
        before = sources(tmp_path)


def test_what_made_it_names_libraries():
    assert set(made_by()["libraries"]) == {"torch", "diffusers", "transformers"}
