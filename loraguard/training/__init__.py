"""Training of patches, standard and defensive, on Accelerate."""

from .arguments import PatchTrainingArguments
from .fine_tuning import fine_tune
from .recipes import RECIPES, adapter_config
from .step import patch_step, target_of
from .trainer import PatchTrainer, TrainingResult
from .validation import validate

__all__ = [
    "RECIPES",
    "PatchTrainer",
    "PatchTrainingArguments",
    "TrainingResult",
    "adapter_config",
    "fine_tune",
    "patch_step",
    "target_of",
    "validate",
]
