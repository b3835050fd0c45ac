"""Names of files as tables, folders and printers have them."""

from __future__ import annotations

import unicodedata

NOT_UTF8 = "its name is not UTF-8, as in an old archive; rename it"


def composed(name: str) -> str:
    r"""A path in a folder in the one form in which such paths are compared.

    That is Unicode's composed form (NFC), where an accent is one character with its letter and not, as on macOS, its
    own; with slashes, where tables from Windows have backslashes; and without "./" before it.

    Example:
        >>> len("e\u0301.jpg"), len(composed("e\u0301.jpg")), composed(".\\b\\c.jpg")
        (6, 5, 'b/c.jpg')
    """
    return unicodedata.normalize("NFC", name).replace("\\", "/").removeprefix("./")


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
    r"""A name that can be printed on a line, whatever bytes it has on the disk: no control character acts.

    Example:
        >>> import os
        >>> printable(os.fsdecode(b"caf\xe9.jpg")), printable("a\x1b[31m\n.jpg")
        ('caf\\xe9.jpg', 'a\\x1b[31m\\n.jpg')
    """
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in recorded(name))


def recorded(name: str) -> str:
    r"""A name as records hold it: bytes that are not UTF-8 are escaped, all else stays.

    Example:
        >>> import os
        >>> recorded(os.fsdecode(b"caf\xe9\n.jpg"))
        'caf\\xe9\n.jpg'
    """
    return name.encode(errors="surrogateescape").decode(errors="backslashreplace")
