"""The documentation says what is true."""

import importlib.util
import pathlib
import re

import pytest

import tiledattn as ta
from tiledattn import dispatch

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture(scope="module")
def generate():
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generated_tables_are_up_to_date(generate):
    for name in generate.TABLES:
        assert generate.rendered(name) == (ROOT / "docs" / name).read_text(), "run `python docs/generate.py`"


def test_the_backends_table_lists_them_all(generate):
    table = generate.backends_table()
    for name in ta.backends():
        assert f"| `{name}` |" in table
    assert {c.name for c in dispatch.capabilities() if c.automatic} == set(dispatch._AUTOMATIC)


def test_a_stale_table_is_noticed(generate, monkeypatch):
    monkeypatch.setattr(dispatch, "OPERATIONS", (*dispatch.OPERATIONS, "something_new"))
    assert generate.rendered("backends.md") != (ROOT / "docs" / "backends.md").read_text()


@pytest.mark.parametrize(
    "page", sorted(p.relative_to(ROOT).as_posix() for p in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
)
def test_links_and_pictures_exist(page):
    text = (ROOT / page).read_text()
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        if not target.startswith(("http:", "https:")):
            assert (ROOT / page).parent.joinpath(target).exists(), target


def python_blocks(page):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), flags=re.DOTALL)
    return [b for b in blocks if not re.search(r'from_pretrained\((name|"[^"]+/)', b)]  # no hub in a test


@pytest.mark.parametrize("page", sorted(p.relative_to(ROOT).as_posix() for p in ROOT.glob("docs/*.md")))
def test_code_is_python(page):
    for block in re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), flags=re.DOTALL):
        compile(block, page, "exec")


@pytest.mark.parametrize("page", ["README.md", "docs/control.md", "docs/operations.md"])
def test_code_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = python_blocks(page)
    assert len(blocks) >= 2
    space = {}
    for block in blocks:
        exec(compile(block, page, "exec"), space)
