"""Values of users against annotations."""

from __future__ import annotations

import inspect
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Protocol, TypeVar

import pytest
from pydantic import Field
from torch import nn

from loraguard.audit import controls
from loraguard.audit.names import Adversary
from loraguard.channels import CHANNELS
from loraguard.commands import AuditSettings
from loraguard.defenses import DEFENSES
from loraguard.kinds import checked

if TYPE_CHECKING:
    from nowhere import Nothing

T = TypeVar("T")


class Speaks(Protocol):
    def speak(self) -> None: ...


def takes(
    number: float = 0, whole: int = 0, text: str = "", flag: bool = False, maybe: int | None = None,
    either: int | str = 0, words: tuple[str, ...] = (), pair: tuple[int, float] | None = None,
    named: Mapping[str, int] | None = None, many: Sequence[int] = (), choice: Literal["a", "b"] = "a",
    small: Annotated[int, Field(ge=1, le=9)] = 1, network: nn.Module | None = None,
    call: Callable[[], int] | None = None, anything: Any = None, file: str | Path = "", strange: T = None,
    speaker: Speaks | None = None, free=None,
) -> None: ...  # fmt: skip


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("number", 1.5), ("whole", -3), ("text", ""), ("flag", True), ("maybe", None), ("maybe", 3), ("either", "x"),
        ("either", 3), ("words", ()), ("pair", (1, 2.0)), ("pair", None), ("named", {"a": 1}), ("many", [1, 2]),
        ("choice", "b"), ("small", 9), ("anything", object), ("file", "x"), ("strange", 3), ("speaker", 3),
        ("free", object), ("unheard of", 3), ("number", float("inf")), ("call", print),
    ],
)  # fmt: skip
def test_values_that_fit_stay_as_they_are(name: str, value: object) -> None:
    found = checked(takes, {name: value})
    assert found == {name: value}
    assert type(found[name]) is type(value)


def test_whole_numbers_are_numbers_and_lists_do_for_tuples() -> None:
    found = checked(takes, {"number": 1, "words": ["a", "b"], "pair": [1, 2]})
    assert found == {"number": 1.0, "words": ("a", "b"), "pair": (1, 2.0)}
    assert isinstance(found["number"], float)
    assert isinstance(checked(takes, {"words": ["a"]})["words"], tuple)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("number", True, "number=True must be a number."),
        ("number", "1", "number='1' must be a number."),
        ("number", None, "number=None must be a number."),
        ("whole", True, "whole=True must be a whole number."),
        ("whole", 2.0, "whole=2.0 must be a whole number."),
        ("whole", "3", "whole='3' must be a whole number."),
        ("text", 3, "text=3 must be a text."),
        ("flag", 1, "flag=1 must be true or false."),
        ("flag", "yes", "flag='yes' must be true or false."),
        ("maybe", 2.5, "maybe=2.5 must be a whole number."),
        ("either", 2.5, "either=2.5 must be a whole number."),
        ("words", "ab", "words='ab' must be a list."),
        ("words", ["a", 3], "words[1]=3 must be a text."),
        ("words", {"a": 1}, "words={'a': 1} must be a list."),
        ("pair", [1, "x"], "pair[1]='x' must be a number."),
        ("named", {"a": 1, "b": True}, "named['b']=True must be a whole number."),
        ("many", [1, "2"], "many[1]='2' must be a whole number."),
        ("choice", "c", "choice='c' must be 'a' or 'b'."),
        ("small", 0, "small=0 must be greater than or equal to 1."),
        ("small", 10, "small=10 must be less than or equal to 9."),
        ("network", 3, "network=3 must be an instance of Module."),
        ("call", 3, "call=3 must be callable."),
    ],
)
def test_values_that_do_not_fit_are_named_with_what_is_expected(name: str, value: object, said: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011  # the message is compared whole
        checked(takes, {"text": "right", name: value})
    assert str(caught.value) == said


def test_a_kind_that_is_not_known_here_lets_everything_pass() -> None:
    """An import for type checkers alone; its neighbours are checked all the same."""

    def imported(thing: Nothing, number: int) -> None: ...

    class Plain:
        shared: ClassVar[int] = 3

        def __init__(self, number: int) -> None: ...

    assert checked(imported, {"thing": 3, "number": 4}) == {"thing": 3, "number": 4}
    assert checked(Plain, {"shared": "x"}) == {"shared": "x"}
    for made in (imported, Plain):
        with pytest.raises(ValueError, match="must be a whole number"):
            checked(made, {"number": "x"})


@pytest.mark.parametrize(
    "made", [*map(DEFENSES.get, DEFENSES), *map(CHANNELS.get, CHANNELS)], ids=lambda made: made.__name__
)
def test_every_setting_on_the_command_line_is_checked(made: type) -> None:
    """Nothing of ours is annotated with what pydantic does not know."""
    for name in inspect.signature(made).parameters:
        with pytest.raises(ValueError, match=f"^{name}=.* must "):
            checked(made, {name: object()})


def test_adversaries_are_those_that_can_be_trained() -> None:
    kinds = (controls.PATCH, *controls.KINDS)
    assert AuditSettings(train=kinds).train == kinds
    assert checked(takes, {}) == {}
    assert set(Adversary.__args__) == set(kinds)


def test_settings_of_an_audit_are_read_without_torch() -> None:
    code = "import sys, loraguard.commands.audit_settings as s; s.AuditSettings(); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
