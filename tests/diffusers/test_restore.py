"""After disable_tiling everything is as it was, whatever happened and whoever else wrapped the model in between."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from accelerate import cpu_offload_with_hook
from accelerate.hooks import remove_hook_from_module
from diffusers import StableDiffusionPAGPipeline
from diffusers.hooks import HookRegistry, ModelHook, apply_group_offloading, apply_layerwise_casting
from diffusers.hooks.group_offloading import _maybe_remove_and_reapply_group_offloading
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from tiny_diffusers import error, make_unet, paint, quiet, unet_inputs
from torch import Tensor

import tiledattn.diffusers as td

OPTIONS: dict[str, Any] = {"tile": 16, "halo": 4, "unit": "latent"}
CPU = torch.device("cpu")


@pytest.fixture
def unet() -> Any:
    return make_unet("sd")


def call(unet: Any) -> Tensor:
    x, t, kwargs = unet_inputs("sd", 16, 32, batch=1)
    return unet(x, t, **kwargs).sample


def outputs(unet: Any) -> tuple[Tensor, Tensor]:
    """What the model gives without and with tiling."""
    plain = call(unet)
    with td.enable_tiling(unet, **OPTIONS):
        return plain, call(unet)


def facts(module: Any) -> dict[str, Any]:
    """The attributes of a model and the identity of each one."""
    return {name: id(value) for name, value in vars(module).items()}


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_disable_is_to_the_bit(kind: str, request: pytest.FixtureRequest) -> None:
    pipe = request.getfixturevalue(kind)
    want, unet, vae = paint(pipe, output_type="pt"), facts(pipe.unet), facts(pipe.vae)
    processors = dict(pipe.unet.attn_processors)
    with td.enable_tiling(pipe, tile=32, halo=8, wrap=True):
        assert not torch.equal(paint(pipe, output_type="pt"), want)
        assert pipe.unet.attn_processors.items() != processors.items()
    assert torch.equal(paint(pipe, output_type="pt"), want)
    assert all(pipe.unet.attn_processors[name] is p for name, p in processors.items())
    assert (facts(pipe.unet), facts(pipe.vae)) == (unet, vae)


def test_only_self_attention_is_wrapped(unet: Any) -> None:
    with td.enable_tiling(unet, **OPTIONS):
        for name, processor in unet.attn_processors.items():
            assert isinstance(processor, td.CrossTileAttnProcessor) == ("attn1" in name)


def test_a_handle_tells_what_it_does(unet: Any) -> None:
    handle = td.enable_tiling(unet, **OPTIONS)
    assert repr(handle).startswith(
        "Tiling(enabled, Stable Diffusion 1.x, 2.x, SDXL, in latents: tile=(16, 16), overlap=(0, 0), halo=(4, 4)"
    )
    handle.disable()
    assert repr(handle).startswith("Tiling(disabled")
    with pytest.raises(RuntimeError, match="disabled or replaced; call enable_tiling again"), handle:
        pass


def test_disabling_twice_and_without_a_tiling(sd: Any) -> None:
    td.disable_tiling(sd)
    tiling = td.enable_tiling(sd)
    td.disable_tiling(sd)
    td.disable_tiling(sd)
    tiling.disable()
    assert "forward" not in vars(sd.unet)


def test_enabling_twice_replaces(unet: Any) -> None:
    processors, before = dict(unet.attn_processors), facts(unet)
    plain, tiled = outputs(unet)
    first = td.enable_tiling(unet, tile=8, halo=0, unit="latent")
    second = td.enable_tiling(unet, **OPTIONS)
    assert torch.equal(call(unet), tiled)
    assert not first.enabled
    first.disable()
    assert torch.equal(call(unet), tiled)
    second.disable()
    assert torch.equal(call(unet), plain)
    assert all(unet.attn_processors[name] is p for name, p in processors.items())
    assert facts(unet) == before


def test_a_refused_tiling_leaves_the_one_in_force(unet: Any) -> None:
    _, tiled = outputs(unet)
    td.enable_tiling(unet, **OPTIONS)
    with pytest.raises(ValueError, match="tile height"):
        td.enable_tiling(unet, tile=13, unit="latent")
    assert torch.equal(call(unet), tiled)


@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("where", ["mid_block", "callback"])
def test_an_exception_in_the_middle_of_a_run(sd: Any, kind: type[BaseException], where: str) -> None:
    want = paint(sd)

    def fail(*args: Any, **kwargs: Any) -> Any:
        raise kind("stop")

    with td.enable_tiling(sd, tile=64, halo="all") as tiling:
        tiled = paint(sd)
        if where == "callback":
            with pytest.raises(kind):
                paint(sd, callback_on_step_end=fail)
        else:
            handle = sd.unet.mid_block.register_forward_pre_hook(fail)
            with pytest.raises(kind):
                paint(sd)
            handle.remove()
        assert tiling.frame is None
        assert torch.equal(paint(sd), tiled)
        assert len(torch.overrides._get_current_function_mode_stack()) == 0
    assert torch.equal(paint(sd), want)


@pytest.mark.parametrize("first", ["tiling", "offload"])
def test_model_offload_by_accelerate(unet: Any, first: str) -> None:
    """Offloading removes its wrapper and adds it again after every run of a pipeline; the tiling stays."""
    plain, tiled = outputs(unet)
    if first == "tiling":
        td.enable_tiling(unet, **OPTIONS)
        cpu_offload_with_hook(unet, CPU)
    else:
        cpu_offload_with_hook(unet, CPU)
        td.enable_tiling(unet, **OPTIONS)
    assert torch.equal(call(unet), tiled)
    remove_hook_from_module(unet, recurse=True)
    assert torch.equal(call(unet), tiled)
    cpu_offload_with_hook(unet, CPU)
    assert torch.equal(call(unet), tiled)
    td.disable_tiling(unet)
    assert hasattr(unet, "_hf_hook")
    assert torch.equal(call(unet), plain)
    remove_hook_from_module(unet, recurse=True)
    assert torch.equal(call(unet), plain)


@pytest.mark.parametrize("first", ["tiling", "offload"])
def test_pipeline_offload(sd: Any, first: str) -> None:
    plain = paint(sd, output_type="pt")
    with td.enable_tiling(sd, tile=64, halo=16, wrap=True):
        tiled = paint(sd, output_type="pt")
    if first == "tiling":
        td.enable_tiling(sd, tile=64, halo=16, wrap=True)
    sd.enable_model_cpu_offload(device="cpu")
    if first == "offload":
        td.enable_tiling(sd, tile=64, halo=16, wrap=True)
    for _ in range(2):
        assert torch.equal(paint(sd, output_type="pt"), tiled)
    td.disable_tiling(sd)
    for _ in range(2):
        assert torch.equal(paint(sd, output_type="pt"), plain)


@pytest.mark.parametrize("first", ["tiling", "offload"])
@pytest.mark.parametrize(
    "level", [{"offload_type": "leaf_level"}, {"offload_type": "block_level", "num_blocks_per_group": 1}]
)
def test_group_offload(unet: Any, level: dict[str, Any], first: str) -> None:
    """Loading a LoRA removes the group hooks and applies them again; the tiling stays."""
    plain, tiled = outputs(unet)
    if first == "tiling":
        td.enable_tiling(unet, **OPTIONS)
    apply_group_offloading(unet, onload_device=CPU, offload_device=CPU, **level)
    if first == "offload":
        td.enable_tiling(unet, **OPTIONS)
    assert torch.equal(call(unet), tiled)
    _maybe_remove_and_reapply_group_offloading(unet)
    assert torch.equal(call(unet), tiled)
    td.disable_tiling(unet)
    assert torch.equal(call(unet), plain)


@pytest.mark.parametrize("first", ["tiling", "casting"])
def test_layerwise_casting(unet: Any, first: str) -> None:
    casting = {"storage_dtype": torch.bfloat16, "compute_dtype": torch.float32}
    if first == "tiling":
        td.enable_tiling(unet, **OPTIONS)
    apply_layerwise_casting(unet, **casting)
    if first == "casting":
        td.enable_tiling(unet, **OPTIONS)
    tiled = call(unet)
    td.disable_tiling(unet)
    plain, again = outputs(unet)
    assert torch.equal(tiled, again)
    assert not torch.equal(tiled, plain)


class Doubling(ModelHook):
    """Somebody else's hook with a forward of its own."""

    def new_forward(self, module: Any, *args: Any, **kwargs: Any) -> Any:
        out = self.fn_ref.original_forward(*args, **kwargs)
        return type(out)(sample=out.sample * 2)


@pytest.mark.parametrize("first", ["tiling", "hook"])
@pytest.mark.parametrize("last", ["tiling", "hook"])
def test_other_hooks_keep_their_place(unet: Any, first: str, last: str) -> None:
    plain, tiled = outputs(unet)
    registry = HookRegistry.check_if_exists_or_initialize(unet)
    if first == "tiling":
        td.enable_tiling(unet, **OPTIONS)
    registry.register_hook(Doubling(), "doubling")
    if first == "hook":
        td.enable_tiling(unet, **OPTIONS)
    assert torch.equal(call(unet), tiled * 2)
    if last == "tiling":
        registry.remove_hook("doubling")
        assert torch.equal(call(unet), tiled)
        td.disable_tiling(unet)
    else:
        td.disable_tiling(unet)
        assert torch.equal(call(unet), plain * 2)
        registry.remove_hook("doubling")
    assert torch.equal(call(unet), plain)
    assert unet._diffusers_hook is registry


def test_a_strangers_wrapper_is_not_torn_off(unet: Any) -> None:
    plain, _ = outputs(unet)
    td.enable_tiling(unet, **OPTIONS)
    inner = unet.forward
    unet.forward = lambda *args, **kwargs: inner(*args, **kwargs)
    wrapper = unet.forward
    td.disable_tiling(unet)
    assert unet.forward is wrapper
    assert torch.equal(call(unet), plain)
    _, tiled = outputs(make_unet("sd"))
    with td.enable_tiling(unet, **OPTIONS):
        assert torch.equal(call(unet), tiled)
    assert unet.forward is wrapper
    assert torch.equal(call(unet), plain)


def test_a_wrapper_inside_is_called_as_the_model_was(unet: Any) -> None:
    """One that takes its first arguments by position, as pipelines pass them."""
    _, want = outputs(make_unet("sd"))
    inner = unet.forward
    unet.forward = lambda x, t, *args, **kwargs: inner(x, t, *args, **kwargs)
    with td.enable_tiling(unet, **OPTIONS):
        assert torch.equal(call(unet), want)


def test_a_forward_of_ones_own_is_put_back(unet: Any) -> None:
    inner = unet.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        return inner(*args, **kwargs)

    unet.forward = forward
    td.enable_tiling(unet, **OPTIONS).disable()
    assert unet.forward is forward


def test_processors_set_under_tiling_stay_after_it(unet: Any) -> None:
    td.enable_tiling(unet, **OPTIONS)
    _, tiled = outputs(make_unet("sd"))
    mine = AttnProcessor()
    unet.set_attn_processor(mine)
    assert error(call(unet), tiled) < 1e-5
    assert all("attn1" in n or p is mine for n, p in unet.attn_processors.items())
    td.disable_tiling(unet)
    assert all(p is mine for p in unet.attn_processors.values())


def test_fusing_and_unfusing_across_a_tiling(unet: Any) -> None:
    processors = dict(unet.attn_processors)
    td.enable_tiling(unet, **OPTIONS)
    unet.fuse_qkv_projections()
    call(unet)
    td.disable_tiling(unet)
    unet.unfuse_qkv_projections()
    assert all(unet.attn_processors[name] is p for name, p in processors.items())


class Strange:
    """A processor that nobody knows."""

    def __call__(
        self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Any = None, attention_mask: Any = None
    ) -> Tensor:
        return AttnProcessor2_0()(attn, hidden_states, encoder_hidden_states, attention_mask)


@pytest.mark.parametrize("where", ["attn1", "attn2"])
@pytest.mark.parametrize("halo", [0, 4])
def test_an_unknown_processor_is_refused_by_name(unet: Any, where: str, halo: int) -> None:
    """At once, or at the next call, which takes it off again: what was there before can be run and restored."""
    plain, options = call(unet), {**OPTIONS, "halo": halo}
    processors = dict(unet.attn_processors)
    strange = {n: Strange() if where in n else p for n, p in processors.items()}
    unet.set_attn_processor(dict(strange))
    before = facts(unet)
    with pytest.raises(TypeError, match=rf"{where}: its processor Strange .*\[T\*B\], the tile index slow"):
        td.enable_tiling(unet, **options)
    assert facts(unet) == before
    unet.set_attn_processor(dict(processors))
    with td.enable_tiling(unet, **options):
        tiled = call(unet)
        unet.set_attn_processor(dict(strange))
        with pytest.raises(TypeError, match=f"{where}: its processor Strange"):
            call(unet)
        assert torch.equal(call(unet), tiled)
    assert all(unet.attn_processors[name] is p for name, p in processors.items())
    assert torch.equal(call(unet), plain)


def test_a_known_processor_around_an_unknown_one_is_refused(unet: Any) -> None:
    unet.set_attn_processor(td.CrossTileAttnProcessor(None, Strange()))
    with pytest.raises(TypeError, match="can't run on tiles"):
        td.enable_tiling(unet, **OPTIONS)


def perturbed(sd: Any) -> Any:
    parts = {**sd.components, "requires_safety_checker": False}
    return quiet(StableDiffusionPAGPipeline(**parts, pag_applied_layers=["mid"]))


def test_perturbed_attention_guidance_is_refused(sd: Any) -> None:
    """It tells guidance copies apart by their place in the batch, where tiles are."""
    with pytest.raises(NotImplementedError, match=r"StableDiffusionPAGPipeline.*splits the batch"):
        td.enable_tiling(perturbed(sd))


def test_a_pag_pipeline_on_a_tiled_unet_fails_and_leaves_it_usable(sd: Any) -> None:
    pag, processors = perturbed(sd), dict(sd.unet.attn_processors)
    with td.enable_tiling(sd, tile=64, halo=16):
        tiled = paint(sd)
        with pytest.raises(TypeError, match="PAGCFGIdentitySelfAttnProcessor2_0"):
            paint(pag, pag_scale=2.0)
        assert torch.equal(paint(sd), tiled)
    assert all(sd.unet.attn_processors[name] is p for name, p in processors.items())


def test_compiled_models_are_unwrapped(sd: Any) -> None:
    unet = sd.unet
    sd.unet = torch.compile(unet, backend="eager")
    tiling = td.enable_tiling(sd)
    assert "forward" in vars(unet)
    td.disable_tiling(sd)
    assert not tiling.enabled
    assert "forward" not in vars(unet)
    td.enable_tiling(sd.unet, **OPTIONS).disable()


def test_a_swapped_unet_is_restored_by_its_handle(sd: Any) -> None:
    unet, vae = sd.unet, facts(sd.vae)
    with td.enable_tiling(sd, wrap=True):
        sd.unet = make_unet("sd")
    assert "forward" not in vars(unet)
    assert facts(sd.vae) == vae


@pytest.mark.parametrize("again", [False, True])
def test_a_pipeline_with_another_unet_gets_rid_of_its_tiling(sd: Any, again: bool) -> None:
    old, want = sd.unet, paint(sd, output_type="pt")
    before = facts(old), facts(sd.vae), set(vars(sd))
    td.enable_tiling(sd, tile=32, wrap=True)
    sd.unet = make_unet("sd")
    copied = copy.deepcopy(sd)
    if again:
        td.enable_tiling(sd, tile=64)
        assert facts(sd.vae) == before[1]
    td.disable_tiling(sd)
    assert (facts(old), facts(sd.vae), set(vars(sd))) == before
    sd.unet = old
    assert torch.equal(paint(sd, output_type="pt"), want)
    td.disable_tiling(copied)


def test_saving_a_tiled_pipeline_saves_the_plain_one(sd: Any, tmp_path: Any) -> None:
    with td.enable_tiling(sd, wrap=True):
        sd.save_pretrained(tmp_path)
    loaded = type(sd).from_pretrained(tmp_path, safety_checker=None)
    loaded.set_progress_bar_config(disable=True)
    assert error(paint(loaded), paint(sd)) < 1e-6
