"""`loraguard push | pull | info` in processes of their own, against a local Hub."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from hub_client import Client
from local_hub import LocalHub


def run(client: Client, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "loraguard.cli", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=300, check=False, env=client.environment(COLUMNS="200")
    )


def test_push_info_and_pull(hub: LocalHub, client: Client, trained: Path, tmp_path: Path) -> None:
    pushed = run(client, "push", str(trained / "patch"), "me/by-line", "--private", "--tag", "v1", "--license", "mit")
    assert pushed.returncode == 0, pushed.stderr
    repo = hub.repos["me/by-line"]
    assert repo.private
    assert f"Pushed: {hub.url}/me/by-line/commit/{repo.tags['v1']}" in pushed.stdout
    assert "license: mit" in repo.files()["README.md"].decode()
    said = run(client, "info", "me/by-line", "--revision", "v1")
    assert said.returncode == 0, said.stderr
    assert "kind            defensive" in said.stdout
    pulled = run(client, "pull", "me/by-line", str(tmp_path / "pulled"))
    assert pulled.returncode == 0, pulled.stderr
    assert f"Patch: {tmp_path / 'pulled'}" in pulled.stdout
    assert (tmp_path / "pulled" / "audit" / "grid.png").is_file()


def test_what_cannot_be_is_said_in_a_line(client: Client, tmp_path: Path) -> None:
    for words, said in (
        (["push", str(tmp_path), "me/empty"], "holds no adapter_config.json"),
        (["pull", "me/nowhere", str(tmp_path / "new")], "There is no me/nowhere on http"),
        (["info", "generatorss"], "'generatorss' is neither one of generators, data, defenses"),
    ):
        done = run(client, *words)
        assert done.returncode == 2
        assert said in done.stderr
        assert "Traceback" not in done.stderr
