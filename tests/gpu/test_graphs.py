"""CUDA graphs and streams: no operation waits for the device, allocates on the side or forgets the current stream."""

import gc

import pytest
import torch
from gpu.judged import fused_backward
from gpu.where import DEVICE, MARKS, offered, sm90  # noqa: F401  # a fixture
from support import assert_within_budget, attention_inputs

import tiledattn as ta

pytestmark = MARKS

LAYOUT = ta.TileLayout((24, 40), (12, 10), (0, 0), (False, True))
BOXES = ta.TileLayout(96, 32, 0, True)  # what the kernel for sm_90a takes
OTHER_LAYOUTS = 40  # more than there are tables kept of


def there_and_back(x, backend, layout=LAYOUT):
    tiles = ta.pad_tiles(ta.extract_tiles(x, layout, backend=backend), layout, 0, backend=backend)
    return ta.blend_tiles(tiles, layout, backend=backend)


def attention(x, backend, layout=LAYOUT, halo=4):
    q, k, v = x
    return ta.cross_tile_attention(q, k, v, layout, halo, halo_weight=0.5, backend=backend)


def gradients(x, backend, layout=LAYOUT):
    """Of q, k and v, stacked; the output's gradient is q."""
    leaves = [part.detach().requires_grad_() for part in x]
    return torch.stack(torch.autograd.grad(attention(leaves, backend, layout), leaves, x[0]))


def canvas(layout=LAYOUT, seed=0):
    return torch.randn(2, 3, *layout.size, generator=torch.Generator().manual_seed(seed)).to(DEVICE)


def heads(layout=LAYOUT, seed=0):
    return torch.stack(attention_inputs(layout, dim=64, dtype=torch.bfloat16, seed=seed)).to(DEVICE)


OPERATIONS = {
    "tiles": (there_and_back, canvas),
    "attention": (attention, heads),
    "gradients": (gradients, heads),
}


def capture(operation, x, backend):
    """A result and what makes it anew from `x`, by a graph; on a CPU, for a rehearsal, by a call."""
    if DEVICE.type != "cuda":
        captured = offered(operation, x, backend)
        return captured, lambda: captured.copy_(operation(x, backend))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # what is made once per layout is made before the capture
        for _ in range(2):
            offered(operation, x, backend)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = operation(x, backend)

    def replay():
        graph.replay()
        torch.cuda.synchronize()

    return captured, replay


def check_replay(captured, replay, operation, x, backend):
    """The replay gives what a call gives: to the bit, or for gradients that PyTorch sums within the budget."""
    captured.fill_(float("nan"))
    replay()
    called = operation(x, backend)
    if operation is not gradients or fused_backward(backend, x.dtype):
        assert torch.equal(captured, called)
    else:
        assert_within_budget(captured.cpu(), called.cpu(), operation(x.cpu().double(), "torch"))


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_captured_graph_replays(backend, name):
    operation, inputs = OPERATIONS[name]
    x = inputs()
    captured, replay = capture(operation, x, backend)
    for seed in range(1, 4):
        x.copy_(inputs(seed=seed))
        check_replay(captured, replay, operation, x, backend)


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_graph_replays_after_many_other_layouts(backend, name):
    operation, inputs = OPERATIONS[name]
    x = inputs()
    captured, replay = capture(operation, x, backend)
    for number in range(OTHER_LAYOUTS):
        layout = ta.TileLayout((8 + 4 * number, 16), (4, 8))
        operation(inputs(layout), backend, layout)
    kept = overwrite_free_memory()
    x.copy_(inputs(seed=1))
    check_replay(captured, replay, operation, x, backend)
    assert len(kept) > 0


def overwrite_free_memory():
    """Zeros where tables were that nobody keeps: indices that name other tokens, none that lie outside."""
    gc.collect()
    return [torch.zeros(size, dtype=torch.int32, device=DEVICE) for size in (1, 128, 1024, 8192) for _ in range(200)]


def test_the_kernel_for_sm90_in_a_graph(sm90):  # noqa: F811
    def operation(x, backend):
        return attention(x, backend, BOXES, 8)

    x = heads(BOXES)
    captured, replay = capture(operation, x, sm90)
    x.copy_(heads(BOXES, seed=1))
    check_replay(captured, replay, operation, x, sm90)


def test_a_replay_that_differs_is_noticed():
    x = canvas()
    captured = there_and_back(x, "torch")
    check_replay(captured, lambda: captured.copy_(x), lambda x, backend: x, x, "torch")
    for wrong in (lambda: None, lambda: captured.copy_(x + 1)):
        with pytest.raises(AssertionError):
            check_replay(captured, wrong, lambda x, backend: x, x, "torch")


@pytest.mark.skipif(DEVICE.type != "cuda", reason="streams are CUDA's")
@pytest.mark.parametrize("name", ["tiles", "attention"])
def test_the_current_stream_is_used(backend, name):
    operation, inputs = OPERATIONS[name]
    x = inputs()
    expected = offered(operation, x, backend)
    late = torch.full_like(x, float("nan"))
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        busy = torch.randn(4096, 4096, device=DEVICE)
        for _ in range(20):
            busy = torch.nn.functional.normalize(busy @ busy)
        late.copy_(x)
        found = operation(late, backend)
    stream.synchronize()
    assert torch.equal(found, expected)
