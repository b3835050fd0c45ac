"""LEAT: linear encoders, in closed form, alone and as an ensemble."""

from __future__ import annotations

import pytest
import torch
from peft import get_peft_model
from torch import Tensor, nn

from loraguard import GatedLoraConfig, folded
from loraguard.channels import Quantize, Through
from loraguard.defenses import LEAT, Disrupting
from loraguard.generators import DemoEditor

EPS = 0.05


class Coder(nn.Module):
    """An encoder that scales each channel, and a decoder that gives zeros: only the latent can be disrupted."""

    latent_layer = "encoder"

    def __init__(self, *factors: float) -> None:
        super().__init__()
        self.encoder = nn.Conv2d(3, 3, 1, bias=False)
        self.encoder.weight = nn.Parameter(torch.diag(torch.tensor(factors))[:, :, None, None])
        self.decoded = 0

    def forward(self, images: Tensor, labels: Tensor | None = None) -> Tensor:
        latent = self.encoder(images)
        self.decoded += 1
        return 0 * latent


def test_the_latent_is_moved_as_far_as_it_can_be() -> None:
    photos, generator = torch.zeros(2, 3, 8, 8), Coder(0.5, 1.0, -3.0)
    defended = LEAT(EPS)(generator, photos, {})
    assert torch.allclose(defended.abs(), torch.full_like(photos, EPS))
    assert generator.decoded == 0  # the decoder is never run
    assert Disrupting(EPS, steps=30)(generator, photos, {}).abs().min() < 0.01


def test_the_condition_does_not_matter_where_the_encoder_does_not_see_it() -> None:
    photos, runs = torch.zeros(2, 3, 8, 8), []
    for labels in (torch.zeros(2, 1), torch.ones(2, 1)):
        torch.manual_seed(0)
        runs.append(LEAT(EPS, steps=3)(Coder(0.5, 1.0, -3.0), photos, {"labels": labels}))
    assert torch.equal(*runs)


def test_an_ensemble_adds_up_normalised_gradients() -> None:
    """Two encoders, one a thousand times the other; each sees channels that the other does not."""
    generators = Coder(1000.0, 1.0, 0.0), Coder(0.0, 1.0, 2.0)
    photos = torch.rand(2, 3, 4, 4)
    moved = photos + 0.01 * torch.randn_like(photos)
    defense = LEAT(also=((generators[1], {}),))
    terms = defense.terms(generators[0], photos, {}, None)
    point = moved.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(defense.objective(terms)(point), point)
    expected = torch.zeros_like(photos)
    for squares in ((1e6, 1.0, 0.0), (0.0, 1.0, 4.0)):
        by_hand = 2 * torch.tensor(squares)[:, None, None] * (moved - photos)
        expected += by_hand / by_hand.flatten(1).norm(dim=1)[:, None, None, None]
    assert torch.allclose(gradient, expected, rtol=1e-3, atol=1e-6)
    defended = LEAT(EPS, also=((generators[1], {}),))(generators[0], 0 * photos, {})
    assert torch.allclose(defended.abs(), torch.full_like(photos, EPS))


def test_a_condition_of_a_further_generator_serves_every_photo(editor: DemoEditor) -> None:
    photos, other = torch.zeros(3, 3, 16, 16), DemoEditor(conv_dim=4, num_blocks=1)
    alone = LEAT(steps=2)
    both = LEAT(steps=2, also=((other, {"labels": torch.eye(5)[:1]}),))
    runs = []
    for defense in (alone, both):
        torch.manual_seed(0)
        runs.append(defense(editor, photos, {"labels": torch.eye(5)[:3]}))
    assert not torch.equal(*runs)
    with pytest.raises(ValueError, match=r"'DemoEditor' has \{'labels': \(2, 5\)\}"):
        LEAT(also=((other, {"labels": torch.zeros(2, 5)}),))


def test_wrapped_generators(editor: DemoEditor) -> None:
    """PEFT, folded, behind a channel: the same perturbation as for the network itself with its patch merged."""
    patched = get_peft_model(editor, GatedLoraConfig(r=2, init_lora_weights="paper")).eval()
    photos, condition = torch.rand(2, 3, 16, 16) - 0.5, {"labels": torch.eye(5)[:2]}

    def defended(network: nn.Module, layer: str | None = None) -> Tensor:
        torch.manual_seed(0)
        return LEAT(steps=2, layer=layer)(network, photos, condition)

    with folded(patched):
        inside = defended(patched)
        behind = defended(Through(patched, Quantize(bits=16).differentiable()))
    named = defended(patched, layer="main.8")
    merged = defended(patched.merge_and_unload())
    for run in (inside, behind, named):
        assert (run != merged).float().mean() < 0.02  # but for signs of gradients that are next to zero


def test_a_generator_without_a_latent_says_so() -> None:
    with pytest.raises(ValueError, match=r"Conv2d has no `latent_layer`.* layer= or layers="):
        LEAT()(nn.Conv2d(3, 3, 1), torch.zeros(1, 3, 8, 8), {})
    network = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Tanh())
    assert LEAT(steps=1, layer="0")(network, torch.zeros(1, 3, 8, 8), {}).any()
