"""`tiledattn doctor`: versions, devices, and which backends can run here."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer

from .command import DebugOption, command
from .examining import MISSING, RUNS, examine, headline, remarks, sections


@command
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")] = False,
    debug: DebugOption = False,
) -> None:
    """Print versions, devices, and each backend with the reason why it can't run here.

    The exit code is 1 where TILEDATTN_BACKEND names one that can't run here.

    [dim]Example: tiledattn doctor --json[/dim]
    """
    report = examine()
    if as_json:
        typer.echo(json.dumps(report, indent=2))
    else:
        _print(report)
    if report["problems"]:
        raise typer.Exit(1)


def _print(report: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False)
    name, about = (escape(part) for part in headline(report))
    console.print(f"[bold]{name}[/bold]  {about}")
    for number, (title, rows) in enumerate(sections(report)):
        heading = "\n" * (number > 0) + title
        table = Table(title=heading, title_justify="left", box=None, pad_edge=False, show_header=False)
        for first, *rest in rows:
            table.add_row(escape(first), *(_coloured(title, cell) for cell in rest))
        console.print(table)
    console.print()
    for remark in remarks(report):
        console.print(escape(remark))
    for problem in report["problems"]:
        console.print(f"[red]{escape(problem)}[/red]", soft_wrap=True)


def _coloured(title: str, cell: str) -> str:
    """A cell as rich markup: what runs is green, what is missing yellow."""
    from rich.markup import escape

    colour = None
    if title == "backends":
        colour = "green" if cell == RUNS else "yellow"
    elif title == "packages" and cell.startswith(MISSING):
        colour = "yellow"
    return escape(cell) if colour is None else f"[{colour}]{escape(cell)}[/{colour}]"
