"""Hashes of weights against hashlib by hand, and what they do and do not depend on."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import nn

from loraguard import GatedLoraConfig
from loraguard.fingerprint import digest, fingerprint, generator_fingerprint


class Network(nn.Module):
    """Layers of several kinds, and names that look like PEFT's."""

    def __init__(self) -> None:
        super().__init__()
        self.main = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ConvTranspose2d(4, 3, 3))
        self.lora_like = nn.Linear(2, 2)
        self.head = nn.Linear(2, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.main(images)


def test_by_hand() -> None:
    value = torch.tensor([[1.0, -2.0]])
    text = b"a torch.float32 (1, 2)\n" + value.numpy().tobytes() + b"b torch.int64 ()\n" + (7).to_bytes(8, "little")
    assert digest({"b": torch.tensor(7), "a": value}) == hashlib.sha256(text).hexdigest()


@pytest.mark.parametrize("adapter", ["default", "main", "0", "head"])
@pytest.mark.parametrize(
    "config",
    [GatedLoraConfig(r=2), GatedLoraConfig(r=2, gate_type="input"), LoraConfig(r=2, target_modules=["lora_like"])],
    ids=["scalar", "input", "lora"],
)
def test_adapters_do_not_count(adapter: str, config: LoraConfig) -> None:
    network = Network()
    before = generator_fingerprint(network)
    model = get_peft_model(network, config, adapter_name=adapter)
    assert generator_fingerprint(model) == generator_fingerprint(network) == before
    model.add_adapter("second", GatedLoraConfig(r=1) if isinstance(config, GatedLoraConfig) else config)
    assert generator_fingerprint(model) == before
    assert fingerprint(model).keys() == {"generator", adapter, "second"}


def test_copies_of_modules_to_save_do_not_count() -> None:
    network = Network()
    before = generator_fingerprint(network)
    model = get_peft_model(network, GatedLoraConfig(r=2, modules_to_save=["head"]))
    patch = fingerprint(model)["default"]
    with torch.no_grad():
        model.get_base_model().head.modules_to_save["default"].weight.add_(1)
    assert generator_fingerprint(model) == before
    assert fingerprint(model)["default"] != patch


def test_what_counts() -> None:
    network = Network()
    seen = [generator_fingerprint(network)]

    def differs() -> bool:
        seen.append(generator_fingerprint(network))
        return len(set(seen)) == len(seen)

    network.train()
    network.main[1].num_batches_tracked += 1
    network.requires_grad_(False)
    assert not differs()
    seen.pop()
    network.main[1].running_mean.add_(1)
    assert differs()
    network.head.weight.data[0, 0].nextafter_(torch.tensor(9.0))
    assert differs()
    network.main[0].weight.data = network.main[0].weight.data.flip(0)
    assert differs()
    network.bfloat16()
    assert differs()


def test_a_merged_patch_counts() -> None:
    network = Network()
    model = get_peft_model(network, GatedLoraConfig(r=2, init_lora_weights="paper"))
    before = generator_fingerprint(model)
    model.merge_adapter()
    assert generator_fingerprint(model) != before


def test_a_patch_and_its_file(patched: PeftModel, tmp_path: Path) -> None:
    patched.save_pretrained(tmp_path)
    assert digest(load_file(tmp_path / "adapter_model.safetensors")) == fingerprint(patched)["default"]
