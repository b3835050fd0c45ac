"""Reading one photo: values computed by hand for every kind of file, and one error for all that can be wrong."""

import io
import pickle
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from loraguard.data import ImageReadError, default_transform, read_image
from loraguard.data.reading import probe_image
from loraguard.data.transforms import size_needed


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def first_pixel(content: bytes) -> tuple[int, ...]:
    image = read_image(content)
    assert image.mode == "RGB"
    return image.getpixel((0, 0))


def test_path_bytes_and_image_give_the_same(tmp_path: Path) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8))
    noise.save(tmp_path / "noise.png")
    sources = (tmp_path / "noise.png", str(tmp_path / "noise.png"), (tmp_path / "noise.png").read_bytes(), noise)
    for source in sources:
        assert read_image(source).tobytes() == noise.tobytes()


def test_greyscale_palette_and_bilevel() -> None:
    assert first_pixel(encoded(Image.new("L", (4, 4), 77), "PNG")) == (77, 77, 77)
    assert first_pixel(encoded(Image.new("1", (4, 4), 1), "PNG")) == (255, 255, 255)
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([9, 9, 9, 200, 10, 30])
    assert first_pixel(encoded(palette, "PNG")) == (200, 10, 30)


def test_16_bits_are_scaled_and_not_clipped() -> None:
    levels = np.array([[0, 257, 1000, 32768, 65535]], dtype=np.uint16)
    for kind in ("PNG", "TIFF"):
        image = read_image(encoded(Image.fromarray(levels), kind))
        assert np.asarray(image)[0, :, 0].tolist() == [0, 1, 4, 128, 255], kind  # round(value * 255 / 65535)
    with pytest.raises(ImageReadError, match=r"32-bit greyscale .mode F."):
        read_image(encoded(Image.new("F", (4, 4), 0.5), "TIFF"))


def test_transparency_is_laid_on_white() -> None:
    """Alpha 51 is a fifth: 0.2 * colour + 0.8 * 255."""
    assert first_pixel(encoded(Image.new("RGBA", (4, 4), (255, 0, 100, 51)), "PNG")) == (255, 204, 224)
    assert first_pixel(encoded(Image.new("LA", (4, 4), (0, 51)), "PNG")) == (204, 204, 204)
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([9, 9, 9, 200, 10, 30])
    assert first_pixel(encoded(palette, "PNG", transparency=1)) == (255, 255, 255)
    assert first_pixel(encoded(Image.new("RGB", (4, 4), (1, 2, 3)), "PNG", transparency=(1, 2, 3))) == (255, 255, 255)


def test_cmyk() -> None:
    """Full yellow and nothing else: no blue."""
    red, green, blue = first_pixel(encoded(Image.new("CMYK", (16, 16), (0, 0, 255, 0)), "JPEG", quality=100))
    assert min(red, green) > 250
    assert blue < 5


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_comes_out_upright(orientation: int, kind: str) -> None:
    """By the standard, the first row and column of what is stored lie at these sides of the upright photo."""
    sides = {
        1: ("top", "left"), 2: ("top", "right"), 3: ("bottom", "right"), 4: ("bottom", "left"),
        5: ("left", "top"), 6: ("right", "top"), 7: ("right", "bottom"), 8: ("left", "bottom"),
    }  # fmt: skip
    upright = np.zeros((24, 16, 3), dtype=np.uint8)
    upright[:12, :8], upright[:12, 8:], upright[12:, :8] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    row, column = sides[orientation]
    stored = upright if row in ("top", "bottom") else upright.transpose(1, 0, 2)
    stored = stored[::-1] if row in ("bottom", "right") else stored
    stored = stored[:, ::-1] if column in ("right", "bottom") else stored
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 95, "subsampling": 0} if kind == "JPEG" else {}
    result = read_image(encoded(Image.fromarray(np.ascontiguousarray(stored)), kind, exif=exif, **options))
    assert result.size == (16, 24)
    assert np.abs(np.asarray(result).astype(int) - upright).mean() < 2


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_frame_of_an_animation(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ((250, 0, 0), (0, 0, 250))]
    red, _, blue = first_pixel(encoded(frames[0], kind, save_all=True, append_images=frames[1:]))
    assert red > 240
    assert blue < 10


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"])
def test_cut_short(kind: str) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    whole = encoded(noise, kind)
    read_image(whole)
    for share in (0.6, 0.01):
        with pytest.raises(ImageReadError):
            read_image(whole[: int(len(whole) * share)])


def test_damaged_inside() -> None:
    whole = bytearray(encoded(Image.effect_noise((64, 64), 50), "PNG"))
    whole[len(whole) // 2] ^= 0xFF
    with pytest.raises(ImageReadError):
        read_image(bytes(whole))


def test_no_image_at_all(tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("an image, honestly")
    with pytest.raises(ImageReadError, match=r"text.jpg cannot be read: not a whole image of AVIF, .*JPEG"):
        read_image(tmp_path / "text.jpg")
    (tmp_path / "empty.png").touch()
    with pytest.raises(ImageReadError, match="it is empty"):
        read_image(tmp_path / "empty.png")
    with pytest.raises(ImageReadError, match="there is no such file") as caught:
        read_image(tmp_path / "gone.png")
    assert caught.value.path == str(tmp_path / "gone.png")
    assert caught.value.reason == "there is no such file"
    with pytest.raises(ImageReadError, match="directory"):
        read_image(tmp_path)


def test_content_counts_and_not_the_suffix(tmp_path: Path) -> None:
    (tmp_path / "png.jpg").write_bytes(encoded(Image.new("RGB", (4, 4), (1, 2, 3)), "PNG"))
    assert read_image(tmp_path / "png.jpg").getpixel((0, 0)) == (1, 2, 3)


def test_postscript_is_not_run() -> None:
    with pytest.raises(ImageReadError, match="not a whole image"):
        read_image(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")


def bomb(width: int, height: int) -> bytes:
    """A PNG of few bytes that says that it is large."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")
    )


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [10_000, 60_000])
def test_decompression_bombs(side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ImageReadError, match="more than 89,478,485 pixels"):
        read_image(bomb(side, side))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ImageReadError, match="more than 100 pixels"):
        read_image(Image.new("RGB", (11, 10)))


def test_too_small() -> None:
    image = Image.new("RGB", (40, 20))
    assert read_image(image, min_size=20).size == (40, 20)
    with pytest.raises(ImageReadError, match="40 x 20 pixels, and the shorter side must have at least 21"):
        read_image(image, min_size=21)


def test_probing_looks_at_the_head_alone() -> None:
    whole = encoded(Image.effect_noise((64, 64), 50), "PNG")
    assert probe_image(whole[: len(whole) // 2]) is None
    with pytest.raises(ImageReadError, match="not a whole image"):
        probe_image(b"text")
    with pytest.raises(ImageReadError, match="at least 65"):
        probe_image(whole, min_size=65)


def test_the_error_survives_another_process() -> None:
    error = pickle.loads(pickle.dumps(ImageReadError("a.jpg", "it is empty")))
    assert str(error) == "a.jpg cannot be read: it is empty."


def test_default_transform() -> None:
    """A left half of 0 and a right half of 255: squeezed to 16 pixels, cropped in the middle, on [-1, 1]."""
    pixels = np.zeros((32, 64, 3), dtype=np.uint8)
    pixels[:, 32:] = 255
    result = default_transform(16)(Image.fromarray(pixels))
    assert result.shape == (3, 16, 16)
    assert result.dtype == torch.float32
    assert (result[:, :, :6] == -1).all()
    assert (result[:, :, 10:] == 1).all()
    assert torch.allclose(result, -result.flip(2), atol=0.02)
    # A chessboard of single pixels averages to grey with antialiasing, and stays black or white without.
    board = Image.fromarray((np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)).convert("RGB")
    assert default_transform(16)(board)[:, 2:-2, 2:-2].abs().max() < 0.05
    assert default_transform(16)(Image.new("RGB", (5, 4))).shape == (3, 16, 16)
    with pytest.raises(ValueError, match="at least 1 pixel, got 0"):
        default_transform(0)


def test_the_size_that_a_transform_needs() -> None:
    from torchvision.transforms import CenterCrop, Compose, RandomCrop, Resize, ToTensor, v2

    assert size_needed(Compose([CenterCrop((170, 178)), Resize(128), ToTensor()])) == 178
    assert size_needed(v2.Compose([v2.RandomCrop(64)])) == 64
    assert size_needed(RandomCrop(32)) == 32
    assert size_needed(Compose([Resize(128), CenterCrop(128)])) == 1
    assert size_needed(v2.Compose([v2.RandomResizedCrop(128), v2.CenterCrop(128)])) == 1
    assert size_needed(lambda image: torch.zeros(3, 8, 8)) == 1

    def stating(image: Image.Image) -> torch.Tensor:
        return torch.zeros(3, 8, 8)

    stating.min_size = 50  # type: ignore[attr-defined]
    assert size_needed(stating) == 50
