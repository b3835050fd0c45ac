"""What is relied on of PEFT's private parts, and what is said where they differ."""

import ast
from pathlib import Path
from typing import Any

import peft.utils.hotswap
import pytest
from peft.tuners.lora import LoraModel

import loraguard.tuner
from loraguard.tuner import register
from loraguard.tuner.peft_parts import PARTS, differences


def test_the_installed_one_is_as_it_is_relied_on() -> None:
    assert differences() == []


def test_every_private_name_is_listed() -> None:
    """Of what the tuner's modules import of PEFT, and of what their classes override or call."""
    listed = {part.name.rpartition(".")[2] for part in PARTS}
    private = {name for cls in LoraModel.__mro__ for name in vars(cls) if name.startswith("_") and name[1] != "_"}
    private -= set(dir(__import__("torch").nn.Module))
    (folder,) = loraguard.tuner.__path__
    for path in Path(folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("peft"):
                assert {one.name for one in node.names if one.name.startswith("_")} <= listed, path.name
            if isinstance(node, ast.FunctionDef) and path.name in ("model.py", "calling.py") and node.name in private:
                assert node.name in listed, node.name


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.name)
def test_what_is_gone_is_named(part: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loraguard.tuner.peft_parts.PARTS", (part._replace(name=f"{part.name}_gone"),))
    with pytest.raises(RuntimeError, match=rf"peft [\d.]+ is not as .*{part.name}_gone is gone .*pip install .peft"):
        register()


def test_other_parameters_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peft.utils.hotswap, "_pad_lora_weights", lambda network: None)
    with pytest.raises(RuntimeError, match=r"_pad_lora_weights takes network \(hotswap of compiled models\)"):
        register()
