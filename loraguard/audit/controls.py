"""What a patch is compared with: the same training without the gate, without the adversary, and of every weight."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_model
from torch import nn
from torch.nn import functional as F
from torch.utils.data import Dataset

import loraguard
from loraguard.data import collate
from loraguard.defenses import Unperturbed
from loraguard.files import whole_files, writable_folder, write_json
from loraguard.fingerprint import digest, generator_fingerprint
from loraguard.generators import Conditions, conditions_of, labels_of
from loraguard.hub.provenance import describe_data
from loraguard.stamp import Stamp
from loraguard.training import PatchTrainer, PatchTrainingArguments, adapter_config, fine_tune
from loraguard.training.devices import refuse_several_processes
from loraguard.training.fine_tuning import untouched_copy
from loraguard.training.resuming import MATTERS
from loraguard.training.step import Loss, settings_of
from loraguard.tuner import GatedLoraConfig
from loraguard.tuner.loading import file_sha256

from .names import KINDS, PATCH

FINISHED = "control.json"
STARTED = "started.json"


@dataclass(frozen=True)
class Controls:
    """Controls that are trained, by kind.

    Attributes:
        adapters: folders that `PeftModel.from_pretrained` and `load_adapter` load.
        generators: whole networks, frozen and in evaluation mode, as `run_audit(generators=...)` takes them.
        stamp: what all of them were trained to put on their outputs.
    """

    adapters: dict[str, Path]
    generators: dict[str, nn.Module]
    stamp: Stamp | None

    def add_to(self, model: PeftModel) -> dict[str, Stamp | None]:
        """Put the adapters on a model, under their kinds' names; which adapter is active does not change.

        Returns:
            The names with their stamps, to go with others into `run_audit(patches=...)`.

        Raises:
            ValueError: for a name that the model's adapters already have.
        """
        if taken := sorted(self.adapters.keys() & model.peft_config.keys()):
            raise ValueError(f"The model has adapters {taken} already; delete_adapter them, or take another model.")
        for name, folder in self.adapters.items():
            model.load_adapter(str(folder), adapter_name=name)
        return dict.fromkeys(self.adapters, self.stamp)


def train_controls(
    generator: nn.Module,
    dataset: Dataset[Any],
    args: PatchTrainingArguments,
    output_dir: str | Path,
    *,
    kinds: Sequence[str] = KINDS,
    config: GatedLoraConfig | None = None,
    fine_tune_learning_rate: float | None = None,
    conditions: Conditions | None = None,
    loss: Loss = F.mse_loss,
) -> Controls:
    """Train the controls of a patch, with its data, loss, steps and adversary.

    *ungated* is plain LoRA, `gate_type="none"`; *clean-only* has the gate and no adversary
    (:class:`~loraguard.defenses.Unperturbed`); *fine-tune* trains every weight (:func:`~loraguard.training.fine_tune`).
    A clean-only standard patch whose update starts from zero, as the fast recipe's does, would be right from the start
    and stay the untouched generator, so it always starts from the paper's first weights.

    Each goes into a folder of its name. One that is finished there, of the same settings, generator and data, is not
    trained again, and one that was interrupted goes on if `args` say so; of the data, what `describe_data` says of it
    and the first image with its edits are compared.

    Args:
        generator: the untouched network, or one with adapters, which are left out; neither changes.
        dataset: what the patch was trained on.
        args: how the patch was trained; trackers, validation and the Hub are left out.
        output_dir: gets the folders.
        kinds: which of :data:`KINDS`; and "standard" for the patch itself.
        config: the patch's adapter, by default the one that goes with the recipe. First weights are drawn from
            `args.seed`.
        fine_tune_learning_rate: by default a tenth of the patch's.
        conditions: as for :class:`~loraguard.PatchTrainer`.
        loss: as for :class:`~loraguard.PatchTrainer`.

    Raises:
        ValueError: for a kind that does not exist, or in one of several processes; and what training refuses.
        OSError: if the folder cannot be written to.

    Example:
        >>> import tempfile
        >>> from loraguard.data import DemoFaces
        >>> from loraguard.defenses import Disrupting
        >>> from loraguard.generators import DemoEditor
        >>> args = PatchTrainingArguments("unused", adversary=Disrupting(steps=1), max_train_steps=1, cpu=True,
        ...                               disable_tqdm=True)
        >>> generator = DemoEditor(conv_dim=4)
        >>> controls = train_controls(generator, DemoFaces(8, size=16), args, tempfile.mkdtemp())
        >>> list(controls.adapters), list(controls.generators)
        (['ungated', 'clean-only'], ['fine-tune'])
        >>> model = get_peft_model(generator, GatedLoraConfig(r=2), adapter_name="standard")
        >>> {"standard": None} | controls.add_to(model)
        {'standard': None, 'ungated': None, 'clean-only': None}
    """
    if unknown := sorted(set(kinds) - {PATCH, *KINDS}):
        raise ValueError(f"There are no controls {unknown}; choose from {', '.join((PATCH, *KINDS))}.")
    refuse_several_processes("The training of controls")
    folders = {kind: writable_folder(Path(output_dir, kind)) for kind in kinds}
    shared = {
        "loss": settings_of(loss),
        "generator": generator_fingerprint(generator),
        "data": _data(generator, dataset, conditions),
        "loraguard": loraguard.__version__,
    }
    controls = Controls({}, {}, args.stamp)
    for kind, folder in folders.items():
        mine = _arguments(kind, folder, args, fine_tune_learning_rate)
        adapter = None if kind == "fine-tune" else copy.deepcopy(config) or adapter_config(generator, args)
        if adapter is not None:
            adapter.inference_mode, adapter.provenance = False, None  # as those of a patch that was loaded are not
            adapter.gate_type = "none" if kind == "ungated" else adapter.gate_type
            if kind == "clean-only" and args.stamp is None:
                adapter.init_lora_weights = "paper"  # an update of zero is right on clean images, and would stay
        settings = {name: value for name, value in mine.to_dict().items() if name in MATTERS}
        about = {"kind": kind, "settings": settings, "adapter": adapter and adapter.to_dict(), **shared}
        about = json.loads(json.dumps(about, default=sorted))  # sets, in an order
        if not _is_finished(folder, about):
            _start(folder, about)
            if adapter is None:
                fine_tune(generator, dataset, mine, conditions=conditions, loss=loss)
            else:
                with torch.random.fork_rng():
                    torch.manual_seed(args.seed)
                    model = get_peft_model(untouched_copy(generator), adapter)
                PatchTrainer(model, dataset, mine, conditions=conditions, loss=loss).train()
            with whole_files(folder) as draft:
                write_json(draft / FINISHED, {**about, "files": _files(folder)})
        if adapter is None:
            network = untouched_copy(generator).eval().requires_grad_(False)
            load_model(network, folder / "model.safetensors")
            controls.generators[kind] = network
        else:
            controls.adapters[kind] = folder
    return controls


def _arguments(kind: str, folder: Path, args: Any, fine_tune_learning_rate: float | None) -> PatchTrainingArguments:
    """The patch's settings as one of its controls has them."""
    changes: dict[str, Any] = {}
    if kind == "clean-only":
        changes["adversary"] = Unperturbed()
    if kind == "fine-tune":
        changes["learning_rate"] = fine_tune_learning_rate or args.learning_rate / 10
    return replace(
        args,
        output_dir=folder,
        resume_from_checkpoint=args.resume_from_checkpoint and "latest",
        validation_steps=None,
        report_to=None,
        push_to_hub=False,
        **changes,
    )


def _is_finished(folder: Path, about: dict[str, Any]) -> bool:
    """Whether this very control is there, in the files that its training left; no other one counts as finished."""
    file = folder / FINISHED
    stored = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    files = _files(folder)
    if stored.pop("files", files) == files and stored == about:  # records of earlier versions have no files
        return True
    file.unlink(missing_ok=True)
    return False


def _files(folder: Path) -> dict[str, str]:
    """SHA-256 of weights, and of the hashes of photos, by name of the file."""
    return {file.name: file_sha256(file) for file in sorted(folder.glob("*.safetensors"))}


def _start(folder: Path, about: dict[str, Any]) -> None:
    """Make sure that checkpoints in the folder are of this very control: it would go on from any."""
    file = folder / STARTED
    if not file.is_file() or json.loads(file.read_text(encoding="utf-8")) != about:
        for checkpoint in folder.glob("checkpoint-*"):
            shutil.rmtree(checkpoint)
        with whole_files(folder) as draft:
            write_json(draft / STARTED, about)


def _data(generator: nn.Module, dataset: Any, conditions: Conditions | None) -> dict[str, Any]:
    """What the data is known by: what it says of itself, and the first image with its edits."""
    device = next(generator.parameters()).device
    batch = {key: value.to(device) for key, value in collate([dataset[0]]).items()}
    edits = conditions_of(generator, labels_of(batch, conditions, generator), conditions)
    inputs = {f"{name}.{key}": value for name, edit in edits.items() for key, value in edit.items()}
    return {**describe_data(dataset), "first": digest({"image": batch["image"], **inputs})}
