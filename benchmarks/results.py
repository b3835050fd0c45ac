"""The audits of docs/results.md on drawn faces: the matrix of defenses with transfer and detectability, and the curves.

    python benchmarks/results.py --work-dir results                                    # all of it, at once
    python benchmarks/results.py --work-dir results --only matrix --minutes 14         # a piece; the same again goes on

Each audit is `loraguard audit --config examples/configs/results_NAME.yaml`. It keeps what it has found, so that a piece
that runs out of time loses at most the batch that it was at. Once an audit is finished, its tables take the place of
those between `<!-- table: NAME, HEADING -->` and `<!-- end -->` in docs/results.md; the findings there are written by
hand. The matrix takes about two hours of one core, the curves an hour and a half. An audit that was stopped computes a
batch of each row again before it ends, to see that what lies there is its own: up to a quarter.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from pages import fill_tables

ROOT = Path(__file__).parents[1]
AUDITS = ("matrix", "curves")
PAGE = ROOT / "docs" / "results.md"
GRACE = 60
"""Seconds that an audit gets to stop in."""


def piece(name: str, folder: Path, seconds: float | None) -> bool:
    """Go on with an audit until it is finished or its time is over; whether it is finished."""
    said = folder / f"{name}.txt"
    if said.is_file():
        return True
    config = ROOT / "examples" / "configs" / f"results_{name}.yaml"
    command = [sys.executable, "-m", "loraguard.cli", "audit", "--config", str(config), "--output-dir"]
    command.append(str(folder / name))
    draft = said.with_suffix(".part")
    with draft.open("w", encoding="utf-8") as out:
        audit = subprocess.Popen(command, stdout=out, env={**os.environ, "PYTHONPATH": str(ROOT)})
        try:
            code = audit.wait(seconds)
        except subprocess.TimeoutExpired:
            audit.send_signal(signal.SIGINT)
            audit.wait(GRACE)
            return False
    if code:
        raise SystemExit(f"The audit {name} ended with {code}; its own message stands above.")
    draft.replace(said)
    return True


def table_of(said: str, heading: str) -> str:
    """The table below a line that begins so, up to the next empty line."""
    lines = said.splitlines()
    at = next((i for i, line in enumerate(lines) if line.startswith(heading)), None)
    if at is None:
        raise SystemExit(f"The audit printed no table {heading!r}.")
    rows = lines[at + 1 :]
    return "\n".join(rows[: rows.index("") if "" in rows else None])


def write_page(name: str, folder: Path) -> None:
    """Put an audit's tables into the page."""
    said = (folder / f"{name}.txt").read_text(encoding="utf-8")
    fill_tables(PAGE, name, lambda heading: f"```text\n{table_of(said, heading)}\n```")


def main() -> None:
    """Run what is not finished, and write the page's tables of what is."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work-dir", type=Path, required=True, help="keeps the audits")
    parser.add_argument("--only", choices=AUDITS, nargs="+", default=AUDITS, help="which of the audits")
    parser.add_argument("--minutes", type=float, help="of this piece; by default as long as it takes")
    options = parser.parse_args()
    options.work_dir.mkdir(parents=True, exist_ok=True)
    end = None if options.minutes is None else time.monotonic() + 60 * options.minutes
    for name in options.only:
        left = None if end is None else end - time.monotonic()
        if (left is not None and left <= 0) or not piece(name, options.work_dir, left):
            print(f"{name} is not finished; the same command goes on.")
            return
        write_page(name, options.work_dir)
        print(f"Wrote the tables of {name} into {PAGE}.")


if __name__ == "__main__":
    main()
