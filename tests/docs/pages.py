"""The documentation's pages, and the code in them."""

from __future__ import annotations

import pathlib
import re
import shlex
from typing import NamedTuple

ROOT = pathlib.Path(__file__).parents[2]
NOT_RUN = re.compile(r"<!-- not run: (.+?) -->\s*$")
_FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```", flags=re.DOTALL | re.MULTILINE)
_SPAN = re.compile(r"(?<!`)`([^`]+)`(?!`)")


class Block(NamedTuple):
    """A block of code: where it begins, its language ("" without one), its text, and why it isn't run, if it isn't."""

    line: int
    language: str
    text: str
    not_run: str | None


def pages() -> list[str]:
    """All pages for readers, by their paths in the source tree."""
    return sorted(p.relative_to(ROOT).as_posix() for p in [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


def read(page: str) -> str:
    """A page's Markdown."""
    return (ROOT / page).read_text()


def blocks(text: str) -> list[Block]:
    """The blocks of code of a page, in order."""
    found = []
    for fence in _FENCE.finditer(text):
        before = text[: fence.start()]
        mark = NOT_RUN.search(before)
        indent = fence.group(1)
        lines = [line.removeprefix(indent) for line in fence.group(3).splitlines(keepends=True)]
        code = before.count("\n") + 2
        found.append(Block(code, fence.group(2), "".join(lines), mark.group(1) if mark else None))
    return found


def python_blocks(text: str) -> list[Block]:
    """The blocks of Python."""
    return [block for block in blocks(text) if block.language in ("python", "py")]


def commands(text: str, program: str) -> list[list[str]]:
    """The command lines of `program` in a page's blocks and between backticks, in words, up to a comment or a pipe."""
    lines = []
    for block in blocks(text):
        if block.language not in ("python", "py"):
            lines += block.text.replace("\\\n", " ").splitlines()
    lines += [" ".join(span.split()) for span in _SPAN.findall(_FENCE.sub("", text)) if "[" not in span]
    found = []
    for line in (line.strip().removeprefix("$ ") for line in lines):
        if line.split(" ")[0] == program:
            words = shlex.split(line, comments=True)
            ends = [words.index(stop) for stop in ("|", "&&", ">", ";") if stop in words]
            found.append(words[: min(ends, default=None)])
    return [words for words in found if len(words) > 1]
