"""Names of files as tables, folders and printers have them."""

from __future__ import annotations

import unicodedata

NOT_UTF8 = "its name is not UTF-8, as in an old archive; rename it"


def composed(name: str) -> str:
    """A name in Unicode's composed form (NFC): an accent is one character with its letter, or, on macOS, its own.

    Example:
        >>> len("e\u0301.jpg"), len(composed("e\u0301.jpg"))
        (6, 5)
    """
    return unicodedata.normalize("NFC", name)


def is_utf8(name: str) -> bool:
    r"""Whether a file's name, as Python has it, is UTF-8 on the disk; others cannot be printed or put into records.

    Example:
        >>> import os
        >>> is_utf8("caf\xe9.jpg"), is_utf8(os.fsdecode(b"caf\xe9.jpg"))
        (True, False)
    """
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def printable(name: str) -> str:
    r"""A name that can be printed, whatever bytes it has on the disk.

    Example:
        >>> import os
        >>> printable(os.fsdecode(b"caf\xe9.jpg"))
        'caf\\xe9.jpg'
    """
    return name.encode(errors="surrogateescape").decode(errors="backslashreplace")
