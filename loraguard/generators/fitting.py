"""From what lies in a checkpoint to the one network that it is of."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn

from .checkpoint import Reading, load_strictly, misfit, readings, say_half

if TYPE_CHECKING:
    from .published import PublishedGenerator

T = TypeVar("T", bound="PublishedGenerator")

_logger = logging.getLogger(__name__)
_DISCRIMINATOR = re.compile(r"(?:^|[-_.])(?:D|netD|dis|discriminator)(?:[-_.]|$)|_net_D")
_LONGEST = 600


def network_from(cls: type[T], content: Any, source: str, settings: Mapping[str, Any], key: str | None = None) -> T:
    """The network whose state dict is in a file's content, in evaluation mode.

    Args:
        cls: the class of the network.
        content: as :func:`~loraguard.generators.checkpoint.read_checkpoint` gives it.
        source: the file, for messages.
        settings: of the class, beside those that shapes determine.
        key: of the dict to look into; everywhere by default.

    Raises:
        ValueError: if no reading fits, or several that differ do.
    """
    if key is not None:
        if not isinstance(content, Mapping) or key not in content:
            there = ", ".join(map(repr, content)) if isinstance(content, Mapping) else type(content).__name__
            raise ValueError(f"{source} has no key {key!r}; it has {there:.300}.")
        content = {key: content[key]}
    first = (key,) if key is not None else cls.checkpoint_keys
    found, attempts, bare = list[_Attempt](), list[_Attempt](), dict[str, nn.Module]()
    for reading in readings(content, first):
        official = not reading.prefix and not reading.wrappers and (not reading.keys or reading.keys == first[:1])
        if not official and not cls.settings_from(cls.without_relics(reading.state)) and reading.prefix:
            continue  # names of parts of the network
        attempt = _Attempt(cls, reading, settings, bare)
        attempts.append(attempt)
        if attempt.fits:
            if official:
                return attempt.loaded(source)
            if not any(_same(attempt.state, other.state) for other in found):
                found.append(attempt)
    if len(found) == 1:
        _logger.warning("%s: weights are read %s.", source, _where(found[0].reading))
        return found[0].loaded(source)
    if found:
        several = "; ".join(one.reading.words for one in found[:4])
        raise ValueError(
            f"{source} holds {len(found)} state dicts that fit {cls.__name__}: {several}. Say which: "
            "from_checkpoint(path, key=...) in Python, or save that one to a file of its own."
        )
    raise ValueError(_refusal(cls, content, source, attempts)[:_LONGEST])


class _Attempt:
    """Whether one reading is a network's, and what keeps it from that. No weights are made to find out.

    Args:
        cls: the class of the network.
        reading: of the file.
        settings: of the class, beside those that shapes determine.
        bare: networks without weights by their settings, for all readings of a file.
    """

    def __init__(self, cls: type[T], reading: Reading, settings: Mapping[str, Any], bare: dict[str, nn.Module]) -> None:
        self.reading, self.state = reading, dict(cls.without_relics(reading.state))
        self.unusable = self.complaint = ""
        given = {**cls.settings_from(self.state), **settings}
        self._make = partial(cls, **given)
        try:
            if repr(given) not in bare:
                with torch.device("meta"):
                    bare[repr(given)] = self._make()
            self.complaint = misfit(bare[repr(given)], self.state) or ""
        except ValueError as error:
            self.unusable = str(error)
        self.fits = not (self.unusable or self.complaint)

    def loaded(self, source: str) -> Any:
        """The network, in evaluation mode; what is in half precision in the file is said."""
        say_half(source, (tensor.dtype for tensor in self.state.values()))
        with torch.random.fork_rng(devices=[]):  # initial weights are drawn, then overwritten
            network = self._make()
        load_strictly(network, self.state)
        return network.eval()


def _where(reading: Reading) -> str:
    return reading.words if reading.keys else f"from {reading.words}"


def _same(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def _refusal(cls: type[T], content: Any, source: str, attempts: list[_Attempt]) -> str:
    """Why nothing in a file is the network's: it holds no tensors, another network, or one with something amiss."""
    if not attempts:
        inside = f"a {type(content).__name__}"
        if isinstance(content, Mapping):
            named = ", ".join(f"{name!r:.40}" for name in list(content)[:6])
            inside = f"a dict of {named}, without tensors" if named else "an empty dict"
        keys = f", plain or under one of the keys {', '.join(cls.checkpoint_keys)}" if cls.checkpoint_keys else ""
        return f"{source} holds no state dict but {inside}; expected names with tensors{keys}."
    largest = max(attempts, key=lambda one: len(one.state))
    other = next(filter(None, (cls.mistaken(one.state) for one in attempts)), None)
    if other is None and not cls.settings_from(largest.state) and _DISCRIMINATOR.search(Path(source).stem):
        other = "a discriminator, as its name says"
    if other is not None:
        return f"{source} does not fit {cls.__name__}. It holds {other}; give the file of the generator."
    near = [one for one in attempts if cls.settings_from(one.state)] or [largest]
    best = min(near, key=lambda one: (-len(one.state), len(one.complaint)))
    where = f" Read {_where(best.reading)}:" if best.reading.prefix or best.reading.wrappers else ""
    if best.unusable:
        return f"{source}:{where} {best.unusable}"
    return f"{source} does not fit {cls.__name__}.{where} {best.complaint}"
