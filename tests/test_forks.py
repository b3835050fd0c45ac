"""What tests rely on that start processes, and stop them: see processes.py and moments.py."""

import os
import signal
import sys
from pathlib import Path

import processes
import pytest
from processes import forked, forked_ranks

CHANGES = """
from pathlib import Path
from moments import signal_at_change
signal_at_change(9, nth)
Path(folder).mkdir(exist_ok=True)
Path(folder, "a").write_text("all of it")
Path(folder, "a").rename(Path(folder, "b"))
Path(folder, "b").read_text()
Path(folder, "b").unlink()
"""
CALLS = """
import os
from moments import signal_at_call
signal_at_call(9, os, "getcwd", 2)
print(os.getcwd(), flush=True)
os.getcwd()
print("not reached", flush=True)
"""
RANK = "import torch; x = torch.ones(1); torch.distributed.all_reduce(x); print(x.item(), os.environ['RANK'])"


def test_a_fork_is_a_process() -> None:
    done = forked(exec, "import os, sys; print(os.environ['WORD']); print('there', file=sys.stderr)", WORD="here")
    assert (done.returncode, done.stdout, done.stderr) == (0, "here\n", "there\n")
    assert "WORD" not in os.environ
    assert forked(exec, "import os; assert 'WORD' not in os.environ").returncode == 0
    assert forked(sys.exit, 3).returncode == 3
    assert forked(signal.raise_signal, signal.SIGKILL).returncode == -signal.SIGKILL
    failed = forked(exec, "1 / 0")
    assert failed.returncode == 1
    assert "ZeroDivisionError" in failed.stderr


def test_one_that_hangs_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "PATIENCE", 0)
    with pytest.raises(TimeoutError, match="A process hangs"):
        forked(signal.pause)


def test_a_signal_comes_before_the_nth_change(tmp_path: Path) -> None:
    """What is there then is what was there between the change before and this one."""
    for nth, there in enumerate(({}, {"a": ""}, {"a": "all of it"}, {"b": "all of it"}, {}), 1):
        folder = tmp_path / str(nth)
        folder.mkdir()
        done = forked(exec, CHANGES, {"nth": nth, "folder": str(folder)})
        assert done.returncode == (0 if nth == 5 else -signal.SIGKILL)
        assert {file.name: file.read_text() for file in folder.iterdir()} == there


def test_a_signal_comes_at_the_nth_call() -> None:
    done = forked(exec, CALLS)
    assert done.returncode == -signal.SIGKILL
    assert done.stdout == f"{os.getcwd()}\n"


def test_ranks_work_together() -> None:
    done = forked_ranks(exec, f"import os; {RANK}")
    assert [one.stdout for one in done] == ["2.0 0\n", "2.0 1\n"]
