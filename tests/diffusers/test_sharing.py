"""A tiled model in several threads, inside itself, copied, and given up: nobody else's pass, weights or memory."""

from __future__ import annotations

import copy
import functools
import gc
import inspect
import pickle
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.models.normalization import RMSNorm
from tiny_diffusers import error, make_unet, make_vae, paint, quiet, unet_inputs
from torch import Tensor

import tiledattn.diffusers as td

OPTIONS: dict[str, Any] = {"tile": 16, "halo": 8, "unit": "latent"}


def call(unet: Any, height: int = 16, width: int = 32) -> Tensor:
    x, t, kwargs = unet_inputs("sd", height, width, batch=1)
    with torch.no_grad():
        return unet(x, t, **kwargs).sample


def in_thread(function: Any) -> None:
    """Runs a function in a thread of its own to its end."""
    failed: list[BaseException] = []

    def run() -> None:
        try:
            function()
        except BaseException as failure:
            failed.append(failure)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]


@pytest.mark.parametrize("run", [in_thread, lambda function: function()], ids=["another thread", "inside"])
@pytest.mark.parametrize("norm", ["canvas", "tile"])
def test_a_pass_during_a_pass(run: Any, norm: str) -> None:
    """The second, on another canvas, starts and ends while the first is half done; neither notices."""
    unet, results = make_unet("sd"), []
    with td.enable_tiling(unet, **OPTIONS, norm=norm) as tiling:
        wide, tall = call(unet, 16, 48), call(unet, 32, 16)

        def interrupt(module: Any, args: Any) -> None:
            if not results:
                results.append(None)
                run(lambda: results.append(call(unet, 32, 16)))

        handle = unet.mid_block.register_forward_pre_hook(interrupt)
        got = call(unet, 16, 48)
        handle.remove()
        assert tiling.frame is None
    assert torch.equal(results[1], tall)
    assert torch.equal(got, wide)


def test_two_threads_at_once() -> None:
    unet, wrong = make_unet("sd"), []
    with td.enable_tiling(unet, **OPTIONS):
        want = {size: call(unet, *size) for size in ((16, 48), (32, 16))}

        def work(size: tuple[int, int]) -> None:
            wrong.extend(size for _ in range(4) if not torch.equal(call(unet, *size), want[size]))

        threads = [threading.Thread(target=work, args=(size,)) for size in want]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


@pytest.mark.parametrize("halo", [0, 8])
def test_a_deep_copy_is_tiled_on_its_own(halo: int) -> None:
    unet, options = make_unet("sd"), {**OPTIONS, "halo": halo}
    plain = call(unet)
    tiling = td.enable_tiling(unet, **options)
    tiled = call(unet)
    twin = copy.deepcopy(unet)
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.zero_()
    assert torch.equal(call(twin), tiled)
    tiling.disable()
    assert torch.equal(call(twin), tiled)
    td.disable_tiling(twin)
    assert torch.equal(call(twin), plain)
    assert "forward" not in vars(twin)
    assert not any(isinstance(p, td.CrossTileAttnProcessor) for p in twin.attn_processors.values())


def test_a_deep_copy_of_a_copy_with_a_forward_of_its_own() -> None:
    unet = make_unet("sd")
    unet.forward = functools.partial(type(unet).forward, unet)
    tiling = td.enable_tiling(unet, **OPTIONS)
    tiled = call(unet)
    twin = copy.deepcopy(copy.deepcopy(unet))
    with torch.no_grad():
        for parameter in unet.parameters():
            parameter.zero_()
    assert torch.equal(call(twin), tiled)
    with pytest.raises(TypeError, match="deepcopy the pipeline or the model"):
        copy.deepcopy(tiling)


def test_a_deep_copy_of_a_pipeline(sd: Any) -> None:
    plain = paint(sd, output_type="pt")
    tiling = td.enable_tiling(sd, tile=64, halo=16, wrap=True, halo_schedule="quadratic")
    tiled = paint(sd, output_type="pt")
    twin = copy.deepcopy(sd)
    with torch.no_grad():
        for parameter in (*sd.unet.parameters(), *sd.vae.parameters()):
            parameter.zero_()
    assert torch.equal(paint(twin, output_type="pt"), tiled)
    tiling.disable()
    assert torch.equal(paint(twin, output_type="pt"), tiled)
    td.disable_tiling(twin)
    assert torch.equal(paint(twin, output_type="pt"), plain)
    assert "decode" not in vars(twin.vae)


def test_a_deep_copy_of_a_vae_alone(sd: Any) -> None:
    z = torch.randn(1, 4, 8, 8)
    with td.enable_tiling(sd, wrap=True):
        want, twin = sd.vae.decode(z).sample, copy.deepcopy(sd.vae)
        with torch.no_grad():
            for parameter in sd.vae.parameters():
                parameter.zero_()
        assert torch.equal(twin.decode(z).sample, want)


def test_pickling_is_refused() -> None:
    unet = make_unet("sd")
    with td.enable_tiling(unet, **OPTIONS), pytest.raises(TypeError, match="disable_tiling first"):
        pickle.dumps(unet)
    assert torch.equal(call(pickle.loads(pickle.dumps(unet))), call(unet))


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("disabled", [True, False])
@pytest.mark.parametrize("keep", ["handle", "nothing"])
@pytest.mark.usefixtures("no_collector")
def test_models_are_freed_with_their_pipeline(sd_parts: dict[str, Any], disabled: bool, keep: str) -> None:
    pipe = quiet(StableDiffusionPipeline(**{**sd_parts, "unet": make_unet("sd"), "vae": make_vae()}))
    handle: Any = td.enable_tiling(pipe, tile=64, halo=16, wrap=True, halo_schedule="quadratic")
    paint(pipe, steps=1, output_type="pt")
    if disabled:
        handle.disable()
    if keep == "nothing":
        del handle
    gone = [weakref.ref(pipe.unet), weakref.ref(pipe.vae), weakref.ref(pipe.unet.mid_block.attentions[0])]
    del pipe
    assert [reference() for reference in gone] == [None] * 3
    if keep == "handle":
        assert not handle.enabled
        handle.disable()


def test_a_forward_without_its_model_says_so() -> None:
    unet = make_unet("sd")
    td.enable_tiling(unet, **OPTIONS)
    forward = unet.forward
    del unet
    gc.collect()
    with pytest.raises(ReferenceError, match="model of this forward is gone"):
        forward(torch.zeros(1, 4, 16, 16), 1, torch.zeros(1, 3, 16))


def test_the_signature_is_the_models(sd: Any) -> None:
    want = inspect.signature(sd.unet.forward)
    with td.enable_tiling(sd):
        assert inspect.signature(sd.unet.forward) == want


def test_autocast_with_norms_of_queries_and_keys() -> None:
    """Such norms give float32 there, and values stay half."""
    unet = make_unet("sd")
    for layer in unet.modules():
        if hasattr(layer, "to_q"):
            layer.norm_q = RMSNorm(layer.inner_dim // layer.heads, 1e-5)
            layer.norm_k = RMSNorm(layer.inner_dim // layer.heads, 1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        want = call(unet).float()
        with td.enable_tiling(unet, **{**OPTIONS, "halo": "all"}):
            assert error(call(unet).float(), want) < 0.1
