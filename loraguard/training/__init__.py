"""Training of patches, standard and defensive, on Accelerate."""

from .arguments import PatchTrainingArguments
from .step import patch_step, target_of
from .trainer import PatchTrainer, TrainingResult

__all__ = ["PatchTrainer", "PatchTrainingArguments", "TrainingResult", "patch_step", "target_of"]
