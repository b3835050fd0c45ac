"""Whatever flag a message or a help text advises exists."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import click
from typer.main import get_command

import loraguard
from loraguard.cli import app

HOUSE = Path(loraguard.__file__).parent
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z-]*")
ELSEWHERE = {"--upgrade"}
"""Flags of other programs."""


def flags_of(command: click.Command) -> Iterator[str]:
    for option in command.params:
        yield from (*option.opts, *option.secondary_opts)
    for one in getattr(command, "commands", {}).values():
        yield from flags_of(one)


def texts_of(code: ast.Module) -> Iterator[str]:
    """Strings that are no docstrings: what is said to people."""
    silent = {
        id(node.body[0].value)
        for node in ast.walk(code)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(code):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in silent:
            yield node.value


def test_flags_in_messages_exist() -> None:
    known, seen = set(flags_of(get_command(app))) | ELSEWHERE, 0
    for path in HOUSE.rglob("*.py"):
        for text in texts_of(ast.parse(path.read_text(encoding="utf-8"))):
            for flag in FLAG.findall(text):
                seen += 1
                assert flag in known, f"{path.relative_to(HOUSE)} says {flag} in {text!r}"
    assert seen > 20
