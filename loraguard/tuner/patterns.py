r"""Patterns from a stranger's file: a small part of regular expressions, of which each ends soon.

Python's `re` tries one way to match after another, so that a short pattern may take for ever: `(.+)+x`, or eighteen
times `.*`. Here, the ways that a pattern has on the name of a layer are counted beforehand, and bounded. It is made of

    letters, `.`, `\.`, `\d`, `\w`, `\s`, sets `[...]`     one way each
    `^`, `$`                                               one way each
    `x*`, `x+`, `x?`, `x{2,5}`, and the same with `?`      a way for each number of repetitions, to the power of x's own
    `(a|b)`, `(?:a|b)`                                     the sum of the alternatives' ways

and one after another multiplies. Flags, references, assertions and possessive repetitions are refused.
"""

import re

NAME = 64
"""Characters of a layer's name, for which ways are counted."""
MOST_WAYS = 10_000
"""Of all patterns of a field together: two repetitions without end in one pattern are fine, three are not."""
LONGEST = 100_000
"""Characters of all patterns or names of a field together."""
MOST_NAMES = 10_000
_DEEPEST = 20

_QUANTIFIER = re.compile(r"(?:([*+?])|\{(\d*)(?:(,)(\d*))?\})(\?)?")
_SET = re.compile(r"\[\^?\]?(?:[^\]\\]|\\.)*\]", re.DOTALL)
_ESCAPE = re.compile(r"\\(?:[dDwWsS]|[^a-zA-Z0-9])", re.DOTALL)


def check_pattern(name: str, pattern: str) -> int:
    r"""Refuse a regular expression that is no such pattern, or might take long on the name of a layer.

    Returns:
        How many ways to match it has on such a name, at most `MOST_WAYS`.

    Raises:
        ValueError: If so.

    Example:
        >>> check_pattern("target_modules", r"main\.(0|1)\.conv\d+")
        128
        >>> check_pattern("target_modules", r"(.+)+x")
        Traceback (most recent call last):
        ...
        ValueError: target_modules='(.+)+x' has more than 10,000 ways to match the name of a layer; name the layers ...
    """
    given = f"{name}={pattern!r:.120}"
    if len(pattern) > LONGEST:
        raise ValueError(f"{given}… has {len(pattern):,} characters; at most {LONGEST:,} are taken.")
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"{given} is no regular expression: {error}.") from None
    ways = _Parser(given, pattern).ways()
    if ways > MOST_WAYS:
        raise ValueError(
            f"{given} has more than {MOST_WAYS:,} ways to match the name of a layer; name the layers instead."
        )
    return ways


class _Parser:
    """Reads a pattern from left to right and counts its ways."""

    def __init__(self, given: str, pattern: str) -> None:
        self.given, self.pattern, self.at = given, pattern, 0

    def ways(self) -> int:
        found = self._alternatives(0)
        if self.at < len(self.pattern):
            self._refuse()
        return found

    def _alternatives(self, depth: int) -> int:
        if depth > _DEEPEST:
            raise ValueError(f"{self.given} has groups more than {_DEEPEST} deep; name the layers instead.")
        total = self._sequence(depth)
        while self._next("|"):
            total = _bounded(total + self._sequence(depth))
        return total

    def _sequence(self, depth: int) -> int:
        total = 1
        while self.at < len(self.pattern) and self.pattern[self.at] not in "|)":
            total = _bounded(total * self._item(depth))
        return total

    def _item(self, depth: int) -> int:
        if self._next("^") or self._next("$"):
            return 1
        ways = self._atom(depth)
        if (found := _QUANTIFIER.match(self.pattern, self.at)) is None:
            return ways
        self.at = found.end()
        if self.pattern[self.at : self.at + 1] in ("+", "*", "?"):  # possessive, or a repetition of a repetition
            self._refuse()
        lowest, highest = _limits(found)
        return _bounded(sum(_bounded(ways**n) for n in range(lowest, highest + 1)))

    def _atom(self, depth: int) -> int:
        if self._next("("):
            if self.pattern[self.at : self.at + 1] == "?" and not self._next("?:"):
                self._refuse()
            ways = self._alternatives(depth + 1)
            if not self._next(")"):
                self._refuse()
            return ways
        one = self.pattern[self.at]
        if one in "*+?{}":
            self._refuse()
        part = {"[": _SET, "\\": _ESCAPE}.get(one)
        found = part.match(self.pattern, self.at) if part else None
        if part and found is None:
            self._refuse()
        self.at = found.end() if found else self.at + 1
        return 1

    def _next(self, text: str) -> bool:
        found = self.pattern.startswith(text, self.at)
        self.at += len(text) * found
        return found

    def _refuse(self) -> None:
        raise ValueError(
            f"{self.given} has {self.pattern[self.at : self.at + 10]!r} at {self.at}, which no pattern in a file may "
            "have; name the layers instead."
        )


def _bounded(ways: int) -> int:
    return min(ways, MOST_WAYS + 1)


def _limits(found: "re.Match[str]") -> tuple[int, int]:
    """How often a repetition may be; beyond the length of a name there is no way to match."""
    if found[1]:
        lowest, highest = {"*": (0, NAME), "+": (1, NAME), "?": (0, 1)}[found[1]]
    else:
        lowest = min(int(found[2] or 0), NAME)
        highest = min(int(found[4] or NAME), NAME) if found[3] else lowest
    return lowest, max(lowest, highest)
