"""A second process that works beside this one, and one thread for each."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any


@contextmanager
def one_thread() -> Iterator[None]:
    """Within the block torch computes with one thread."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def _one_thread_for_children() -> Iterator[None]:
    before = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = "1"
    try:
        yield
    finally:
        os.environ.pop("OMP_NUM_THREADS")
        if before is not None:
            os.environ["OMP_NUM_THREADS"] = before


def can_fork() -> bool:
    """Whether a copy of this process works: on Linux, with no other Python thread and no GPU in use.

    A copy starts at once and shares what is imported with this process, half a gigabyte; a fresh interpreter has to
    import all of it. Where torch has computed with several threads, a copy can compute with one.
    """
    torch: Any = sys.modules.get("torch")
    on_gpu = torch is not None and torch.cuda.is_initialized()
    return sys.platform == "linux" and threading.active_count() == 1 and not on_gpu


class SecondProcess:
    """A process of one thread that calls a function beside this one; a context, at whose end it has ended.

    It is a copy of this one (:func:`can_fork`) or else a fresh interpreter.

    Where the block is left by an error or an interrupt, the process gets SIGTERM, so that a training in it saves a
    checkpoint and leaves. Its warnings are warned of here.

    Args:
        function: of a module, called there with a connection to this process and the arguments.
        args: can be pickled.

    Example:
        >>> with SecondProcess(Sender.send, "ready") as second:
        ...     second.receive()
        'ready'
    """

    def __init__(self, function: Callable[..., None], *args: Any) -> None:
        method = "fork" if can_fork() else "spawn"
        context: Any = multiprocessing.get_context(method)
        self.connection, theirs = context.Pipe()
        ours = self.connection if method == "fork" else None  # a copy has to close it, or would never see its end
        self.process = context.Process(target=_run, args=(ours, theirs, function, args), daemon=True)
        self._theirs = theirs
        self._freezes = method == "fork" and not gc.get_freeze_count()

    def __enter__(self) -> SecondProcess:
        if self._freezes:
            gc.freeze()  # or looking for garbage would write to all that is shared, and so copy it
        with _one_thread_for_children():
            self.process.start()
        self._theirs.close()  # so that its end is seen here
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None and self.process.is_alive():
            self.process.terminate()
        self.process.join()
        self.connection.close()
        if self._freezes:
            gc.unfreeze()

    def send(self, value: Any) -> None:
        """Send it a value."""
        self.connection.send(value)

    def receive(self) -> Any:
        """The next value that it sends.

        Raises:
            ChildProcessError: if it has ended without one.
            Exception: the one that ended it.
        """
        while True:
            try:
                kind, value = self.connection.recv()
            except EOFError:
                self.process.join()
                raise ChildProcessError(
                    f"The second process has ended with exit code {self.process.exitcode}, without a word."
                ) from None
            if kind == "warning":
                warnings.warn(value, stacklevel=2)
            elif kind == "error":
                raise value
            else:
                return value


class Sender:
    """What the function of a :class:`SecondProcess` gets: the other end."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def send(self, value: Any) -> None:
        """Send the first process a value."""
        self.connection.send(("value", value))

    def receive(self) -> Any:
        """The next value that the first process sends; where it has ended, this process ends."""
        try:
            return self.connection.recv()
        except EOFError:
            sys.exit(1)


def _run(
    other: Connection | None, connection: Connection, function: Callable[..., None], args: tuple[Any, ...]
) -> None:
    if other is not None:
        other.close()
    if torch := sys.modules.get("torch"):  # a copy, which has the first process' number
        torch.set_num_threads(1)
    sys.stdout = open(os.devnull, "w")  # noqa: SIM115 -- until the process ends
    warnings.showwarning = lambda message, *_, **__: connection.send(("warning", message))
    try:
        function(Sender(connection), *args)
    except KeyboardInterrupt:  # the first process says it
        sys.exit(128 + signal.SIGINT)
    except Exception as error:
        connection.send(("error", error))
