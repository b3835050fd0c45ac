"""Pages about the tuner say what its code says."""

import runpy
from pathlib import Path

import peft

from loraguard.tuner.targets import LAYER_CLASSES

ROOT = Path(__file__).parents[2]


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text(encoding="utf-8")


def rows(text: str, heading: str) -> list[str]:
    """First cells of the table whose head begins so."""
    lines = text.split(f"| {heading} |", 1)[1].split("\n\n", 1)[0].splitlines()[2:]
    return [line.split("|")[1].strip() for line in lines]


def test_every_kind_of_layer_stands_in_the_guide() -> None:
    listed = " ".join(rows(page("tuner.md"), "base layer"))
    for cls in LAYER_CLASSES:
        for base in cls.base_classes:
            assert f"`{base.__name__}`" in listed or base.__name__ in listed.replace("`", " ").split(), base
    assert "TransformerEncoderLayer" in listed


def test_the_comparison_has_the_rows_of_its_script() -> None:
    script = runpy.run_path(str(ROOT / "benchmarks" / "compare_with_lora.py"))
    assert rows(page("tuner-comparison.md"), "layer") == [name for name, *_ in script["ROWS"]]


def test_the_comparison_says_of_which_version_and_day() -> None:
    text = page("tuner-comparison.md")
    assert f"`peft {peft.__version__.rsplit('.', 1)[0]}." in text
    assert "202" in text.split("`peft ", 1)[1].split("`")[0]
