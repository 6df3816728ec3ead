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
    monkeypatch.setattr(limits, "measure", lambda clock, calls, seconds: {"limit": Times(1e-3, 0.1, 5)})
    found = limits.measured(CPU, ["float32", "bfloat16", "float32"])
    run = {"format": report.FORMAT, "command": "x", "environment": ABOUT, "limits": found, "cases": [], "scaling": []}
    report.validate(run)
    assert [(e["name"], e["dtype"], e["what"]) for e in found] == [
        ("matrix product", "float32", "64^3"),
        ("matrix product", "bfloat16", "64^3"),
        ("copy", "float32", "1 MiB"),
        ("copy", "float32", "0.0156 MiB, in the caches"),
    ]
    assert found[0]["rate"] == pytest.approx(2 * 64**3 / 1e-3 / 1e12)
    assert found[2]["rate"] == pytest.approx(2 * (1 << 20) / 1e-3 / 1e9)
    assert limits.lacking(found, ["float32", "float16", "float16"]) == ["float16"]
    assert limits.lacking([], ["float32"]) == ["float32"]


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
