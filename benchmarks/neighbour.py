"""How long a command takes, alone and beside a busy neighbour: `python benchmarks/neighbour.py [--against COMMIT]`.

The command is `loraguard demo`, or what `--command` says. A neighbour is a process that keeps one core busy. With
`--against`, an earlier commit of this repository runs in turn with the present one, on the same machine, and a row says
how many times as fast the present one is. Memory is the largest sum over the command's processes at any time, looked at
every second; shared pages count once (PSS).
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[1]
NEIGHBOUR = [sys.executable, "-c", "while True: pass"]


def processor() -> str:
    """The processor's name, and how many cores this process may use."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or platform.machine()}, {os.cpu_count()} cores"


def memory_of(process: psutil.Process) -> int:
    """Bytes that a process and its children hold, shared pages once."""
    total = 0
    for one in [process, *process.children(recursive=True)]:
        with suppress(psutil.NoSuchProcess, psutil.AccessDenied):  # it has ended meanwhile
            total += one.memory_full_info().pss
    return total


def run(code: Path, neighbours: int, words: list[str]) -> tuple[float, float, int]:
    """Seconds, seconds of processor time and largest memory of a command with the code in a folder."""
    environment = {**os.environ, "PYTHONPATH": str(code), "HF_HUB_OFFLINE": "1"}
    environment.pop("OMP_NUM_THREADS", None)
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        for _ in range(neighbours):
            neighbour = stack.enter_context(subprocess.Popen(NEIGHBOUR))
            stack.callback(neighbour.kill)
        before, started, most = os.times(), time.monotonic(), 0
        command = [sys.executable, "-m", "loraguard", *words, "--output-dir", folder]
        running = psutil.Popen(
            command, env=environment, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        while running.poll() is None:
            most = max(most, memory_of(running))
            time.sleep(1)
        if running.returncode:
            raise SystemExit(f"With {code} it ended with exit code {running.returncode}.")
        after = os.times()
        used = after.children_user + after.children_system - before.children_user - before.children_system
        return time.monotonic() - started, used, most


def main() -> None:
    """Print a row for each situation and commit."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", metavar="COMMIT", help="an earlier commit to run in turn")
    parser.add_argument("--neighbours", type=int, nargs="+", default=[0, 1], help="how many, for each situation")
    parser.add_argument("--command", default="demo", help="such as 'train --max-train-steps 20'")
    options = parser.parse_args()
    print(processor())
    with ExitStack() as stack:
        codes = {"now": ROOT}
        if options.against:
            earlier = Path(stack.enter_context(tempfile.TemporaryDirectory()), "earlier")
            subprocess.run(["git", "worktree", "add", "--detach", earlier, options.against], cwd=ROOT, check=True)
            stack.callback(subprocess.run, ["git", "worktree", "remove", "--force", earlier], cwd=ROOT, check=True)
            codes = {options.against[:7]: earlier, **codes}
        for neighbours in options.neighbours:
            taken = []
            for name, code in codes.items():
                seconds, used, most = run(code, neighbours, shlex.split(options.command))
                print(
                    f"{name}, {neighbours} neighbour{'s' if neighbours != 1 else ''}: {seconds:.0f} s, "
                    f"{used:.0f} s of processor time, {most / 2**20:.0f} MiB",
                    flush=True,
                )
                taken.append(seconds)
            if len(taken) > 1:
                print(f"  {taken[0] / taken[-1]:.2f} times as fast", flush=True)


if __name__ == "__main__":
    main()
