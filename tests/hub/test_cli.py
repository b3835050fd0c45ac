"""`loraguard push | pull | info` against a local Hub, in the process that takes it for the Hub."""

from __future__ import annotations

from pathlib import Path

from hub_client import Client
from local_hub import LocalHub

COMMAND = """
from typer.testing import CliRunner
from loraguard.cli import app
done = CliRunner().invoke(app, words, env={"COLUMNS": "200"})
result = done.exit_code, done.stdout, done.stderr
"""


def run(client: Client, *words: str) -> tuple[int, str, str]:
    """The exit code, and what is said where."""
    code, out, errors = client.run(COMMAND, words=words)
    return code, out, errors


def test_push_info_and_pull(hub: LocalHub, client: Client, trained: Path, tmp_path: Path) -> None:
    words = ("push", str(trained / "patch"), "me/by-line", "--private", "--tag", "v1", "--license", "mit")
    code, said, errors = run(client, *words)
    assert code == 0, errors
    repo = hub.repos["me/by-line"]
    assert repo.private
    assert f"Pushed: {hub.url}/me/by-line/commit/{repo.tags['v1']}" in said
    assert "license: mit" in repo.files()["README.md"].decode()
    code, said, errors = run(client, "info", "me/by-line", "--revision", "v1")
    assert code == 0, errors
    assert "kind            defensive" in said
    code, said, errors = run(client, "pull", "me/by-line", str(tmp_path / "pulled"))
    assert code == 0, errors
    assert f"Patch: {tmp_path / 'pulled'}" in said
    assert (tmp_path / "pulled" / "audit" / "grid.png").is_file()


def test_what_cannot_be_is_said_in_a_line(client: Client, tmp_path: Path) -> None:
    for words, said in (
        (["push", str(tmp_path), "me/empty"], "holds no adapter_config.json"),
        (["pull", "me/nowhere", str(tmp_path / "new")], "There is no me/nowhere on http"),
        (["info", "generatorss"], "'generatorss' is neither one of generators, data, defenses"),
    ):
        code, _, errors = run(client, *words)
        assert code == 2
        assert said in errors
        assert errors.count("\n") == 1
