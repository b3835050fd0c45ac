"""What `--generator NAME --checkpoint FILE|FOLDER|HUB_ID` means."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from loraguard.registry import Registry

GENERATORS = Registry(
    "loraguard.generators",
    {
        "demo": "loraguard.generators.demo:DemoEditor",
        "stargan": "loraguard.generators.stargan:StarGAN",
        "attgan": "loraguard.generators.attgan:AttGAN",
        "hisd": "loraguard.generators.hisd:HiSD",
        "cyclegan": "loraguard.generators.cyclegan:CycleGAN",
    },
)
"""Generators by the name that the command line takes; :func:`load_generator` says how an entry is loaded."""

WEIGHT_FILES = (".bin", ".ckpt", ".pkl", ".pt", ".pth", ".safetensors")
"""Suffixes that a path to a file has and an id of the Hub has not; "me/stargan-1.5" is an id."""


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
    try:
        cls = GENERATORS[name]
    except KeyError as error:
        raise ValueError(error.args[0]) from None
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
    if not path.is_dir() and (path.suffix in WEIGHT_FILES or str(checkpoint).count("/") != 1):
        raise FileNotFoundError(
            f"There is no checkpoint {checkpoint}: neither a file, nor a folder, nor an id of the Hub."
        )
    return cls.from_pretrained(str(checkpoint), **settings).eval()
