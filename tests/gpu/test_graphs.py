"""CUDA graphs and streams: no operation waits for the device, allocates on the side or forgets the current stream."""

import pytest
import torch
from gpu.where import DEVICE, MARKS, offered
from support import attention_inputs

import tiledattn as ta

pytestmark = [*MARKS, pytest.mark.skipif(DEVICE.type != "cuda", reason="graphs and streams are CUDA's")]

LAYOUT = ta.TileLayout((24, 40), (12, 10), (0, 0), (False, True))


def operations():
    def canvas(x, backend):
        return ta.blend_tiles(
            ta.pad_tiles(ta.extract_tiles(x, LAYOUT, backend=backend), LAYOUT, 0, backend=backend),
            LAYOUT,
            backend=backend,
        )

    def attention(x, backend):
        q, k, v = x
        return ta.cross_tile_attention(q, k, v, LAYOUT, 4, halo_weight=0.5, backend=backend)

    def tiles():
        return torch.randn(2, 3, *LAYOUT.size, device=DEVICE)

    def heads():
        return torch.stack(attention_inputs(LAYOUT, dim=64, dtype=torch.bfloat16, seed=int(torch.randint(99, ())))).to(
            DEVICE
        )

    return {"tiles": (canvas, tiles), "attention": (attention, heads)}


@pytest.mark.parametrize("name", operations())
def test_a_captured_graph_replays(backend, name):
    operation, inputs = operations()[name]
    x = inputs()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # what is made once per layout is made before the capture
        for _ in range(2):
            offered(operation, x, backend)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = operation(x, backend)
    for _ in range(3):
        x.copy_(inputs())
        captured.fill_(float("nan"))
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(captured, operation(x, backend))


@pytest.mark.parametrize("name", operations())
def test_the_current_stream_is_used(backend, name):
    operation, inputs = operations()[name]
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
