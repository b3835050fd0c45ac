"""The mark, an invisible watermark: which word outputs are to carry, and who reads it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from .extractors import load_extractor
from .network import MarkNetwork
from .registry import EXTRACTORS
from .words import Layout


@dataclass(frozen=True)
class Mark:
    """An invisible, machine-readable watermark: a message that a frozen network, the extractor, reads from images.

    Args:
        message: a whole number, or its hexadecimal digits; with the shipped extractor 16 bits, up to "ffff".
        extractor: a name of :data:`~loraguard.mark.EXTRACTORS`, "loraguard", "corners" (the same network, for marks in
            the corners of pictures of any size) or "rivagan" (32 bits, a public reader); a file, folder or id of the
            Hub (:func:`~loraguard.mark.load_extractor`); or a module of your own that turns images (N, 3, H, W) in
            [-1, 1] into logits (N, bits), differentiable.
        word: in place of a message, the extractor's bits themselves, as "0101..."; nothing is corrected then.
        psnr: of an image that :meth:`compose` marks, or of its marked corners, to the unmarked one, in dB, before
            clipping; only extractors that come with patterns take it.
        weight: of the bits' loss beside the distance to the target, when a patch is trained.

    Raises:
        ValueError: for a message that does not fit, a word of another length, an extractor that gives no bits, or a
            name that there is none of.
        ImportError: where the package that an extractor or the error correction needs is not installed.

    Example:
        >>> mark = Mark("c0de")
        >>> photos = torch.zeros(2, 3, 96, 128)
        >>> marked = mark.compose(photos)
        >>> bool((mark.logits(marked) > 0).eq(mark.target > 0).all()), float((marked - photos).square().mean()) < 0.0012
        (True, True)
    """

    message: int | str | None = None
    extractor: str | nn.Module = "loraguard"
    word: str | None = None
    psnr: float = 36.5
    weight: float = 0.015

    def __post_init__(self) -> None:
        if (self.message is None) == (self.word is None):
            raise ValueError(f"A mark is a message or a word; got message={self.message!r} and word={self.word!r}.")
        if not 20 <= self.psnr <= 60:
            raise ValueError(f"psnr={self.psnr!r} must be from 20 dB, which anybody sees, to 60.")
        if not 0 < self.weight < float("inf"):
            raise ValueError(f"weight={self.weight!r} must be above 0.")
        if not isinstance(self.extractor, (str, nn.Module)):
            raise TypeError(f"extractor must be a name or a module, got {type(self.extractor).__name__}.")
        bits = bits_of(self.network)
        if self.word is not None and (len(self.word) != bits or set(self.word) - set("01")):
            raise ValueError(f"word={self.word!r} must be the {bits} bits of this extractor, as '0101...'.")
        self.carried  # noqa: B018  # says whether the message fits

    @property
    def network(self) -> nn.Module:
        """The extractor, in evaluation mode."""
        return extractor_of(self.extractor)

    @property
    def carried(self) -> tuple[int, ...]:
        """The word: bits 0 and 1."""
        if self.word is not None:
            return tuple(int(bit) for bit in self.word)
        assert self.message is not None
        return Layout(bits_of(self.network)).encode(as_number(self.message))

    @property
    def target(self) -> Tensor:
        """The word as +1 and -1, (bits,)."""
        return torch.tensor(self.carried, device="cpu") * 2.0 - 1

    def logits(self, images: Tensor) -> Tensor:
        """What the extractor says of images (N, 3, H, W) in [-1, 1]: (N, bits), above 0 for a 1.

        Raises:
            ValueError: for anything else.
        """
        network = self.network.to(images.device)
        return network(as_read(images, network))

    @property
    def composes(self) -> bool:
        """Whether the extractor comes with something that writes marks onto images."""
        return isinstance(self.network, MarkNetwork) or hasattr(self.network, "write")

    def compose(self, images: Tensor) -> Tensor:
        """Mark images (N, 3, H, W) in [-1, 1]: by the extractor's pattern, or its own `write(images, word)`.

        Raises:
            TypeError: for an extractor that only reads.
            ValueError: for other images.
        """
        check_images(images)
        network = self.network.to(images.device)
        if isinstance(network, MarkNetwork):
            change = network.change(self.target[None].to(images), *images.shape[-2:])
            return (images + 2 * 10 ** (-self.psnr / 20) * change.to(images)).clamp(-1, 1)
        if not hasattr(network, "write"):
            raise TypeError(
                f"{type(network).__name__} reads marks and has no write(images, word): train a patch with it, which "
                "learns to write."
            )
        word = torch.tensor(self.carried, dtype=images.dtype, device=images.device)
        return network.write(images, word.expand(len(images), -1))  # type: ignore[operator]

    def settings(self) -> dict[str, Any]:
        """What a record needs to read it again, as JSON takes it; of an extractor that has no name, class and hash."""
        from loraguard.describing import describe

        named = isinstance(self.extractor, str) and self.extractor in EXTRACTORS
        return describe(self if named else replace(self, extractor=self.network))


def as_number(message: int | str) -> int:
    """A message as a number; texts are hexadecimal.

    Raises:
        ValueError: for a text of other characters.
    """
    if isinstance(message, int) and not isinstance(message, bool):
        return message
    try:
        return int(str(message), 16)
    except ValueError:
        raise ValueError(f"message={message!r} must be a whole number or hexadecimal digits, as in 'c0de'.") from None


def check_images(images: Tensor) -> None:
    """Check the shape and type that marks are put on and read from.

    Raises:
        ValueError: for anything but floating-point (N, 3, H, W) with pixels.
    """
    if images.ndim != 4 or images.shape[1] != 3 or not all(images.shape[-2:]):
        raise ValueError(f"Images with a mark have the shape (N, 3, H, W), got {tuple(images.shape)}.")
    if not images.is_floating_point():
        raise ValueError(
            f"Images with a mark are in [-1, 1], got {images.dtype}; of bytes, pixels.from_bytes makes some."
        )


def as_read(images: Tensor, network: nn.Module) -> Tensor:
    """Images, which are checked, in the precision of a network."""
    check_images(images)
    return images.to(next((one.dtype for one in network.parameters()), torch.float32))


def same_reader(one: nn.Module, other: nn.Module) -> bool:
    """Whether two extractors are of one class and have the same weights."""
    from loraguard.fingerprint import generator_fingerprint

    return one is other or (type(one) is type(other) and generator_fingerprint(one) == generator_fingerprint(other))


def extractor_of(extractor: str | nn.Module) -> nn.Module:
    """A module that reads marks, by its name, from a folder or the Hub, or as it is; in evaluation mode."""
    return load_extractor(extractor) if isinstance(extractor, str) else extractor.eval()


def bits_of(network: nn.Module) -> int:
    """How many bits an extractor reads: its attribute `bits`, or what it gives for an image of 256x256.

    Raises:
        ValueError: if it does not give a row of logits for each image, or reads images of another size alone.
    """
    if isinstance(bits := getattr(network, "bits", None), int):
        return bits
    parameter = next(network.parameters(), None)
    try:
        with torch.no_grad():
            found = network(torch.zeros(1, 3, 256, 256).to(parameter if parameter is not None else torch.zeros(1)))
    except RuntimeError as error:
        said = " ".join(str(error).split())[-100:]
        raise ValueError(
            f"{type(network).__name__} must read images of any size, and cannot read 256x256 (...{said}). Beside a "
            "TorchScript file, an extractor.json says its size."
        ) from error
    if not isinstance(found, Tensor) or found.ndim != 2 or len(found) != 1:
        shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        raise ValueError(f"{type(network).__name__} must turn images (N, 3, H, W) into logits (N, bits), got {shape}.")
    return found.shape[1]
