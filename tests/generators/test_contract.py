"""What holds for every published generator: checkpoints, folders, adapters and patches."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel, get_peft_model
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset

from loraguard import GatedLoraConfig, PatchTrainer, PatchTrainingArguments, Stamp
from loraguard.defenses import Disrupting
from loraguard.generators import GENERATORS, PublishedGenerator, conditions_of, expand
from loraguard.training import patch_step


@cache
def side_of(cls: type[PublishedGenerator]) -> int:
    return max(16, cls(**cls.small).size_multiple)


@dataclass
class Case:
    """A published generator, small: what its class says is all there is to it, so that a new one adds nothing here."""

    cls: type[PublishedGenerator]

    @property
    def key(self) -> str | None:
        """Under which the official code saves the state dict."""
        return next(iter(self.cls.checkpoint_keys), None)

    def build(self) -> PublishedGenerator:
        return self.cls(**self.cls.small)

    def images(self) -> Tensor:
        side = side_of(self.cls)
        return torch.rand(2, 3, side, side) * 2 - 1

    def labels(self) -> Tensor | None:
        """As a data set has them; (2, 0) where edits are made from none."""
        names = self.cls.attributes
        return torch.rand(2, len(names)).round() if names or hasattr(self.cls, "conditions") else None


PUBLISHED = {
    target: Case(GENERATORS[name])
    for name, target in GENERATORS.ours.items()
    if issubclass(GENERATORS[name], PublishedGenerator)
    and GENERATORS[name]._hub_mixin_info.repo_url  # the demo's own networks have none
}
TRAINABLE = {
    ("stargan", 8): 352_874,
    ("stargan", 16): 705_730,
    ("attgan", 8): 598_562,
    ("attgan", 16): 1_197_114,
}
"""With the settings of arXiv 2510.03747, by generator and rank."""

WRITTEN = {
    "plain": lambda state, key: state,
    "official": lambda state, key: {key: state, "epoch": 3} if key else state,
    "parallel": lambda state, key: {f"module.{name}": value for name, value in state.items()},
    "compiled": lambda state, key: {f"_orig_mod.{name}": value for name, value in state.items()},
    "compiled in parallel": lambda state, key: {f"module._orig_mod.{name}": value for name, value in state.items()},
    "inside compiled": lambda state, key: {name.replace(".", "._orig_mod.", 1): v for name, v in state.items()},
    "state_dict": lambda state, key: {"state_dict": state, "epoch": 3},
    "lightning": lambda state, key: {
        "state_dict": {**{f"generator.{n}": v for n, v in state.items()}, "critic.weight": torch.zeros(3)},
        "pytorch-lightning_version": "2.0",
    },
    "deep": lambda state, key: {"models": {"net_g": {"params": state}}, "iteration": 7},
    "averaged": lambda state, key: {"n_averaged": torch.tensor(3), **{f"module.{n}": v for n, v in state.items()}},
    "twice the same": lambda state, key: {"model": state, "ema": {n: v.clone() for n, v in state.items()}},
    "beside a discriminator": lambda state, key: {"g": state, "d": nn.Conv2d(3, 8, 4).state_dict()},
    "beside an optimizer": lambda state, key: {"net": state, "opt": {"state": {0: {"step": torch.tensor(1.0)}}}},
    "profiled": lambda state, key: {**state, "total_ops": torch.zeros(1), "main.0.total_params": torch.zeros(1)},
    "beside figures": lambda state, key: {
        "model": state, "loss": np.float64(0.1), "best": np.arange(3), "opt": argparse.Namespace(lr=1), "at": Path("x"),
    },
    "uncounted": lambda state, key: {n: v for n, v in state.items() if not n.endswith("num_batches_tracked")},
}  # fmt: skip
"""The ways in which a state dict gets into a file."""


@pytest.fixture(params=PUBLISHED, ids=lambda target: target.rpartition(":")[2])
def case(request) -> Case:
    case = PUBLISHED[request.param]
    assert case.cls.small, "tests need the settings of a small network"
    return case


@pytest.fixture
def generator(case, scramble) -> PublishedGenerator:
    return scramble(case.build()).eval()


def outputs(network: nn.Module, images: Tensor, labels: Tensor | None) -> Tensor:
    """Images with every edit."""
    with torch.no_grad():
        return torch.stack([network(images, **edit) for edit in conditions_of(network, labels).values()])


def same(one: nn.Module, other: nn.Module, case: Case, *, but: str = "num_batches_tracked") -> None:
    """Both have the same tensors and give the same images."""
    torch.manual_seed(1)
    images, labels = case.images(), case.labels()
    assert torch.equal(outputs(one, images, labels), outputs(other, images, labels))
    same_tensors(one, other, but=but)


def same_tensors(one: nn.Module, other: nn.Module, *, but: str = "num_batches_tracked") -> None:
    mine, theirs = one.state_dict(), other.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine if not name.endswith(but))


EVERYWHERE = {
    "plain": "",
    "official": "",
    "lightning": "weights are read under 'state_dict', names without 'generator.'.",
    "compiled": "weights are read from the whole file, names without '_orig_mod.'.",
    "deep": "weights are read under 'params' in 'net_g' in 'models'.",
}
"""Ways that go through what a class says of its files, and what is said of those that are not the official ones."""
WITH_COUNTERS = PUBLISHED[GENERATORS.ours["attgan"]]
"""One whose norms count batches, for what does not depend on the class."""


def test_an_official_checkpoint(case, generator, tmp_path, caplog) -> None:
    """Read without a draw; a reading that is not the official one is said in a line."""
    for form, words in EVERYWHERE.items():
        caplog.clear()
        torch.save(WRITTEN[form](generator.state_dict(), case.key), tmp_path / "x.pth")
        before = torch.get_rng_state()
        loaded = case.cls.from_checkpoint(tmp_path / "x.pth")
        assert torch.equal(before, torch.get_rng_state())
        assert not loaded.training
        assert loaded.config == generator.config
        same_tensors(loaded, generator)
        assert len(caplog.messages) == bool(words)
        assert words in caplog.text
    same(loaded, generator, case)


@pytest.mark.parametrize("form", [form for form in WRITTEN if form not in EVERYWHERE])
def test_a_checkpoint_written_otherwise(scramble, tmp_path, form: str) -> None:
    """Which is for all classes the same code, that knows a class by the names of its tensors alone."""
    case = WITH_COUNTERS
    generator = scramble(case.build()).eval()
    torch.save(WRITTEN[form](generator.state_dict(), case.key), tmp_path / "official.pth")
    same(case.cls.from_checkpoint(tmp_path / "official.pth"), generator, case)


@pytest.mark.parametrize("name", ["attgan", "taef2"])  # the class' own way, and one that comes before it
def test_of_several_that_fit_one_is_chosen_by_its_key(name: str, scramble, tmp_path) -> None:
    case = PUBLISHED[GENERATORS.ours[name]]
    generator, other = (scramble(case.build()).eval() for _ in range(2))
    torch.save({"g": generator.state_dict(), "g_ema": other.state_dict()}, tmp_path / "both.pt")
    with pytest.raises(ValueError, match=r"both\.pt holds 2 state dicts .*: under 'g'; under 'g_ema'\. .*key="):
        case.cls.from_checkpoint(tmp_path / "both.pt")
    same(case.cls.from_checkpoint(tmp_path / "both.pt", key="g_ema"), other, case)
    with pytest.raises(ValueError, match="has no key 'G_ema'; it has 'g', 'g_ema'"):
        case.cls.from_checkpoint(tmp_path / "both.pt", key="G_ema")


def test_a_checkpoint_in_safetensors(case, generator, tmp_path) -> None:
    save_file(generator.state_dict(), tmp_path / "official.safetensors")
    same(case.cls.from_checkpoint(tmp_path / "official.safetensors"), generator, case, but="nothing")


def test_a_wrong_checkpoint(case, generator, tmp_path) -> None:
    state = generator.state_dict()
    last = [name for name in state if state[name].ndim == 4][-1]
    wrong = {
        "missing.pth": {name: value for name, value in state.items() if name != last},
        "shape.pth": {**state, last: state[last][:, :, 1:]},
        "further.pth": {**state, "further.weight": torch.zeros(1)},
        "nan.pth": {**state, last: state[last] * torch.nan},
        "other.pth": nn.Linear(2, 2).state_dict(),
    }
    for name, tensors in wrong.items():
        inside = {"state_dict": {f"net.{n}": v for n, v in tensors.items()}}
        for written in (tensors, inside) if name in ("shape.pth", "other.pth") else (tensors,):
            torch.save(written, tmp_path / name)
            with pytest.raises(ValueError, match=rf"{name} does not fit {case.cls.__name__}\. ") as caught:
                case.cls.from_checkpoint(tmp_path / name)
            assert len(str(caught.value)) <= 600
            culprit = {"missing.pth": f"Missing: {last}", "shape.pth": f"shape: {last}", "nan.pth": f"finite: {last}",
                       "further.pth": "Left over: further.weight"}.get(name, "")  # fmt: skip
            assert culprit in str(caught.value)


def test_a_folder(case, generator, tmp_path) -> None:
    generator.save_pretrained(tmp_path)
    loaded = case.cls.from_pretrained(str(tmp_path))
    assert not loaded.training
    same(loaded, generator, case, but="nothing")
    assert json.dumps(loaded.config, sort_keys=True) == json.dumps(generator.config, sort_keys=True)
    assert loaded.attributes == generator.attributes
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert f"\nlicense: {case.cls._hub_mixin_info.model_card_data.license}\n" in card
    assert all(f"\n- {tag}\n" in card for tag in case.cls.model_tags)
    assert (case.cls._hub_mixin_info.paper_url or case.cls._hub_mixin_info.repo_url) in card


def test_preprocessing_has_the_size_that_was_asked_for(case) -> None:
    transform = case.cls(**{**case.cls.small, "size": 64}).transform()
    for colour, value in (("white", 1.0), ("black", -1.0)):
        image = transform(Image.new("RGB", (178, 218), colour))
        assert torch.equal(image, torch.full((3, 64, 64), value))


def test_edits_are_named_and_differ(case, generator) -> None:
    images, labels = case.images(), case.labels()
    edits = conditions_of(generator, labels)
    results = outputs(generator, images, labels)
    assert results.shape == (len(edits), *images.shape)
    bounded = any(isinstance(layer, nn.Tanh) for layer in generator.modules())
    assert not bounded or results.abs().max() <= 1
    assert len({result.numpy().tobytes() for result in results}) == len(edits)


def adapted(generator: PublishedGenerator) -> PeftModel:
    return get_peft_model(
        generator, GatedLoraConfig(r=2, init_lora_weights="paper", exclude_modules=generator.unseeing)
    )


def test_an_adapter_is_trained_merged_saved_and_loaded(case, generator, tmp_path) -> None:
    torch.manual_seed(1)
    images, labels = case.images(), case.labels()
    every_image, condition = expand(images, conditions_of(generator, labels))
    hosts = {name: tensor.clone() for name, tensor in generator.state_dict().items()}
    untouched = outputs(generator, images, labels)
    model = adapted(generator).train()
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 1e-2)
    adversary = Disrupting(steps=2)
    patch_step(model, every_image, condition, adversary=adversary, stamp=None, loss=F.mse_loss)
    optimizer.step()
    assert all(not torch.equal(p, before[name]) for name, p in model.named_parameters() if name in before)
    kept = {name: tensor for name, tensor in model.state_dict().items() if "lora_" not in name}
    assert len(kept) == len(hosts)
    assert all(torch.equal(a, b) for a, b in zip(kept.values(), hosts.values(), strict=True))

    patched = outputs(model.eval(), images, labels)
    assert (patched - untouched).abs().max() > 0.01
    model.save_pretrained(tmp_path)
    fresh = case.build().eval()
    fresh.load_state_dict(hosts)
    loaded = PeftModel.from_pretrained(fresh, tmp_path)
    torch.testing.assert_close(outputs(loaded, images, labels), patched, rtol=1e-4, atol=1e-4)
    merged = model.merge_and_unload()
    assert merged.state_dict().keys() == hosts.keys()
    torch.testing.assert_close(outputs(merged, images, labels), patched, rtol=1e-4, atol=1e-4)


def test_train_and_eval_mode_are_the_same_to_an_adapter(case, generator) -> None:
    """The norms' statistics are the host's in both, and stay as they are."""
    model = adapted(generator).eval()
    images, labels = case.images(), case.labels()
    buffers = {name: tensor.clone() for name, tensor in model.named_buffers()}
    evaluated = outputs(model, images, labels)
    torch.testing.assert_close(outputs(model.train(), images, labels), evaluated, rtol=1e-3, atol=1e-3)
    assert all(torch.equal(tensor, buffers[name]) for name, tensor in model.named_buffers())


@pytest.mark.parametrize(("name", "r"), TRAINABLE)
def test_trainable_parameters_as_in_the_paper(name: str, r: int) -> None:
    with torch.device("meta"):
        model = get_peft_model(GENERATORS[name](), GatedLoraConfig(r=r))
    assert model.get_nb_trainable_parameters()[0] == TRAINABLE[name, r]


class Photos(Dataset):
    """Four images, with labels if the generator needs them."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.images, self.labels = (torch.cat([make(), make()]) for make in (case.images, self._rows))

    def _rows(self) -> Tensor:
        labels = self.case.labels()
        return torch.zeros(2, 0) if labels is None else labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"image": self.images[index], "labels": self.labels[index]}


def test_a_patch_is_trained(case, generator, tmp_path) -> None:
    """A defensive one, whose stamp has to go onto outputs of that size; steps of a standard one are above."""
    arguments = PatchTrainingArguments(
        tmp_path, stamp=Stamp("AI"), adversary=Disrupting(steps=2), max_train_steps=2, train_batch_size=2, cpu=True,
        disable_tqdm=True,
    )  # fmt: skip
    model = adapted(generator)
    result = PatchTrainer(model, Photos(case), arguments).train()
    assert [entry["step"] for entry in result.log] == [1, 2]
    images, labels = case.images(), case.labels()
    fresh = case.build().eval()
    fresh.load_state_dict(model.unload().state_dict())
    loaded = PeftModel.from_pretrained(fresh, result.output_dir)
    assert outputs(loaded, images, labels).isfinite().all()
    assert case.cls.__name__ in (tmp_path / "README.md").read_text(encoding="utf-8")
