"""Signals at exactly chosen moments.

No test may depend on how fast a machine is. A signal therefore comes from within, at the n-th call of something or
before the n-th change to files, and nobody watches for the moment.
"""

from __future__ import annotations

import functools
import itertools
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from loraguard.files import draft_folder


def signal_at_call(number: int, owner: Any, name: str, nth: int) -> None:
    """From now on the n-th call of `owner.name` begins with a signal to this process."""
    call, count = getattr(owner, name), itertools.count(1)

    @functools.wraps(call)
    def counted(*args: Any, **kwargs: Any) -> Any:
        if next(count) == nth:
            os.kill(os.getpid(), number)
        return call(*args, **kwargs)

    setattr(owner, name, counted)


def signal_at_change(number: int, nth: int) -> Callable[[], None]:
    """From now on a signal comes before the n-th change to files: one is opened for writing, renamed, removed, ...

    A file that is emptied by opening it counts twice: before, and when it is there with nothing in it. Python announces
    all of this (PEP 578), whoever does it; but compiled code that opens files does not: let that call what is returned.
    """
    count = itertools.count(1)

    def change(emptied: Any = None) -> None:
        if next(count) == nth:
            if emptied is not None:
                os.close(os.open(emptied, os.O_WRONLY | os.O_CREAT | os.O_TRUNC))
            os.kill(os.getpid(), number)

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event in _CHANGES and not (event == "os.mkdir" and os.path.isdir(args[0])):
            change()
        elif event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR):
            change()
            if args[2] & os.O_TRUNC:
                change(args[0])

    sys.addaudithook(hook)
    return change


_CHANGES = {"os.chmod", "os.link", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.symlink", "os.truncate"}


def holding_a_draft(folder: Path) -> None:
    """Write into a folder for as long as this process lives, and leave the file "ready" there."""
    with draft_folder(folder):
        (folder / "ready").touch()
        signal.pause()
