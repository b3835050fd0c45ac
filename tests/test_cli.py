"""The command line, in processes of its own."""

import subprocess
import sys
from pathlib import Path

import loraguard


def run(*arguments: str, **options: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "loraguard.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, **options)


def test_help_and_version() -> None:
    assert "demo" in run("--help").stdout
    assert "--output-dir" in run("demo", "--help").stdout
    assert run("--version").stdout.strip() == f"loraguard {loraguard.__version__}"


def test_an_unwritable_folder_is_said_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("here first")
    result = run("demo", "--output-dir", str(tmp_path / "file"))
    assert result.returncode == 2
    assert "Cannot write to the output folder" in result.stderr
    assert "Traceback" not in result.stderr
    assert (tmp_path / "file").read_text() == "here first"


def test_an_unknown_device() -> None:
    result = run("demo", "--device", "abacus")
    assert result.returncode == 2
    assert "cpu" in result.stderr
