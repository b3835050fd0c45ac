"""For tests and doctests alike."""

import gc
import sys
import warnings

import pytest
from xdist import is_xdist_controller


def pytest_sessionstart(session: pytest.Session) -> None:
    """Not in the process in which pytest-xdist only hands out tests: it needs no torch."""
    if not is_xdist_controller(session):
        from each_process import prepare

        gc.disable()  # until everything is imported: what imports make stays
        prepare()


def pytest_collection_finish(session: pytest.Session) -> None:
    """By now almost everything is imported."""
    if not is_xdist_controller(session):
        from each_process import let_loggers_propagate

        let_loggers_propagate()
        gc.enable()
        gc.set_threshold(50_000, 20, 50)  # by default a tenth of the tests' time goes into looking for it


_known = 0


def pytest_runtest_setup() -> None:
    """Collecting garbage, as each training does, need not look through all that is imported again."""
    global _known
    if len(sys.modules) >= _known + 10:
        gc.collect()
        gc.freeze()
        _known = len(sys.modules)


@pytest.hookimpl(tryfirst=True)
def pytest_warning_recorded(warning_message: warnings.WarningMessage) -> None:
    """A package's own kind of warning is told by Python's, or pytest-xdist's first process imports that package."""
    kind = next(one for one in warning_message.category.__mro__ if one.__module__ == "builtins")
    warning_message.message, warning_message.category = kind(str(warning_message.message)), kind
