"""`tiledattn bench`: passed on to the benchmark's own program."""

from __future__ import annotations

import typer


def bench(context: typer.Context) -> None:
    """Time tiledattn beside its peers, each result checked first.

    [dim]Example: tiledattn bench --quick[/dim]
    """
    from ..bench.app import main

    raise typer.Exit(main(context.args))
