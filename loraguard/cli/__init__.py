"""The command line, a file for each family of commands."""

from __future__ import annotations

import atexit
import gc
import logging
import os
import sys
import threading
import warnings
from functools import cache
from typing import Any

__all__ = ["app", "main"]


@cache
def __getattr__(name: str) -> Any:
    """All commands, as `app`, made when they are asked for."""
    if name == "app":
        from .root import application

        return application()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def say_warning(message: Warning | str, *_: object, **__: object) -> None:
    """A warning in a line, without the place in the code."""
    import typer

    typer.secho(f"Warning: {message}", fg="yellow", err=True)


def is_worth_a_line(record: logging.LogRecord) -> bool:
    """Of what DeepSpeed, where it is installed, logs to stdout: all but that there is no accelerator."""
    return "Setting accelerator to CPU" not in record.getMessage()


def main() -> None:
    """Entry point of the console script."""
    # Before torch is loaded: a thread that waits for another one sleeps. By default it spins, and where another program
    # keeps a core busy, spinning takes the other thread's time and a step takes several times as long.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    gc.disable()  # a fifth of the time of imports and help; commands that have work enable it again
    warnings.showwarning = say_warning
    logging.getLogger("DeepSpeed").addFilter(is_worth_a_line)
    from .root import application

    try:
        application(sys.argv[1] if len(sys.argv) > 1 else None)()
    except SystemExit as end:
        leave(0 if end.code is None else end.code)
        raise


def leave(code: int | str) -> None:
    """End the process without taking apart all that it has imported, which takes seconds where torch is among it.

    What is to be done at exit is done, and what was said is written. This returns, for Python to end the process, where
    there is no torch, another thread is to be waited for, or the code is a message.
    """
    waited_for = [one for one in threading.enumerate() if not one.daemon and one is not threading.main_thread()]
    if "torch" not in sys.modules or waited_for or not isinstance(code, int):
        return
    atexit._run_exitfuncs()
    try:
        for stream in filter(None, (sys.stdout, sys.stderr)):
            stream.flush()
    except (OSError, ValueError):  # whoever read it has gone
        return
    os._exit(code & 0xFF)
