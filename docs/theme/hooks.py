"""What MkDocs is told about this project's pages (hooks of mkdocs.yml)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

# A link out of docs/, as it works in the source tree: [text](../path).
_OUTSIDE = re.compile(r"(?<!!)\[([^\]]+)\]\((?:\.\./)+([^)#\s]+)(#[^)\s]*)?\)")


def on_page_markdown(markdown: str, page: Any, **kwargs: Any) -> str:
    """The page with links to files that the site lacks as plain text and the file's path."""
    if Path(page.file.src_uri).parent != Path():
        return markdown  # there ../ is docs/ itself
    return _OUTSIDE.sub(lambda link: _plain(link.group(1), link.group(2)), markdown)


def _plain(text: str, path: str) -> str:
    return f"`{path}`" if path in text else f"{text} (`{path}` in the source tree)"
