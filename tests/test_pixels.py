"""Bytes and [-1, 1]: exact on all 256 levels, one formula, and nowhere a second one."""

from __future__ import annotations

import ast
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import Compose, Normalize, ToTensor

from loraguard.channels import quantize
from loraguard.pixels import LEVELS_PER_UNIT, from_bytes, from_picture, to_bytes, to_picture
from loraguard.training.validation import draw_grid

HOUSE = Path(__file__).parents[1]
ALL = torch.arange(256, dtype=torch.uint8)
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture
def greys() -> Image.Image:
    """A picture of all levels, another one in each channel of a pixel."""
    channels = [np.roll(np.arange(256, dtype=np.uint8), k) for k in (0, 85, 170)]
    return Image.fromarray(np.stack(channels, -1).reshape(8, 32, 3))


@pytest.mark.parametrize("dtype", DTYPES)
def test_all_levels_come_back(dtype: torch.dtype) -> None:
    images = from_bytes(ALL, dtype)
    assert images.dtype == dtype
    assert torch.equal(to_bytes(images), ALL)


@pytest.mark.parametrize("dtype", DTYPES)
def test_levels_are_those_of_exact_arithmetic(dtype: torch.dtype) -> None:
    """To half of what separates the numbers of a format around 1, and of float32 around 2, in which it is computed."""
    error = Fraction(torch.finfo(dtype).eps) / 4 + Fraction(torch.finfo(torch.promote_types(dtype, torch.float32)).eps)
    for level, value in enumerate(from_bytes(ALL, dtype).tolist()):
        assert abs(Fraction(value) - (Fraction(2 * level, 255) - 1)) <= error


@pytest.mark.parametrize("dtype", DTYPES)
def test_between_levels_the_nearest_is_taken(dtype: torch.dtype) -> None:
    """0.4 of a level to either side, as far as the format can tell that from a whole one."""
    grid = torch.arange(256, dtype=torch.float64)[:, None] + torch.tensor([-0.4, -0.2, 0.2, 0.4])
    images = (grid / 127.5 - 1).to(dtype)
    exact = [[round((Fraction(value) + 1) * 255 / 2) for value in row] for row in images.tolist()]
    assert to_bytes(images).tolist() == [[min(max(level, 0), 255) for level in row] for row in exact]
    if dtype.itemsize >= 4:
        assert torch.equal(to_bytes(images), ALL[:, None].expand(-1, 4))


def test_what_is_outside_becomes_black_and_white() -> None:
    images = torch.tensor([-1.0001, -3e38, float("-inf"), 1.0001, 3e38, float("inf")])
    assert to_bytes(images).tolist() == [0, 0, 0, 255, 255, 255]


def test_what_has_no_level_is_refused() -> None:
    with pytest.raises(ValueError, match="2 of 4 values are not a number"):
        to_bytes(torch.tensor([0.5, float("nan"), 0.0, float("nan")]))


@pytest.mark.parametrize("images", [torch.tensor([1, 2]), ALL, torch.tensor([True])])
def test_bytes_are_not_made_bytes_once_more(images: torch.Tensor) -> None:
    with pytest.raises(TypeError, match=rf"floating-point images in \[-1, 1\], got {images.dtype}"):
        to_bytes(images)


@pytest.mark.parametrize("pixels", [torch.zeros(3), torch.zeros(3, dtype=torch.int64)])
def test_only_bytes_are_read_as_bytes(pixels: torch.Tensor) -> None:
    with pytest.raises(TypeError, match=f"torch.uint8, got {pixels.dtype}"):
        from_bytes(pixels)


def test_gradients_and_inputs_are_left_alone() -> None:
    images = torch.full((1, 3, 2, 2), 0.3, requires_grad=True)
    assert not to_bytes(images).requires_grad
    assert (images == 0.3).all()
    assert to_bytes(torch.empty(0, 3, 4, 4)).shape == (0, 3, 4, 4)


def test_it_is_what_channels_round_to() -> None:
    """And so the photo that an audit sees is the one that a file holds."""
    images = torch.rand(2, 3, 32, 32) * 2.2 - 1.1
    assert torch.equal(from_bytes(to_bytes(images)), quantize(images))


def test_pictures_are_what_torchvision_reads(greys: Image.Image) -> None:
    """Bit by bit, so that photos are the same as when torchvision's transforms read them."""
    found = from_picture(greys)
    assert torch.equal(found, Compose([ToTensor(), Normalize([0.5] * 3, [0.5] * 3)])(greys))
    assert found.is_contiguous()


@pytest.mark.parametrize("dtype", DTYPES)
def test_pictures_come_back(dtype: torch.dtype, greys: Image.Image) -> None:
    assert to_picture(from_picture(greys).to(dtype)).tobytes() == greys.tobytes()


def test_pictures_of_other_modes_and_images_of_other_shapes() -> None:
    assert torch.equal(from_picture(Image.new("L", (5, 4), 255)), torch.ones(3, 4, 5))
    grey = torch.linspace(-1, 1, 20).reshape(1, 4, 5)
    assert to_picture(grey).tobytes() == to_picture(grey.expand(3, -1, -1)).tobytes()
    for shape in ((1, 3, 4, 4), (4, 4, 3), (4, 4)):
        with pytest.raises(ValueError, match=r"an image \(3, H, W\), or \(1, H, W\) in grey, got"):
            to_picture(torch.zeros(shape))


def test_validation_draws_what_is_no_number() -> None:
    """A training that went astray is to be seen, not to die of its own picture."""
    shown = torch.stack([torch.full((1, 3, 4, 4), value) for value in (float("nan"), float("inf"), -0.2)])
    pixels = np.asarray(draw_grid(shown))
    assert pixels.shape == (3 * 6 + 2, 6 + 2, 3)
    assert [int(pixels[2 + 6 * row, 2, 0]) for row in range(3)] == [0, 255, 102]
    assert (pixels[:2] == 255).all()


def test_a_distance_in_levels() -> None:
    steps = from_bytes(ALL, torch.float64).diff() * LEVELS_PER_UNIT
    assert steps.tolist() == pytest.approx([1.0] * 255)


# Nowhere else.

ELSEWHERE = {
    "loraguard/kinds.py": 1,  # budgets such as "16/255", which commands read before anything imports torch
    "loraguard/stamp/stamp.py": 2,  # opacity, which is on [0, 1]
}
"""Files that scale by the range of bytes for something that is no image in [-1, 1], and how often."""


def by_hand(code: str) -> list[str]:
    """Expressions that scale by the range of bytes, and what other libraries do it with."""
    found = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Mult, ast.Div)):
            bytelike = {getattr(side, "value", None) for side in (node.left, node.right)} & {127.5, 255}
        else:
            name = getattr(node, "attr", getattr(node, "id", getattr(node, "name", None)))
            bytelike = {name} & {"ToTensor", "to_tensor", "pil_to_tensor", "to_pil_image", "save_image", "img_as_ubyte"}
        if bytelike:
            found.append(ast.unparse(node))
    return found


def test_the_search_finds_what_it_is_for() -> None:
    lines = (
        "((image + 1) * 127.5).round()", "x.float() / 255", "255. * x", "x / 127.5 - 1", "to_pil_image(x)",
        "transforms.ToTensor()", "from torchvision.utils import save_image",
    )  # fmt: skip
    assert all(by_hand(line) for line in lines)
    assert not any(by_hand(line) for line in ("f'{eps} is x / 127.5'", "x % 256", "(255, 0, 0)", "x * 1.275"))


def test_nowhere_else_is_it_done_by_hand() -> None:
    folders = ("loraguard", "examples", "benchmarks", "docs")
    files = [file for folder in folders for file in (HOUSE / folder).rglob("*.py")]
    assert len(files) > 150
    found = {file.relative_to(HOUSE).as_posix(): by_hand(file.read_text(encoding="utf-8")) for file in files}
    assert {file: len(lines) for file, lines in found.items() if lines} == ELSEWHERE, found
