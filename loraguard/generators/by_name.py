"""What `--generator NAME[:SETTINGS] --checkpoint FILE|FOLDER|HUB_ID` means."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_origin

from torch import nn

from loraguard.kinds import annotations_of, checked
from loraguard.registry import parse_spec

from .registry import GENERATORS, check_generator


def load_generator(name: str, checkpoint: str | Path | None = None, **settings: Any) -> nn.Module:
    """A generator by its name, in evaluation mode, with weights from where they are.

    Another package adds a name by an entry point in the group `loraguard.generators`: a class with
    `from_checkpoint(path, **settings)`, `from_pretrained(folder_or_id, **settings)`, or a `pretrained()` that needs
    neither.

    Args:
        name: one of :data:`GENERATORS`; perhaps with settings of its class, as on the command line, such as
            "cyclegan:padding_type=replicate" or "stargan:attributes=Angry+Happy". A plus sign joins words of a list.
        checkpoint: a file with official weights, or a folder or an id of the Hub that `save_pretrained` or
            `push_to_hub` made; none for a generator that ships with its weights.
        settings: of the class; they override those in the name. Those that the weights determine need not be given,
            and None counts as not given.

    Raises:
        ValueError: if there is no such name or setting, or the checkpoint does not fit.
        FileNotFoundError: if there is no such checkpoint.

    Example:
        >>> type(load_generator("demo")).__name__
        'DemoEditor'
        >>> load_generator("stargam")
        Traceback (most recent call last):
        ...
        ValueError: There is no 'stargam' among loraguard.generators: ... Did you mean 'stargan'?
    """
    check_generator(name, checkpoint)
    spec, (name, positional, written) = name, parse_spec(name)
    cls = GENERATORS[name]
    settings = _settings(cls, spec, positional, written) | {k: v for k, v in settings.items() if v is not None}
    if checkpoint is None:
        if not hasattr(cls, "pretrained"):
            raise ValueError(
                f"{cls.__name__} does not ship with weights; pass a checkpoint: a file, or a folder or an id of the "
                f"Hub. docs/generators/{name}.md says where they are."
            )
        if settings:
            raise ValueError(
                f"{cls.__name__} ships with its weights, and they fix {', '.join(settings)}; leave it out."
            )
        return cls.pretrained()
    path = Path(checkpoint).expanduser()
    if path.is_file():
        return cls.from_checkpoint(path, **settings).eval()
    return cls.from_pretrained(str(checkpoint), **settings).eval()


def _settings(cls: Any, spec: str, positional: Sequence[Any], written: Mapping[str, Any]) -> dict[str, Any]:
    """The settings in a spec, each of the kind that the class takes."""
    made: Any = cls
    if isinstance(cls, type):  # not cls.__init__: a mixin of huggingface_hub wraps __new__
        made = next((vars(one)["__init__"] for one in cls.__mro__ if "__init__" in vars(one)), cls)
    parameters = [name for name in inspect.signature(made).parameters if name != "self"]
    unknown = [*map(repr, positional), *(key for key in written if key not in parameters)]
    if unknown:
        raise ValueError(
            f"{spec!r}: a generator has no setting {unknown[0]}; write NAME:KEY=VALUE, with the keys "
            f"{', '.join(parameters)}."
        )
    kinds = annotations_of(made)
    lists = [key for key in written if get_origin(kinds.get(key)) in (tuple, list, Sequence)]
    words = {key: tuple(written[key].split("+")) for key in lists if isinstance(written[key], str)}
    try:
        return checked(made, {**written, **words})
    except ValueError as error:
        raise ValueError(f"{spec!r}: {error}") from error
