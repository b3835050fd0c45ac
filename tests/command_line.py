"""The command line in this process, for the tests."""

from click.testing import Result
from typer.testing import CliRunner

from loraguard.cli import app


def run(*arguments: object) -> Result:
    """What a command says, and its exit code."""
    result = CliRunner().invoke(app, [str(one) for one in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def refused(*arguments: object) -> str:
    """The one line that is said, with exit code 2."""
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1, result.stderr
    return result.stderr
