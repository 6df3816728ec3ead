import pytest
from support import poison


@pytest.fixture(autouse=True, scope="module")
def nan_poison():
    with pytest.MonkeyPatch.context() as monkeypatch:
        poison(monkeypatch)
        yield
