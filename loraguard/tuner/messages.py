"""What is said of a stranger's file: in one line, of bounded length, and without control characters."""

import reprlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

LONGEST = 600
"""Characters of a message."""

_BEGINNING, _END = 400, 190
_SHORT = reprlib.Repr()
_SHORT.maxlevel, _SHORT.maxstring, _SHORT.maxother, _SHORT.maxlong = 3, 120, 120, 40


def shown(value: Any) -> str:
    r"""A value as `repr` gives it, but short whatever it is.

    Example:
        >>> shown({"r": "\x1b[2J"}), shown(10**400)
        ("{'r': '\\x1b[2J'}", '100000000000000000...0000000000000000000')
    """
    try:
        return _SHORT.repr(value)
    except ValueError:  # a number of more digits than Python prints
        return f"<{type(value).__name__}>"


def printable(text: str) -> str:
    r"""A text whose control characters, and whatever else is not seen, are escaped.

    Example:
        >>> printable("AI\x1b[2J\ud800 – ИИ")
        'AI\\x1b[2J\\ud800 – ИИ'
    """
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def in_a_line(text: str, longest: int = LONGEST) -> str:
    r"""A text as one line of at most `longest` characters, 600 or fewer; of a longer one the middle is left out.

    Example:
        >>> in_a_line("one\ntwo\x07"), len(in_a_line("word " * 10**6))
        ('one two\\x07', 593)
    """
    if len(text) > 2 * LONGEST:
        text = f"{text[:LONGEST]} … {text[-LONGEST:]}"
    line = printable(" ".join(text.split()))
    if len(line) <= longest:
        return line
    beginning, end = longest * _BEGINNING // LONGEST, longest * _END // LONGEST
    return f"{line[:beginning]} … {line[-end:]}"


def short(source: str) -> str:
    """Whose a file is, for messages: of a long path the end."""
    return printable(source if len(source) <= 150 else f"…{source[-150:]}")


def named(source: str, file: str) -> str:
    """A file of a patch for messages."""
    return f"{short(source)}/{file}"


@contextmanager
def refusing(file: str, patch: str | None = None) -> Iterator[None]:
    """Turn whatever goes wrong with a file into a ValueError of one line that names it.

    What the system or the Hub says (OSError), or a lack of memory, stays what it is.

    Args:
        file: As it is called in messages.
        patch: Whose it is; what names one of its files is not given another name.
    """
    try:
        yield
    except (OSError, MemoryError):
        raise
    except Exception as error:
        if type(error).__name__ == "OutOfMemoryError":  # torch's, which this module does not import
            raise
        said = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        if (file if patch is None else short(patch)) not in said:
            said = f"{short(file)}: {said}"
        cause = error.__cause__ if isinstance(error.__cause__, OSError) else None
        raise ValueError(in_a_line(said)) from cause
