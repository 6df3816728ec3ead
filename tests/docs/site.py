"""The site, built once for the tests of a process."""

from __future__ import annotations

import logging
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from .pages import ROOT

# Attributes by which a browser loads something at once; a link (a href) waits for a click.
LOADING = {"src", "srcset", "poster", "data"}


def build(folder: Path, **options: Any) -> list[str]:
    """Builds the site into a folder, as `make docs` does; returns the warnings, which `make docs` takes for errors."""
    from mkdocs.commands.build import build as make
    from mkdocs.config import load_config

    warnings: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: warnings.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("mkdocs")
    logger.addHandler(handler)
    try:
        config = load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder), **options)
        config.plugins.on_startup(command="build", dirty=False)
        make(config)
        config.plugins.on_shutdown()
    finally:
        logger.removeHandler(handler)
    return warnings


class _Loaded(HTMLParser):
    """What a page makes a browser load."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.found += [value for name, value in given.items() if name in LOADING]
        if tag == "link" and given.get("rel") not in ("canonical", "alternate", "next", "prev"):
            self.found.append(given.get("href", ""))


def fetched(text: str) -> list[str]:
    """Addresses on other machines that an HTML page or a stylesheet makes a browser load."""
    parser = _Loaded()
    parser.feed(text)
    styles = re.findall(r"url\(\s*['\"]?([^'\")]+)|@import\s+['\"]([^'\"]+)", text)
    return [a for a in [*parser.found, *(a or b for a, b in styles)] if re.match(r"(https?:)?//", a)]
