"""`generate --vae-tiling`."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from tiledattn.cli.command import UsageError
from tiledattn.cli.generate import _tile_vae


def test_the_vae_decodes_in_tiles():
    called = []
    _tile_vae(SimpleNamespace(vae=SimpleNamespace(enable_tiling=lambda: called.append(1))))
    assert called == [1]


@pytest.mark.parametrize("pipe", [SimpleNamespace(), SimpleNamespace(vae=None), SimpleNamespace(vae=object())])
def test_a_vae_that_cannot(pipe):
    with pytest.raises(UsageError, match=r"--vae-tiling: the VAE of this SimpleNamespace"):
        _tile_vae(pipe)
