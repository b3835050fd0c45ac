"""Generators as far as a layer, wrapped in whatever they come in."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn

from loraguard import GatedLoraConfig, folded
from loraguard.channels import Quantize, Through
from loraguard.generators import AttGAN, CycleGAN, DemoEditor, HiSD, StarGAN, find_layer, up_to
from loraguard.generators.labels import append_labels

LABELS = torch.eye(5)[:2]
HISD = HiSD(
    encoder_channels=(4, 8), decoder_channels=(8, 4), extractor_channels=(4, 8), style_dim=4,
    translator_channels=(4, 4), mapper_pre_channels=(4,), mapper_post_channels=(4,), noise_dim=2,
)  # fmt: skip
GENERATORS: dict[str, tuple[nn.Module, dict[str, Tensor], Callable[..., Tensor]]] = {
    "demo": (
        DemoEditor(conv_dim=4, num_blocks=1),
        {"labels": LABELS},
        lambda g, x: g.main[:9](append_labels(x, LABELS, 5)),
    ),
    "stargan": (
        StarGAN(conv_dim=4, repeat_num=1),
        {"labels": LABELS},
        lambda g, x: g.main[:9](append_labels(x, LABELS, 5)),
    ),
    "attgan": (
        AttGAN(dim=4, layers=2).eval(),
        {"labels": torch.zeros(2, 13)},
        lambda g, x: nn.Sequential(*g.enc_layers)(x),
    ),
    "cyclegan": (CycleGAN(ngf=4, n_blocks=1), {}, lambda g, x: g.model[:10](x)),
    "hisd": (HISD, HISD.conditions(LABELS)["Bangs"], lambda g, x: g.encoder(x)),
}


@pytest.fixture
def images() -> Tensor:
    return torch.rand(2, 3, 16, 16) * 2 - 1


@pytest.mark.parametrize("name", GENERATORS)
def test_the_latent_is_what_the_encoder_gives(name: str, images: Tensor) -> None:
    generator, condition, by_hand = GENERATORS[name]
    latent = up_to(generator, generator.latent_layer)(images, **condition)
    assert torch.allclose(latent, by_hand(generator, images), atol=1e-4)
    assert latent.shape[-1] < 16


def test_the_published_layouts_have_their_latent_before_the_bottleneck() -> None:
    """In full size, where the official code's encoder ends; nothing is computed."""
    with torch.device("meta"):
        star, att, cycle = StarGAN(), AttGAN(), CycleGAN()
        assert star.main[6].stride == (2, 2)
        assert star.main[9] is find_layer(star, "main.9") is not find_layer(star, star.latent_layer)
        assert find_layer(star, star.latent_layer) is star.main[8]
        assert find_layer(att, att.latent_layer) is att.enc_layers[-1]
        assert find_layer(cycle, cycle.latent_layer) is cycle.model[9]


def test_wrapped_in_peft_folded_and_behind_a_channel(images: Tensor) -> None:
    editor = DemoEditor(conv_dim=4, num_blocks=1).eval()
    patched: PeftModel = get_peft_model(editor, GatedLoraConfig(r=2, init_lora_weights="paper")).eval()
    channel = Quantize(bits=4)

    def latent(network: nn.Module) -> Tensor:
        return up_to(network, network.latent_layer)(images, labels=LABELS)

    truth = editor.main[:9](append_labels(images, LABELS, 5))  # its layers are PEFT's by now
    behind = editor.main[:9](append_labels(channel(images), LABELS, 5))
    with patched.disable_adapter():
        untouched = latent(patched)
    assert torch.equal(untouched, editor_without_patch(editor, patched, images))
    assert (untouched - truth).abs().max() > 0.01
    with folded(patched):
        for network, expected in ((patched, truth), (Through(patched, channel), behind)):
            assert torch.allclose(latent(network), expected, atol=1e-4)
    assert torch.allclose(latent(Through(patched, channel)), behind, atol=1e-4)
    assert not any(module._forward_hooks for module in patched.modules())


def editor_without_patch(editor: DemoEditor, patched: PeftModel, images: Tensor) -> Tensor:
    with patched.disable_adapter():
        return editor.main[:9](append_labels(images, LABELS, 5))


def test_what_comes_after_is_not_run_and_in_place_layers_do_not_touch_it(images: Tensor) -> None:
    ran: list[str] = []

    class Watched(nn.Sequential):
        def forward(self, images: Tensor) -> Tensor:
            for name, layer in self.named_children():
                ran.append(name)
                images = layer(images)
            return images

    network = Watched(nn.Conv2d(3, 4, 1), nn.ReLU(inplace=True), nn.Conv2d(4, 3, 1))
    images.requires_grad_()
    features = up_to(network, "0")(images)
    assert torch.equal(features, network[0](images))
    assert (features < 0).any()
    assert ran == ["0"]
    assert torch.autograd.grad(features.sum(), images)[0].abs().min() > 0
    assert network(images).shape == images.shape  # whole again
    assert ran == ["0", "0", "1", "2"]


def test_no_handler_of_the_network_is_in_the_way(images: Tensor) -> None:
    class Stubborn(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Conv2d(3, 3, 1)

        def forward(self, images: Tensor) -> Tensor:
            try:
                return self.inner(images)
            except Exception:
                return images

    assert up_to(Stubborn(), "inner")(images).shape == images.shape


def test_names() -> None:
    editor = DemoEditor(conv_dim=4, num_blocks=1)
    patched = get_peft_model(editor, GatedLoraConfig(r=2))
    assert find_layer(patched, "main.0") is editor.main[0]  # not main.9.main.0
    assert find_layer(patched, "main.9.main.0") is editor.main[9].main[0]
    with pytest.raises(ValueError, match=r"no layer 'main\.88'.* Did you mean 'main\.8'\?"):
        find_layer(editor, "main.88")
    with pytest.raises(ValueError, match="no layer ''"):
        find_layer(editor, "")
    with pytest.raises(ValueError, match=r"may be any of enc_layers\.0\.layers\.0, .*; give the whole name"):
        find_layer(AttGAN(dim=4, layers=2), "layers.0")


def test_a_layer_that_is_never_reached_or_gives_no_tensor(images: Tensor) -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.unused, self.pair = nn.ReLU(), nn.RNN(16, 4, batch_first=True)

        def forward(self, images: Tensor) -> Tensor:
            return self.pair(images[:, 0])[0]

    with pytest.raises(ValueError, match="Odd does not come to the layer 'unused'"):
        up_to(Odd(), "unused")(images)
    with pytest.raises(TypeError, match="'pair' gives tuple"):
        up_to(Odd(), "pair")(images)
