"""The machine's limits are measured and named."""

import pytest
import torch

from tiledattn.bench import limits, report
from tiledattn.bench.timing import Times

CPU = torch.device("cpu")
ABOUT = dict.fromkeys(("date", "commit", "device", "device_name", "python", "torch"), "x")


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(limits, "PRODUCT_SIZE", {"cpu": 64})
    monkeypatch.setattr(limits, "COPY_BYTES", {"cpu": 1 << 20})
    monkeypatch.setattr(limits, "last_level_cache", lambda: 1 << 17)


def test_products_and_copies(small, monkeypatch):
    calls = limits._calls
    monkeypatch.setattr(limits, "_calls", lambda a, b: {"a @ b": calls(a, b)["a @ b"]})
    monkeypatch.setattr(limits, "measure", lambda clock, calls, seconds: {"limit": Times(1e-3, 0.1, 5)})
    found = limits.measured(CPU, ["float32", "bfloat16", "float32"])
    run = {"format": report.FORMAT, "command": "x", "environment": ABOUT, "limits": found, "cases": [], "scaling": []}
    report.validate(run)
    assert [(e["name"], e["dtype"], e["what"].replace(", a @ b", "")) for e in found] == [
        ("matrix product", "float32", "64^3"),
        ("matrix product", "bfloat16", "64^3"),
        ("copy", "float32", "1 MiB"),
        ("copy", "float32", "0.0156 MiB, in the caches"),
    ]
    assert found[0]["rate"] == pytest.approx(2 * 64**3 / 1e-3 / 1e12)
    assert found[2]["rate"] == pytest.approx(2 * (1 << 20) / 1e-3 / 1e9)


def test_they_are_really_measured(small):
    found = limits.measured(CPU, ["float32"], seconds=0.01)
    assert all(e["rate"] > 0 and e["samples"] >= 3 for e in found)


def test_large_caches_have_larger_copies(small, monkeypatch):
    monkeypatch.setattr(limits, "measure", lambda clock, calls, seconds: {"limit": Times(1e-3, 0.1, 5)})
    monkeypatch.setattr(limits, "last_level_cache", lambda: 1 << 19)
    assert [e["what"] for e in limits.measured(CPU, [])] == ["2 MiB", "0.0625 MiB, in the caches"]
    monkeypatch.setattr(limits, "last_level_cache", lambda: None)
    assert [e["what"] for e in limits.measured(CPU, [])] == ["1 MiB"]


def test_a_product_that_is_not_offered_is_left_out(small, monkeypatch):
    def refused(*arguments):
        raise RuntimeError("not implemented for Half")

    monkeypatch.setattr(limits, "random", refused)
    assert [e["name"] for e in limits.measured(CPU, ["float16"], seconds=0.0)] == ["copy", "copy"]


def test_the_fastest_product_is_the_limit(small, monkeypatch):
    seconds = {"a @ b": 3.0, "torch.mm into a buffer": None, "F.linear": 1.0, "F.linear of oneDNN's tensors": 2.0}
    tried = iter(seconds.values())
    monkeypatch.setattr(limits, "_tried", lambda device, call: next(tried))
    (found,) = limits.products_of(CPU, ["float32"], 0.0)
    assert found["what"] == "64^3, F.linear"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_all_of_them_are_the_product(dtype):
    a, b = torch.randn(2, 32, 32).to(dtype).unbind(0)
    exact = a.double() @ b.double()
    offered = {name: call for name, call in limits._calls(a, b).items() if limits._tried(CPU, call) is not None}
    assert {"a @ b", "F.linear"} <= offered.keys()  # oneDNN's own tensors need AVX-512 for bfloat16
    for name, call in offered.items():
        found = call()
        found = found.to_dense() if found.is_mkldnn else found
        assert torch.allclose(found.double(), exact, atol=0.3 if dtype == torch.bfloat16 else 1e-4), name


def test_a_way_that_is_not_offered_is_not_tried_further():
    def refused():
        raise NotImplementedError("no such product")

    assert limits._tried(CPU, refused) is None
    assert limits._tried(CPU, lambda: None) >= 0


def test_only_what_is_lacking_is_measured(monkeypatch):
    asked = []

    def products_of(device, dtypes):
        asked.append(list(dtypes))
        return [{"name": "matrix product", "dtype": dtype} for dtype in dtypes if dtype != "float16"]

    monkeypatch.setattr(limits, "products_of", products_of)
    monkeypatch.setattr(limits, "copies", lambda device: asked.append("copies") or [{"name": "copy", "dtype": "x"}])
    data = {"limits": [], "no_product": []}
    limits.add_lacking(data, CPU, ["float32", "float16", "float32"])
    assert asked == [["float32", "float16"], "copies"]
    assert data["no_product"] == ["float16"]
    limits.add_lacking(data, CPU, ["float16", "bfloat16"])
    assert asked[2:] == [["bfloat16"]]
    assert [(e["name"], e["dtype"]) for e in data["limits"]] == [
        ("matrix product", "float32"),
        ("matrix product", "bfloat16"),
        ("copy", "x"),
    ]
