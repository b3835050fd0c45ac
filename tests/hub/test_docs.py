"""The page on sharing, run in the client's process: its pushes and pulls go to the local Hub."""

from __future__ import annotations

import re
from pathlib import Path

from hub_client import Client
from local_hub import LocalHub

PAGE = Path(__file__).parents[2] / "docs" / "sharing.md"


def test_every_block_runs(hub: LocalHub, client: Client, tmp_path: Path) -> None:
    text = PAGE.read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert len(blocks) == text.count("```python") == 6
    client.run(f"import os\nos.chdir({str(tmp_path)!r})\n" + "".join(blocks))
    repo = hub.repos["me/demo-warning"]
    assert set(repo.branches) == {"main", "trial"}
    assert repo.tags == {"v1": repo.branches["main"]}
    assert "audit/grid.png" in repo.files("trial")
