"""Words of marks: the code against its promise, and chances against scipy and against coin flips."""

from __future__ import annotations

import random

import pytest
from scipy.stats import binom

from loraguard.mark.chance import chance_of_agreement, fewest_agreeing
from loraguard.mark.words import Layout


@pytest.mark.parametrize(("bits", "message_bits"), [(16, 4), (32, 8), (48, 16), (64, 20), (100, 20)])
def test_every_message_of_a_layout_comes_back(bits: int, message_bits: int) -> None:
    layout, draws = Layout(bits), random.Random(0)
    assert layout.message_bits == message_bits
    for message in (0, 2**message_bits - 1, *(draws.getrandbits(message_bits) for _ in range(20))):
        word = layout.encode(message)
        assert len(word) == bits
        assert set(word) <= {0, 1}
        assert layout.decode(word) == message


@pytest.mark.parametrize("bits", [32, 48, 64])
def test_as_many_symbols_are_corrected_as_a_reed_solomon_code_can(bits: int) -> None:
    """Half as many wrong ones as the code has symbols, each with a wrong bit, wherever they are."""
    layout, draws = Layout(bits), random.Random(1)
    for _ in range(20):
        message = draws.getrandbits(layout.message_bits)
        word = list(layout.encode(message))
        for symbol in draws.sample(range(layout.symbols), layout.parity // 2):
            word[4 + 4 * symbol + draws.randrange(4)] ^= 1
        assert layout.decode(word) == message


@pytest.mark.parametrize("bits", [32, 48, 64])
def test_more_are_where_they_are_known_to_be_uncertain(bits: int) -> None:
    layout, draws = Layout(bits), random.Random(2)
    for _ in range(20):
        message = draws.getrandbits(layout.message_bits)
        word, sure = list(layout.encode(message)), [1.0] * bits
        for symbol in draws.sample(range(layout.symbols), layout.parity // 2 + 1):  # one more than unaided
            at = 4 + 4 * symbol + draws.randrange(4)
            word[at] ^= 1
            sure[at] = 0.1
        assert layout.decode(word, sure) == message


def test_words_of_two_messages_are_far_apart() -> None:
    """In symbols by one more than the code has (it is maximum distance separable), so in bits by at least as much."""
    layout, draws = Layout(48), random.Random(3)
    words = [layout.encode(draws.getrandbits(16)) for _ in range(60)]
    distances = [
        sum(a[i : i + 4] != b[i : i + 4] for i in range(4, 48, 4)) for i, a in enumerate(words) for b in words[:i]
    ]
    assert min(distances) >= layout.parity + 1


def test_a_word_has_about_as_many_ones_as_zeros() -> None:
    assert 12 <= sum(Layout(48).encode(0)) <= 36


@pytest.mark.parametrize(("message", "said"), [(-1, "does not fit"), (2**16, "carries 16 bits")])
def test_a_message_that_does_not_fit(message: int, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Layout(48).encode(message)


def test_a_word_that_is_too_short() -> None:
    with pytest.raises(ValueError, match="at least 16"):
        Layout(12)
    with pytest.raises(ValueError, match="48 bits was expected, got 47"):
        Layout(48).decode([0] * 47)


@pytest.mark.parametrize("bits", [16, 48, 100])
def test_the_chance_is_the_binomial_tail(bits: int) -> None:
    """Two ways to add up at most a hundred terms in double precision."""
    for k in range(bits + 1):
        assert chance_of_agreement(k, bits) == pytest.approx(binom.sf(k - 1, bits, 0.5), rel=1e-10)


def test_the_chance_of_several_words_and_tries() -> None:
    assert chance_of_agreement(48, 48, words=2**24, tries=64) == 2**-18
    assert chance_of_agreement(24, 48, words=2**24) == 1
    with pytest.raises(ValueError, match="49 of 48"):
        chance_of_agreement(49, 48)


def test_the_fewest_that_agree_at_a_rate() -> None:
    fewest = fewest_agreeing(48, 1e-6)
    assert fewest is not None
    assert binom.sf(fewest - 1, 48, 0.5) <= 1e-6 < binom.sf(fewest - 2, 48, 0.5)
