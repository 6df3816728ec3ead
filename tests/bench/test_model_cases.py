"""Shapes are those of the models, and every case can be counted."""

import inspect
import json
import math
import pathlib

import pytest
import torch

from tiledattn import models
from tiledattn.bench import attention_cases, backward_cases, model_cases, runner, tile_cases
from tiledattn.bench.attention_judge import rows_by_definition

CPU = torch.device("cpu")
LAYERS = {(layer.model, layer.tile): layer for layer in model_cases.LAYERS}


def config(folder, part):
    return json.loads((pathlib.Path(folder) / part / "config.json").read_text())


def test_the_shipped_unet():
    unet = config(models.textures_unet(), "unet")
    for factor, channels in zip((1, 2), unet["block_out_channels"], strict=True):
        layer = LAYERS["textures UNet", (unet["sample_size"] // factor,) * 2]
        assert (layer.heads, layer.heads * layer.dim) == (unet["attention_head_dim"], channels)


def test_the_shipped_dit():
    folder = models.textures_dit()
    dit, vae = config(folder, "transformer"), config(folder, "vae")
    layer = LAYERS["textures DiT", (1, 64 // vae["scale_factor_spatial"] // dit["patch_size"][1]) + (16,)]
    assert (layer.heads, layer.dim) == (dit["num_attention_heads"], dit["attention_head_dim"])


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("FluxTransformer2DModel", LAYERS["Flux.1", (64, 64)]),
        ("QwenImageTransformer2DModel", LAYERS["Qwen-Image", (64, 64)]),
        ("WanTransformer3DModel", LAYERS["Wan 14B", (21, 30, 52)]),
    ],
)
def test_transformers_of_diffusers(name, layer):
    diffusers = pytest.importorskip("diffusers")
    found = inspect.signature(getattr(diffusers, name).__init__).parameters
    assert layer.heads == found["num_attention_heads"].default
    assert layer.dim == found["attention_head_dim"].default


# of the native tile in latents: its length on the last axis, and latents per token there
NATIVE = {"SD1.5": 64, "SDXL": 128, "Flux.1": 128, "Qwen-Image": 128, "Wan 1.3B": 104, "Wan 14B": 104}


@pytest.mark.parametrize("layer", model_cases.LAYERS, ids=lambda layer: f"{layer.model} {layer.tile}")
def test_halos_are_the_default(layer):
    pytest.importorskip("diffusers")
    from tiledattn.diffusers.families.base import Family
    from tiledattn.diffusers.families.unet import UNetFamily

    native = NATIVE.get(layer.model, 16)
    of_unet = layer.model in ("SD1.5", "SDXL", "textures UNet")
    part = (UNetFamily if of_unet else Family).halo_part
    assert layer.halo[-1] == math.ceil(native // part / (native / layer.tile[-1]))
    if len(layer.tile) == 3:
        assert layer.halo[0] == max(1, layer.tile[0] // part)


@pytest.mark.parametrize("case", model_cases.CASES, ids=lambda case: f"{case.operation}: {case.name}")
def test_cases(case):
    assert case.dtypes
    assert case.amount(torch.bfloat16) > 0
    assert case.least_bytes(torch.float32) == 2 * case.least_bytes(torch.bfloat16) > 0
    if "cpu" in case.dtypes and case.unit == "TFLOP/s":
        assert case.amount(torch.float32) < 1e11, "a CPU would need seconds for a call"


def test_names_are_unique_and_there_are_not_too_many():
    every = [*model_cases.CASES, *attention_cases.CASES, *tile_cases.CASES, *backward_cases.CASES]
    labels = [(case.operation, case.name) for case in every]
    assert len(labels) == len(set(labels))
    assert len(model_cases.CASES) <= 60
    assert sum(case.quick for case in every) == 11


def test_fewer_heads_say_so():
    for case in model_cases.CASES:
        if case.operation == "attention of models" and "textures" not in case.name:
            assert (" heads" in case.name) == ("cpu" in case.dtypes)


def by_definition(case):
    """Scores, counted one by one."""
    tokens, prefix = case.layout.tile_positions, case.prefix
    seen = rows_by_definition(case.layout, case.halo, CPU).shape[1]
    return case.layout.num_tiles * (tokens * (prefix + seen) + prefix * (prefix + tokens))


@pytest.mark.parametrize("prefix", [0, 3])
def test_useful_work_counts_each_score_once(prefix):
    layout = model_cases.ta.TileLayout((12, 8), 4, 0, True)
    case = attention_cases.AttentionCase("attention", "tiny", {}, layout, (1, 2), 2, 8, 3, prefix=prefix)
    assert case.amount(torch.float32) == 4 * 8 * 2 * 3 * by_definition(case)
    q = case.inputs(CPU, torch.float32, 0)[0]
    assert case.least_bytes(torch.float32) == 4 * q.numel() * 4
    for dtype in (torch.float32, torch.bfloat16):
        judge = case.judge(case.inputs(CPU, dtype, 0))
        for way in case.ours(CPU):
            out = way.prepare(case.inputs(CPU, dtype, 0))()
            assert judge(out, way).passed
            assert not judge(out * 1.1, way).passed


def test_a_layer_with_a_prefix_runs_in_all_ways(monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    layer = model_cases.Layer("tiny", (8, 16), (2, 4), 2, 16, 128, 1, (("small", (2, 2)),), 2)
    (case,) = model_cases.of_layer(layer)
    assert case.name == "tiny, small: 4 tiles of 8x16 + 128, halo 2x4, H2 D16 B1"
    rows = {row["way"]: row for row in runner.run(case, "float32", CPU, 0.0)["rows"]}
    timed = {name for name, row in rows.items() if "seconds" in row}
    assert {"torch", "gather + SDPA", "gather + SDPA math", "FlexAttention", "SDPA, dense mask"} < timed
    assert not any("failed" in row for row in rows.values())
    assert "no place for a prefix" in rows["whole canvas, as in MAD"]["skipped"]
    assert "CUDA device" in rows["NATTEN, a stride of one tile"]["skipped"]
    assert "CUDA device" in rows["gather + FlashAttention"]["skipped"]
