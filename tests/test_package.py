"""What importing costs, what is public, and which way imports run."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import loraguard

HOUSE = Path(loraguard.__file__).parent
FLOORS = [
    {"kinds", "pixels", "files", "tuner"},
    {"_registering", "fingerprint", "registry", "weights"},
    {"describing"},
    {"channels"},
    {"losses"},
    {"metrics"},
    {"data"},
    {"stamp"},
    {"mark"},
    {"generators"},
    {"defenses", "hub"},
    {"training", "diffusers"},
    {"audit"},
    {"commands"},
    {"cli"},
    {"__main__"},
]
LATE = {("purifiers.py", "generators"), ("extractors.py", "hub")}
"""Upwards, but within a function: a purifier that is asked for by name loads the network that photos go through, and an
extractor may lie on the Hub, whose errors are explained."""


def run(code: str) -> str:
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    return result.stdout.strip()


def test_public_names_are_there_and_lazy_ones_are_listed() -> None:
    for name in loraguard.__all__:
        assert getattr(loraguard, name).__doc__
        assert name in dir(loraguard)
    with pytest.raises(AttributeError, match="attribute Nonesuch"):
        _ = loraguard.Nonesuch


def test_importing_loads_nothing_heavy() -> None:
    """Neither torch nor PEFT; test_registering.py says what comes with PEFT."""
    added = run(
        "import sys; before = set(sys.modules)\n"
        "import loraguard\n"
        "print(*sorted({name for name in set(sys.modules) - before if name.partition('.')[0] not in\n"
        "              sys.stdlib_module_names}))"
    )
    assert added.split() == ["lazy_loader", "loraguard", "loraguard._registering"]


def test_imports_run_one_way() -> None:
    """A module imports from its own floor's folder or from floors below; the tuner imports nothing of ours."""
    level = {name: i for i, floor in enumerate(FLOORS) for name in floor}
    seen = 0
    for path in HOUSE.rglob("*.py"):
        room = path.relative_to(HOUSE).parts[0].removesuffix(".py")
        if room == "__init__":
            continue
        code = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(code):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("loraguard."):
                other = (node.module or "").split(".")[1]
            elif isinstance(node, ast.ImportFrom) and node.level and path.parent == HOUSE and node.module:
                other = node.module.split(".")[0]
            else:
                continue
            seen += 1
            if (path.name, other) in LATE and node not in code.body:
                continue
            assert other == room or level[other] < level[room], f"{path.name} imports {other}"
    assert seen > 30


def test_files_are_short() -> None:
    for path in HOUSE.rglob("*.py"):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 400, path


def test_no_module_hides_a_name_of_its_package() -> None:
    """A module that is imported becomes an attribute of its package, before a lazy name of the same spelling is."""
    seen = 0
    for stub in HOUSE.rglob("__init__.pyi"):
        modules = {path.stem for path in stub.parent.iterdir()}
        for node in ast.parse(stub.read_text(encoding="utf-8")).body:
            for alias in node.names if isinstance(node, ast.ImportFrom) else ():
                seen += 1
                assert alias.name not in modules - {node.module}, f"{stub}: {alias.name}"
    assert seen > 100
