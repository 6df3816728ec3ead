"""The command line: `tiledattn demo | generate | plot | bench | doctor`, also `python -m tiledattn`.

`doctor` works without the packages of the extra `cli`, the others say that they need them.

Exit codes: 0 done, 1 an error (one line on stderr; `--debug` shows where), 2 bad usage, 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import sys
import threading
from _thread import interrupt_main
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line on `arguments` (default: the process's) and returns its exit code."""
    try:
        with _no_lost_interrupt():
            return _run(list(sys.argv[1:] if arguments is None else arguments))
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except KeyboardInterrupt:
        print("tiledattn: stopped", file=sys.stderr)
        return 130


@contextmanager
def _no_lost_interrupt() -> Iterator[None]:
    """Sends a Ctrl-C again that fell into a finaliser, where Python prints the exception and goes on."""

    def again(lost: Any) -> None:
        if issubclass(lost.exc_type, KeyboardInterrupt):
            threading.Timer(0.05, interrupt_main).start()
        else:
            before(lost)

    before, sys.unraisablehook = sys.unraisablehook, again
    try:
        yield
    finally:
        sys.unraisablehook = before


def _run(arguments: list[str]) -> int:
    try:
        import rich  # noqa: F401
        import typer  # noqa: F401
    except ImportError as error:
        if arguments in (["doctor"], ["doctor", "--json"]):
            from .examining import plain_doctor

            return plain_doctor(as_json="--json" in arguments)
        print(
            f"tiledattn: the command line needs {error.name}, which is not installed: pip install 'tiledattn[cli]'",
            file=sys.stderr,
        )
        return 1
    from .app import app

    if hasattr(sys.stdout, "reconfigure"):
        # A name that stdout's encoding lacks must not end a command after its work.
        sys.stdout.reconfigure(errors="backslashreplace")
    app(args=arguments, prog_name="tiledattn")
    return 0
