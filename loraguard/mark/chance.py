"""How likely an image that was never marked agrees with a mark as well as one that was read.

For a word of n bits that was drawn at random, the number of bits that agree with what is read from *any one image* is
binomial, Bin(n, 1/2), however biased and dependent the reader's bits are: the word's bits are the coin flips. So

    P(at least k of n agree) = sum over i from k to n of C(n, i) / 2^n.

Where the message is not known beforehand, any of M words may agree, and with t places tried, t times as many
(union bound): M t P.
"""

from __future__ import annotations

from math import comb


def chance_of_agreement(agreeing: int, bits: int, words: int = 1, tries: float = 1) -> float:
    """The most that the probability of so good an agreement with an unmarked image can be.

    Args:
        agreeing: bits that agree, k.
        bits: of a word, n.
        words: that were looked for, M.
        tries: that were made, t; or one over the share of the rate that this try is given.

    Returns:
        A probability, at most 1; the sum is computed in whole numbers.

    Raises:
        ValueError: for more agreeing bits than there are.

    Example:
        >>> chance_of_agreement(48, 48) == 2**-48, chance_of_agreement(0, 48)
        (True, 1.0)
    """
    if not 0 <= agreeing <= bits:
        raise ValueError(f"{agreeing} of {bits} bits cannot agree.")
    return min(1.0, tries * words * (sum(comb(bits, i) for i in range(agreeing, bits + 1)) / 2**bits))


def fewest_agreeing(bits: int, rate: float, words: int = 1, tries: float = 1) -> int | None:
    """How many bits must agree for a false-positive rate, or None where not even all of them are enough.

    Example:
        >>> fewest_agreeing(48, 1e-6), fewest_agreeing(16, 1e-6)
        (41, None)
    """
    enough = (k for k in range(bits + 1) if chance_of_agreement(k, bits, words, tries) <= rate)
    return next(enough, None)
