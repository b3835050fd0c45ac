"""Corrupted patches in every loader: `python tests/fuzz_patches.py --cases 100000 --seed 1`; `--only N` repeats one.

Each case takes a patch that loads, spoils its config, the header of its weights, or bytes, and gives it to one of the
loaders, on a network that stays the same. What must never happen is counted (`BAD`). A patch may be taken: then the
adapter holds what is in the file, the hash that the config records is the file's, and the base network is as it was.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import random
import signal
import sys
import tempfile
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from peft import PeftConfig, PeftModel, PeftType, get_peft_model, get_peft_model_state_dict
from peft.utils.hotswap import hotswap_adapter
from safetensors.torch import load_file
from spoiling import WAYS
from torch import Tensor, nn
from transformers import ViTConfig, ViTModel
from typer.main import get_command
from typer.testing import CliRunner

from loraguard.cli import app
from loraguard.fingerprint import generator_fingerprint
from loraguard.hub import describe_patch, load_patch, read_patch
from loraguard.tuner import GatedLoraConfig
from loraguard.tuner.before import Before

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
LONGEST = 600
PATIENCE = 30  # seconds of this process' own time, against a hang alone

BAD = (
    "the base network changed", "the model is not as it was", "it hung", "another error than ValueError",
    "a long message", "a message of several lines", "control characters", "a message that names no file",
    "other weights were taken",
)  # fmt: skip


class Net(nn.Module):
    """Layers of three kinds, a norm that a patch saves, and one that it does not."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.norm = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.up, self.other = nn.ConvTranspose2d(4, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.words = nn.Embedding(5, 3)

    def forward(self, images: Tensor) -> Tensor:
        x = self.norm(self.down(images)).relu()
        return self.other(self.up(x)) + self.words.weight.mean()


def of_transformers() -> ViTModel:
    """A network whose config has a model_type."""
    small = {"hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 4}
    return ViTModel(ViTConfig(**small, image_size=4, patch_size=2), add_pooling_layer=False)


def settings(**given: Any) -> GatedLoraConfig:
    return GatedLoraConfig(**{"r": 2, "init_lora_weights": "paper", "gate_type": "channel", **given})


SUBJECTS: dict[str, tuple[Callable[[], nn.Module], dict[str, Any]]] = {
    "plain": (Net, {"modules_to_save": ["norm"], "provenance": {"kind": "standard"}}),
    "tokens": (Net, {"target_modules": r".*(down|up)", "trainable_token_indices": {"words": [1, 3]}}),
    "transformers": (of_transformers, {"target_modules": ["query", "fc1", "projection"], "gate_type": "scalar"}),
}


class Subject:
    """A network, a patch of it as files' bytes, and what both are."""

    def __init__(self, name: str) -> None:
        self.name = name
        make, given = SUBJECTS[name]
        with torch.random.fork_rng(), tempfile.TemporaryDirectory() as folder:
            torch.manual_seed(0)
            self.network = make().eval()
            model = get_peft_model(copy.deepcopy(self.network), settings(**given))
            model.save_pretrained(folder)
            self.adapted = get_peft_model(
                copy.deepcopy(self.network), settings(r=1, target_modules=model_targets(model)), "mine"
            )
            self.adapted.eval()
            self.swapped = copy.deepcopy(model).eval()
            self.config, self.weights = ((Path(folder) / file).read_bytes() for file in (CONFIG, WEIGHTS))
        self.fingerprint = generator_fingerprint(self.network)


@cache
def _made(name: str) -> Subject:
    return Subject(name)


def fresh(name: str) -> Subject:
    """A subject to itself, as a copy."""
    return copy.deepcopy(_made(name))


def model_targets(model: PeftModel) -> list[str]:
    targets = model.peft_config["default"].target_modules
    return ["down", "up"] if isinstance(targets, str) else sorted(targets)


CONTAINERS = (dict, list, set, tuple)


def state_of(model: nn.Module) -> list[Any]:
    """Everything that a network is made of, by identity, but for values of tensors."""
    modules = []
    for one in model.modules():
        own = vars(one)
        inside = [value for value in own.values() if isinstance(value, CONTAINERS)]
        modules.append(
            (
                id(one),
                list(own),
                [id(value) for value in own.values() if not isinstance(value, CONTAINERS)],
                [(list(value), list(map(id, value.values()))) for value in inside if value and isinstance(value, dict)],
                [sorted(map(id, value)) for value in inside if value and not isinstance(value, dict)],
                [(type(value), bool(value)) for value in inside],
            )
        )
    return [modules, [(id(one), one.requires_grad, one.dtype) for one in model.parameters()]]


# Loaders. Each gives a model with the patch on it and the adapter's name, or None where it makes none.

Loaded = tuple[PeftModel, str] | None


def by_load_patch(subject: Subject, folder: Path) -> Loaded:
    return load_patch(folder, subject.network), "default"


def by_load_patch_beside(subject: Subject, folder: Path) -> Loaded:
    return load_patch(folder, subject.adapted, adapter_name="theirs"), "theirs"


def by_from_pretrained(subject: Subject, folder: Path) -> Loaded:
    return PeftModel.from_pretrained(subject.network, folder), "default"


def by_load_adapter(subject: Subject, folder: Path) -> Loaded:
    subject.adapted.load_adapter(folder, "theirs")
    return subject.adapted, "theirs"


def by_config(subject: Subject, folder: Path) -> Loaded:
    model = PeftModel.from_pretrained(subject.network, folder, config=PeftConfig.from_pretrained(folder))
    return model, "default"


def by_transformers(subject: Subject, folder: Path) -> Loaded:
    if hasattr(subject.network, "load_adapter"):
        before = Before(subject.network)
        subject.network.load_adapter(str(folder))
        before.restore()
        return None
    return by_load_patch(subject, folder)


def by_hotswap(subject: Subject, folder: Path) -> Loaded:
    hotswap_adapter(subject.swapped, str(folder), "default")
    return None


def by_info(subject: Subject, folder: Path) -> Loaded:
    for label, text in describe_patch(folder):
        if not (label + text).isprintable() or len(text) > LONGEST:
            raise AssertionError(f"info shows {text[:100]!r}")
    return None


@cache
def command() -> Any:
    """Made once; Typer's own runner makes all commands and their flags anew for each call."""
    return get_command(app)


def by_command(subject: Subject, folder: Path) -> Loaded:
    with mock.patch("typer.testing._get_command", return_value=command()):
        done = CliRunner().invoke(app, ["info", str(folder)])
    if done.exit_code not in (0, 2) or not done.stdout.replace("\n", "").isprintable():
        raise AssertionError(f"info leaves with {done.exit_code}, {done.exception!r}")
    if done.exit_code:
        raise ValueError(done.stderr.removeprefix("Error: ").removesuffix("\n"))
    return None


def by_read_patch(subject: Subject, folder: Path) -> Loaded:
    read_patch(folder)
    return None


LOADERS: tuple[Callable[[Subject, Path], Loaded], ...] = (
    by_load_patch, by_from_pretrained, by_load_adapter, by_info, by_load_patch_beside, by_config, by_read_patch,
    by_load_patch, by_from_pretrained, by_load_adapter, by_command, by_transformers,
)  # fmt: skip


def models_of(subject: Subject, load: Any) -> list[nn.Module]:
    """Those that a loader could change."""
    if load in (by_info, by_read_patch, by_command):
        return []
    if load is by_hotswap:
        return [subject.swapped]
    return [subject.adapted if load in (by_load_adapter, by_load_patch_beside) else subject.network]


# What is counted.


class Hang(BaseException):
    """The time is over."""


@contextmanager
def patience() -> Iterator[None]:
    def over(*_: Any) -> None:
        raise Hang

    before = signal.signal(signal.SIGVTALRM, over)
    signal.setitimer(signal.ITIMER_VIRTUAL, PATIENCE)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def wrong_message(error: Exception) -> list[str]:
    said = str(error)
    found = [] if isinstance(error, ValueError) else ["another error than ValueError"]
    found += ["a long message"] * (len(said) > LONGEST)
    found += ["a message of several lines"] * ("\n" in said)
    found += ["control characters"] * (not said.replace("\n", " ").isprintable())
    found += ["a message that names no file"] * (
        CONFIG not in said and WEIGHTS not in said and "adapter_model" not in said
    )
    return found


def is_of_another_method(config: bytes) -> bool:
    with suppress(Exception):
        return json.loads(config)["peft_type"] in set(PeftType) - {"GATED_LORA"}
    return False


def other_weights(folder: Path, model: PeftModel, adapter: str) -> bool:
    """Whether an adapter is not what its file holds, or its file not what the config beside it says."""
    config, file = json.loads((folder / CONFIG).read_bytes()), folder / WEIGHTS
    record = config.get("provenance") or {}
    if "file_sha256" in record and record["file_sha256"] not in (None, hashlib.sha256(file.read_bytes()).hexdigest()):
        return True
    held, mine = load_file(file), get_peft_model_state_dict(model, adapter_name=adapter, save_embedding_layers=False)
    return mine.keys() - held.keys() != set() or not all(
        torch.equal(value, held[name].to(value.dtype)) and torch.isfinite(value).all() for name, value in mine.items()
    )


class Fuzzer:
    """Runs cases, each by its number alone."""

    def __init__(self, seed: int, folder: Path) -> None:
        self.seed, self.folder = seed, folder
        self.subjects = {name: fresh(name) for name in SUBJECTS}
        self.counts: Counter[str] = Counter()
        self.found: list[str] = []
        self.states: dict[int, list[Any]] = {}  # of what the last refusal left, as it is still now

    def case(self, number: int) -> list[str]:
        """What was bad about one case."""
        draw = random.Random(f"{self.seed} {number}")
        name = draw.choice(sorted(self.subjects))
        subject, way = self.subjects[name], draw.choice(WAYS)
        load = LOADERS[number % len(LOADERS)] if draw.random() < 0.97 else by_hotswap
        config, weights = way((subject.config, subject.weights), draw)
        if is_of_another_method(config):  # which is PEFT's affair, but for loraguard's own loaders
            load = draw.choice((by_load_patch, by_info, by_read_patch))
        (self.folder / CONFIG).write_bytes(config)
        (self.folder / WEIGHTS).write_bytes(weights)
        bad, said = self._load(subject, load), ""
        if bad:
            self.subjects[name] = fresh(name)
            said = traceback.format_exc() if sys.exc_info()[0] else ""
        self.counts.update(bad)
        self.found += [f"case {number}: {name}, {way.__name__}, {load.__name__}: {one} {said}" for one in bad]
        return bad

    def _load(self, subject: Subject, load: Callable[[Subject, Path], Loaded]) -> list[str]:
        models = models_of(subject, load)
        before, bad = [self.states.pop(id(one), None) or state_of(one) for one in models], []
        try:
            with patience():
                loaded = load(subject, self.folder)
        except Hang:
            return ["it hung"]
        except Exception as error:
            self.counts["refused"] += 1
            bad = wrong_message(error)
            if bad:
                self.found.append(f"{type(error).__name__}: {str(error)[:300]!r}")
            after = [state_of(one) for one in models]
            unchanged = after == before
            self.states = {id(one): state for one, state in zip(models, after, strict=True)}
        else:
            self.counts["taken"] += 1
            bad += ["other weights were taken"] * (loaded is not None and other_weights(self.folder, *loaded))
            if loaded is not None:
                take_off(subject, *loaded)
            unchanged = True
        bad += ["the model is not as it was"] * (not unchanged)
        base = {generator_fingerprint(one) for one in models_of(subject, load)}
        return bad + ["the base network changed"] * (not base <= {subject.fingerprint})


def take_off(subject: Subject, model: PeftModel, adapter: str) -> None:
    """Leave the networks without the adapter."""
    if model is subject.adapted:
        model.set_adapter("mine")
        model.delete_adapter(adapter)
        model.eval()
    else:
        subject.network = model.unload().eval()
        vars(subject.network).pop("peft_config", None)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int)
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        fuzzer = Fuzzer(given.seed, Path(folder))
        for number in range(given.cases) if given.only is None else [given.only]:
            fuzzer.case(number)
    for line in fuzzer.found:
        print(line)
    print(
        json.dumps(
            {**{name: fuzzer.counts[name] for name in BAD}, **{k: fuzzer.counts[k] for k in ("taken", "refused")}},
            indent=1,
        )
    )
    return int(any(fuzzer.counts[name] for name in BAD))


if __name__ == "__main__":
    sys.exit(main())
