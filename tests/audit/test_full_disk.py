"""A full disk costs an audit nothing: what, where and why are said in a line, and it goes on from what is there.

A limit on the size of files stands for the disk: the system refuses to write on.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from audited import audit_of, audited_on_full_disks, probed_once
from command_line import run
from processes import forked

from loraguard.audit import write_report
from loraguard.audit.store import Store
from loraguard.files import not_written


def figures(folder: Path) -> dict:
    found = json.loads((folder / "audit.json").read_text())
    del found["settings"]
    return found


@pytest.mark.usefixtures("probed")
def test_a_full_disk_at_any_file_of_an_audit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit is just below each size that a file has: findings first, the report's files last."""
    probed_once(monkeypatch)
    whole, full = tmp_path / "whole", tmp_path / "full"
    write_report(audit_of(whole, photos=4), whole)
    files = {file.relative_to(whole).as_posix(): file.stat().st_size for file in whole.rglob("*") if file.is_file()}
    cells = sorted(size for name, size in files.items() if name.startswith("cells/"))
    own = sorted(size for name, size in files.items() if "/" not in name and size > cells[0])
    sizes = [0, cells[0] - 1, cells[len(cells) // 2] - 1, cells[-1] - 1, *(size - 1 for size in own)]
    done = forked(audited_on_full_disks, full, 4, sizes)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == len(sizes) + 1
    for line in lines:
        assert line.endswith("[]"), line  # no drafts are left
    assert lines[-1].endswith("written []")
    for line, size in zip(lines, sizes, strict=False):
        assert line.startswith(f"{size} NotWrittenError: The "), line
        assert f"could not be written to {full}" in line
        assert ": File too large (" in line
        assert "ame audit" in line  # goes on, or writes the report
        assert len(line) < 600
    assert any("The report could" in line for line in lines)
    assert any("The audit's findings could" in line for line in lines)
    assert figures(full) == figures(whole)
    left = {file.relative_to(full).as_posix() for file in full.rglob("*") if file.is_file()}
    assert left == files.keys()


def test_what_an_audit_that_was_killed_left_is_swept(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "cells" / "ab"):
        (folder / ".loraguard-abcd1234").mkdir(parents=True)
        (folder / ".loraguard-abcd1234" / "half").write_bytes(b"x")
    audit_of(tmp_path)
    assert not list(tmp_path.rglob(".*"))


def test_the_command_says_it_in_a_line(tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Store, *_: object) -> None:
        raise not_written("audit's findings", self.folder, OSError(28, "No space left on device"), "Go on.")

    monkeypatch.setattr(Store, "write", full)
    done = run("audit", *tiny, "--defense", "disrupting:0.1,steps=1", "--device", "cpu", "--output-dir", tmp_path)
    assert done.exit_code == 2, done.output
    said = done.stderr.splitlines()[-1]
    assert (
        f"Error: The audit's findings could not be written to {tmp_path / 'cells'}: No space left on device (" in said
    )
