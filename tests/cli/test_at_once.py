"""Commands that have no work for them answer without torch: what each may import, and how much memory it may take."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
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
import contextlib, io, json, os, re, sys, traceback
there = set(sys.modules)  # what an interpreter starts with, .pth files' imports with it
from loraguard.cli import main
for words in json.load(sys.stdin):
    sys.argv, said, code = ["loraguard", *words], {"stdout": io.StringIO(), "stderr": io.StringIO()}, 0
    with contextlib.redirect_stdout(said["stdout"]), contextlib.redirect_stderr(said["stderr"]):
        try:
            main()
        except SystemExit as end:
            code = end.code
        except BaseException:
            traceback.print_exc()
    with open("/proc/self/status") as status:  # getrusage counts what the parent had when it forked
        used = 1024 * int(re.search(r"VmHWM:\\s*(\\d+) kB", status.read())[1])
    tops = {name.partition(".")[0] for name in {*sys.modules} - there} - sys.stdlib_module_names
    ours = [name for name in sys.modules if name.partition(".")[0] == "loraguard"]
    said = {name: text.getvalue() for name, text in said.items()}
    seen = {"tops": sorted(tops), "ours": ours, "used": used, "policy": os.environ["OMP_WAIT_POLICY"]}
    print(json.dumps({"words": words, "code": code or 0, **said, **seen}))
"""
"""Runs commands one after another, and says of each what it, or one before it, has imported."""

WITHOUT_PYDANTIC = [["--help"], ["--version"], ["audit", "--help"], ["train", "--help"]]
"""Typer imports it where it converts what was given."""

HELP = [
    *WITHOUT_PYDANTIC,
    *([command, "--help"] for command in ("demo", "compare", "protect", "push", "pull", "info")),
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


@dataclass(frozen=True)
class Seen:
    """How a command ended, and which packages and modules of ours were imported by then."""

    words: list[str]
    code: int
    stdout: str
    stderr: str
    tops: list[str]
    ours: list[str]
    used: int
    policy: str

    def foreign(self, *more: str) -> set[str]:
        return {top for top in self.tops if not top.startswith("_")} - LIGHT - set(more)


def run(*commands: list[str], folder: Path, **environment: str) -> list[Seen]:
    """In one fresh process: whatever one of them imports is held against those after it as well."""
    done = subprocess.run(
        [sys.executable, "-c", SEE], input=json.dumps(commands),
        capture_output=True, text=True, timeout=PATIENCE, cwd=folder, env={**os.environ, **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = [Seen(**json.loads(line)) for line in done.stdout.splitlines()]
    assert [one.words for one in found] == list(commands)
    for one in found:
        assert "Traceback" not in one.stderr, one
        assert one.used < MOST_MEMORY, one.words
        assert one.policy == environment.get("OMP_WAIT_POLICY", "PASSIVE")
    return found


def test_help(tmp_path: Path) -> None:
    for seen in run(*HELP, folder=tmp_path):
        assert seen.code == 0, seen
        assert seen.stdout, seen
        assert not seen.foreign(), seen.words
        assert set(seen.ours) <= LIGHT_MODULES, (seen.words, set(seen.ours) - LIGHT_MODULES)
        assert seen.words not in WITHOUT_PYDANTIC or "pydantic" not in seen.tops, seen.words


def test_a_command_imports_its_own_family_alone(tmp_path: Path) -> None:
    (seen,) = run(["audit", "--help"], folder=tmp_path)
    assert {name for name in FAMILIES if f"loraguard.cli.{name}" in seen.ours} == {"audit"}


def test_families_hold_what_they_say() -> None:
    for family, commands in FAMILIES.items():
        assert list(get_command(application(commands[0])).commands) == list(commands), family


def test_the_user_s_own_policy_of_waiting_is_kept(tmp_path: Path) -> None:
    run(["--version"], folder=tmp_path, OMP_WAIT_POLICY="ACTIVE")


def test_wrong_input(tmp_path: Path) -> None:
    for seen in run(*WRONG, folder=tmp_path):
        assert seen.code == 2, seen
        assert seen.stderr, seen
        assert not seen.foreign("safetensors"), seen.words  # which imports nothing: `info` reads a patch with it
    assert not any(tmp_path.iterdir())


def test_wrong_settings_of_an_audit(tmp_path: Path) -> None:
    """Settings are read by yaml."""
    for seen in run(*SETTINGS, folder=tmp_path):
        assert seen.code == 2, seen
        assert not seen.foreign("yaml", "cython_runtime"), seen.words
    assert not any(tmp_path.iterdir())


def test_info(tmp_path: Path) -> None:
    for seen in run(*(["info", kind] for kind in ("generators", "data", "defenses", "channels")), folder=tmp_path):
        assert seen.code == 0, seen
        assert not seen.foreign(), seen.words


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion(shell: str, tmp_path: Path) -> None:
    words = {"COMP_WORDS": "loraguard audit --ge", "COMP_CWORD": "2", "_TYPER_COMPLETE_ARGS": "loraguard audit --ge"}
    ask = {"_LORAGUARD_COMPLETE": f"complete_{shell}", "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    (seen,) = run([], folder=tmp_path, **words, **ask)
    assert "--generator" in seen.stdout
    assert not seen.foreign()


def test_completion_of_names(tmp_path: Path) -> None:
    ask = {"_LORAGUARD_COMPLETE": "complete_bash", "COMP_WORDS": "loraguard train --generator star", "COMP_CWORD": "3"}
    (seen,) = run([], folder=tmp_path, **ask)
    assert "stargan" in seen.stdout
    assert not seen.foreign()


ENDS = """
import atexit, sys, threading, types
from loraguard.cli import leave

class Kept:
    def __del__(self):
        print("taken apart")

kept, words = Kept(), sys.argv[1:]
atexit.register(print, "at exit")
if "torch" in words:
    sys.modules["torch"] = types.ModuleType("torch")
go_on = threading.Event()
if "thread" in words:
    threading.Thread(target=lambda: (go_on.wait(), print("thread"))).start()
print("said", end=" ")
leave("a message" if "message" in words else 3)
print("left to Python")
go_on.set()
sys.exit(4)
"""


@pytest.mark.parametrize(
    ("words", "said", "code"),
    [
        (["torch"], ["said at exit"], 3),
        ([], ["said left to Python", "at exit", "taken apart"], 4),
        (["torch", "message"], ["said left to Python", "at exit", "taken apart"], 4),
        (["torch", "thread"], ["said left to Python", "thread", "at exit", "taken apart"], 4),
    ],
)
def test_a_process_ends_without_taking_apart_what_it_imported(words: list[str], said: list[str], code: int) -> None:
    done = subprocess.run([sys.executable, "-c", ENDS, *words], capture_output=True, text=True, timeout=PATIENCE)
    assert (done.stdout.splitlines(), done.returncode, done.stderr) == (said, code, "")


def test_a_reader_that_has_gone_is_no_error_of_its_own() -> None:
    """What was said cannot be written; Python says so, and the code is Python's."""
    with subprocess.Popen([sys.executable, "-c", ENDS, "torch"], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as one:
        one.stdout.close()
        assert b"BrokenPipeError" in one.stderr.read()
    assert one.returncode not in (0, 3)
