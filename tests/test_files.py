"""Writing that is never seen half done, that says why it failed, and that leaves nothing behind."""

from __future__ import annotations

import errno
import os
import resource
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from moments import holding_a_draft
from PIL import Image
from processes import Fork
from pyarrow import Table, parquet
from safetensors.torch import save_file

from loraguard.files import (
    NotWrittenError,
    draft_folder,
    not_written,
    sweep,
    temporary_folder,
    whole_files,
    writable_folder,
)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def put(folder: Path, what: str, write: Callable[[Path], object]) -> None:
    with whole_files(folder, what, "Run it again.") as draft:
        write(draft / "file")


def dead_draft(folder: Path) -> Path:
    """What a process leaves that is killed while it writes."""
    draft = folder / ".loraguard-a1b2c3d_"
    draft.mkdir(parents=True)
    (draft / "half").write_bytes(b"x")
    return draft


def test_what_a_killed_process_left_is_swept(tmp_path: Path) -> None:
    dead_draft(tmp_path)
    (tmp_path / ".loraguard-00000000").touch()  # of earlier versions, which tried with a file whether they may write
    theirs = {".loraguard", ".loraguard-mine", ".loraguard-abcdefghi", "loraguard-abcdefgh", ".other-abcdefgh"}
    for name in theirs:
        (tmp_path / name).mkdir()
    assert writable_folder(tmp_path) == tmp_path
    assert names(tmp_path) == theirs


def test_what_a_killed_process_left_among_temporary_files_is_swept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    dead_draft(tmp_path)
    (tmp_path / "loraguard-of-somebody").mkdir()
    with temporary_folder() as first:
        (first / "file").touch()
        with temporary_folder() as second:
            assert names(tmp_path) == {first.name, second.name, "loraguard-of-somebody"}
            assert (first / "file").is_file()
    assert names(tmp_path) == {"loraguard-of-somebody"}


def test_a_draft_that_is_being_written_is_not_swept(tmp_path: Path) -> None:
    """By this process, and by another one."""
    with draft_folder(tmp_path) as mine:
        sweep(tmp_path)
        assert mine.is_dir()
    other = Fork(holding_a_draft, tmp_path)
    while not (tmp_path / "ready").exists():
        assert other.process.exitcode is None
    before = names(tmp_path)
    sweep(tmp_path)
    assert names(tmp_path) == before
    assert len(before) == 2
    other.process.kill()
    other.wait()
    sweep(tmp_path)
    assert names(tmp_path) == {"ready"}


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS])
def test_a_disk_that_refuses_is_said(number: int, tmp_path: Path) -> None:
    """What, where, why, how much space there is; in one line, and nothing of it is left."""

    def refuse(file: Path) -> None:
        file.write_text("after")
        raise OSError(number, os.strerror(number), "inner")

    (tmp_path / "file").write_text("before")
    with pytest.raises(NotWrittenError) as error:
        put(tmp_path, "table", refuse)
    message = str(error.value)
    assert message.startswith(f"The table could not be written to {tmp_path}: {os.strerror(number)} (")
    assert message.endswith("MB free on that disk). Run it again.")
    assert "\n" not in message
    assert error.value.errno is None  # or the command line would say the system's words alone
    assert names(tmp_path) == {"file"}
    assert (tmp_path / "file").read_text() == "before"


@pytest.mark.parametrize("write", [
    lambda file: save_file({"a": torch.zeros(999)}, file),
    lambda file: torch.save(torch.zeros(999), file),
    lambda file: Image.new("RGB", (9, 9)).save(file, "PNG"),
    lambda file: parquet.write_table(Table.from_pydict({"a": [*range(999)]}), file),
])  # fmt: skip
def test_writers_with_errors_of_their_own(write, tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk; torch does not say why it fails."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, before[1]))
    try:
        with pytest.raises(NotWrittenError, match=f"thing could not be .* to {tmp_path}: .*File too large"):
            put(tmp_path, "thing", write)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not names(tmp_path)


@pytest.mark.parametrize("error", [
    ValueError("no"), FileNotFoundError(errno.ENOENT, "No such file"), PermissionError("no"), RuntimeError("shapes"),
])  # fmt: skip
def test_other_errors_stay_as_they_are(error: Exception, tmp_path: Path) -> None:
    with pytest.raises(type(error)) as raised, whole_files(tmp_path):
        raise error
    assert raised.value is error
    assert not names(tmp_path)


def test_a_folder_whose_name_no_record_can_hold_is_refused(tmp_path: Path) -> None:
    """Before the training that would end with it: safetensors reads nothing there."""
    with pytest.raises(OSError, match=r"caf\\xe9 has a name that is not UTF-8") as error:
        writable_folder(tmp_path / os.fsdecode(b"caf\xe9"))
    str(error.value).encode()


def test_what_and_where_are_said_once(tmp_path: Path) -> None:
    """The outermost says them, with the reason of the innermost; a long path does not hide the rest."""
    inner = not_written("file", tmp_path, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "Inner.")
    message = str(not_written("patch", tmp_path / ("x" * 200) / ("y" * 200), inner, "Outer."))
    assert message.count("could not be written") == 1
    assert message.endswith("Outer.")
    assert "yyy: No space left on device (" in message
    assert len(message) < 500
