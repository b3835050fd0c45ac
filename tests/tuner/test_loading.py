"""Patches that are broken, hostile or of another generator: refused by name, and the model is left as it was."""

import copy
import dataclasses
import json
import pickle
import struct
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from peft import PeftModel, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from loraguard.tuner import GatedLoraConfig, loading
from loraguard.tuner import model as model_module
from loraguard.tuner.loading import check_finite, find_weights

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def settings(**given: Any) -> GatedLoraConfig:
    return GatedLoraConfig(**{"r": 4, "init_lora_weights": "paper", "gate_type": "channel", **given})


@pytest.fixture
def patch(generator: nn.Module, tmp_path: Path) -> Path:
    get_peft_model(copy.deepcopy(generator), settings(modules_to_save=["norm"])).save_pretrained(tmp_path)
    return tmp_path


def refused(generator: nn.Module, folder: Path, message: str) -> str:
    """By both ways of loading, with the model unchanged after each; returns what was said."""
    before, kinds = copy.deepcopy(generator.state_dict()), [type(module) for module in generator.modules()]
    adapted = get_peft_model(copy.deepcopy(generator), settings(r=2), "mine").eval()
    said = ""
    for load in (lambda: PeftModel.from_pretrained(generator, folder), lambda: adapted.load_adapter(folder, "theirs")):
        with pytest.raises(ValueError, match=message) as caught:
            load()
        said = str(caught.value)
        assert said.isprintable()  # so that it is one line, too
        assert len(said) <= 600
        assert CONFIG in said or "adapter_model" in said
    assert [type(module) for module in generator.modules()] == kinds
    assert all(torch.equal(generator.state_dict()[name], value) for name, value in before.items())
    assert list(adapted.peft_config) == ["mine"]
    assert not [name for name in adapted.state_dict() if ".theirs." in name]
    return said


def test_what_is_whole_loads(generator: nn.Module, patch: Path) -> None:
    PeftModel.from_pretrained(generator, patch)


@pytest.mark.parametrize("way", ["from_pretrained", "load_adapter"])
def test_each_tensor_is_checked_once_before_it_is_loaded(
    generator: nn.Module, patch: Path, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By every reader of safetensors files in this process: the first time for the check alone."""
    read, checked, opened, real = Counter[str](), Counter[str](), 0, safe_open

    class Counting:
        def __init__(self, file: Any, *args: Any, **kwargs: Any) -> None:
            nonlocal opened
            opened += Path(file).name == WEIGHTS
            self.opened = real(file, *args, **kwargs)

        def __enter__(self) -> Any:
            self.opened.__enter__()
            return self

        def __exit__(self, *error: Any) -> None:
            self.opened.__exit__(*error)

        def __getattr__(self, name: str) -> Any:
            return getattr(self.opened, name)

        def get_tensor(self, name: str) -> torch.Tensor:
            read[name] += 1
            return self.opened.get_tensor(name)

        def get_tensors(self) -> dict[str, torch.Tensor]:
            read.update(self.opened.keys())
            return self.opened.get_tensors()

    def check(source: str, name: str, tensor: torch.Tensor) -> None:
        checked[name] += 1
        check_finite(source, name, tensor)

    for module in [module for module in sys.modules.values() if vars(module).get("safe_open") is real]:
        monkeypatch.setattr(module, "safe_open", Counting)
    for module in (model_module, loading):
        monkeypatch.setattr(module, "check_finite", check)
    if way == "from_pretrained":
        PeftModel.from_pretrained(generator, patch)
    else:
        get_peft_model(generator, settings(r=2), "mine").load_adapter(patch, "theirs")
    monkeypatch.undo()
    names = dict.fromkeys(load_file(patch / WEIGHTS), 1)
    assert read == {name: 2 for name in names}
    assert checked == names
    assert opened == 3  # for the header, for the check and for loading


def test_a_broken_value_leaves_no_trace(generator: nn.Module, patch: Path) -> None:
    tensors, whole = load_file(patch / WEIGHTS), (patch / WEIGHTS).read_bytes()
    name = next(name for name in tensors if "lora_A" in name)
    save_file(tensors | {name: tensors[name] * torch.nan}, patch / WEIGHTS)
    generator.norm.train()
    generator.up.weight.requires_grad_(False)
    before = [(name, p.requires_grad) for name, p in generator.named_parameters()]
    modes, attributes = [module.training for module in generator.modules()], set(vars(generator))
    said = refused(generator, patch, rf"'{name}' holds nan at")
    assert said.startswith(str(patch / WEIGHTS))
    assert [(name, p.requires_grad) for name, p in generator.named_parameters()] == before
    assert [module.training for module in generator.modules()] == modes
    assert set(vars(generator)) == attributes
    (patch / WEIGHTS).write_bytes(whole)
    PeftModel.from_pretrained(generator, patch)


def corrupt_bytes(data: bytes, kind: str, i: int) -> bytes:
    generator = torch.Generator().manual_seed(i)

    def draw(n: int) -> int:
        return int(torch.randint(n, (1,), generator=generator))

    header = struct.unpack("<Q", data[:8])[0]
    if kind == "truncated":
        return data[: draw(len(data))]
    if kind == "lengthened":
        return data + bytes(1 + draw(4096))
    if kind == "header-length":
        return struct.pack("<Q", [0, header - 1, header + 1, len(data), 2**40, 2**63, 2**64 - 1][i % 7]) + data[8:]
    if kind == "header-bytes":
        at = 8 + draw(header - 16)
        return data[:at] + bytes([data[at] ^ 0x80]) + data[at + 1 :]
    if kind == "zeros":
        return bytes(len(data))
    assert kind == "pickle"
    return pickle.dumps({"weights": [i]})


BYTES = [
    *(("truncated", i) for i in range(24)),
    *(("lengthened", i) for i in range(8)),
    *(("header-length", i) for i in range(7)),
    *(("header-bytes", i) for i in range(16)),
    ("zeros", 0),
    ("pickle", 0),
]


def test_corrupt_bytes(generator: nn.Module, patch: Path) -> None:
    data = (patch / WEIGHTS).read_bytes()
    for kind, i in BYTES:
        (patch / WEIGHTS).write_bytes(corrupt_bytes(data, kind, i))
        refused(generator, patch, r"is no whole safetensors file|no tensor 'base_model|fits nothing|has shape|holds")


def corruptions(tensors: dict[str, torch.Tensor]) -> list[tuple[dict[str, torch.Tensor], str]]:
    """Each tensor in turn, wrong in one way, those of a layer and of a norm in each, and what must be said."""
    found = []
    for turn, name in enumerate(tensors):
        ways = wrong_ways(tensors, name)
        found += ways if ".down." in name or ".norm." in name else [ways[turn % len(ways)]]
    return found


def wrong_ways(tensors: dict[str, torch.Tensor], name: str) -> list[tuple[dict[str, torch.Tensor], str]]:
    cases: list[tuple[dict[str, torch.Tensor], str]] = []
    value = tensors[name]
    others = {key: other for key, other in tensors.items() if key != name}
    quoted = f"'{name}'"
    for broken in (torch.nan, torch.inf, -torch.inf):
        if value.is_floating_point():
            wrong = value.clone()
            wrong.view(-1)[-1] = broken
            cases.append(({**others, name: wrong}, rf"{quoted} holds {broken} at \("))
    cases.append((others, rf"no tensor {quoted} of shape"))
    cases.append(({**others, f"{name}.x": value}, rf"no tensor {quoted}.*It holds '{name}.x' instead"))
    cases.append(({**tensors, f"x.{name}": value}, rf"'x.{name}' fits nothing in this Generator"))
    if value.dim():
        wrong = torch.cat([value, value])
        cases.append(({**others, name: wrong}, rf"{quoted} has shape \({len(wrong)}.*takes \({len(value)}"))
        cases.append(({**others, name: value[None]}, rf"{quoted} has shape \(1, "))
    if ".lora_" in name:
        cases.append(({**others, name: torch.zeros(value.shape, dtype=torch.int64)}, rf"{quoted} holds I64"))
    return cases


def test_corrupt_tensors(generator: nn.Module, patch: Path) -> None:
    cases = corruptions(load_file(patch / WEIGHTS))
    assert len(BYTES) + len(cases) > 100
    for tensors, message in cases:
        save_file({name: value.clone() for name, value in tensors.items()}, patch / WEIGHTS)
        refused(generator, patch, message)


CONFIGS: list[tuple[dict[str, Any], str]] = [
    ({"r": "8"}, "r='8' must be a whole number"),
    ({"r": 8.0}, "r=8.0 must be"),
    ({"r": True}, "r=True must be"),
    ({"r": None}, "r=None must be"),
    ({"r": -(10**30)}, "r=-1.* must be"),
    ({"r": 8}, r"has shape \(4, .*takes \(8, "),
    ({"lora_alpha": "2"}, "lora_alpha='2' must be"),
    ({"lora_alpha": float("inf")}, "lora_alpha=inf must be"),
    ({"lora_dropout": [0.1]}, r"lora_dropout=\[0.1\] must be"),
    ({"gate_type": "exec"}, "gate_type='exec' must be one of"),
    ({"gate_type": ["scalar"]}, r"gate_type=\['scalar'\] must be"),
    ({"gate_type": "scalar"}, r"lora_gate.weight' has shape .*takes \(1,\)"),
    ({"gate_type": "none"}, r"lora_gate.weight' fits nothing"),
    ({"gate_type": "input"}, r"lora_gate.weight' has shape .*takes \(1, 1\)"),
    ({"gate_init": None}, "gate_init=None must be"),
    ({"init_lora_weights": 1}, "init_lora_weights=1 does not apply"),
    ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa' does not apply"),
    ({"bias": "some"}, "bias='some' must be"),
    ({"bias": "lora_only"}, "no tensor 'base_model.model.label.base_layer.bias'"),
    ({"use_rslora": "no"}, "use_rslora='no' must be True or False"),
    ({"inference_mode": 0}, "inference_mode=0 must be"),
    ({"freeze_norm_stats": None}, "freeze_norm_stats=None must be"),
    ({"target_modules": {"down": 1}}, "target_modules={'down': 1} must be"),
    ({"target_modules": [1, 2]}, r"target_modules=\[1, 2\] must be"),
    ({"target_modules": "("}, r"target_modules='\(' is no regular expression"),
    ({"target_modules": "(.*)*x"}, r"target_modules='\(\.\*\)\*x' has more than 10,000 ways"),
    ({"target_modules": ["down"]}, "fits nothing|no tensor"),
    ({"target_modules": ["elsewhere"]}, r"target_modules={'elsewhere'} names no layer of this Generator"),
    ({"target_modules": ["norm"]}, r"target_modules={'norm'} names no layer of this Generator"),
    ({"exclude_modules": ["down"]}, "'base_model.model.down.lora_A.weight' fits nothing"),
    ({"modules_to_save": "norm"}, "modules_to_save='norm' must be"),
    ({"modules_to_save": None}, r"'base_model.model.norm.\w+' fits nothing"),
    ({"rank_pattern": {"down": 0}}, "rank_pattern={'down': 0} must be"),
    ({"rank_pattern": {"down": 2}}, r"'base_model.model.down.lora_A.weight' has shape \(4, .*takes \(2, "),
    ({"rank_pattern": ["down"]}, r"rank_pattern=\['down'\] must be"),
    ({"alpha_pattern": {"down": "7"}}, "alpha_pattern={'down': '7'} must be"),
    ({"alpha_pattern": {"(a|a)*": 1}}, "alpha_pattern=.* has more than 10,000 ways"),
    ({"layers_to_transform": "all"}, "layers_to_transform='all' must be"),
    ({"auto_mapping": "os.system"}, "auto_mapping='os.system' must be"),
    ({"megatron_config": {"x": 1}, "megatron_core": "os"}, "megatron_config={'x': 1} does not apply"),
    ({"megatron_core": ["os"]}, r"megatron_core=\['os'\] must be"),
    ({"use_qalora": True}, "use_qalora=True does not apply"),
    ({"eva_config": {"rho": 2.0}}, "eva_config=.* does not apply"),
    ({"loftq_config": {"loftq_bits": 4}}, "loftq_config=.* does not apply"),
    ({"gate_function": "__import__('os')"}, "unknown field 'gate_function'"),
    ({"__class__": "x"}, "unknown field '__class__'"),
    ({"task_type": "SHELL"}, "Invalid task type"),
    ({"revision": 7}, "revision=7 must be"),
]


@pytest.mark.parametrize(("change", "message"), CONFIGS, ids=lambda value: str(value)[:60])
def test_hostile_configs(generator: nn.Module, patch: Path, change: dict[str, Any], message: str) -> None:
    config = json.loads((patch / CONFIG).read_text())
    (patch / CONFIG).write_text(json.dumps({**config, **change}))
    refused(generator, patch, message)


def test_configs_that_are_no_json(generator: nn.Module, patch: Path) -> None:
    text = (patch / CONFIG).read_text()
    for broken in (text[:100], "", "{", "\0" * 100):
        (patch / CONFIG).write_text(broken)
        refused(generator, patch, "Expecting|Unterminated|Invalid control")


class Bomb:
    """Leaves a file behind when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("contents", ["tensors", "bomb"])
def test_pickles(generator: nn.Module, patch: Path, contents: str) -> None:
    tensors: Any = load_file(patch / WEIGHTS) if contents == "tensors" else Bomb(patch / "executed")
    (patch / WEIGHTS).unlink()
    torch.save(tensors, patch / "adapter_model.bin")
    refused(generator, patch, "does not load adapter_model.bin or any other pickle")
    (patch / WEIGHTS).mkdir()
    refused(generator, patch, "does not load adapter_model.bin or any other pickle")
    assert not (patch / "executed").exists()


def test_settings_can_be_used_again(generator: nn.Module, patch: Path) -> None:
    model = PeftModel.from_pretrained(copy.deepcopy(generator), patch)
    (patch / WEIGHTS).unlink()
    get_peft_model(generator, model.peft_config["default"])


def test_settings_of_a_patch_for_another_network(patch: Path) -> None:
    loaded = GatedLoraConfig.from_pretrained(patch)
    get_peft_model(nn.ModuleDict({"down": nn.Conv2d(1, 1, 1)}), dataclasses.replace(loaded, modules_to_save=None))


def test_settings_alone_load(patch: Path) -> None:
    (patch / WEIGHTS).unlink()
    assert GatedLoraConfig.from_pretrained(patch).r == 4
    assert find_weights(str(patch)) is None


def test_the_hub_is_asked_for_safetensors_of_the_same_revision(patch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the network: what would be asked for, and what is said where it is not there."""
    asked: list[tuple[Any, ...]] = []

    def download(repo: str, name: str, *, subfolder: str | None = None, revision: str | None = None, **_: Any) -> str:
        asked.append((repo, name, subfolder, revision))
        if name == WEIGHTS and revision == "pickled":
            raise LocalEntryNotFoundError("not there")
        return str(patch / name)

    monkeypatch.setattr("loraguard.tuner.loading.hf_hub_download", download)
    monkeypatch.setattr("peft.config.hf_hub_download", download)
    config = GatedLoraConfig.from_pretrained("me/patch", subfolder="one", revision="v2")
    assert config.header is not None
    assert config.header.source == "me/patch"
    assert set(config.header.shapes) == set(load_file(patch / WEIGHTS))
    assert asked == [("me/patch", name, "one", "v2") for name in (CONFIG, WEIGHTS)]
    with pytest.raises(ValueError, match=r"me/patch holds no adapter_model.safetensors. loraguard does not load"):
        GatedLoraConfig.from_pretrained("me/patch", revision="pickled")


def test_another_generator(generator: nn.Module, patch: Path) -> None:
    class Other(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.label, self.down = nn.Linear(2, 3), nn.Conv2d(3, 8, 4)
            self.mix, self.up = nn.Conv2d(8, 8, 3, groups=2), nn.ConvTranspose2d(8, 3, 4)
            self.norm = nn.BatchNorm2d(4)

    said = refused(Other(), patch, r"'base_model.model.down.lora_B.weight' has shape \(4, 4, 1, 1\)")
    assert "this Other takes (8, 4, 1, 1)" in said
    refused(nn.ModuleDict({"down": nn.Conv2d(3, 4, 4, 2, 1)}), patch, "modules_to_save: there is no module 'norm'")


def test_what_is_set_by_hand(generator: nn.Module) -> None:
    model = get_peft_model(generator, settings())
    tensors = get_peft_model_state_dict(model)
    name = next(iter(tensors))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=r"'base_model.model.else.lora_A.weight' fits no adapter"):
        set_peft_model_state_dict(model, {**tensors, "base_model.model.else.lora_A.weight": tensors[name]})
    with pytest.raises(ValueError, match="holds nan at"):
        set_peft_model_state_dict(model, {**tensors, name: tensors[name] * torch.nan})
    assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items())
    set_peft_model_state_dict(model, tensors)
