"""One adapted network in several threads: what contradicts another thread is an error, and never another's output.

PEFT's switches (`set_adapter`, `disable_adapter`, merging, loading) change the network itself, and so for every thread.
The rules here are that

- nothing is switched while another thread is inside a call of the `PeftModel`,
- a thread does not run a network whose adapters another thread has disabled, nor switch them back, and
- a thread that chose its adapters does not run with those that another thread has chosen since.

`adapter_names` belongs to the call that it is given to, in whichever thread that runs; see docs/serving.md. Threads
that torch starts by itself (for a backward pass) are not watched.
"""

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar, cast
from weakref import WeakKeyDictionary

LOCK = threading.RLock()
Method = TypeVar("Method", bound=Callable[..., Any])
_MAKING: ContextVar[bool] = ContextVar("making", default=False)
_NAMES: ContextVar[dict["Calls", list[str]] | None] = ContextVar("adapter_names", default=None)


class Calls:
    """Which threads are inside a call of a network, and which one changes it. Its adapted layers share it."""

    def __init__(self) -> None:
        self._running: dict[threading.Thread, int] = {}
        self._changing: tuple[threading.Thread, int] | None = None

    def __reduce__(self) -> Any:
        """A copy has no calls."""
        return Calls, ()

    @contextmanager
    def running(self) -> Iterator[None]:
        """A call of the network in this thread.

        Raises:
            RuntimeError: If another thread is changing it.
        """
        me = threading.current_thread()
        with LOCK:
            self._check_unchanging(me, "run")
            self._running[me] = self._running.get(me, 0) + 1
        try:
            yield
        finally:
            with LOCK:
                self._running[me] -= 1
                if not self._running[me]:
                    del self._running[me]

    @contextmanager
    def changing(self) -> Iterator[None]:
        """A change of the network by this thread.

        Raises:
            RuntimeError: If another thread is inside a call, or is changing it, too. Nothing has changed then.
        """
        me = threading.current_thread()
        with LOCK:
            self._check_unchanging(me, "change")
            other = next((one for one in self._running if one is not me), None)
            if other is not None:
                raise RuntimeError(
                    f"{other.name!r} is running this network, so that {me.name!r} cannot change it: a switch of PEFT's "
                    "is for all threads. Pass adapter_names to the call instead, or wait (see docs/serving.md)."
                )
            depth = self._changing[1] if self._changing else 0
            self._changing = me, depth + 1
        try:
            yield
        finally:
            with LOCK:
                self._changing = (me, depth) if depth else None

    def _check_unchanging(self, me: threading.Thread, verb: str) -> None:
        if self._changing is not None and self._changing[0] is not me:
            raise RuntimeError(
                f"{self._changing[0].name!r} is changing this network, so that {me.name!r} cannot {verb} it (see "
                "docs/serving.md)."
            )

    @contextmanager
    def named(self, names: list[str]) -> Iterator[None]:
        """Have the calls inside use an adapter for each sample, in this thread alone."""
        token = _NAMES.set({**(_NAMES.get() or {}), self: names})
        try:
            yield
        finally:
            _NAMES.reset(token)

    @property
    def names(self) -> list[str] | None:
        """The adapter for each sample of this thread's call, if it named any."""
        given = _NAMES.get()
        return None if given is None else given.get(self)


def alone(method: Method) -> Method:
    """Have a method of a tuner raise a RuntimeError, and do nothing, while another thread is inside a call."""

    @functools.wraps(method)
    def changing(self: Any, *args: Any, **kwargs: Any) -> Any:
        with self.calls.changing():
            return method(self, *args, **kwargs)

    return cast(Method, changing)


@contextmanager
def making() -> Iterator[None]:
    """Adapters are made inside: that one of them becomes active is nobody's choice."""
    token = _MAKING.set(True)
    try:
        yield
    finally:
        _MAKING.reset(token)


class Switches:
    """Who set the switches of an adapted layer."""

    def __init__(self) -> None:
        self._disabled_by: threading.Thread | None = None
        self._chosen_by: threading.Thread | None = None
        self._choices: WeakKeyDictionary[threading.Thread, list[str]] = WeakKeyDictionary()

    def __reduce__(self) -> Any:
        """The switches of a copy are nobody's."""
        return Switches, ()

    def choose(self, names: list[str]) -> None:
        """Note that this thread chose these adapters."""
        if _MAKING.get():
            return
        me = threading.current_thread()
        self._chosen_by = me
        self._choices[me] = names

    def disable(self, off: bool) -> None:
        """Note that this thread switches adapters off, or on again.

        Raises:
            RuntimeError: If another thread has switched them off.
        """
        me = threading.current_thread()
        if other := _another(self._disabled_by, me):
            raise RuntimeError(
                f"{other.name!r} has disabled the adapters of this network, and {me.name!r} cannot "
                f"{'disable' if off else 'enable'} them meanwhile. Pass adapter_names to the call, '__base__' for each "
                "sample without an adapter (see docs/serving.md)."
            )
        self._disabled_by = me if off else None

    def check(self, active: list[str], disabled: bool) -> None:
        """Raise a RuntimeError where this thread would run with what another thread has set, against its own choice."""
        if self._disabled_by is None and self._chosen_by is None:
            return
        me = threading.current_thread()
        if isinstance(me, threading._DummyThread):
            return
        if disabled and (other := _another(self._disabled_by, me)):
            raise RuntimeError(
                f"{other.name!r} has disabled the adapters of this network, and {me.name!r} would run without them. "
                "Disable them by adapter_names=['__base__', ...] in the call that is to do without, or unload() a copy "
                "(see docs/serving.md)."
            )
        mine = self._choices.get(me, active)
        if self._chosen_by is not me and mine != active:
            raise RuntimeError(
                f"{me.name!r} chose the adapters {mine}, and another thread has chosen {active} since: set_adapter is "
                "for all threads. Pass adapter_names to the call instead (see docs/serving.md)."
            )


def _another(thread: threading.Thread | None, me: threading.Thread) -> threading.Thread | None:
    """That thread, if it is alive and another."""
    return thread if thread is not None and thread is not me and thread.is_alive() else None
