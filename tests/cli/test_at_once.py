"""Commands that have no work for them answer without torch: what each may import, and how much memory it may take."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.main import get_command

from loraguard.cli.root import FAMILIES, application

PATIENCE = 1200  # seconds, against a hang alone

LIGHT = {
    "annotated_doc", "annotated_types", "click", "colorama", "lazy_loader", "loraguard", "markdown_it", "mdurl",
    "pydantic", "pydantic_core", "pygments", "rich", "shellingham", "typer", "typing_extensions", "typing_inspection",
}  # fmt: skip
"""What typer is made of, and our own lazy package; none of these imports anything heavy."""

LIGHT_MODULES = {
    "loraguard", "loraguard._registering", "loraguard.audit", "loraguard.audit.extent", "loraguard.audit.names",
    "loraguard.channels", "loraguard.channels.registry", "loraguard.cli", "loraguard.cli.audit", "loraguard.cli.demo",
    "loraguard.cli.early", "loraguard.cli.errors", "loraguard.cli.flags", "loraguard.cli.hub", "loraguard.cli.info",
    "loraguard.cli.mark", "loraguard.cli.options", "loraguard.cli.patches", "loraguard.cli.protect",
    "loraguard.cli.root",
    "loraguard.cli.stamp", "loraguard.commands", "loraguard.commands.audit_settings", "loraguard.data",
    "loraguard.data.registry", "loraguard.defenses", "loraguard.defenses.registry", "loraguard.files",
    "loraguard.generators", "loraguard.generators.registry", "loraguard.hub", "loraguard.hub.names", "loraguard.kinds",
    "loraguard.mark", "loraguard.mark.registry",
    "loraguard.registry", "loraguard.training", "loraguard.training.arguments", "loraguard.training.recipes",
}  # fmt: skip

MOST_MEMORY = 100e6

SEE = """
import atexit, json, os, re, sys
def see():
    with open("/proc/self/status") as status:  # getrusage counts what the parent had when it forked
        used = 1024 * int(re.search(r"VmHWM:\\s*(\\d+) kB", status.read())[1])
    tops = {name.partition(".")[0] for name in sys.modules} - sys.stdlib_module_names
    ours = [name for name in sys.modules if name.partition(".")[0] == "loraguard"]
    print("SEEN", json.dumps([sorted(tops), sorted(ours), used, os.environ["OMP_WAIT_POLICY"]]))
atexit.register(see)
from loraguard.cli import main
sys.argv[0] = "loraguard"
main()
"""

HELP = [
    ["--help"],
    ["--version"],
    *([command, "--help"] for command in ("demo", "train", "audit", "compare", "protect", "push", "pull", "info")),
    ["stamp", "--help"],
    ["stamp", "check", "--help"],
    ["mark", "--help"],
    ["mark", "read", "--help"],
    ["mark", "sign", "--help"],
    ["mark", "verify", "--help"],
    ["mark", "audit", "--help"],
]
WRONG = [
    ["audit", "--nonsense"],
    ["demo", "--device", "abacus"],
    ["demo", "--output-dir", __file__],
    ["train", "--output-dir", "out", "--generator", "stargam"],
    ["train", "--output-dir", "out", "--generator", "stargan", "--checkpoint", "nowhere.ckpt"],
    ["train", "--output-dir", "out", "--data", "nowhere"],
    ["train", "--output-dir", "out", "--recipe", "slow"],
    ["compare", "nowhere", "nowhere"],
    ["protect", "nowhere.jpg"],
    ["protect", __file__, "--defense", "disruptin"],
    ["convert", "nowhere.ckpt", "out"],
    ["stamp", "preview", "--image", "nowhere.png", "--text", "AI"],
    ["stamp", "preview", "out.gif", "--text", "AI"],
    ["stamp", "check", "nowhere.png", "--text", "AI"],
    ["stamp", "check", __file__],
    ["mark", "read", "nowhere.png"],
    ["mark", "read", __file__, "--extractor", "rivagam"],
    ["mark", "sign", __file__, "--output-dir", "out", "--key", __file__],
    ["mark", "verify", "nowhere.png"],
    ["mark", "audit", "--patch", "nowhere", "--output-dir", "out"],
    ["push", "nowhere", "me/patch"],
    ["pull", "me/patch", str(Path(__file__).parent)],
    ["info", "nonsense"],
    ["info", "./nowhere"],
]
SETTINGS = [
    ["audit", "--output-dir", "out", "--config", "nowhere.yaml"],
    ["audit", "--output-dir", "out", "--images", "0"],
    ["audit", "--output-dir", "out", "--defense", "disruptin"],
    ["audit", "--output-dir", "out", "--channel", "jpg:75"],
    ["audit", "--output-dir", "out", "--patch", "nowhere"],
    ["audit", "--output-dir", "out", "--perturbed", "theirs=nowhere"],
    ["audit", "--output-dir", "out", "--lpips", "nowhere.pth"],
    ["audit", "--resume", "nowhere"],
]


def run(*words: str, folder: Path, **environment: str) -> tuple[subprocess.CompletedProcess, set[str], set[str]]:
    """How a command ended, and the packages and our modules that it imported."""
    done = subprocess.run(
        [sys.executable, "-c", SEE, *words],
        capture_output=True, text=True, timeout=PATIENCE, cwd=folder, env={**os.environ, **environment},
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    *_, seen = [line for line in done.stdout.splitlines() if line.startswith("SEEN")]
    tops, ours, used, policy = json.loads(seen.removeprefix("SEEN"))
    assert used < MOST_MEMORY
    assert policy == environment.get("OMP_WAIT_POLICY", "PASSIVE")
    return done, set(tops), set(ours)


def is_light(tops: set[str], *more: str) -> bool:
    return not {top for top in tops if not top.startswith("_")} - LIGHT - set(more)


@pytest.mark.parametrize("words", HELP, ids=" ".join)
def test_help(words: list[str], tmp_path: Path) -> None:
    done, tops, ours = run(*words, folder=tmp_path)
    assert done.returncode == 0
    assert is_light(tops), tops - LIGHT
    assert ours <= LIGHT_MODULES, ours - LIGHT_MODULES


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["audit", "--help"], ["train", "--help"]], ids=" ".join)
def test_settings_are_declared_without_what_checks_them(words: list[str], tmp_path: Path) -> None:
    """Typer itself imports pydantic where it converts what was given."""
    _, tops, _ = run(*words, folder=tmp_path)
    assert "pydantic" not in tops


def test_a_command_imports_its_own_family_alone(tmp_path: Path) -> None:
    _, _, ours = run("audit", "--help", folder=tmp_path)
    families = {name for name in FAMILIES if f"loraguard.cli.{name}" in ours}
    assert families == {"audit"}


def test_families_hold_what_they_say() -> None:
    for family, commands in FAMILIES.items():
        assert list(get_command(application(commands[0])).commands) == list(commands), family


def test_the_user_s_own_policy_of_waiting_is_kept(tmp_path: Path) -> None:
    run("--version", folder=tmp_path, OMP_WAIT_POLICY="ACTIVE")


@pytest.mark.parametrize("words", WRONG, ids=lambda words: " ".join(words)[:60])
def test_wrong_input(words: list[str], tmp_path: Path) -> None:
    done, tops, _ = run(*words, folder=tmp_path)
    assert done.returncode == 2
    assert is_light(tops, "safetensors"), tops - LIGHT  # which imports nothing: `info` reads a patch with it
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("words", SETTINGS, ids=lambda words: " ".join(words)[:60])
def test_wrong_settings_of_an_audit(words: list[str], tmp_path: Path) -> None:
    """Settings are read by yaml."""
    done, tops, _ = run(*words, folder=tmp_path)
    assert done.returncode == 2
    assert is_light(tops, "yaml", "cython_runtime"), tops - LIGHT
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["generators", "data", "defenses", "channels"])
def test_info(kind: str, tmp_path: Path) -> None:
    done, tops, _ = run("info", kind, folder=tmp_path)
    assert done.returncode == 0
    assert is_light(tops), tops - LIGHT


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell: str, tmp_path: Path) -> None:
    words = {"COMP_WORDS": "loraguard audit --ge", "COMP_CWORD": "2", "_TYPER_COMPLETE_ARGS": "loraguard audit --ge"}
    ask = {"_LORAGUARD_COMPLETE": f"complete_{shell}", "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    done, tops, _ = run(folder=tmp_path, **words, **ask)
    assert "--generator" in done.stdout
    assert is_light(tops), tops - LIGHT


def test_completion_of_names(tmp_path: Path) -> None:
    ask = {"_LORAGUARD_COMPLETE": "complete_bash", "COMP_WORDS": "loraguard train --generator star", "COMP_CWORD": "3"}
    done, tops, _ = run(folder=tmp_path, **ask)
    assert "stargan" in done.stdout
    assert is_light(tops), tops - LIGHT
