"""Wheel and sdist: everything that the package reads is in them, and the version is in one place."""

import importlib.util
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from email.parser import Parser
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement
from processes import run_python
from setuptools.config.setupcfg import read_configuration

import loraguard

ROOT = Path(__file__).parents[2]


def checked_out() -> list[str]:
    """The files that git would check out; in an unpacked source distribution, all that are there."""
    if (ROOT / "PKG-INFO").is_file():
        return [path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*") if "__pycache__" not in path.parts]
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    return subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both; built without isolation, as tests have no network."""
    tree, out = tmp_path_factory.mktemp("tree"), tmp_path_factory.mktemp("dist")
    for file in filter(None, checked_out()):
        if (ROOT / file).is_file():
            (tree / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / file, tree / file)
    done = run_python("-m", "build", "--no-isolation", "--outdir", out, tree)
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


def test_the_sdist_has_what_the_tests_read(built: Path, tmp_path: Path) -> None:
    """Everything that git would check out; the wheel was built from it, and a test runs there."""
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    shutil.unpack_archive(sdist, tmp_path)  # tarfile's own filters are newer than the first 3.10 and 3.11
    tracked = {file for file in checked_out() if (ROOT / file).is_file() and not Path(file).match("*.egg-info/*")}
    assert tracked <= names
    assert not [name for name in names if "__pycache__" in name or name.endswith(".pyc")]
    (unpacked,) = tmp_path.iterdir()
    flags = ["-q", "-n", "0", "-p", "no:cacheprovider", "--rootdir", unpacked, "-c", unpacked / "pyproject.toml"]
    test = unpacked / "tests/repository/test_pages.py"
    done = run_python("-m", "pytest", *flags, test, PYTHONPATH=str(unpacked))
    assert done.returncode == 0, done.stdout + done.stderr


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
    assert metadata["Author"]
    urls = dict(one.split(", ") for one in metadata.get_all("Project-URL"))
    assert {"Source", "Documentation", "Changelog", "Issues"} <= urls.keys()
    assert urls["Source"].startswith("https://")


def test_links_on_the_package_index_lead_into_the_repository(built: Path) -> None:
    """A path of the repository leads nowhere there; each address is of a file that exists, and nothing else differs."""
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as opened:
        metadata = Parser().parsestr(opened.read(f"loraguard-{loraguard.__version__}.dist-info/METADATA").decode())
    source = dict(one.split(", ") for one in metadata.get_all("Project-URL"))["Source"]
    assert metadata["Description-Content-Type"] == "text/markdown"
    page, raw = str(metadata.get_payload()), source.replace("github.com", "raw.githubusercontent.com")
    own = [target for target in re.findall(r'(?:\]\(|src=")([^)"]+)', page) if "arxiv.org" not in target]
    assert len(own) > 10
    for target in own:
        path = re.fullmatch(rf"(?:{source}/blob|{raw})/main/([^#]+)(#.*)?", target)
        assert path, target
        assert (ROOT / path[1]).is_file()
        assert target.startswith(raw) == path[1].endswith(".png")
    plain = page.replace(f"{source}/blob/main/", "").replace(f"{raw}/main/", "")
    assert plain.strip() == (ROOT / "README.md").read_text(encoding="utf-8").strip()


def test_the_version_is_in_one_place() -> None:
    literal = re.compile(r"""version["']?\s*[=:]\s*["']?\d+\.\d+\.\d+""")
    files = [ROOT / "setup.cfg", ROOT / "pyproject.toml", ROOT / "mkdocs.yml", *(ROOT / "loraguard").rglob("*.py")]
    assert [file.name for file in files if literal.search(file.read_text(encoding="utf-8"))] == []
    declared = [file for file in files if "__version__ = " in file.read_text(encoding="utf-8")]
    assert declared == [ROOT / "loraguard" / "__init__.py"]


# Dependencies.


@pytest.fixture
def imports() -> ModuleType:
    """The script that measures what they cost."""
    spec = importlib.util.spec_from_file_location("imports_benchmark", ROOT / "benchmarks" / "imports.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where its dataclass looks
    spec.loader.exec_module(module)
    return module


def test_every_dependency_has_a_row_as_the_script_prints_it(imports: ModuleType) -> None:
    required = [Requirement(one) for one in read_configuration(ROOT / "setup.cfg")["options"]["install_requires"]]
    page = (ROOT / "docs" / "contributing.md").read_text(encoding="utf-8")
    section = page.partition("\n## Dependencies\n")[2].partition("\n## ")[0]
    table = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| `")]
    names = [row[0].strip("`") for row in table]
    assert names == imports.declared() == [one.name for one in required]
    for name, (*words, milliseconds, megabytes) in zip(names, (row[:5] for row in table), strict=True):
        assert words == imports.row(name)
        assert int(milliseconds) >= 0
        assert int(megabytes) >= 0


def test_what_an_import_costs_is_measured(imports: ModuleType, tmp_path: Path) -> None:
    """A module that computes for a while, keeps 30 MB and imports another dependency."""
    code = "import time, lazy_loader\nwhile time.process_time() < 0.3: pass\nkept = bytes(range(250)) * 120_000\n"
    (tmp_path / "heavy.py").write_text(code)
    imports.DEPENDENCIES["heavy"] = imports.Dependency("heavy", "", "")
    imports.HOUSE = tmp_path
    milliseconds, megabytes, brings = imports.measure("heavy", repeats=1)
    assert milliseconds > 100
    assert 29 < megabytes < 40
    assert brings == ["lazy_loader"]
