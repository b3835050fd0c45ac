"""What is known of a patch: for which generator it is, with which weights, and how it was made.

It lies in `adapter_config.json`, as the config's `provenance`, and so goes wherever PEFT saves or pushes the adapter.
"""

from __future__ import annotations

import json
import os
from typing import Any

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from torch import nn

from loraguard.describing import without_paths
from loraguard.fingerprint import generator_fingerprint
from loraguard.generators.registry import GENERATORS


def hosted_id(source: Any) -> str | None:
    """The id on the Hub that a network came from; None where it came from a folder here, or from nowhere.

    Example:
        >>> hosted_id("me/stargan"), hosted_id("/home/me/stargan"), hosted_id(None)
        ('me/stargan', None, None)
    """
    if not isinstance(source, str) or os.path.exists(source):  # which, of a stranger's text, raises nothing
        return None
    try:
        validate_repo_id(source)
    except HFValidationError:
        return None
    return source


def describe_generator(generator: nn.Module) -> dict[str, Any]:
    """Class, name for `load_generator`, settings, licence and fingerprint of a network, as JSON takes them.

    Example:
        >>> from loraguard.generators import DemoEditor
        >>> about = describe_generator(DemoEditor(conv_dim=4))
        >>> about["class"], about["name"], about["settings"]["conv_dim"], len(about["sha256"])
        ('DemoEditor', 'demo', 4, 64)
    """
    cls = type(generator)
    where = f"{cls.__module__}:{cls.__qualname__}"
    own = getattr(generator, "_hub_mixin_config", None)
    card = getattr(getattr(cls, "_hub_mixin_info", None), "model_card_data", None)
    return {
        "class": cls.__name__,
        "name": next((name for name, target in GENERATORS.targets.items() if target == where), None),
        "settings": json.loads(json.dumps(own)) if isinstance(own, dict) else {},
        "license": None if card is None else card.get("license"),
        "sha256": generator_fingerprint(generator),
    }


def describe_data(dataset: Any) -> dict[str, Any]:
    """Class, number of photos, and what else says which they are; no path of this machine.

    Example:
        >>> from loraguard.data import DemoFaces, split_photos
        >>> describe_data(split_photos(DemoFaces(10, size=16), test_size=2)[0])
        {'class': 'DemoFaces', 'images': 8, 'split': 'train', 'size': 16, 'seed': 0}
    """
    whole = dataset
    while hasattr(whole, "dataset"):  # a part of another one
        whole = whole.dataset
    known = {key: getattr(whole, key, None) for key in ("split", "size", "seed")}
    known["path"] = hosted_id(getattr(whole, "path", None))
    simple = {key: value for key, value in known.items() if isinstance(value, (str, int))}
    return {"class": type(whole).__name__, "images": len(dataset), **simple}


def training_record(settings: dict[str, Any], generator: dict[str, Any], dataset: Any, steps: int) -> dict[str, Any]:
    """A trained patch's provenance.

    Args:
        settings: of the training, "kind" among them; where files lie and how they are watched is left out.
        generator: from :func:`describe_generator`, of the network before training.
        dataset: what it was trained on.
        steps: that were taken.
    """
    private = ("kind", "output_dir", "resume_from_checkpoint", "report_to", "push_to_hub", "disable_tqdm")
    kept = {k: v for k, v in settings.items() if k not in private and not k.startswith("hub_")}
    record = {"kind": settings["kind"], "generator": generator, "data": describe_data(dataset), "steps": steps}
    return without_paths({**record, "settings": kept})
