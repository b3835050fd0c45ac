"""Tables that benchmarks put into pages."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OF_DIFFUSION = {"settings", "adapters", "protections", "comparison", "transfer", "purifiers"}


def test_a_benchmark_fills_its_own_blocks_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    pages = importlib.import_module("pages")
    page = tmp_path / "page.md"
    page.write_text(
        "A\n<!-- table: mine, one, two -->\nold\n<!-- end -->\n<!-- table: theirs, x -->\nB\n<!-- end -->\n"
    )
    for _ in range(2):  # what it has filled is filled again
        pages.fill_tables(page, "mine", {"one, two": "| new |"}.__getitem__)
        assert page.read_text() == (
            "A\n<!-- table: mine, one, two -->\n\n| new |\n\n<!-- end -->\n<!-- table: theirs, x -->\nB\n<!-- end -->\n"
        )
    with pytest.raises(KeyError, match="x"):
        pages.fill_tables(page, "theirs", {}.__getitem__)


def test_the_page_of_diffusion_editors_has_every_table() -> None:
    text = (ROOT / "docs" / "diffusion-results.md").read_text(encoding="utf-8")
    blocks = re.findall(r"<!-- table: (\w+), (.+?) -->\n\n(.+?)\n\n<!-- end -->", text, re.DOTALL)
    assert {(name, heading) for name, heading, _ in blocks} == {
        (name, heading) for name in ("celeba", "taef2", "demo") for heading in OF_DIFFUSION
    }
    for _, heading, table in blocks:
        rows = table.splitlines()
        assert heading == "settings" or len({row.count(" | ") for row in rows}) == 1, heading
