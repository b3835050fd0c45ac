"""The command line, for the tests: in this process, in a fork as the console script starts it, and by `python -m`."""

import functools
import subprocess
from collections.abc import Callable, Sequence

from click import Command
from click.testing import CliRunner, Result
from processes import call_main, forked_ranks, run_main, run_python
from typer.main import get_command

from loraguard.cli import app, main


@functools.cache
def _command() -> Command:
    """All commands, which Typer's own runner builds for each call."""
    return get_command(app)


def run(*arguments: object) -> Result:
    """What a command says, and its exit code."""
    result = CliRunner().invoke(_command(), [str(one) for one in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def refused(*arguments: object) -> str:
    """The one line that is said, with exit code 2."""
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1, result.stderr
    return result.stderr


def run_forked(*words: object, first: Sequence[Callable[[], object]] = ()) -> subprocess.CompletedProcess[str]:
    """What the console script says and does in a process of its own, in which these functions are called first."""
    return run_main(main, *words, first=first)


def run_forked_ranks(*words: object, first: Sequence[Callable[[], object]]) -> list[subprocess.CompletedProcess[str]]:
    """The same in two processes that work together, as those of `torchrun` do."""
    return forked_ranks(call_main, main, [str(word) for word in words], first)


def run_fresh(*arguments: object, module: str = "loraguard.cli") -> subprocess.CompletedProcess[str]:
    """The same by `python -m`, in a process that imports everything anew: only where that is the point."""
    return run_python("-m", module, *arguments)
