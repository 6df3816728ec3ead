"""torch.compile of a tiled transformer: how many graphs a run takes, and that they compute the same."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_transformers import CASES, Case

import tiledattn.diffusers as td

from .test_families import error, run

DITS = [case for case in CASES if case.name in ("wan", "flux", "sd3", "qwenimage", "ltx", "pixart")]
EVERY = pytest.mark.parametrize("case", DITS, ids=lambda case: case.name)
# Flux's canvas is known by reading img_ids, which breaks a graph
WHOLE = pytest.mark.parametrize("case", [case for case in DITS if case.name != "flux"], ids=lambda case: case.name)


class Graphs:
    """A backend that counts the graphs it is given."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, module: Any, inputs: Any) -> Any:
        self.count += 1
        return module.forward


def grown(case: Case, times: int) -> tuple[int, ...]:
    """The case's canvas, so many tiles higher and wider."""
    axes = len(case.size)
    return tuple(
        n + times * t * (axis >= axes - 2) for axis, (n, t) in enumerate(zip(case.size, case.tile, strict=True))
    )


def at_step(case: Case, size: tuple[int, ...], step: int) -> dict[str, Any]:
    """The call of one of five steps."""
    call = case.call(size, 2, torch.float32)
    name = next(name for name in ("timestep", "t") if name in call)
    return {**call, name: call[name] * 0 + (call[name] * (5 - step)) / 5}


def compile_blocks(model: Any, backend: Any) -> int:
    """Compiles the blocks as `compile_repeated_blocks` does, which some classes lack; says how many kinds there are."""
    if model._repeated_blocks:
        model.compile_repeated_blocks(backend=backend, fullgraph=True)
    else:
        for block in model.transformer_blocks:
            block.compile(backend=backend, fullgraph=True)
    compiled = [module for module in model.modules() if module._compiled_call_impl is not None]
    return len({(type(module), getattr(module, "context_pre_only", None)) for module in compiled})


@pytest.fixture(autouse=True)
def fresh() -> Any:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


@EVERY
def test_blocks_are_compiled_once_and_again_only_when_the_canvas_first_grows(case: Case) -> None:
    plain, model, graphs = case.build(), case.build(), Graphs()
    options: dict[str, Any] = {"tile": case.tile, "unit": "latent", "halo_schedule": "quadratic", "num_steps": 5}
    td.enable_tiling(plain, **options)
    td.enable_tiling(model, **options)
    kinds = compile_blocks(model, graphs)
    if case.name == "flux":
        kinds += 1  # untiled too: from the second on, single blocks get views of one tensor
    counts = []
    for times in range(4):
        for step in range(5):
            call = at_step(case, grown(case, times), step)
            assert error(run(model, call), run(plain, call)) < 1e-5
        counts.append(graphs.count)
    assert counts[0] == kinds
    assert counts[1] <= 3 * kinds  # with sizes as variables; twice for blocks that are also called otherwise
    assert counts[1] == counts[2] == counts[3]
    assert not torch._dynamo.utils.counters["graph_break"]


@WHOLE
def test_the_whole_model_is_one_graph_per_canvas_size(case: Case) -> None:
    plain, model, graphs = case.build(), case.build(), Graphs()
    for each in (plain, model):
        td.enable_tiling(each, tile=case.tile, unit="latent")
    compiled = torch.compile(model, backend=graphs, fullgraph=True)
    for times in range(2):
        for step in range(5):
            call = at_step(case, grown(case, times), step)
            assert error(run(compiled, call), run(plain, call)) < 1e-5
        assert graphs.count == times + 1
    assert not torch._dynamo.utils.counters["graph_break"]


def test_compiled_before_tiling_and_used_after() -> None:
    case = CASES[0]
    model, call = case.build(), case.call(case.size, 2, torch.float32)
    with td.enable_tiling(model, tile=case.tile, unit="latent"):
        tiled = run(model, call)
    want = run(model, call)
    model.compile_repeated_blocks(backend="eager", fullgraph=True)
    assert error(run(model, call), want) < 1e-6
    with td.enable_tiling(model, tile=case.tile, unit="latent"):
        assert error(run(model, call), tiled) < 1e-6
    assert error(run(model, call), want) < 1e-6
