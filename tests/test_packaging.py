"""Wheel and sdist: everything that the package reads is in them, and the version is in one place."""

import re
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

import loraguard

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both, built from what git would check out; without isolation, as tests have no network."""
    tree, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("dist")
    archive = tree / "tree.tar"
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    files = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")
    with tarfile.open(archive, "w") as tar:
        for file in filter(None, files):
            if (ROOT / file).is_file():
                tar.add(ROOT / file, file)
    with tarfile.open(archive) as tar:
        tar.extractall(tree, filter="data")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", out, tree]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def test_the_wheel_has_every_file_of_the_package(built: Path) -> None:
    """Weights, templates, style sheets, JSON, py.typed: whatever lies in the package's folder."""
    (wheel,) = built.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    files = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "loraguard").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {"loraguard/py.typed", "loraguard/generators/demo_weights/model.safetensors"} <= files
    assert not files - names
    assert not {name for name in names if name.startswith(("tests/", "docs/", "benchmarks/", "examples/"))}


def test_the_sdist_builds_and_has_the_licence(built: Path) -> None:
    """The wheel was built from the sdist, as `python -m build` does."""
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    assert {"LICENSE", "README.md", "pyproject.toml", "setup.cfg", "loraguard/py.typed"} <= names


def test_metadata(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as opened:
        folder = f"loraguard-{loraguard.__version__}.dist-info"
        metadata = Parser().parsestr(opened.read(f"{folder}/METADATA").decode())
        scripts = opened.read(f"{folder}/entry_points.txt").decode()
    assert metadata["Version"] == loraguard.__version__
    assert metadata["Requires-Python"] == ">=3.10"
    assert metadata["License-Expression"] == "Apache-2.0"
    classifiers = metadata.get_all("Classifier")
    assert classifiers
    assert {f"Programming Language :: Python :: 3.{minor}" for minor in (10, 11, 12, 13)} <= set(classifiers)
    assert {"Typing :: Typed", "Intended Audience :: Developers"} <= set(classifiers)
    assert "loraguard = loraguard.cli:main" in scripts


def test_the_version_is_in_one_place() -> None:
    literal = re.compile(r"""version["']?\s*[=:]\s*["']?\d+\.\d+\.\d+""")
    files = [ROOT / "setup.cfg", ROOT / "pyproject.toml", ROOT / "mkdocs.yml", *(ROOT / "loraguard").rglob("*.py")]
    assert [file.name for file in files if literal.search(file.read_text(encoding="utf-8"))] == []
    declared = [file for file in files if "__version__ = " in file.read_text(encoding="utf-8")]
    assert declared == [ROOT / "loraguard" / "__init__.py"]
