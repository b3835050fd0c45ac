"""Reading `adapter_config.json` of a stranger: JSON in UTF-8, of bounded size and depth, and each field once."""

import json
from pathlib import Path
from typing import Any

from .messages import shown

CONFIG = "adapter_config.json"

FILE_HASH = "file_sha256"
"""What a config's provenance calls the SHA-256 of the file of weights beside it."""

LARGEST = 2**20  # bytes; those of real patches have some thousands
DEEPEST = 32  # levels
LONGEST_NUMBER = 100  # digits

_MARKS = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff", b"\x00\x00\xfe\xff")


def read_settings(file: str | Path) -> dict[str, Any]:
    """The fields of a patch's config.

    Args:
        file: The JSON file.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it is too large, no UTF-8, no JSON, no object, nested too deep, or names a field twice. The
            caller says which file it is.
    """
    with Path(file).open("rb") as opened:
        data = opened.read(LARGEST + 1)
    found = _parsed(_decoded(data))
    if not isinstance(found, dict):
        raise ValueError(f"it holds {shown(found)}; expected an object of fields and values.")
    for field, value in found.items():
        _check(field, value)
    return found


def _decoded(data: bytes) -> str:
    if len(data) > LARGEST:
        raise ValueError(f"it has more than {LARGEST:,} bytes, which no config of a patch needs.")
    if data.startswith(_MARKS):
        raise ValueError("it begins with a byte order mark; save it as plain UTF-8.")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"it is no UTF-8 text ({error}).") from None


def _parsed(text: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_once, parse_int=_whole)
    except RecursionError:
        raise ValueError(f"it is nested deeper than {DEEPEST} levels.") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"it is no whole JSON file ({error}).") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{shown(name)} is there twice.")
        found[name] = value
    return found


def _whole(digits: str) -> int:
    if len(digits) > LONGEST_NUMBER:
        raise ValueError(f"a number in it has {len(digits):,} digits.")
    return int(digits)


def _check(field: str, value: Any) -> None:
    """Refuse what cannot be written again: text that is no Unicode, and nesting that is too deep."""
    inside = [(field, 0), (value, 1)]
    while inside:
        one, depth = inside.pop()
        if depth > DEEPEST:
            raise ValueError(f"{shown(field)} is nested deeper than {DEEPEST} levels.")
        if isinstance(one, dict):
            inside += [(part, depth + 1) for pair in one.items() for part in pair]
        elif isinstance(one, list):
            inside += [(part, depth + 1) for part in one]
        elif isinstance(one, str) and not one.isascii():
            try:
                one.encode()
            except UnicodeEncodeError:
                raise ValueError(f"{shown(field)} holds half of a surrogate pair, {shown(one)}.") from None


def check_hash(file: str, sha256: str, recorded: Any) -> None:
    """Compare the SHA-256 of a file of weights with what the config beside it records, if it does.

    Args:
        file: As it is called in messages.
        sha256: Its own.
        recorded: In the config's provenance, as `FILE_HASH`.

    Raises:
        ValueError: If it is another one.
    """
    if recorded is not None and recorded != sha256:
        raise ValueError(
            f"{file} is not the file that {CONFIG} is about: provenance[{FILE_HASH!r}] is {shown(recorded)}, and the "
            f"file's SHA-256 is {sha256}. One of them was changed; get both again."
        )
