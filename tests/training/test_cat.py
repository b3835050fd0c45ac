"""CAT's loss and training against its formula."""

from __future__ import annotations

import pytest
import torch
from peft import get_peft_model
from torch import Tensor, nn

from loraguard import GatedLoraConfig
from loraguard.generators import TAEF2, DemoDiffusion
from loraguard.training.cat import cat_config, cat_loss, train_cat


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


@pytest.mark.parametrize("adapt", ["encoder", "decoder", "encoder+decoder"])
def test_training_brings_protected_photos_back(adapt: str) -> None:
    """As near as two latents for three colours can: the best encoder for a decoder V leaves what V cannot say."""
    torch.manual_seed(0)
    network, photos = Tied(), torch.rand(4, 3, 8, 8) - 0.5
    before = cat_loss(network, photos).item()
    model = get_peft_model(network, cat_config(network, r=2, adapt=adapt))
    reached = {name.split(".")[2] for name, p in model.named_parameters() if p.requires_grad}
    assert reached == set(adapt.split("+"))
    losses = train_cat(model, photos, steps=300, learning_rate=2e-2, disable_tqdm=True)
    assert losses[0] == pytest.approx(before, rel=1e-4)
    with torch.no_grad():
        assert cat_loss(model, photos) < 0.8 * before


def test_the_denoiser_has_no_part_in_it() -> None:
    editor = DemoDiffusion(**DemoDiffusion.small)
    model = get_peft_model(editor, cat_config(editor, r=2))
    assert not any("denoiser" in name for name, p in model.named_parameters() if p.requires_grad)
    cat_loss(model, torch.zeros(1, 3, 16, 16)).backward()
    with pytest.raises(ValueError, match="Identity has no encode and decode"):
        cat_loss(nn.Identity(), torch.zeros(1, 3, 8, 8))
    with pytest.raises(ValueError, match="Nothing in this model is to be learnt"):
        train_cat(TAEF2(**TAEF2.small).requires_grad_(False), torch.zeros(1, 3, 16, 16), steps=1)
