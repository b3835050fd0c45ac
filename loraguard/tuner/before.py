"""A network as it was before an adapter came, to be put back to the last attribute."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

_CONTAINERS = (dict, list, set)


class Before:
    """What a network and everything in it is made of; values of tensors are not copied.

    Args:
        model: The network, adapted or not, or PEFT's model around it.
    """

    def __init__(self, model: nn.Module) -> None:
        parts: list[Any] = list(model.modules())
        configs = [vars(one).get("config") for one in parts]
        parts += [one for one in configs if hasattr(one, "__dict__")]  # PEFT sets pretraining_tp of transformers' own
        self._parts = [(vars(one), dict(vars(one))) for one in parts]
        inside: list[Any] = [
            value for _, kept in self._parts for value in kept.values() if isinstance(value, _CONTAINERS)
        ]
        self._containers = [(one, one.copy()) for one in inside]
        self._parameters = [(parameter, parameter.requires_grad) for parameter in model.parameters()]

    def restore(self) -> None:
        """Put back every attribute, entry and module, each module's mode, and which parameters learn."""
        for now, kept in self._parts:
            now.clear()
            now.update(kept)
        for container, entries in self._containers:
            if _are_same(container, entries):
                continue  # diffusers' configs can be changed by nobody, by us neither
            container.clear()
            if isinstance(container, list):
                container.extend(entries)
            else:
                container.update(entries)
        for parameter, learns in self._parameters:
            if parameter.requires_grad != learns:
                parameter.requires_grad_(learns)


def _are_same(one: Any, other: Any) -> bool:
    """Whether two containers hold the very same objects in the same places."""
    if not one and not other:  # as nearly all of a module's are
        return True
    if isinstance(one, dict):
        return list(one) == list(other) and _are_same(list(one.values()), list(other.values()))
    if isinstance(one, set):
        return bool(one == other)
    return len(one) == len(other) and all(mine is theirs for mine, theirs in zip(one, other, strict=True))


@contextmanager
def unchanged_if_refused(model: nn.Module) -> Iterator[None]:
    """Put a network back as it was where something goes wrong."""
    before = Before(model)
    try:
        yield
    except BaseException:
        before.restore()
        raise
