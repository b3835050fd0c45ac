"""The whole suite as other machines would run it: `python tests/everywhere.py [RUN ...]`; all runs without names.

    busy       three times while other processes keep every core busy
    avx2       oneDNN held to AVX2
    scalar     torch's own kernels without vector instructions
    shuffled   in random order; `--seed` repeats one
    lowest     in a fresh environment, with the lowest versions that setup.cfg allows
    newest     in a fresh environment, with the newest
    peft       the tuner's tests, with the newest PEFT of the index, whatever setup.cfg allows

Names joined by + are one run under all of these conditions, such as `busy+avx2+shuffled`.
A run's output goes to a file; what is printed is a line for each, with how it ended and how long it took. Each of the
last three needs a package index and 6 GB of disk, for as long as it lasts.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[1]
TIMES = {"busy": 3}
ENVIRONMENT = {"avx2": {"ONEDNN_MAX_CPU_ISA": "AVX2"}, "scalar": {"ATEN_CPU_CAPABILITY": "default"}}
RESOLUTION = {"lowest": "lowest-direct", "newest": "highest", "peft": "highest"}
RUNS = ("busy", "avx2", "scalar", "shuffled", "lowest", "newest", "peft")


@contextmanager
def busy_neighbours() -> Iterator[None]:
    """As many processes as there are cores that compute for nobody, while the block lasts."""
    command = [sys.executable, "-c", "while True: pass"]
    neighbours = [subprocess.Popen(command) for _ in range(os.cpu_count() or 1)]
    try:
        yield
    finally:
        for one in neighbours:
            one.kill()
            one.wait()


def fresh_environment(folder: Path, resolution: str) -> Path:
    """The interpreter of a new virtual environment in which the package is installed as README says."""
    subprocess.run(["uv", "venv", "--quiet", "--python", sys.executable, folder], check=True)
    python = folder / "bin" / "python"
    install = ["uv", "pip", "install", "--quiet", "--python", python, "--resolution", resolution]
    subprocess.run([*install, "--editable", ".[test]"], cwd=ROOT, check=True)
    return python


def run(names: list[str], log: Path, seed: int) -> tuple[bool, str]:
    """Whether the suite passed under these conditions, and its last line."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    command: list[str | Path] = [sys.executable, "-m", "pytest", "-q", "--durations=30"]
    with ExitStack() as stack:
        for name in names:
            environment |= ENVIRONMENT.get(name, {})
            if name in RESOLUTION:
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory()), "environment")
                command[0] = fresh_environment(folder, RESOLUTION[name])
                environment["PATH"] = f"{folder / 'bin'}{os.pathsep}{environment['PATH']}"
            if name == "peft":  # beyond the bound, which follows what passes here
                install = ["uv", "pip", "install", "--quiet", "--python", command[0], "--upgrade"]
                subprocess.run([*install, "--no-deps", "peft"], check=True)
                command += ["tests/tuner", "loraguard/tuner"]
            if name == "shuffled":
                environment["PYTHONPATH"] = str(ROOT / "tests")  # plugins are imported before pyproject.toml is read
                command += ["-p", "shuffled", f"--shuffled={seed}"]
        if "busy" in names:
            stack.enter_context(busy_neighbours())
        with log.open("w", encoding="utf-8") as file:
            done = subprocess.run(command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT)
    found = re.findall(r"^.*\d+ (?:passed|failed|error).*$", log.read_text(encoding="utf-8"), re.MULTILINE)
    return done.returncode == 0, found[-1].strip("= ") if found else f"exit code {done.returncode}"


def main() -> int:
    """Do the runs that are asked for, and say how each ended."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="*", default=RUNS, metavar="RUN", help=", ".join(RUNS))
    parser.add_argument("--logs", type=Path, default=Path("everywhere"), help="a folder for what each run prints")
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of the order of the run `shuffled`")
    options = parser.parse_args()
    if unknown := {name for one in options.runs for name in one.split("+")} - set(RUNS):
        parser.error(f"there is no {', '.join(sorted(unknown))}; choose from {', '.join(RUNS)}")
    options.logs.mkdir(parents=True, exist_ok=True)
    failed = False
    for name in options.runs:
        names = name.split("+")
        for number in range(TIMES.get(name, 1)):
            started = time.monotonic()
            passed, said = run(names, options.logs / f"{name}-{number}.txt", options.seed)
            failed |= not passed
            seed = f" (seed {options.seed})" if "shuffled" in names else ""
            print(f"{name}{seed}: {said}; {time.monotonic() - started:.0f} s", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
