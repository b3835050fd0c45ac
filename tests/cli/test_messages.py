"""Whatever flag, setting or argument a message or a help text names exists where it is said."""

import ast
import functools
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import click
from peft import LoraConfig
from typer.main import get_command

import loraguard
from loraguard import PatchTrainingArguments
from loraguard.cli import app

HOUSE = Path(loraguard.__file__).parent
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z-]*")
ELSEWHERE = {"--upgrade"}
"""Flags of other programs."""
ARGUMENT = re.compile(r"(?<![\w.<:])([a-z]\w+)=(?!=)")
OF_OTHERS = {
    "use_reentrant", "embed_dim", "kdim", "vdim", "padding_mode", "dilation", "ephemeral_gpu_offload",
    "has_fp16_weights",
}  # fmt: skip
"""Arguments of torch, of PEFT and of bitsandbytes."""
STANDS_FOR = {"resume_from_checkpoint": "--resume", "cpu": "--device", "stamp": "--stamp"}
"""Flags of `loraguard train` by another name than the setting's."""
IN_PYTHON = {
    "torch_compile": "advised where somebody has wrapped a network, which the command does not",
    "lr_scheduler": "of what lr_warmup_steps goes with",
    "gradient_accumulation_steps": "of Accelerate's configuration",
    "push_to_hub": "what was given",
    "hub_token": "goes with push_to_hub",
}
"""Settings that messages name to people who have given them, or what they go with, in Python."""


@functools.cache
def parsed() -> dict[Path, ast.Module]:
    files = HOUSE.rglob("*.py")
    return {path.relative_to(HOUSE): ast.parse(path.read_text(encoding="utf-8")) for path in files}


@functools.cache
def messages() -> list[tuple[Path, str]]:
    return [(path, text) for path, code in parsed().items() for text in texts_of(code)]


def flags_of(command: click.Command) -> Iterator[str]:
    for option in command.params:
        yield from (*option.opts, *option.secondary_opts)
    for one in getattr(command, "commands", {}).values():
        yield from flags_of(one)


def texts_of(code: ast.Module) -> Iterator[str]:
    """Strings that are no docstrings, of attributes neither: what is said to people."""
    silent = {id(node.value) for node in ast.walk(code) if isinstance(node, ast.Expr)}
    for node in ast.walk(code):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in silent:
            yield node.value


def test_flags_in_messages_exist() -> None:
    known, seen = set(flags_of(get_command(app))) | ELSEWHERE, 0
    for path, text in messages():
        for flag in FLAG.findall(text):
            seen += 1
            assert flag in known, f"{path} says {flag} in {text!r}"
    assert seen > 20


def test_settings_of_a_training_that_messages_name_are_flags() -> None:
    """Somebody at a command line cannot do what a message says of an argument of Python's."""
    command = get_command(app).commands["train"]  # type: ignore[attr-defined]
    there = set(flags_of(command))
    names = {one.name for one in fields(PatchTrainingArguments)} - {"output_dir", "seed"}
    seen = set()
    for path, text in messages():
        words = set(re.findall(r"(?<![\w-])\w+(?=\b)", text)) if " " in text else set()
        for name in words & names if path.parts[0] == "training" else ():
            if name in ("recipe", "adversary", "stamp", "mark", "cpu") and f"{name}=" not in text:
                continue  # words of the language
            seen.add(name)
            flag = STANDS_FOR.get(name, f"--{name.replace('_', '-')}")
            assert flag in there or name in IN_PYTHON, f"{path} names {name} in {text!r}"
    assert {"max_grad_norm", "gate_learning_rate", "mixed_precision", "max_train_steps"} <= seen
    assert IN_PYTHON.keys() <= seen
    assert not [name for name in IN_PYTHON if f"--{name.replace('_', '-')}" in there]


def test_arguments_in_messages_exist() -> None:
    """`name=` in a message is an argument or a field of something of ours, or of what it inherits from."""
    known = OF_OTHERS | {one.name for one in fields(LoraConfig)}
    for code in parsed().values():
        for node in ast.walk(code):
            if isinstance(node, ast.arg):
                known.add(node.arg)
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                known.add(node.target.id)
    named = [(path, name, text) for path, text in messages() if _is_said(text) for name in ARGUMENT.findall(text)]
    assert len(named) > 50
    for path, name, text in named:
        assert name in known, f"{path} says {name}= in {text!r}"


def _is_said(text: str) -> bool:
    """Whether it is words, and not XML."""
    return " " in text and "<" not in text
