"""Every block of Python in the documentation runs, tiny models standing in for those on the hub."""

from __future__ import annotations

from typing import Any

import pytest

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from .pages import blocks, pages, python_blocks, read
from .stand_ins import PIPELINES, StandIn, stand_in

WITH_CODE = [page for page in pages() if python_blocks(read(page))]


def run(page: str, text: str) -> dict[str, Any]:
    """Runs a page's blocks in order, in one namespace; errors name the page's lines."""
    space: dict[str, Any] = {"__name__": "__main__"}
    for block in python_blocks(text):
        if block.not_run is None:
            exec(compile("\n" * (block.line - 1) + block.text, page, "exec"), space)
    return space


@pytest.mark.parametrize("page", WITH_CODE)
def test_code_runs(page: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    stand_in(monkeypatch)
    run(page, read(page))


def test_every_block_is_run() -> None:
    """A block that can't be run here would be listed, with the reason that stands above it in the page."""
    assert {f"{page}:{b.line}": b.not_run for page in WITH_CODE for b in python_blocks(read(page)) if b.not_run} == {}


def test_code_that_is_wrong_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch)
    page = """
```python
import torch, tiledattn.diffusers as td
from diffusers import FluxPipeline

pipe = FluxPipeline.from_pretrained("any/name", dtype=torch.bfloat16).to("cuda")
td.enable_tiling(pipe, tile=1024, halo=256)
```
"""
    run("right.md", page)
    for right, wrong, error in (
        ("halo=", "halos=", TypeError),
        ("tile=1024", "tile=0.5", TypeError),
        ("FluxPipeline", "FluksPipeline", ImportError),
        ("dtype=", "torch_dtypo=", TypeError),
    ):
        with pytest.raises(error):
            run("wrong.md", page.replace(right, wrong))


def test_blocks_are_found_with_their_lines_and_marks() -> None:
    text = "Text\n\n```python\na = 1\n```\n\n- item\n\n  ```\n  make test\n  ```\n\n"
    text += "<!-- not run: too large -->\n```python\nb\n```\n"
    assert [(b.line, b.language, b.text, b.not_run) for b in blocks(text)] == [
        (4, "python", "a = 1\n", None),
        (10, "", "make test\n", None),
        (15, "python", "b\n", "too large"),
    ]


def test_stand_ins_are_asked_for_lengths_that_they_can_have() -> None:
    small = StandIn(lambda: None, pixels=16, token=16, latent=8, frame=4)
    assert [small.length(n) for n in (8, 480, 1024)] == [16, 32, 64]
    assert [small.reach(n) for n in (0, 8, 128)] == [0, 8, 8]
    assert [small.frames(n) for n in (33, 81, 321)] == [9, 21, 81]
    assert [small.frame_reach(n) for n in (0, 8, 16)] == [0, 4, 4]


def test_the_names_on_the_hub_are_those_of_the_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is opened in the front page is a name on the hub, and each pipeline is the class that was asked for."""
    opened = stand_in(monkeypatch)
    run("README.md", "".join(f"```python\n{b.text}```\n" for b in python_blocks(read("README.md"))[:1]))
    assert opened == ["stabilityai/stable-diffusion-xl-base-1.0"]
    for name, small in PIPELINES.items():
        assert type(small.build()).__name__ == name
