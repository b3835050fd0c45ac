"""What `--generator NAME --checkpoint FILE|FOLDER|HUB_ID` means."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from .registry import GENERATORS, check_generator


def load_generator(name: str, checkpoint: str | Path | None = None, **settings: Any) -> nn.Module:
    """A generator by its name, in evaluation mode, with weights from where they are.

    Another package adds a name by an entry point in the group `loraguard.generators`: a class with
    `from_checkpoint(path, **settings)`, `from_pretrained(folder_or_id, **settings)`, or a `pretrained()` that needs
    neither.

    Args:
        name: one of :data:`GENERATORS`.
        checkpoint: a file with official weights, or a folder or an id of the Hub that `save_pretrained` or
            `push_to_hub` made; none for a generator that ships with its weights.
        settings: of the class; those that the weights determine need not be given, and None counts as not given.

    Raises:
        ValueError: if there is no such name, or the checkpoint does not fit.
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
    cls = GENERATORS[name]
    settings = {key: value for key, value in settings.items() if value is not None}
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
