"""Processes that tests start: forks of one that has imported everything.

To import torch, PEFT, Transformers and Accelerate takes seconds, and a fork of a process that has done so milliseconds.
`multiprocessing`'s fork server is such a process, one for each of pytest's own. A fork has nothing of what another test
has left behind, and its standard output, its exit code and its death by a signal are a process' own.
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import re
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import pytest

PATIENCE = 20 * 60
"""Seconds after which a process is taken to hang. No test asks how long anything takes."""

ENVIRONMENT = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
"""Of the fork server: one thread, as fork copies no others, and no network."""


class Fork:
    """A function that runs in a fork of the server; it is found by its module's name, so that has to be importable.

    Args:
        deed: the function.
        arguments: its arguments, as pickle takes them.
        environment: variables that are set before it is called.

    Raises:
        ValueError: if it stands in a file of tests, whose name in `sys.modules` can be imported under
            `python -m pytest` alone.
    """

    def __init__(self, deed: Callable[..., object], *arguments: object, **environment: str) -> None:
        if deed.__module__.startswith("tests."):
            raise ValueError(f"{deed.__module__}.{deed.__name__} has to stand in a module beside the file of tests.")
        self._said = tempfile.TemporaryDirectory(prefix="fork-")
        for name in ("stdout", "stderr"):
            Path(self._said.name, name).touch()
        self.process = _server().Process(target=_in_the_fork, args=(self._said.name, environment, deed, arguments))
        self.process.start()

    def wait(self) -> subprocess.CompletedProcess[str]:
        """Its exit code (minus the signal's number, where one killed it), and what it wrote; not what Gloo did.

        Raises:
            TimeoutError: if it hangs. It is killed.
        """
        self.process.join(PATIENCE)
        if hangs := self.process.exitcode is None:
            self.process.kill()
            self.process.join()
        with self._said as folder:
            out, errors = (Path(folder, name).read_text(encoding="utf-8") for name in ("stdout", "stderr"))
        if hangs:
            raise TimeoutError(f"A process hangs; it wrote:\n{out}\n{errors}")
        out = re.sub(r"^\[Gloo\] .*\n", "", out, flags=re.MULTILINE)  # said to stdout by torch 2.10's
        return subprocess.CompletedProcess(self.process.name, self.process.exitcode, out, errors)


def forked(deed: Callable[..., object], *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """What comes of a function in a process of its own."""
    return Fork(deed, *arguments, **environment).wait()


def forked_ranks(
    deed: Callable[..., object], *arguments: object, told: Sequence[Mapping[str, str]] = ()
) -> list[subprocess.CompletedProcess[str]]:
    """What comes of a function in processes that work together.

    Args:
        deed: the function.
        arguments: its arguments.
        told: the variables by which a launcher tells each process where it stands; two on CPUs where there are none.
    """
    told = told or [
        {"WORLD_SIZE": "2", "RANK": rank, "LOCAL_WORLD_SIZE": "2", "LOCAL_RANK": rank, "ACCELERATE_USE_CPU": "true"}
        for rank in ("0", "1")
    ]
    with tempfile.TemporaryDirectory() as folder:
        ranks = [Fork(_as_a_rank, f"{folder}/meeting", deed, arguments, **one) for one in told]
        return [rank.wait() for rank in ranks]


def run_main(
    main: Callable[[], object], *words: object, first: Sequence[Callable[[], object]] = ()
) -> subprocess.CompletedProcess[str]:
    """What comes of a console script with these words, in a fork in which some functions were called first."""
    return forked(call_main, main, [str(word) for word in words], first)


def call_main(main: Callable[[], object], words: list[str], first: Sequence[Callable[[], object]]) -> None:
    """In this process."""
    sys.argv = [main.__module__, *words]
    for deed in first:
        deed()
    main()


def run_script(
    script: Path, *words: object, first: Sequence[Callable[[], object]] = (), **environment: str
) -> subprocess.CompletedProcess[str]:
    """What comes of `python SCRIPT WORDS`, in a fork in which some functions were called first."""
    return forked(_script, script, [str(word) for word in words], first, **environment)


def run_python(*words: object, **environment: str) -> subprocess.CompletedProcess[str]:
    """What comes of `python WORDS`, in a fresh process that imports everything anew."""
    return subprocess.run(
        [sys.executable, *map(str, words)], capture_output=True, text=True, timeout=PATIENCE, check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )  # fmt: skip


@functools.cache
def _server() -> Any:
    """The context whose processes are forks of one that has imported everything and has one thread.

    Raises:
        RuntimeError: if that is not so.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["imported"])
    here = str(Path(__file__).parent)  # which the server does not get from `sys.path`
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        patch.setenv("PYTHONPATH", here, prepend=os.pathsep)
        forkserver.ensure_running()
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_look, args=(sender,))
    process.start()
    sender.close()
    imported, threads = receiver.recv()
    process.join()
    if not imported or threads != 1:
        raise RuntimeError(
            f"The fork server has {threads} threads; it could import everything: {imported} (see above)."
        )
    return context


def _look(sender: Any) -> None:
    tasks = Path(f"/proc/{os.getppid()}/task")  # Linux's; elsewhere Python's own threads are counted, in the fork
    threads = len(list(tasks.iterdir())) if tasks.is_dir() else threading.active_count()
    sender.send(("imported" in sys.modules, threads))
    import_module("imported")  # says what the server, which passes over it, could not import


def _in_the_fork(
    said: str, environment: Mapping[str, str], deed: Callable[..., object], arguments: tuple[object, ...]
) -> None:
    for number, name in ((1, "stdout"), (2, "stderr")):
        getattr(sys, name).flush()  # what the server has written itself
        with open(f"{said}/{name}", "wb") as file:
            os.dup2(file.fileno(), number)
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which shells have what runs in the background ignore
    deed(*arguments)


def _script(script: Path, words: list[str], first: Sequence[Callable[[], object]]) -> None:
    for deed in first:
        deed()
    sys.argv, sys.path[:0] = [str(script), *words], [str(script.parent)]
    runpy.run_path(str(script), run_name="__main__")


def _as_a_rank(meeting: str, deed: Callable[..., object], arguments: tuple[object, ...]) -> None:
    """They meet in a file: of a port nobody knows whether it is free."""
    import torch

    rank, processes = (int(os.environ[name]) for name in ("RANK", "WORLD_SIZE"))
    torch.distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=processes)
    deed(*arguments)
