"""Words: what a mark (an invisible watermark) carries, made of a message, a version and what corrects errors.

Of a word of n bits the first four are the version of this layout. The rest holds symbols of four bits, at most fifteen:
a third of them the message's, the others those of a Reed-Solomon code over GF(16), by `reedsolo`. Bits that are left
over are zero. All of it is then added (exclusive or) to bits that look like coin flips and are the same for everybody,
so that no message's word is all alike. Two thirds for the code are many: they are what tells a word that was read
without knowing the message from chance (:func:`~loraguard.mark.chance_of_agreement`).

| n | message | corrects wrong symbols | or missing ones |
|---|---|---|---|
| 32 | 8 bits | 2 | 5 |
| 48 | 16 bits | 3 | 7 |
| 64 and more | 20 bits | 5 | 10 |
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

VERSION = 1
_VERSION_BITS, _SYMBOL, _MOST = 4, 4, 15
FEWEST_BITS = 16
"""Of a word: a message of one symbol, and two that correct it."""


@dataclass(frozen=True)
class Layout:
    """How a word of so many bits is made.

    Args:
        bits: of the word, at least 16.

    Raises:
        ValueError: for fewer bits.

    Example:
        >>> layout = Layout(48)
        >>> layout.message_bits, layout.parity
        (16, 7)
        >>> layout.decode(layout.encode(0xC0DE)) == 0xC0DE
        True
    """

    bits: int

    def __post_init__(self) -> None:
        if self.bits < FEWEST_BITS:
            raise ValueError(
                f"A word of {self.bits} bits is too short for a message with error correction: the extractor must read "
                f"at least {FEWEST_BITS}. Give the word itself, as Mark(word='0101...')."
            )

    @property
    def symbols(self) -> int:
        """Of four bits, message and code together."""
        return min(_MOST, (self.bits - _VERSION_BITS) // _SYMBOL)

    @property
    def parity(self) -> int:
        """Symbols of the code: it corrects half as many wrong ones, or as many missing ones."""
        return self.symbols - (self.symbols + 1) // 3

    @property
    def message_bits(self) -> int:
        """Of a message."""
        return _SYMBOL * (self.symbols - self.parity)

    def encode(self, message: int) -> tuple[int, ...]:
        """The word of a message: bits 0 and 1.

        Raises:
            ValueError: for a message that is negative or longer than `message_bits`.
            ImportError: where reedsolo is not installed.
        """
        if not 0 <= message < 2**self.message_bits:
            raise ValueError(
                f"The message {message:#x} does not fit: a word of {self.bits} bits carries {self.message_bits} bits, "
                f"from 0 to {2**self.message_bits - 1:#x}."
            )
        count = self.symbols - self.parity
        symbols = [(message >> _SYMBOL * i) & 15 for i in reversed(range(count))]
        coded = bytes(_code(self.symbols, self.parity).encode(bytearray(symbols)))
        plain = [*_bits(VERSION, _VERSION_BITS), *(bit for one in coded for bit in _bits(one, _SYMBOL))]
        return _scrambled(plain, self)

    def decode(self, word: Sequence[int], certainty: Sequence[float] | None = None) -> int | None:
        """The message whose word agrees with most of the bits that were read, of those that the code finds; or None.

        Args:
            word: bits as they were read, 0 and 1.
            certainty: of each bit, 0 or more; the code is also tried with the least certain symbols left out
                (Forney's generalised minimum distance decoding, 1966).

        Raises:
            ValueError: for a word of another length.
        """
        if len(word) != self.bits:
            raise ValueError(f"A word of {self.bits} bits was expected, got {len(word)}.")
        sure = [1.0] * self.bits if certainty is None else [abs(one) for one in certainty]
        found = dict.fromkeys(self._candidates(_plain(word, self), sure))
        agreeing = {one: sum(sure[i] for i, bit in enumerate(self.encode(one)) if bit == word[i]) for one in found}
        return max(agreeing, key=agreeing.__getitem__, default=None)

    def _candidates(self, plain: Sequence[int], sure: Sequence[float]) -> Iterator[int]:
        from reedsolo import ReedSolomonError

        places = range(_VERSION_BITS, _VERSION_BITS + _SYMBOL * self.symbols, _SYMBOL)
        symbols = bytearray(sum(plain[at + i] << (_SYMBOL - 1 - i) for i in range(_SYMBOL)) for at in places)
        least = [min(sure[at : at + _SYMBOL]) for at in places]
        order = sorted(range(self.symbols), key=least.__getitem__)
        for missing in range(self.parity + 1):
            try:
                decoded = _code(self.symbols, self.parity).decode(bytearray(symbols), erase_pos=order[:missing])[0]
            except ReedSolomonError:
                continue
            yield sum(one << _SYMBOL * i for i, one in enumerate(reversed(decoded)))


@lru_cache(maxsize=16)
def _code(symbols: int, parity: int) -> Any:
    try:
        from reedsolo import RSCodec
    except ImportError as error:
        raise ImportError(
            "Messages of marks need reedsolo for their error correction: pip install 'loraguard[marks]'."
        ) from error
    return RSCodec(parity, nsize=_MOST, c_exp=_SYMBOL)


def _bits(value: int, count: int) -> list[int]:
    return [(value >> i) & 1 for i in reversed(range(count))]


def _coin_flips(count: int) -> list[int]:
    stream = hashlib.shake_256(b"loraguard mark").digest((count + 7) // 8)
    return [byte >> i & 1 for byte in stream for i in range(8)][:count]


def _scrambled(plain: Sequence[int], layout: Layout) -> tuple[int, ...]:
    padded = [*plain, *[0] * (layout.bits - len(plain))]
    return tuple(bit ^ flip for bit, flip in zip(padded, _coin_flips(layout.bits), strict=True))


def _plain(word: Sequence[int], layout: Layout) -> tuple[int, ...]:
    return tuple(int(bit) ^ flip for bit, flip in zip(word, _coin_flips(layout.bits), strict=True))
