"""A patch sets its adapter and nothing else, or it is refused and the network is as it was.

In every loader, on every network. test_fuzz_patches.py does the same with thousands of patches; here are the kinds.
"""

import copy
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fuzz_patches import (
    CONFIG,
    SUBJECTS,
    WEIGHTS,
    Subject,
    by_config,
    by_from_pretrained,
    by_info,
    by_load_adapter,
    by_load_patch,
    by_load_patch_beside,
    by_read_patch,
    by_transformers,
    fresh,
    state_of,
    take_off,
    wrong_message,
)
from peft import PeftConfig, PeftModel, get_peft_model, inject_adapter_in_model, set_peft_model_state_dict
from peft.utils.hotswap import hotswap_adapter
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from typer.testing import CliRunner

from loraguard import load_patch
from loraguard.cli import app
from loraguard.fingerprint import generator_fingerprint
from loraguard.tuner import GatedLoraConfig, GatedLoraLayer
from loraguard.tuner.before import Before
from loraguard.tuner.settings_file import FILE_HASH, read_settings

PUTTING_ON = (by_load_patch, by_load_patch_beside, by_from_pretrained, by_load_adapter, by_config, by_transformers)
READING = (by_info, by_read_patch)


@pytest.fixture(params=SUBJECTS)
def subject(request: pytest.FixtureRequest) -> Subject:
    return fresh(request.param)


@pytest.fixture
def plain() -> Subject:
    return fresh("plain")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path


def write(folder: Path, subject: Subject, change: dict[str, Any] | None = None, **tensors: Tensor | None) -> None:
    """The subject's patch, with other settings, and other tensors in a file that the config has the hash of."""
    (folder / WEIGHTS).write_bytes(subject.weights)
    found: dict[str, Any] = load_file(folder / WEIGHTS) | tensors
    save_file({name: value for name, value in found.items() if value is not None}, folder / WEIGHTS)
    config = json.loads(subject.config)
    config["provenance"] = (config["provenance"] or {}) | {FILE_HASH: hash_of(folder)}
    (folder / CONFIG).write_text(json.dumps(config | (change or {})))


def hash_of(folder: Path) -> str:
    return hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()


def refused(subject: Subject, folder: Path, message: str, loaders: tuple[Callable, ...] = PUTTING_ON) -> None:
    models = (subject.network, subject.adapted)
    before = [state_of(one) for one in models]
    for load in loaders:
        with pytest.raises(ValueError, match=message) as caught:
            load(subject, folder)
        assert wrong_message(caught.value) == []
        assert [state_of(one) for one in models] == before, load
        assert [generator_fingerprint(one) for one in models] == [subject.fingerprint] * 2


def first(subject: Subject, folder: Path) -> str:
    write(folder, subject)
    return next(name for name in load_file(folder / WEIGHTS) if "lora_A" in name)


# A patch sets nothing but its adapter.


@pytest.mark.filterwarnings("ignore")
def test_what_is_whole_loads(subject: Subject, folder: Path) -> None:
    write(folder, subject)
    for load in (*PUTTING_ON, *READING):
        loaded = load(subject, folder)
        for one in (subject.network, subject.adapted):
            assert generator_fingerprint(one) == subject.fingerprint
        if loaded is not None:
            take_off(subject, *loaded)
    assert not any(isinstance(module, GatedLoraLayer) for module in subject.network.modules())


def test_files_of_nothing_and_of_other_things(subject: Subject, folder: Path) -> None:
    name = first(subject, folder)
    gate = name.replace("lora_A", "lora_gate")
    held = load_file(folder / WEIGHTS)
    for message, tensors in {
        "no tensor": dict.fromkeys(held),
        f"no tensor '{gate}'": {gate: None},
        "holds I64": {name: held[name].long()},
        "holds F8_E4M3": {name: held[name].to(torch.float8_e4m3fn)},
        "fits nothing": {"base_model.model.unknown": torch.ones(2)},
        "has shape": {name: held[name][None]},
    }.items():
        write(folder, subject, **tensors)
        refused(subject, folder, message)


def test_weights_of_the_base_network_are_never_set(subject: Subject, folder: Path) -> None:
    layer = first(subject, folder).partition(".lora_A")[0]
    norm = {"transformers": "layernorm"}.get(subject.name, "other")
    for name, like in {
        f"{layer}.base_layer.weight": f"{layer}.weight",
        f"{layer}.weight": f"{layer}.weight",
        f"base_model.model.{norm}.weight": f"base_model.model.{norm}.weight",
        f"{layer}.base_layer.bias": f"{layer}.bias",
    }.items():
        value = subject.network.get_parameter(like.removeprefix("base_model.model."))
        for bias in ("none", "all", "lora_only"):
            write(folder, subject, {"bias": bias}, **{name: value.detach() + 1})
            refused(subject, folder, "fits nothing|is a weight of the base network|no tensor")


def test_biases_that_the_network_has_itself_load(plain: Subject, folder: Path) -> None:
    """As they change nothing."""
    biases = {f"base_model.model.{name}.base_layer.bias": getattr(plain.network, name).bias for name in ("down", "up")}
    write(folder, plain, {"bias": "lora_only"}, **{name: value.detach() for name, value in biases.items()})
    by_from_pretrained(plain, folder)
    assert generator_fingerprint(plain.network) == plain.fingerprint


def test_unloading_gives_the_base_network_back(plain: Subject, folder: Path) -> None:
    """Not the copies that the patch brings, as PEFT does."""
    write(folder, plain, **{"base_model.model.norm.weight": torch.full((4,), 7.0)})
    images = torch.rand(1, 3, 4, 4)
    before = plain.network(images)
    model = by_from_pretrained(plain, folder)[0]
    assert not torch.equal(model(images), before)
    with model.disable_adapter():
        assert torch.equal(model(images), before)
    bare = model.unload()
    assert torch.equal(bare(images), before)
    assert generator_fingerprint(bare) == plain.fingerprint


def test_hotswapping_sets_nothing_else(plain: Subject, folder: Path) -> None:
    name = first(plain, folder)
    before = copy.deepcopy(plain.swapped.state_dict())
    held = load_file(folder / WEIGHTS)
    lora = {key: value for key, value in held.items() if "lora_" in key}
    others = dict.fromkeys(held.keys() - lora.keys())
    for message, tensors in {
        "is no part of an adapter": {**others, "base_model.model.down.base_layer.weight": torch.ones(4, 3, 3, 3)},
        "holds nan": {**others, name: held[name] * torch.nan},
        "has shape": {**others, name: torch.ones(())},
        "has ranks": {**others, name: torch.ones(3, *held[name].shape[1:])},
        "it takes": {**others, name.replace("lora_A", "lora_gate"): None},
        "holds torch.int64": {**others, name: held[name].long()},
        "its update may be as large as": {**others, name: held[name] * 1e30},
    }.items():
        write(folder, plain, **tensors)
        with pytest.raises(ValueError, match=message):
            hotswap_adapter(plain.swapped, str(folder), "default")
    write(folder, plain, {"provenance": {FILE_HASH: "0" * 64}}, **others)
    with pytest.raises(ValueError, match="is not the file that adapter_config"):
        hotswap_adapter(plain.swapped, str(folder), "default")
    assert all(torch.equal(value, before[key]) for key, value in plain.swapped.state_dict().items())


def test_no_name_of_a_tensor_is_another_by_key_mapping(plain: Subject, folder: Path) -> None:
    write(folder, plain)
    with pytest.raises(ValueError, match="key_mapping does not apply"):
        PeftModel.from_pretrained(plain.network, folder, key_mapping={"lora_A": "base_layer"})


# What is refused leaves the network as it was.


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"task_type": "CAUSAL_LM"}, "task_type='CAUSAL_LM' is for text models"),
        *(
            ({"trainable_token_indices": one}, "trainable_token_indices=.* must be")
            for one in ([], False, 0, "", {}, [1, 1])
        ),
        ({"trainable_token_indices": {"words": []}}, "trainable_token_indices=.* must be"),
        ({"trainable_token_indices": {"words": [99]}}, "trainable_token_indices: .*(has 5 tokens|names no embedding)"),
        ({"trainable_token_indices": {"m": [0]}}, "trainable_token_indices: 'm' names no embedding"),
        *(
            ({"modules_to_save": [one]}, "modules_to_save")
            for one in ("lora_A", "default", "base_layer", "A", "", "(", "nowhere", "theirs", "weight")
        ),
    ],
    ids=str,
)
def test_settings_that_ask_for_what_cannot_be(subject: Subject, folder: Path, change: dict, message: str) -> None:
    write(folder, subject, change)
    loaders = (by_load_patch, by_from_pretrained, by_config)
    if "theirs" in change.get("modules_to_save", ()):
        loaders = (by_load_adapter, by_load_patch_beside)
    refused(subject, folder, message, loaders)


@pytest.mark.parametrize("task", ["FEATURE_EXTRACTION", "SEQ_CLS", "QUESTION_ANS"])
def test_a_task_that_breaks_the_forward(plain: Subject, folder: Path, task: str) -> None:
    write(folder, plain, {"task_type": task})
    refused(plain, folder, f"task_type='{task}' is for text models")


def test_a_config_without_weights(subject: Subject, folder: Path) -> None:
    write(folder, subject)
    (folder / WEIGHTS).unlink()
    refused(
        subject, folder, "adapter_model.safetensors", (by_from_pretrained, by_load_adapter, by_config, by_load_patch)
    )


@pytest.mark.parametrize("load", [by_from_pretrained, by_load_adapter])
@pytest.mark.parametrize(
    ("wrong", "said"),
    [(RuntimeError("x\n" * 999), ValueError), (KeyboardInterrupt(), KeyboardInterrupt)],
    ids=["error", "Ctrl-C"],
)
def test_whatever_goes_wrong_later(
    subject: Subject, folder: Path, load: Callable, wrong: BaseException, said: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After layers were replaced, by PEFT or by Ctrl-C."""
    write(folder, subject)

    def broken(*_: Any, **__: Any) -> None:
        raise wrong

    monkeypatch.setattr("peft.peft_model.set_peft_model_state_dict", broken)
    before = [state_of(one) for one in (subject.network, subject.adapted)]
    with pytest.raises(said) as caught:
        load(subject, folder)
    assert [state_of(one) for one in (subject.network, subject.adapted)] == before
    assert len(str(caught.value)) <= 600
    assert "\n" not in str(caught.value)


def test_a_new_adapter_that_is_refused_changes_nothing(plain: Subject) -> None:
    before = state_of(plain.network)
    with pytest.raises(ValueError, match=r"already marked|child of"):
        get_peft_model(plain.network, GatedLoraConfig(r=1, target_modules=["down"], modules_to_save=["default"]))
    assert state_of(plain.network) == before


def test_before_puts_back_everything() -> None:
    net = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))
    net.config = type("Config", (), {})()
    net.config.pretraining_tp = 2
    before, kept = state_of(net), Before(net)
    net[0].register_forward_hook(lambda *_: None)
    net[1].eval()
    net[0].weight.requires_grad_(False)
    net.append(nn.ReLU())
    net[1].momentum, net.more, net.config.pretraining_tp = 0.5, 3, 1
    net[0].bias = None
    kept.restore()
    assert state_of(net) == before
    assert net.config.pretraining_tp == 2


# A name that is taken.


def test_a_name_that_is_taken(plain: Subject, folder: Path) -> None:
    write(folder, plain)
    model = load_patch(folder, plain.network)
    write(folder, plain, {"lora_alpha": 9})
    before = state_of(model)
    with pytest.raises(ValueError, match="adapter_name='default' is taken"):
        load_patch(folder, model)
    with pytest.raises(ValueError, match="adapter_name='default' is taken"):
        model.load_adapter(folder, "default")
    with pytest.raises(ValueError, match="adapter_name='default' is taken"):
        PeftModel.from_pretrained(model, folder)
    with pytest.raises(ValueError, match="adapter_name='default' is taken"):
        inject_adapter_in_model(PeftConfig.from_pretrained(folder), model.get_base_model())
    assert state_of(model) == before
    assert load_patch(folder, model, adapter_name="other") is model
    assert model.get_base_model().down.scaling == {"default": 2 / 2**0.5, "other": 9 / 2**0.5}
    model.delete_adapter("other")
    model.load_adapter(folder, "other")


# Errors of one kind, in a line.


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (lambda text: b"\xef\xbb\xbf" + text, "byte order mark|BOM"),
        (lambda text: text.decode().encode("utf-16"), "byte order mark|codec can't decode"),
        (
            lambda text: b'{"peft_type": "GATED_LORA", "provenance": ' + b"[" * 10**5 + b"]" * 10**5 + b"}",
            "nested|recursion",
        ),
        (lambda text: b"null", "holds None|holds no object"),
        (lambda text: b"[1]", r"holds \[1\]"),
        (
            lambda text: text.replace(b'"GATED_LORA"', b'"FOO"'),
            "peft_type='FOO' is no method|is an adapter of type 'FOO'",
        ),
        (
            lambda text: text.replace(b'"GATED_LORA"', b"[1]"),
            r"peft_type=\[1\] is no method|is an adapter of type \[1\]",
        ),
        (lambda text: b"{}", "names no peft_type|peft_type=None is no method"),
        (lambda text: text.replace(b"{", b'{"r": 3,', 1), "'r' is there twice"),
        (
            lambda text: (
                b'{"peft_type": "GATED_LORA", "r": "' + b"\x1b[2J".replace(b"\x1b", b"\\u001b") * 10**4 + b'"}'
            ),
            "r=|",
        ),
        (lambda text: text.replace(b'"r": 2', b'"r": 1' + b"0" * 400), "a number in it has 401 digits"),
        (lambda text: text.replace(b'"r": 2', b'"revision": "\\ud800", "r": 2'), "there twice|half of a surrogate"),
        (lambda text: text + b" " * 2**21, "has more than 1,048,576 bytes"),
        (lambda text: b" " * 2**25, "has more than 1"),
    ],
    ids=range(14),
)
def test_broken_texts(plain: Subject, folder: Path, text: Any, message: str) -> None:
    write(folder, plain)
    (folder / CONFIG).write_bytes(text((folder / CONFIG).read_bytes()))
    loaders = (by_load_patch, by_from_pretrained, by_load_adapter, by_config, by_read_patch)
    refused(plain, folder, message, loaders)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rank_pattern": None}, "rank_pattern=None must be"),
        ({"lora_alpha": float("inf")}, "lora_alpha=inf must be"),
        ({"lora_alpha": 1e300}, "lora_alpha=1e.300 must be"),
        ({"r": 10**12}, "r=1000000000000 must be"),
        ({"runtime_config": {}}, "unknown field 'runtime_config'"),
        ({"loftq_config": []}, r"loftq_config=\[\] does not apply"),
        ({"rank_pattern": dict.fromkeys(map(str, range(10**4 + 1)), 1)}, "rank_pattern has .* at most"),
        ({"modules_to_save": ["n.*"]}, r"modules_to_save has 'n\.\*', which is no name of a module"),
        ({"base_model_name_or_path": "x" * 20_000}, "base_model_name_or_path has 1 texts of 20,000 characters"),
        ({"provenance": "x"}, "provenance='x' must be"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_settings_of_a_stranger(plain: Subject, folder: Path, change: dict[str, Any], message: str) -> None:
    write(folder, plain, change)
    refused(plain, folder, message, (by_load_patch, by_from_pretrained, by_load_adapter, by_config, by_read_patch))


@pytest.mark.parametrize("names", [[], "", ["x"], "x|y"], ids=str)
def test_layers_that_are_not_there(plain: Subject, folder: Path, names: Any) -> None:
    write(folder, plain, {"target_modules": names})
    refused(plain, folder, "target_modules=.* names no layer of this Net")


def test_info_shows_no_control_characters(plain: Subject, folder: Path) -> None:
    evil = "\x1b[2J\x07\u202e\n" + "x" * 5000
    record = {"generator": {"class": evil, "sha256": evil}, "settings": {"stamp": {"text": evil}}, "data": {evil: evil}}
    write(folder, plain, {"base_model_name_or_path": evil, "provenance": record, "lora_alpha": [evil]})
    (folder / "audit").mkdir()
    (folder / "audit" / "audit.json").write_text("[" * 10**5)
    by_info(plain, folder)
    done = CliRunner().invoke(app, ["info", str(folder)])
    assert done.exit_code == 0
    assert done.stdout.replace("\n", "").isprintable()
    assert "\\x1b[2J" in done.stdout
    write(folder, plain, {"peft_type": evil})
    done = CliRunner().invoke(app, ["info", str(folder)])
    assert done.exit_code == 2
    assert done.stderr.removesuffix("\n").isprintable()


def test_a_config_is_read_as_it_is(folder: Path) -> None:
    """What json itself reads, and nothing is lost."""
    given = {"a": [1, -2.5, None, True, {"b": "ü\n"}], "c": 10**30}
    (folder / CONFIG).write_text(json.dumps(given))
    assert read_settings(folder / CONFIG) == given


# Bounds by effect.


@pytest.mark.parametrize(
    ("change", "scale", "message"),
    [
        ({"lora_alpha": 1e30}, 1.0, "its update may be as large as .* by its lora_alpha"),
        ({"alpha_pattern": {"down": 1e30}}, 1.0, "its update may be as large as"),
        ({}, 1e30, "its update may be as large as"),
    ],
    ids=str,
)
def test_scales_that_make_weights_infinite(
    plain: Subject, folder: Path, change: dict, scale: float, message: str
) -> None:
    name = first(plain, folder)
    write(folder, plain, change, **{name: load_file(folder / WEIGHTS)[name] * scale})
    refused(plain, folder, message)


def test_values_that_are_infinite_in_the_network_s_precision(plain: Subject, folder: Path) -> None:
    name = first(plain, folder)
    write(folder, plain, **{name: load_file(folder / WEIGHTS)[name].double() * 1e300})
    refused(plain, folder, "which is infinite in this layer's")


def test_tokens_that_are_infinite_in_the_network_s_precision(folder: Path) -> None:
    subject = fresh("tokens")
    write(folder, subject)
    name = next(name for name in load_file(folder / WEIGHTS) if "trainable_tokens" in name)
    write(folder, subject, **{name: torch.full((2, 3), 1e300, dtype=torch.float64)})
    refused(subject, folder, "which is infinite in this network's precision")


def test_saved_modules_of_another_dtype(plain: Subject, folder: Path) -> None:
    for dtype in (torch.float16, torch.float64, torch.int64):
        write(folder, plain, **{"base_model.model.norm.weight": torch.ones(4, dtype=dtype)})
        refused(plain, folder, r"'base_model.model.norm.weight' holds .*, and this Net has torch.float32 there")


def test_sizes_are_compared_before_data_are_read(plain: Subject, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(folder, plain, **{"base_model.model.foreign": torch.zeros(10**6)})

    def reading(*_: Any) -> None:
        raise AssertionError("data were read")

    for where in ("loraguard.tuner.fitting.largest_values", "peft.peft_model.load_peft_weights"):
        monkeypatch.setattr(where, reading)
    monkeypatch.setattr("loraguard.hub.local.load_file", reading)
    refused(
        plain, folder, "'base_model.model.foreign' fits nothing", (by_load_patch, by_from_pretrained, by_load_adapter)
    )


# The file's own hash.


def test_the_hash_of_the_file_is_recorded_and_checked_by_every_loader(subject: Subject, folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(subject.weights)
    assert json.loads(subject.config)["provenance"][FILE_HASH] == hash_of(folder)
    name = first(subject, folder)
    write(folder, subject)
    config = (folder / CONFIG).read_bytes()
    write(folder, subject, **{name: load_file(folder / WEIGHTS)[name] + 1})
    (folder / CONFIG).write_bytes(config)
    message = "is not the file that adapter_config.json is about"
    refused(subject, folder, message, (*PUTTING_ON, *READING))
    for wrong in ("0" * 64, "", 7, [], {}):
        write(folder, subject, {"provenance": {FILE_HASH: wrong}})
        refused(subject, folder, message, (by_load_patch, by_from_pretrained, by_load_adapter, *READING))


def test_a_config_in_memory_has_no_hash(folder: Path) -> None:
    model = get_peft_model(nn.Sequential(nn.Linear(2, 2)), GatedLoraConfig(r=1))
    model.save_pretrained(folder)
    assert model.peft_config["default"].provenance is None


def test_one_s_own_tensors_can_be_set(plain: Subject, folder: Path) -> None:
    write(folder, plain)
    model = get_peft_model(plain.network, GatedLoraConfig.from_pretrained(folder))
    set_peft_model_state_dict(model, load_file(folder / WEIGHTS))
