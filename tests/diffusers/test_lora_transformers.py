"""LoRA on tiled transformers: loaded before or after `enable_tiling`, scaled, and taken off again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from tiny_diffusers import error
from tiny_transformers import CASES, Case
from torch import Tensor

import tiledattn.diffusers as td
from tiledattn.diffusers.families import family_of

LORA = [case for case in CASES if case.name in ("flux", "wan")]


def adapter(case: Case) -> dict[str, Tensor]:
    """A LoRA with visible weights for the attention of the case's model, as in a file."""
    torch.manual_seed(3)
    model = case.build()
    targets = ["to_q", "to_k", "to_v", "to_out.0"]
    model.add_adapter(LoraConfig(r=2, target_modules=targets, init_lora_weights=False))
    return {f"transformer.{name}": value for name, value in get_peft_model_state_dict(model).items()}


@torch.no_grad()
def predict(model: Any, case: Case) -> Tensor:
    return model(**case.call(case.size, 1, torch.float32)).sample


@pytest.mark.parametrize("case", LORA, ids=lambda case: case.name)
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_lora_of_a_file(case: Case, when: str, tmp_path: Path) -> None:
    """Both orders agree with a fused adapter, and unloading it brings back the plain model."""
    torch.save(adapter(case), tmp_path / "lora.bin")
    model = case.build()
    options: dict[str, Any] = {"tile": case.tile, "halo": "all", "unit": "latent"}

    def load(to: Any) -> None:
        to.load_lora_adapter(torch.load(tmp_path / "lora.bin"), prefix="transformer")

    with td.enable_tiling(model, **options):
        plain = predict(model, case)
    merged = case.build()
    load(merged)
    merged.fuse_lora()
    with td.enable_tiling(merged, **options):
        want = predict(merged, case)
    if when == "before":
        load(model)
    with td.enable_tiling(model, **options):
        if when == "after":
            load(model)
        assert error(predict(model, case), want) < 1e-5
        assert error(want, plain) > 1e-2
        model.set_adapters(["default_0"], [0.0])
        assert error(predict(model, case), plain) < 1e-5
        model.unload_lora()
        assert error(predict(model, case), plain) < 1e-5


@pytest.mark.parametrize("case", LORA, ids=lambda case: case.name)
def test_scale_of_a_call(case: Case) -> None:
    model = case.build()
    model.load_lora_adapter(adapter(case), prefix="transformer")
    call = case.call(case.size, 1, torch.float32)
    name = getattr(family_of(model), "kwargs", "attention_kwargs")
    with td.enable_tiling(model, tile=case.tile, halo=0, unit="latent"), torch.no_grad():
        full, half = model(**call).sample, model(**call, **{name: {"scale": 0.5}}).sample
        assert error(half, full) > 1e-3
        model.set_adapters(["default_0"], [0.5])
        assert error(half, model(**call).sample) < 1e-5
