"""The typer application and what its commands share."""

from __future__ import annotations

from typing import Annotated

import typer

from .bench import bench
from .demo import demo
from .doctor import doctor
from .generate import generate
from .plot import plot

app = typer.Typer(
    name="tiledattn",
    help="Diffusion models that paint far beyond the size they were trained for.",
    epilog="Start with: tiledattn demo",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        from .. import __version__

        typer.echo(__version__)
        raise typer.Exit()


@app.callback()
def tiledattn(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and stop.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Diffusion models that paint far beyond the size they were trained for."""


app.command(name="demo")(demo)
app.command(name="generate")(generate)
app.command(name="plot")(plot)
app.command(
    name="bench",
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
)(bench)
app.command(name="doctor")(doctor)
