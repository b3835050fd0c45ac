"""CAT's loss and training against its formula."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from torch import Tensor, nn

from loraguard import GatedLoraConfig, PatchTrainer, PatchTrainingArguments, Stamp
from loraguard.generators import DemoDiffusion
from loraguard.training import adapter_config
from loraguard.training.cat import cat_loss


class Tied(nn.Module):
    """D(E(x)) = B A x on one pixel's colours."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Conv2d(3, 2, 1, bias=False), nn.Conv2d(2, 3, 1, bias=False)

    def encode(self, images: Tensor) -> Tensor:
        return self.encoder(images)

    def decode(self, latents: Tensor) -> Tensor:
        return self.decoder(latents)

    def forward(self, images: Tensor) -> Tensor:
        return self.decode(self.encode(images))


def test_the_loss_and_its_gradient_written_out() -> None:
    """With U = W + s B A for the encoder's weight, dL/dB = 2 s / n sum over pixels of V'(V U x - x) (A x)'."""
    torch.manual_seed(0)
    network, photos = Tied().double(), torch.rand(2, 3, 4, 4).double() - 0.5
    config = GatedLoraConfig(r=1, lora_alpha=1, use_rslora=False, gate_type="none", target_modules=["encoder"],
                             init_lora_weights="paper")  # fmt: skip
    model = get_peft_model(network, config).double()
    loss = cat_loss(model, photos)
    loss.backward()
    layer = model.base_model.model.encoder
    a, b = layer.lora_A["default"].weight.flatten(1).detach(), layer.lora_B["default"].weight.flatten(1)
    w, v = layer.get_base_layer().weight.flatten(1).detach(), network.decoder.weight.flatten(1).detach()
    x = photos.permute(1, 0, 2, 3).flatten(1)
    error = v @ (w + b.detach() @ a) @ x - x
    torch.testing.assert_close(loss.detach(), error.square().mean())
    by_hand = 2 / error.numel() * v.T @ error @ (a @ x).T
    torch.testing.assert_close(layer.lora_B["default"].weight.grad.flatten(1), by_hand)


def test_the_recipe_takes_these_steps_and_brings_protected_photos_back(tmp_path: Path) -> None:
    """Each of the first steps is Adam's on the loss's gradient, on the sampler's batch, at the cosine's rate."""
    torch.manual_seed(0)
    network, photos = Tied(), torch.rand(4, 3, 8, 8) - 0.5
    before = cat_loss(network, photos).item()
    args = PatchTrainingArguments(tmp_path, recipe="cat", max_train_steps=150, learning_rate=2e-2, cpu=True,
                                  disable_tqdm=True)  # fmt: skip
    model = get_peft_model(network, adapter_config(network, args, r=2))
    by_hand = copy.deepcopy(model)
    log = PatchTrainer(model, photos, args).train().log
    assert [set(entry) for entry in log] == [
        {"step", "loss_adversarial", "gradient_norm", "learning_rate", "gate_mean"}
    ] * 150
    assert log[0]["loss_adversarial"] == pytest.approx(before, rel=1e-4)
    with torch.no_grad():
        assert cat_loss(model, photos) < 0.8 * before
    adam = torch.optim.Adam([p for p in by_hand.parameters() if p.requires_grad], 2e-2, betas=(0.5, 0.999))
    for step in range(3):  # all four photos are a batch, in whatever order
        adam.param_groups[0]["lr"] = 1e-2 * (1 + math.cos(math.pi * step / 150))
        loss = cat_loss(by_hand, photos)
        assert log[step]["loss_adversarial"] == pytest.approx(loss.item(), rel=1e-4)
        adam.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(by_hand.parameters(), 1.0)
        adam.step()


def test_the_adapter_is_the_papers() -> None:
    """Plain LoRA on the autoencoder alone; alpha is the rank, 128."""
    editor = DemoDiffusion(**DemoDiffusion.small)
    args = PatchTrainingArguments("unused", recipe="cat")
    assert (args.learning_rate, args.lr_scheduler, args.max_grad_norm) == (1e-4, "cosine", 1.0)
    config = adapter_config(editor, args)
    assert (config.r, config.lora_alpha, config.gate_type) == (128, 128, "none")
    assert adapter_config(editor, args, 4, "scalar").gate_type == "scalar"
    model = get_peft_model(editor, adapter_config(editor, args, r=2))
    learns = {name.split(".")[2] for name, p in model.named_parameters() if p.requires_grad}
    assert learns == {"encoder", "decoder"}
    cat_loss(model, torch.zeros(1, 3, 16, 16)).backward()


def test_what_it_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="takes no stamp and no mark"):
        PatchTrainingArguments(tmp_path, recipe="cat", stamp=Stamp("AI"))
    args = PatchTrainingArguments(tmp_path, recipe="cat", cpu=True)
    with pytest.raises(ValueError, match="Conv2d has no encode and decode: CAT trains an autoencoder"):
        adapter_config(nn.Conv2d(3, 3, 1), args)
    bare = get_peft_model(nn.Sequential(nn.Conv2d(3, 3, 1)), GatedLoraConfig(r=1))
    with pytest.raises(ValueError, match="Sequential has no encode and decode"):
        PatchTrainer(bare, torch.zeros(1, 3, 8, 8), args)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="CAT's training runs in one process"):
        PatchTrainer(get_peft_model(Tied(), adapter_config(Tied(), args, r=1)), torch.zeros(1, 3, 8, 8), args)
