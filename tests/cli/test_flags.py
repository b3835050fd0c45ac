"""Flags that are made from settings, by what typer makes of them."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import typer
from pydantic import Field
from typer.main import get_command
from typer.testing import CliRunner

from loraguard import PatchTrainingArguments
from loraguard.cli import app
from loraguard.cli.flags import Flag, documented, flags_of, with_flags

Few = Annotated[int, Field(ge=1, lt=10)]


@dataclass
class Settings:
    """Of nothing in particular.

    Args:
        steps: how many: more
            take longer. At least one.
        precision: of numbers.
        folders: where photos lie.
        named: by name.
        seeds: one run for each.
        device: where.
        thing: no flag takes it.
        fast: whether it has to be.

    Raises:
        nothing: at all.
    """

    steps: Few | None = None
    precision: Annotated[float, Field(gt=0)] = 0.5
    folders: Path | str = "photos"
    named: dict[str, str] = field(default_factory=dict)
    seeds: tuple[Annotated[int, Field(ge=0)], ...] = (0,)
    device: Literal["cpu", "auto"] = "auto"
    thing: bytes | None = None
    fast: bool = False


def command(**options: Any) -> Any:
    """What `python -c` would run: it prints the settings that it got."""
    runs = typer.Typer()

    @runs.command()
    @with_flags(Settings, list(flags_of(Settings)), **options)
    def show(*, word: str = "none", settings: dict[str, Any]) -> None:
        """Print."""
        typer.echo(repr((word, settings)))

    return runs


def test_flags_are_what_annotations_and_the_docstring_say() -> None:
    found = flags_of(Settings)
    assert list(found) == [one.name for one in fields(Settings) if one.name != "thing"]
    said = "how many: more take longer. At least one."
    assert found["steps"] == Flag("steps", int, said, least=1, most=9)
    assert found["precision"] == Flag("precision", float, "of numbers.", 0.5)
    assert found["folders"].kind is Path
    assert found["named"] == Flag("named", str, "by name.", {}, many=True)
    assert found["seeds"] == Flag("seeds", int, "one run for each.", (0,), many=True, least=0)
    assert found["device"] == Flag("device", str, "where.", "auto", choices=("cpu", "auto"))
    assert documented(Settings).keys() == {one.name for one in fields(Settings)}  # and nothing of "Raises:"


def test_a_command_gets_values_and_defaults() -> None:
    words = ["--word", "a", "--steps", "9", "--named", "x", "--named", "y", "--seeds", "4", "--device", "cpu", "--fast"]
    values = {"steps": 9, "precision": 0.5, "folders": Path("photos"), "named": ["x", "y"], "seeds": [4]}
    done = CliRunner().invoke(command(), words)
    assert done.output.strip() == repr(("a", {**values, "device": "cpu", "fast": True})), done.output


def test_what_is_not_given_is_left_out_over_a_file() -> None:
    """And the help says the default all the same."""
    options = {"optional": True, "named": {"flag": "--name"}}
    assert CliRunner().invoke(command(**options), ["--name", "x"]).output.strip() == "('none', {'named': ['x']})"
    shown = {one.name: one for one in get_command(command(**options)).params}
    assert shown["precision"].show_default == "0.5"
    assert shown["named"].opts == ["--name"]


@dataclass
class More(Settings):
    """With a word.

    Args:
        word: said twice. Or more often.
    """

    word: str = "b"


def test_what_is_inherited_is_documented_where_it_is_defined() -> None:
    assert documented(More) == {**documented(Settings), "word": "said twice. Or more often."}


def test_a_flag_has_several_names_and_a_place_among_the_command_s_own() -> None:
    runs = typer.Typer()

    @runs.command()
    @with_flags(
        More, ["seeds", "last", "steps", "device"], optional=True, repeated=" *", steps={"flag": ("--steps", "--n")},
        device={"choices": False},
    )  # fmt: skip
    def show(*, settings: dict[str, Any], last: int = 0) -> None:
        """Print."""
        typer.echo(repr((last, settings)))

    shown = get_command(runs).params
    assert [one.name for one in shown if one.name in vars(More()) or one.name == "last"] == [
        "seeds", "last", "steps", "device"
    ]  # fmt: skip
    assert [one.help for one in shown if one.name in ("seeds", "steps")] == [  # type: ignore[attr-defined]
        "One run for each. *", "How many: more take longer."
    ]  # fmt: skip
    # Ranges and choices are checked by the settings, as those of a file.
    done = CliRunner().invoke(runs, ["--n", "10", "--seeds", "-1", "--device", "abacus", "--last", "5"])
    assert done.output.strip() == repr((5, {"seeds": [-1], "steps": 10, "device": "abacus"})), done.output


@pytest.mark.parametrize("words", [["--steps", "10"], ["--steps", "0"], ["--seeds", "-1"], ["--device", "abacus"]])
def test_ranges_and_choices_are_checked_at_once(words: list[str]) -> None:
    done = CliRunner().invoke(command(), words)
    assert done.exit_code == 2
    assert words[0] in done.output


def test_a_field_that_no_flag_takes_is_named() -> None:
    with pytest.raises(KeyError, match="thing"):
        with_flags(Settings, ["thing"])(lambda settings: None)


def test_training_and_its_flags_do_not_drift_apart(tmp_path: Path) -> None:
    """Each flag of `loraguard train` that is a setting has the setting's default, and its docstring's words as help."""
    train = get_command(app).commands["train"]  # type: ignore[attr-defined]
    shown = {one.name: one for one in train.params}
    made = flags_of(PatchTrainingArguments)
    assert {"recipe", "max_train_steps", "train_batch_size", "checkpointing_steps", "seed"} <= shown.keys()
    own = {"output_dir", "stamp"}  # a folder with an audit too; a text
    for name in (shown.keys() & made.keys()) - own:
        assert shown[name].default == made[name].default
        said = shown[name].help.lower()
        assert made[name].help.lower().startswith(said)
        assert said.endswith(".")
        for bound, beyond in ((made[name].least, -1), (made[name].most, 1)):
            if bound is not None:
                words = ["train", "--output-dir", str(tmp_path), shown[name].opts[0], str(bound + beyond)]
                done = CliRunner().invoke(app, words)
                assert (done.exit_code, f"Invalid value for '{shown[name].opts[0]}'" in done.output) == (2, True)


def test_every_setting_of_a_training_is_documented() -> None:
    assert documented(PatchTrainingArguments).keys() == {one.name for one in fields(PatchTrainingArguments)}
