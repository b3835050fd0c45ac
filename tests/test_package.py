"""What importing costs, what is public, and which way imports run."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import loraguard

HOUSE = Path(loraguard.__file__).parent
FLOORS = [
    {"kinds"},
    {"tuner", "fingerprint", "registry", "weights"},
    {"files"},
    {"channels", "metrics"},
    {"data", "stamp", "losses"},
    {"generators"},
    {"defenses", "hub"},
    {"training"},
    {"audit"},
    {"audit_settings"},
    {"demo", "train", "info", "auditing"},
    {"protecting", "stamping"},
    {"cli"},
    {"__main__"},
]


def run(code: str) -> str:
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    return result.stdout.strip()


def test_public_names_are_there_and_lazy_ones_are_listed() -> None:
    for name in loraguard.__all__:
        assert getattr(loraguard, name).__doc__
        assert name in dir(loraguard)
    with pytest.raises(AttributeError, match="no attribute 'Nonesuch'"):
        _ = loraguard.Nonesuch


def test_importing_loads_no_more_than_peft_does() -> None:
    """No further package, and of our own modules the tuner alone."""
    added = run(
        "import sys, peft; before = set(sys.modules)\n"
        "import loraguard\n"
        "print(*sorted(name for name in set(sys.modules) - before if not name.startswith('peft.')))"
    ).split()
    assert added
    assert {name.split(".")[0] for name in added} == {"loraguard"}
    assert all(name == "loraguard" or name.startswith("loraguard.tuner") for name in added)


def test_importing_registers_the_tuner() -> None:
    assert run("import loraguard; from peft import PeftType; print(PeftType('GATED_LORA').value)") == "GATED_LORA"


def test_imports_run_one_way() -> None:
    """A module imports from its own floor's folder or from floors below; the tuner imports nothing of ours."""
    level = {name: i for i, floor in enumerate(FLOORS) for name in floor}
    seen = 0
    for path in HOUSE.rglob("*.py"):
        room = path.relative_to(HOUSE).parts[0].removesuffix(".py")
        if room == "__init__":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("loraguard."):
                other = (node.module or "").split(".")[1]
            elif isinstance(node, ast.ImportFrom) and node.level and path.parent == HOUSE and node.module:
                other = node.module.split(".")[0]
            else:
                continue
            seen += 1
            assert other == room or level[other] < level[room], f"{path.name} imports {other}"
    assert seen > 30


def test_files_are_short() -> None:
    for path in HOUSE.rglob("*.py"):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 400, path
