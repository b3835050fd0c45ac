"""The code blocks of the docs' pages, as a reader who pastes them one after another would run them."""

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from loraguard.cli import app

DOCS = Path(__file__).parents[1] / "docs"
PAGES = ("audit.md", "channels.md", "defenses.md", "defenses-fitted.md", "own-network.md")
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("page", PAGES)
def test_every_block_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names carry over from one block to the next; files go into an empty folder."""
    monkeypatch.chdir(tmp_path)
    text = (DOCS / page).read_text(encoding="utf-8")
    blocks = list(BLOCK.finditer(text))
    assert len(blocks) == text.count("```python") > 0
    names: dict[str, object] = {"__name__": "docs"}
    for block in blocks:
        # Empty lines in front, so that a traceback shows the line of the page.
        code = "\n" * text[: block.start(1)].count("\n") + block[1]
        exec(compile(code, str(DOCS / page), "exec"), names)


def test_every_command_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of cli.md, in order, with the photos and the YAML file that the page makes."""
    monkeypatch.chdir(tmp_path)
    text = (DOCS / "cli.md").read_text(encoding="utf-8")
    kinds = []
    for kind, block in re.findall(r"^```(python|bash|yaml)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        kinds.append(kind)
        if kind == "python":
            exec(compile(block, "cli.md", "exec"), {})
        elif kind == "yaml":
            Path("audit.yaml").write_text(block)
        else:
            for line in block.replace("\\\n", " ").splitlines():
                program, *words = shlex.split(line)
                assert program == "loraguard"
                result = CliRunner().invoke(app, words)
                assert result.exit_code == 0, (line, result.output, result.exception)
    assert kinds.count("bash") == 7
    assert {"python", "yaml"} < set(kinds)
