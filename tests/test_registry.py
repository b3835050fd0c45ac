"""Names of third parties, declared as entry points of packages that the tests put on the path."""

import configparser
import re
import sys
from pathlib import Path

import pytest

import loraguard
from loraguard.commands.info import REGISTRIES
from loraguard.defenses import DEFENSES
from loraguard.generators import GENERATORS, DemoEditor, StarGAN, load_generator
from loraguard.registry import Registry, build

DOCS = Path(__file__).parents[1] / "docs" / "own-network.md"


class Package:
    """A folder as pip would leave it: metadata with entry points, and modules."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.metadata = folder, folder / "toon_generators-1.0.dist-info"
        self.metadata.mkdir()
        (self.metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: toon-generators\nVersion: 1.0\n")

    def declare(self, group: str = "loraguard.generators", **points: str) -> None:
        lines = [f"[{group}]", *(f"{name} = {value}" for name, value in points.items())]
        (self.metadata / "entry_points.txt").write_text("\n".join(lines))

    def module(self, name: str, code: str) -> None:
        (self.folder / f"{name}.py").write_text(code)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Package:
    modules = set(sys.modules)
    package = Package(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield package
    for name in set(sys.modules) - modules:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def test_a_third_party_s_name_is_found_and_nothing_is_imported_before(package: Package) -> None:
    package.declare(toon="toon_generators_a:Toon")
    package.module("toon_generators_a", "class Toon:\n    pass\n")
    assert "toon" in GENERATORS
    assert list(GENERATORS)[-1] == "toon"
    assert len(GENERATORS) == len(GENERATORS.ours) + 1
    assert GENERATORS.targets["toon"] == "toon_generators_a:Toon"
    assert "toon_generators_a" not in sys.modules
    assert GENERATORS["toon"] is sys.modules["toon_generators_a"].Toon


def test_what_the_docs_show_is_found(package: Package) -> None:
    """The page's class and its pyproject.toml, whose section on entry points reads as the installed file does."""
    page = DOCS.read_text(encoding="utf-8")
    toml = configparser.ConfigParser()
    toml.read_string(re.search(r"^```toml\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)[1])
    points = dict(toml[f'project.entry-points."{GENERATORS.group}"'])
    package.declare(**{name: value.strip('"') for name, value in points.items()})
    code = next(
        block for block in re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE) if "Toon" in block
    )
    definition = code.partition("\n\n\nToon(")[0]
    package.module("toon_generators", f"import torch\nfrom torch import Tensor, nn\n{definition}\n")
    found = GENERATORS["toon"]
    assert found.__name__ == "Toon"
    assert callable(found.from_checkpoint)
    assert callable(found.from_pretrained)


def test_another_group_is_not_ours(package: Package) -> None:
    package.declare("loraguard.data", toon="toon_generators_b:Toon")
    assert "toon" not in GENERATORS


def test_a_name_of_ours_cannot_be_taken_over(package: Package) -> None:
    package.declare(demo="toon_generators_c:Evil")
    package.module("toon_generators_c", "raise RuntimeError('was imported')\n")
    assert GENERATORS["demo"] is DemoEditor
    assert list(GENERATORS).count("demo") == 1
    assert "toon_generators_c" not in sys.modules


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        (None, "No module named 'toon_generators_d'"),
        ("", "has no attribute 'Toon'"),
        ("import nonesuch_package\n", "No module named 'nonesuch_package'"),
        ("raise RuntimeError('needs a newer driver')\n", "needs a newer driver"),
        ("def broken(:\n", "invalid syntax"),
    ],
    ids=["no module", "no attribute", "no dependency", "raises", "syntax"],
)
def test_a_broken_one_is_named_and_leaves_the_others_alone(code: str | None, reason: str, package: Package) -> None:
    package.declare(toon="toon_generators_d:Toon")
    if code is not None:
        package.module("toon_generators_d", code)
    words = rf"'toon' of loraguard\.generators, 'toon_generators_d:Toon', cannot be imported: .*{reason}"
    with pytest.raises(ImportError, match=words):
        GENERATORS["toon"]
    assert GENERATORS["demo"] is DemoEditor
    assert {"demo", "toon"} <= set(GENERATORS)


@pytest.mark.parametrize(("typo", "near"), [("toom", "toon"), ("dmeo", "demo")])
def test_a_typo_is_told_the_near_name(typo: str, near: str, package: Package) -> None:
    package.declare(toon="toon_generators_e:Toon")
    with pytest.raises(KeyError, match=rf"no '{typo}' among loraguard\.generators: .*toon.*Did you mean '{near}'\?"):
        GENERATORS[typo]


def test_a_name_that_is_near_nothing_is_told_what_there_is() -> None:
    registry = Registry("loraguard.nonesuch", {"demo": "loraguard.generators.demo:DemoEditor"})
    with pytest.raises(KeyError, match=r"no 'zzz' among loraguard\.nonesuch: demo") as caught:
        registry["zzz"]
    assert "Did you mean" not in str(caught.value)


def test_all_names_of_ours_can_be_imported() -> None:
    for name in GENERATORS.ours:
        assert isinstance(GENERATORS[name], type)


@pytest.mark.parametrize(("where", "error"), [("me/stargan-1.5", OSError), ("me/stargan.ckpt", FileNotFoundError)])
def test_an_id_of_the_hub_may_have_a_dot(where: str, error: type, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def from_pretrained(name: str, **settings: object) -> None:
        asked.append(name)
        raise OSError("no Hub here")

    monkeypatch.setattr(StarGAN, "from_pretrained", from_pretrained)
    with pytest.raises(error):
        load_generator("stargan", where)
    assert asked == [where] * (error is OSError)


def test_a_wrong_setting_is_told_which_there_are_as_they_are_written() -> None:
    with pytest.raises(ValueError, match=r"\(disrupting takes eps=0\.05, steps=10, .*, method=pgd, restarts=1"):
        build(DEFENSES, "disrupting:5")


PAGES = {"generators": "generators/index.md", "data": "data.md", "defenses": "defenses.md", "channels": "channels.md"}


@pytest.mark.parametrize(("kind", "name"), [(kind, name) for kind, one in REGISTRIES.items() for name in one.ours])
def test_every_name_has_a_row_in_the_docs(kind: str, name: str) -> None:
    page = (DOCS.parent / PAGES[kind]).read_text(encoding="utf-8")
    rows = re.findall(rf"^\| `{re.escape(name)}` \| (.+?) \|", page, re.M)
    assert len(rows) == 1, f"docs/{PAGES[kind]} needs a row `{name}`"
    if kind != "channels":
        assert rows == [f"`{REGISTRIES[kind][name].__name__}`"]


@pytest.mark.parametrize("kind", PAGES)
def test_every_row_is_a_name(kind: str) -> None:
    page = (DOCS.parent / PAGES[kind]).read_text(encoding="utf-8")
    table = re.search(r"(?:^\| name .*\n)(?:^\|.*\n)+", page, re.M)
    assert set(re.findall(r"^\| `([\w-]+)` \|", table[0], re.M)) == set(REGISTRIES[kind].ours)


def test_registries_are_alike() -> None:
    """One in each folder's registry.py, known to `loraguard info`; importing it imports nothing that it names."""
    for kind, registry in REGISTRIES.items():
        assert Path(loraguard.__file__).with_name(kind).joinpath("registry.py").is_file()
        assert registry.group == f"loraguard.{kind}"
        for target in registry.ours.values():
            assert target.startswith(f"loraguard.{kind}."), target
