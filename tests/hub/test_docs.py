"""The page on sharing, run in the client's process: its pushes and pulls go to the local Hub.

What it trains and audits is a small network, and the audit's attack ends early: nothing here is about figures.
"""

from __future__ import annotations

import re
from pathlib import Path

from hub_client import Client
from local_hub import LocalHub

TESTS = Path(__file__).parents[1]
PAGE = TESTS.parent / "docs" / "sharing.md"

RUN = """
import os, sys
sys.path.append(tests)
from limits import short_attacks, small_demo_network
from pytest import MonkeyPatch

os.chdir(folder)
with MonkeyPatch.context() as patch:
    short_attacks(patch)
    small_demo_network(patch)
    exec(page, {"__name__": "docs"})
"""


def test_every_block_runs(hub: LocalHub, client: Client, tmp_path: Path) -> None:
    text = PAGE.read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert len(blocks) == text.count("```python") == 6
    client.run(RUN, tests=str(TESTS), folder=str(tmp_path), page="".join(blocks))
    repo = hub.repos["me/demo-warning"]
    assert set(repo.branches) == {"main", "trial"}
    assert repo.tags == {"v1": repo.branches["main"]}
    assert "audit/grid.png" in repo.files("trial")
