"""The CelebA autoencoders against their description, and with their published weights."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from weights_at_hand import weights

from loraguard.generators import CelebaVAE, load_generator, up_to

PUBLISHED = ("VAE", "betaB", "betaH", "btcvae", "factor")


def by_hand(state: dict[str, Tensor], x: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Means and images, from images, all in [0, 1], layer by layer as they are described."""
    deepest = ("conv_64",) if "encoder.conv_64.weight" in state else ()
    for name in ("conv1", "conv2", "conv3", *deepest):
        x = F.conv2d(x, state[f"encoder.{name}.weight"], state[f"encoder.{name}.bias"], stride=2, padding=1).relu()
    x = x.reshape(len(x), -1)
    for name in ("lin1", "lin2"):
        x = (x @ state[f"encoder.{name}.weight"].T + state[f"encoder.{name}.bias"]).relu()
    means = (x @ state["encoder.mu_logvar_gen.weight"].T + state["encoder.mu_logvar_gen.bias"])[:, 0::2]
    x = means + shift
    for name in ("lin1", "lin2", "lin3"):
        x = (x @ state[f"decoder.{name}.weight"].T + state[f"decoder.{name}.bias"]).relu()
    x = x.reshape(len(x), -1, 4, 4)
    for name in (*("convT_64" for _ in deepest), "convT1", "convT2", "convT3"):
        x = F.conv_transpose2d(x, state[f"decoder.{name}.weight"], state[f"decoder.{name}.bias"], stride=2, padding=1)
        x = x.sigmoid() if name == "convT3" else x.relu()
    return means, x


def test_the_official_size() -> None:
    network = CelebaVAE()
    assert sum(parameter.numel() for parameter in network.parameters()) == 504_055
    assert network.encoder.lin1.in_features == network.decoder.lin3.out_features == 512


@pytest.mark.parametrize("size", [32, 64])
def test_it_computes_what_is_described(scramble, size: int) -> None:
    network = scramble(CelebaVAE(**CelebaVAE.small, size=size)).double().eval()
    images = torch.rand(3, 3, size, size, dtype=torch.float64) * 2 - 1
    edits = network.conditions(torch.zeros(3, 0))
    assert list(edits) == ["latent_0", "latent_1", "latent_2"]
    with torch.no_grad():
        for i, edit in enumerate(edits.values()):
            shift = 2.5 * F.one_hot(torch.tensor(i), 3).double()
            means, outputs = by_hand(network.state_dict(), (images + 1) / 2, shift)
            torch.testing.assert_close(network(images, **edit), 2 * outputs - 1, rtol=0, atol=1e-10)
            latents = up_to(network, network.latent_layer)(images, **edit)
            torch.testing.assert_close(latents, means, rtol=0, atol=1e-10)
        assert torch.equal(network(images), network(images, shift=torch.zeros(3, 3)))
    assert outputs.std() > 0.05


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_weights(name: str) -> None:
    """Faces of random latents, which are nobody's, come back much as they were."""
    editor = load_generator("celeba_vae", weights(f"{name}_celeba.pt"))
    latents = torch.randn(8, 10, generator=torch.Generator().manual_seed(0))
    shift = editor.conditions(torch.zeros(8, 0))["latent_4"]["shift"]
    with torch.no_grad():
        faces = editor.decode(latents)
        state = {key: value.double() for key, value in editor.state_dict().items()}
        _, truth = by_hand(state, (faces.double() + 1) / 2, shift.double())
        torch.testing.assert_close(editor(faces, shift).double(), 2 * truth - 1, rtol=0, atol=1e-4)
        assert (editor(faces) - faces).square().mean() < 0.3 * (faces - faces.mean(0)).square().mean()


def test_a_photo_becomes_a_square(photo, as_tensor) -> None:
    truth = as_tensor(photo.resize((64, 64), Image.Resampling.LANCZOS))
    torch.testing.assert_close(CelebaVAE().transform()(photo).double(), truth, rtol=0, atol=1e-6)


def test_other_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="size=48 must be 32 or 64"):
        CelebaVAE(size=48)
    with pytest.raises(ValueError, match=r"Expected images \(N, 3, 64, 64\), got \(1, 3, 32, 32\)"):
        CelebaVAE(**CelebaVAE.small)(torch.zeros(1, 3, 32, 32))
