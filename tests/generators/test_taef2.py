"""TAEF2 against its description, and with its published weights."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from skimage.data import astronaut
from torch import Tensor
from torch.nn import functional as F
from weights_at_hand import weights

from loraguard.generators import TAEF2, load_generator, up_to
from loraguard.pixels import from_picture

DECODER_BLOCKS = {3: True, 4: True, 5: True, 8: False, 9: False, 10: False, 13: False, 14: False, 15: False, 18: False}
"""By their place, and whether there are 1x1 convolutions first."""


def block(state: dict[str, Tensor], x: Tensor, name: str) -> Tensor:
    if f"{name}.pool.0.weight" in state:
        pooled = F.conv2d(x, state[f"{name}.pool.0.weight"])
        pooled = F.group_norm(pooled, 4, state[f"{name}.pool.1.weight"], state[f"{name}.pool.1.bias"])
        x = x + F.conv2d(F.relu(pooled), state[f"{name}.pool.3.weight"])
    y = x
    for i in (0, 2, 4):
        y = F.conv2d(F.relu(y) if i else y, state[f"{name}.conv.{i}.weight"], state[f"{name}.conv.{i}.bias"], padding=1)
    return F.relu(x + y)


def encoded(state: dict[str, Tensor], images: Tensor) -> Tensor:
    """Images in [0, 1] to latents, layer by layer as they are described."""
    x = block(state, F.conv2d(images, state["encoder.0.weight"], state["encoder.0.bias"], padding=1), "encoder.1")
    for stage in (2, 6, 10):
        x = F.conv2d(x, state[f"encoder.{stage}.weight"], stride=2, padding=1)
        for i in range(stage + 1, stage + 4):
            x = block(state, x, f"encoder.{i}")
    return F.conv2d(x, state["encoder.14.weight"], state["encoder.14.bias"], padding=1)


def decoded(state: dict[str, Tensor], latents: Tensor) -> Tensor:
    """Latents to images in [0, 1], or a little beyond."""
    x = F.relu(F.conv2d(3 * torch.tanh(latents / 3), state["decoder.1.weight"], state["decoder.1.bias"], padding=1))
    for i in range(3, 19):
        if i in DECODER_BLOCKS:
            x = block(state, x, f"decoder.{i}")
        elif i in (7, 12, 17):
            x = x.repeat_interleave(2, 2).repeat_interleave(2, 3)
            x = F.conv2d(x, state[f"decoder.{i}.weight"], padding=1)
    return F.conv2d(x, state["decoder.19.weight"], state["decoder.19.bias"], padding=1)


def test_the_official_tensors() -> None:
    with torch.device("meta"):
        network = TAEF2()
    state = network.state_dict()
    assert sum(parameter.numel() for parameter in network.parameters()) == 2_677_027
    pooled = {name.rpartition(".pool")[0] for name in state if ".pool." in name}
    assert pooled == {f"encoder.{i}" for i in (11, 12, 13)} | {f"decoder.{i}" for i in (3, 4, 5)}


def test_it_computes_what_is_described(scramble) -> None:
    network = scramble(TAEF2(**TAEF2.small)).double().eval()
    images = torch.rand(2, 3, 24, 16, dtype=torch.float64) * 2 - 1
    with torch.no_grad():
        latents = encoded(network.state_dict(), (images + 1) / 2)
        outputs = 2 * decoded(network.state_dict(), latents) - 1
        torch.testing.assert_close(up_to(network, network.latent_layer)(images), latents, rtol=0, atol=1e-10)
        torch.testing.assert_close(network(images), outputs.clamp(-1, 1), rtol=0, atol=1e-10)
    assert latents.shape == (2, 2, 3, 2)
    assert outputs.std() > 0.05


def test_two_files_as_they_are_published(scramble, tmp_path, caplog) -> None:
    network = scramble(TAEF2(**TAEF2.small)).eval()
    for half in ("encoder", "decoder"):
        torch.save(getattr(network, half).half().state_dict(), tmp_path / f"taef2_{half}.pth")
    network.float()
    for half in ("encoder", "decoder"):
        caplog.clear()
        loaded = load_generator("taef2", tmp_path / f"taef2_{half}.pth")
        (said,) = caplog.messages  # they are published in half precision
        assert said.startswith(f"{tmp_path / f'taef2_{half}.pth'}: weights in float16 are read as float32")
        assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in network.state_dict().items())
    (tmp_path / "taef2_encoder.pth").unlink()
    with pytest.raises(FileNotFoundError, match=r"taef2_encoder\.pth"):
        TAEF2.from_checkpoint(tmp_path / "taef2_decoder.pth")


def test_the_published_weights_on_a_photo() -> None:
    """The round trip of a photo comes back as itself, and as the description computes it."""
    network = TAEF2.from_checkpoint(weights("taef2_encoder.pth"))
    photo = from_picture(Image.fromarray(astronaut()).resize((64, 64)))[None]
    with torch.no_grad():
        state = {name: value.double() for name, value in network.state_dict().items()}
        truth = (2 * decoded(state, encoded(state, (photo.double() + 1) / 2)) - 1).clamp(-1, 1)
        outputs = network(photo)
    # About 40 layers deep in float32: errors of sums of 576 products, of relative size 1e-6, hardly grow beyond 1e-4.
    torch.testing.assert_close(outputs.double(), truth, rtol=0, atol=1e-3)
    assert (outputs - photo).square().mean() < 0.1 * photo.var()  # at 64 pixels, next to nothing is smooth


def test_a_photo_becomes_the_middle_square() -> None:
    photo = Image.fromarray(astronaut()[:300])
    truth = from_picture(photo.crop((106, 0, 406, 300)).resize((64, 64), Image.Resampling.BILINEAR))
    torch.testing.assert_close(TAEF2(**TAEF2.small, size=64).transform()(photo), truth, rtol=0, atol=0)
