"""Tables of the site's pages, each between `<!-- table: NAME, HEADING -->` and `<!-- end -->`."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

BLOCK = re.compile(r"(<!-- table: (\w+), (.+?) -->\n).*?(<!-- end -->)", re.DOTALL)


def fill_tables(page: Path, name: str, table_of: Callable[[str], str]) -> None:
    """Put what was measured under a name into its blocks of a page.

    Args:
        page: a Markdown file.
        name: the first word of the blocks.
        table_of: from a block's heading to its text.
    """

    def filled(block: re.Match[str]) -> str:
        return f"{block[1]}\n{table_of(block[3])}\n\n{block[4]}" if block[2] == name else block[0]

    page.write_text(BLOCK.sub(filled, page.read_text(encoding="utf-8")), encoding="utf-8")
