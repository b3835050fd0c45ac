from .audit import run_audit as run_audit
from .commands import train_patch as train_patch
from .hub import load_patch as load_patch
from .hub import push_patch as push_patch
from .mark import Mark as Mark
from .mark import MarkReader as MarkReader
from .stamp import Stamp as Stamp
from .stamp import StampDetector as StampDetector
from .stamp import StampReader as StampReader
from .training import PatchTrainer as PatchTrainer
from .training import PatchTrainingArguments as PatchTrainingArguments
from .tuner import GatedLoraConfig as GatedLoraConfig
from .tuner import GatedLoraModel as GatedLoraModel
from .tuner import convert_checkpoint as convert_checkpoint
from .tuner import folded as folded
from .tuner import to_lora as to_lora

__version__: str
