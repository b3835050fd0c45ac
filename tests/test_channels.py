"""Every channel against what it promises, and each against another library or a closed form."""

from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from loraguard.channels import JPEG
from loraguard.data import DemoFaces


@pytest.fixture(scope="module")
def drawn() -> Tensor:
    """Four faces of 64 pixels, as 8-bit photos."""
    faces = DemoFaces(4, split="test")
    return ((torch.stack([faces[i]["image"] for i in range(4)]) + 1) * 127.5).round() / 127.5 - 1


def pillow(image: Tensor) -> Image.Image:
    """A photo (3, H, W) in [-1, 1], rounded to 8 bits."""
    return Image.fromarray(((image.permute(1, 2, 0).double().numpy() + 1) * 127.5).round().astype(np.uint8))


def levels(photo: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(photo.convert("RGB"))).permute(2, 0, 1)


def reread(image: Tensor, **settings: object) -> Tensor:
    """What comes back from a file in memory, as bytes (3, H, W)."""
    file = BytesIO()
    pillow(image).save(file, **settings)
    return levels(Image.open(file))


def as_bytes(images: Tensor) -> Tensor:
    return ((images + 1) * 127.5).round().byte()


def decibels(images: Tensor, reference: Tensor) -> Tensor:
    return 10 * torch.log10(4 / (images - reference).square().flatten(1).mean(1))


@pytest.mark.parametrize("quality", [1, 30, 75, 100])
def test_jpeg_is_pillow_s_to_the_byte(quality: int, drawn: Tensor) -> None:
    for images in (drawn, drawn[:, :, :61, :37], drawn.double(), drawn.flip(-1)):
        sent = JPEG(quality)(images)
        for image, back in zip(images, as_bytes(sent), strict=True):
            assert torch.equal(back, reread(image, format="JPEG", quality=quality))


@pytest.mark.parametrize(("quality", "least"), [(10, 35), (50, 38), (75, 39), (95, 41)])
def test_differentiable_jpeg_is_close_to_the_codec(quality: int, least: float, drawn: Tensor) -> None:
    real, soft = JPEG(quality)(drawn), JPEG(quality).differentiable()(drawn)
    assert (decibels(soft, real) > least).all()
    assert (decibels(soft, real) > decibels(real, drawn) + 6).all()


def test_each_image_has_a_jpeg_quality_of_its_own(drawn: Tensor) -> None:
    """Every outcome is that of one quality in the range, and both ends of the range occur."""
    same = drawn[:1].expand(40, -1, -1, -1)
    for channel in (JPEG(90, 92), JPEG(90, 92).differentiable()):
        sent = channel(same)
        single = [type(channel)(quality)(drawn[:1])[0] for quality in (90, 91, 92)]
        found = [{i for i, one in enumerate(single) if torch.allclose(one, image, atol=1e-5)} for image in sent]
        assert set().union(*found) == {0, 1, 2}
        assert all(found)
