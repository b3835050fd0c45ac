"""What a user sees of errors and interrupts."""

from __future__ import annotations

import gc
import re
from collections.abc import Iterator
from contextlib import contextmanager

import typer

SMALLER = (
    "Smaller batches (--train-batch-size of a training, --batch-size of an audit) and photos (--image-size) take less."
)

_OUT_OF_MEMORY = re.compile("out of memory|(?:can't|failed to) allocate|not enough memory", re.IGNORECASE)
"""What torch says, of which the errors have no class of their own on a CPU."""


@contextmanager
def said_in_a_line() -> Iterator[None]:
    """Errors that a user can do something about, and interrupts, without a traceback; here a command's work begins."""
    gc.enable()  # see `main`
    try:
        yield
    except KeyboardInterrupt as interrupt:  # click would leave without a word
        typer.secho(str(interrupt) or "Interrupted.", err=True)
        raise typer.Exit(130) from None
    except (OSError, ValueError, TypeError, ImportError, FloatingPointError) as error:
        typer.secho(f"Error: {_in_a_line(error)}", fg="red", err=True)
        raise typer.Exit(2) from None
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not _OUT_OF_MEMORY.search(str(error)):
            raise
        said = f"{SMALLER} {_in_a_line(error):.200}".rstrip()
        typer.secho(f"Error: There is not enough memory. {said}", fg="red", err=True)
        raise typer.Exit(2) from None


def _in_a_line(error: Exception) -> str:
    """What an error says; the operating system's without its number."""
    text = str(error)
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        text = f"{error.filename}: {error.strerror}."
    from loraguard.tuner.messages import in_a_line

    return in_a_line(text)
