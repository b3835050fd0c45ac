"""A detector for a patch's stamp, calibrated on what the untouched generator gives."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from torch.utils.data import Dataset

from loraguard.data import collate
from loraguard.generators import Conditions, conditions_of, labels_of
from loraguard.stamp import Stamp, StampDetector


@torch.no_grad()
def calibrate_detector(
    model: PeftModel, photos: Dataset[Any], stamp: Stamp, conditions: Conditions | None = None, most: int = 200
) -> StampDetector | None:
    """A detector whose threshold comes from the untouched generator's outputs, every edit of each photo.

    Args:
        model: the generator with its patches.
        photos: not those of the audit.
        stamp: what to look for.
        conditions: from labels to edits, by default the generator's own.
        most: outputs, about.

    Returns:
        The detector; None, with a warning, where there are too few outputs to say what an unstamped one scores, or the
        stamp is too faint to be told from none.

    Example:
        >>> from peft import get_peft_model
        >>> from loraguard import GatedLoraConfig
        >>> from loraguard.data import DemoFaces
        >>> from loraguard.generators import DemoEditor
        >>> model = get_peft_model(DemoEditor.pretrained(), GatedLoraConfig(r=2))
        >>> calibrate_detector(model, DemoFaces(8), Stamp("AI", size=0.5)).calibrated_on
        40
    """
    device = next(model.parameters()).device
    training = model.training
    outputs: list[Tensor] = []
    model.eval()
    with model.disable_adapter():
        for index in range(len(photos)):  # type: ignore[arg-type]
            batch = {key: value.to(device) for key, value in collate([photos[index]]).items()}
            edits = conditions_of(model, labels_of(batch, conditions, model), conditions)
            outputs += [model(batch["image"], **edit) for edit in edits.values()]
            if sum(map(len, outputs)) >= most:
                break
    model.train(training)
    try:
        return StampDetector(stamp).calibrate(torch.cat(outputs))
    except ValueError as error:
        warnings.warn(f"The stamp {stamp.text or stamp.image!r} is not looked for: {error}", stacklevel=2)
        return None
