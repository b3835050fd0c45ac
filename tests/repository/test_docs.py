"""The pages: their code runs as a reader runs it who pastes one block after another, and their commands exist."""

import ast
import inspect
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest
import typer
from limits import at_most, no_probes, short_attacks, small_demo_network
from typer.testing import CliRunner

from loraguard import PatchTrainingArguments
from loraguard.cli import app
from loraguard.data import DemoFaces

ROOT = Path(__file__).parents[2]
PAGES = sorted(str(path.relative_to(ROOT)) for path in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
SLOW = ("README.md", "docs/index.md", "docs/audit.md", "docs/tutorials/a*.md", "docs/tutorials/s*.md")
"""Pages that train and audit at the demo's size: here with fewer steps, smaller photos and a smaller network."""
ELSEWHERE = ("docs/sharing.md",)
"""Pages that need a Hub: tests/hub/test_docs.py has one."""
BLOCK = re.compile(r"^(?P<fence>```+)(?P<language>\w*)[^\n]*\n(?P<code>.*?)^(?P=fence)[ ]*$", re.DOTALL | re.MULTILINE)
REASON = re.compile(r"<!-- not run: (\S[^\n]*) -->\n\Z")


@dataclass(frozen=True)
class Block:
    """Code on a page."""

    language: str
    code: str
    line: int
    not_run: str | None


def blocks_of(page: str) -> Iterator[Block]:
    text = (ROOT / page).read_text(encoding="utf-8")
    found = list(BLOCK.finditer(text))
    assert len(found) == len(re.findall(r"^```+", text, re.MULTILINE)) / 2, f"{page}: a block that is not closed"
    for block in found:
        reason = REASON.search(text[: block.start()])
        line = text[: block.start("code")].count("\n")
        yield Block(block["language"], block["code"], line, reason and reason[1])


def python_of(page: str) -> list[Block]:
    """Without scripts that a page only shows: tests of examples run those."""
    return [block for block in blocks_of(page) if block.language == "python" and "--8<--" not in block.code]


WITH_PYTHON = [page for page in PAGES if page not in ELSEWHERE and any(not block.not_run for block in python_of(page))]


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("page", WITH_PYTHON)
def test_every_block_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names carry over from one block to the next; files go into an empty folder."""
    monkeypatch.chdir(tmp_path)
    if any(Path(page).match(pattern) for pattern in SLOW):
        at_most(monkeypatch, PatchTrainingArguments, max_train_steps=1)
        at_most(monkeypatch, DemoFaces, length=4, size=32)
        short_attacks(monkeypatch)
        small_demo_network(monkeypatch)
    if page != "docs/audit.md":
        no_probes(monkeypatch)
    names: dict[str, object] = {"__name__": "docs"}
    for block in python_of(page):
        if not block.not_run:
            # Empty lines in front, so that a traceback shows the line of the page.
            exec(compile("\n" * block.line + block.code, str(ROOT / page), "exec"), names)


@pytest.mark.parametrize("page", [page for page in PAGES if any(block.not_run for block in python_of(page))])
def test_what_cannot_run_names_what_exists(page: str) -> None:
    """Imports work, and functions and classes of ours take the arguments that they are given."""
    names: dict[str, Any] = {}
    for block in python_of(page):
        for node in ast.walk(ast.parse(block.code)):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                exec(ast.unparse(node), names)
            elif isinstance(node, ast.Call) and callable(called := _value(node.func, names)):
                if not (getattr(called, "__module__", "") or "").startswith("loraguard"):
                    continue
                given = {word.arg for word in node.keywords if word.arg}
                parameters = inspect.signature(called).parameters
                open_ended = any(one.kind is one.VAR_KEYWORD for one in parameters.values())
                assert open_ended or given <= set(parameters), f"{page}:{block.line + node.lineno}: {given}"


def _value(node: ast.expr, names: dict[str, Any]) -> Any:
    """What a dotted name stands for, if an import brought it."""
    if isinstance(node, ast.Attribute):
        return getattr(_value(node.value, names), node.attr, None)
    return names.get(node.id) if isinstance(node, ast.Name) else None


def commands() -> Iterator[tuple[str, list[str]]]:
    for page in PAGES:
        for block in blocks_of(page):
            if block.language == "bash":
                for line in block.code.replace("\\\n", " ").splitlines():
                    for command in line.split("&&"):
                        if words := shlex.split(command, comments=True):
                            yield page, words


def test_commands_exist() -> None:
    """Every `loraguard COMMAND --flag` of the shell blocks, and every script with its flags."""
    known = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    known |= {
        f"{name} {part}": command
        for name, group in known.items()
        for part, command in getattr(group, "commands", {}).items()
    }
    flags = {
        name: {flag for option in command.params for flag in (*option.opts, *option.secondary_opts)}
        for name, command in known.items()
    }
    settings = {f"--{field.name}" for field in fields(PatchTrainingArguments)}
    seen = set()
    for page, words in commands():
        scripts = [word for word in words if word.endswith(".py") and "/" in word]
        for script in scripts:
            assert (ROOT / script).is_file(), f"{page}: {script}"
            seen.add(script)
            known_here = set(re.findall(r"--[\w-]+", (ROOT / script).read_text(encoding="utf-8"))) | settings
            given = {word for word in words[words.index(script) :] if word.startswith("--")}
            assert given <= known_here, f"{page}: {script} has no {given - known_here}"
        if words[0] == "loraguard":
            words = [words[0], " ".join(words[1:3]), *words[3:]] if " ".join(words[1:3]) in known else words
            given = {word.partition("=")[0] for word in words[2:] if word.startswith("--")}
            assert words[1] in known, f"{page}: loraguard {words[1]}"
            assert given <= flags[words[1]], f"{page}: loraguard {words[1]} has no {given - flags[words[1]]}"
            seen.add(words[1])
    assert {"demo", "train", "audit", "push", "convert"} <= seen


def test_every_page_is_in_the_menu() -> None:
    menu = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:")[2]
    pages = {page.removeprefix("docs/") for page in PAGES if page.startswith("docs/")}
    assert set(re.findall(r"[\w./-]+\.md", menu)) == pages


def test_every_command_of_the_command_lines_page_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In order, with the photos and the YAML file that the page makes, on a small network; attacks end early."""
    monkeypatch.chdir(tmp_path)
    short_attacks(monkeypatch)
    no_probes(monkeypatch)
    small_demo_network(monkeypatch)
    at_most(monkeypatch, DemoFaces, size=32)
    monkeypatch.setattr("loraguard.commands.stamp.DRAWN_FACES", 40)
    blocks = list(blocks_of("docs/cli.md"))
    for block in blocks:
        if block.language == "python":
            exec(compile(block.code, "cli.md", "exec"), {})
        elif block.language == "yaml":
            Path("audit.yaml").write_text(block.code)
        elif block.language == "bash":  # what takes minutes or a Hub is a console's
            for line in block.code.replace("\\\n", " ").splitlines():
                program, *words = shlex.split(line)
                assert program == "loraguard"
                result = CliRunner().invoke(app, words)
                assert result.exit_code == 0, (line, result.output, result.exception)
    assert {"python", "yaml", "bash"} <= {block.language for block in blocks}
