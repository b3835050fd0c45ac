"""A second process: values, warnings and errors come back, and it never outlives the block."""

import os
import signal

import pytest
import torch
from second_work import work

from loraguard.commands.side_by_side import SecondProcess, can_fork, one_thread


@pytest.mark.parametrize("fork", [True, False])
def test_values_and_warnings_come_back(
    fork: bool, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loraguard.commands.side_by_side.can_fork", lambda: fork)
    with SecondProcess(work, "answer") as second:
        pid, threads = second.receive()
        assert pid != os.getpid()
        assert threads == (1 if fork else "1")
        second.send(21)
        with pytest.warns(FutureWarning, match="mind the gap"):
            assert second.receive() == 42
    assert second.process.exitcode == 0
    assert "not to be seen" not in capfd.readouterr().out


@pytest.mark.parametrize(
    ("fork", "frozen", "calls"), [(True, 0, ["freeze", "unfreeze"]), (True, 5, []), (False, 0, [])]
)
def test_a_copy_shares_what_the_garbage_collector_would_write_to(
    fork: bool, frozen: int, calls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was frozen before stays frozen."""
    called: list[str] = []
    monkeypatch.setattr("loraguard.commands.side_by_side.can_fork", lambda: fork)
    monkeypatch.setattr("gc.get_freeze_count", lambda: frozen)
    for name in ("freeze", "unfreeze"):
        monkeypatch.setattr(f"gc.{name}", lambda name=name: called.append(name))
    with SecondProcess(work, "wait") as second:
        assert second.receive() == "waiting"
        assert called == calls[:1]
        second.process.terminate()
    assert called == calls


def test_a_copy_where_nothing_speaks_against_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setattr("threading.active_count", lambda: 1)
    assert can_fork()
    for name, value in (("threading.active_count", lambda: 2), ("torch.cuda.is_initialized", lambda: True)):
        with monkeypatch.context() as patch:
            patch.setattr(name, value)
            assert not can_fork()
    monkeypatch.setattr("sys.platform", "darwin")
    assert not can_fork()


@pytest.mark.parametrize(
    ("what", "error", "said"),
    [
        ("fail", ValueError, "eps=5 is too much"),
        ("die", ChildProcessError, "exit code -9"),
        ("end", ChildProcessError, "0"),
    ],
)
def test_errors(what: str, error: type[Exception], said: str) -> None:
    with SecondProcess(work, what) as second, pytest.raises(error, match=said):
        second.receive()


def test_an_error_here_ends_it() -> None:
    second = SecondProcess(work, "wait")

    def fail() -> None:
        with second:
            assert second.receive() == "waiting"
            raise RuntimeError("here")

    with pytest.raises(RuntimeError, match="here"):
        fail()
    assert second.process.exitcode == -signal.SIGTERM


def test_one_thread() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    with one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2
    torch.set_num_threads(before)
