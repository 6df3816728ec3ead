import pytest
import torch
from gpu.where import DEVICE, backend  # noqa: F401  # a fixture
from support import poison


@pytest.fixture(autouse=True)
def nan_poison(monkeypatch):
    poison(monkeypatch)


@pytest.fixture(autouse=True)
def nothing_left():
    yield
    if DEVICE.type == "cuda":
        torch.cuda.empty_cache()
