"""Reading marks (invisible watermarks): the message, how many bits agree, and how likely that is by chance."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from loraguard.channels.resize import bicubic

from .chance import chance_of_agreement
from .mark import Mark, as_number, as_read, bits_of, extractor_of, same_reader
from .network import CornerNetwork, MarkNetwork
from .placements import Placement, read_cropped, read_whole
from .words import Layout

_LARGEST = 8192
_MOST_PIXELS = 2**26
_AT_ONCE = 2**22
"""Pixels that an extractor of one's own is given at once: its features of large images may fill the memory."""


@dataclass(frozen=True)
class MarkReading:
    """What was read in one image.

    Attributes:
        found: whether the mark is there, at the reader's false-positive rate.
        message: that agrees best, in hexadecimal; None where none can be decoded or the word has none.
        agreeing: bits that agree with its word.
        bits: of a word.
        chance: the most that the probability of so good an agreement with an unmarked image can be
            (:func:`~loraguard.mark.chance_of_agreement`).
        cropped: what of height and width is taken to be left, and where it begins, in parts of the whole; None for
            the whole picture.
        size: pixels of the shorter side at which it was read, where the reader was given `sizes`; None for the size
            that the image has.
    """

    found: bool
    message: str | None
    agreeing: int
    bits: int
    chance: float
    cropped: Placement | None = None
    size: int | None = None


@dataclass
class MarkReader:
    """Reads marks from images of any size.

    Images are read as they are and, if no mark is found, with the shipped extractor once more at the place where they
    are likeliest to have stood in a larger picture; and each way at every one of `sizes`. All these readings share the
    false-positive rate.

    Without `messages` any message counts, so that all words there are may agree by chance: nearly all bits must. With
    them the word is known, and many bits may be wrong.

    Args:
        extractor: a name or a module, as :class:`Mark` takes it.
        messages: that may be there, as numbers or hexadecimal digits; or :class:`Mark` objects, whose extractor is this
            one. By default any.
        false_positive_rate: of reading a mark in an image that has none.
        crops: whether to look for cropped pictures.
        sizes: pixels of the shorter side that images may have had when they were made, beside the one they have.
            Extractors that do not stretch every image to one size, such as "corners", have to know it. What would have
            more than 2^26 pixels at a size is not brought to it.

    Raises:
        ValueError: for a message that does not fit, a mark of another extractor, a rate outside of (0, 1), or sizes
            for an extractor that needs none.

    Example:
        >>> from loraguard.channels import JPEG
        >>> from loraguard.data import DemoFaces
        >>> face = DemoFaces(1, split="test")[0]["image"][None]
        >>> reader = MarkReader(messages=["c0de"])
        >>> [(one.found, one.message) for one in reader(torch.cat([JPEG(75)(Mark("c0de").compose(face)), face]))]
        [(True, 'c0de'), (False, ...)]
    """

    extractor: str | nn.Module = "loraguard"
    messages: Sequence[int | str | Mark] | None = None
    false_positive_rate: float = 1e-6
    crops: bool = True
    sizes: Sequence[int] = ()
    _known: list[tuple[str | None, Tensor]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not 0 < self.false_positive_rate < 1:
            raise ValueError(f"false_positive_rate={self.false_positive_rate!r} must be above 0 and below 1.")
        for name, kinds in (("messages", (str, bytes, int, Mark)), ("sizes", (str, bytes, int))):
            if isinstance(given := getattr(self, name), kinds):
                raise ValueError(f"{name} must be a list, as in [{given!r:.100}].")
        self.network = extractor_of(self.extractor)
        self.bits = bits_of(self.network)
        if wrong := [size for size in self.sizes if type(size) is not int or not 1 <= size <= _LARGEST]:
            raise ValueError(f"sizes must be pixels of a side, from 1 to {_LARGEST}, got {wrong[0]!r}.")
        self.sizes = tuple(dict.fromkeys(self.sizes))  # one that is named twice costs no more chance
        if self.sizes and isinstance(self.network, MarkNetwork) and not isinstance(self.network, CornerNetwork):
            raise ValueError(f"sizes={self.sizes} are for extractors such as 'corners'; this one stretches all images.")
        self._known = [self._word(one) for one in self.messages or ()]
        if self.messages is not None and not self._known:
            raise ValueError("messages=[] leaves nothing to look for; give None for any message.")
        if self.messages is None:
            Layout(self.bits)  # says if words are too short for messages

    def _word(self, message: int | str | Mark) -> tuple[str | None, Tensor]:
        if isinstance(message, Mark):
            if len(message.carried) != self.bits:
                raise ValueError(f"{message!r:.200} is read by an extractor of other words than {self.bits} bits.")
            if not same_reader(message.network, self.network):
                theirs, this = (one if isinstance(one, str) else type(one).__name__
                                for one in (message.extractor, self.extractor))  # fmt: skip
                raise ValueError(f"{message!r:.200} is read by the extractor {theirs!r}, and this is {this!r}.")
            name = None if message.message is None else f"{as_number(message.message):x}"
            return name, _as_bits(message.carried)
        number = as_number(message)
        return f"{number:x}", _as_bits(Layout(self.bits).encode(number))

    @property
    def names(self) -> list[str] | None:
        """The messages that are looked for, in hexadecimal, or as "word" where a word has none; None for any."""
        return [name or "word" for name, _ in self._known] or None

    def __call__(self, images: Tensor | Iterable[Tensor]) -> list[MarkReading]:
        """Read images (N, 3, H, W) in [-1, 1], or any number of (3, H, W) that may have different sizes.

        Raises:
            ValueError: for anything else.
        """
        if isinstance(images, Tensor):
            images = as_read(images, self.network)
            return [self._read(image, logits) for image, logits in zip(images, self.logits(images), strict=True)]
        each = list(images)
        if others := [type(image).__name__ for image in each if not isinstance(image, Tensor)]:
            raise ValueError(f"A mark is read from tensors; loraguard.pixels.from_picture makes one, got {others[0]}.")
        return [reading for image in each for reading in self(image[None])]

    @torch.no_grad()
    def logits(self, images: Tensor) -> Tensor:
        """What is read of whole images (N, 3, H, W): (N, bits), above 0 for a 1."""
        network = self.network.to(images.device)
        images = as_read(images, network)
        if not len(images):
            return images.new_empty(0, self.bits)
        if isinstance(network, MarkNetwork):
            return read_whole(network, images)
        some = max(1, _AT_ONCE // images[0, 0].numel())
        return torch.cat([network(part) for part in images.split(some)])

    def _read(self, image: Tensor, logits: Tensor) -> MarkReading:
        readings = [self._reading(logits)]
        if readings[0].found:
            return readings[0]
        readings += [replace(self._reading(self.logits(one)[0]), size=size) for size, one in self._others(image)]
        if self._crops and not any(one.found for one in readings):
            readings.append(self._reading(*self.cropped(image[None])))
            readings += [replace(self._reading(*self.cropped(one)), size=size) for size, one in self._others(image)]
        return min(readings, key=lambda one: one.chance)

    def _others(self, image: Tensor) -> Iterator[tuple[int, Tensor]]:
        """An image (3, H, W) at those of `sizes` that it has not, one after another: large ones are not held together.

        One of 2^26 pixels takes 800 MB, and a line of one pixel by many would fill the memory.
        """
        shorter, longer = sorted(image.shape[-2:])
        for size in self.sizes:
            if size != shorter and size**2 * longer <= _MOST_PIXELS * shorter:
                yield size, bicubic(image[None], [round(side * size / shorter) for side in image.shape[-2:]])

    @torch.no_grad()
    def cropped(self, image: Tensor) -> tuple[Tensor, Placement]:
        """What is read of an image (1, 3, H, W) where it is likeliest to have stood in a larger one, and the place."""
        assert isinstance(self.network, MarkNetwork)
        return read_cropped(self.network.to(image.device), as_read(image, self.network))

    @property
    def _crops(self) -> bool:
        return self.crops and isinstance(self.network, MarkNetwork)

    def judge(self, whole: Tensor, cropped: Tensor | None = None, place: Placement | None = None) -> MarkReading:
        """What logits (bits,) of an image say, and those of it at a place in a larger one."""
        found = [self._reading(whole)]
        if cropped is not None:
            found.append(self._reading(cropped, place))
        return min(found, key=lambda one: one.chance)

    def _reading(self, logits: Tensor, cropped: Placement | None = None) -> MarkReading:
        """The best agreement of one row of logits with a known word, or with any."""
        read = (logits > 0).cpu()
        if self._known:
            agreeing, message = max(
                ((int((read == word).sum()), name) for name, word in self._known), key=lambda one: one[0]
            )
            words = len(self._known)
        else:
            layout = Layout(self.bits)
            decoded = layout.decode(read.int().tolist(), logits.abs().tolist())
            words, message, agreeing = 2**layout.message_bits, None, 0
            if decoded is not None:
                message = f"{decoded:x}"
                agreeing = int((read == _as_bits(layout.encode(decoded))).sum())
        looks = (1 + self._crops) * (1 + len(self.sizes))
        chance = chance_of_agreement(agreeing, self.bits, words, looks)
        return MarkReading(chance <= self.false_positive_rate, message, agreeing, self.bits, chance, cropped)


def _as_bits(word: Sequence[int]) -> Tensor:
    return torch.tensor(word, dtype=torch.bool, device="cpu")
