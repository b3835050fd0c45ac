"""Checkpoints of a training run: whole or not there, and enough to go on as if nothing had happened."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils.other import load
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from loraguard.files import not_written, sync, write_json
from loraguard.hub.local import save_adapter
from loraguard.hub.names import CONFIG, WEIGHTS

from .devices import anywhere, failure_of

_NAME = re.compile(r"checkpoint-(\d+)")
STATE = "trainer_state.json"
_OF_A_STATE = {
    "step": int, "settings": dict, "images": int, "log": list, "gates": dict, "validation": list, "watch": dict
}  # fmt: skip
_OF_THE_UPDATE = ("r", "lora_alpha", "use_rslora", "gate_type", "rank_pattern", "alpha_pattern")
"""Settings of an adapter that say what its weights mean."""


class Checkpoints:
    """The checkpoints in a run's output folder.

    Each is a folder `checkpoint-STEP` with the adapter as PEFT saves it, and what Accelerate saves of optimizer,
    scheduler, gradient scaler and random generators. It is written under another name, which it sheds once all of it is
    on the disk, and carries `trainer_state.json`: step, log, and the settings it belongs to.

    Args:
        folder: where they are.
        accelerator: whose state they hold, with everything prepared.
        model: the generator with its adapters.
        adapter: the one that is trained.
        total_limit: how many are kept; None keeps all.
    """

    def __init__(
        self, folder: Path, accelerator: Accelerator, model: PeftModel, adapter: str, total_limit: int | None = None
    ) -> None:
        self.folder, self.accelerator, self.model, self.adapter = folder, accelerator, model, adapter
        self.total_limit = total_limit
        accelerator.register_save_state_pre_hook(self._save_adapter)  # in place of the whole network
        accelerator.register_load_state_pre_hook(self._load_adapter)

    def all(self) -> list[Path]:
        """Those that are whole, oldest first."""
        return whole_checkpoints(self.folder)

    def later_than(self, step: int) -> list[Path]:
        """Those that are whole and of later steps, oldest first."""
        return [path for path in self.all() if int(path.name.rpartition("-")[2]) > step]

    def find(self, wanted: str | Path) -> Path | None:
        """The checkpoint that `resume_from_checkpoint` means; None for "latest" where there is none.

        Raises:
            FileNotFoundError: if a folder is named that holds no checkpoint.
        """
        if wanted == "latest":
            return next(reversed(self.all()), None)
        for path in (Path(wanted), self.folder / wanted):
            if (path / STATE).is_file():
                return path
        there = self.all()
        raise FileNotFoundError(
            f"resume_from_checkpoint={str(wanted)!r:.150}: no whole checkpoint there (a folder with {STATE}). In "
            f"{self.folder} there {f'are {len(there)}, the last' if len(there) > 3 else 'are:'} "
            f"{', '.join(path.name for path in there[-3:]) or 'none'}."
        )

    def save(self, step: int, state: dict[str, Any]) -> Path:
        """Write one; all processes call this.

        Raises:
            OSError: if it cannot be written, a full disk for instance. Earlier checkpoints are as they were.
        """
        target, draft = self.folder / f"checkpoint-{step}", self.folder / f".checkpoint-{step}.partial"
        main = self.accelerator.is_main_process
        if main:
            for rest in self.folder.glob(".checkpoint-*.partial"):  # of a run that was killed
                shutil.rmtree(rest)
        self.accelerator.wait_for_everyone()
        failure = failure_of(
            lambda: self.accelerator.save_state(str(draft), **self._zero(exclude_frozen_parameters=True))
        )
        if not anywhere(self.accelerator, failure is not None) and main:
            failure = failure_of(lambda: self._complete(draft, target, {"step": step, **state}))
        if anywhere(self.accelerator, failure is not None):  # all processes leave together
            if main:
                shutil.rmtree(draft, ignore_errors=True)
            last = next(reversed(self.all()), None)
            then = f"The last good one is {last}." if last else "There is no earlier one."
            raise not_written("checkpoint", target, failure or OSError("another process failed"), then) from failure
        return target

    def _complete(self, draft: Path, target: Path, state: dict[str, Any]) -> None:
        """Add the state, wait for the disk, and only then give the checkpoint its name."""
        write_json(draft / STATE, state)
        sync(draft)
        if target.exists():  # of an earlier run
            _discard(target)
        draft.rename(target)
        sync(self.folder)
        if self.total_limit is not None:  # the new one stays, even where an earlier run left higher numbers
            others = [path for path in self.all() if path != target]
            for old in others[: max(0, len(others) + 1 - self.total_limit)]:
                _discard(old)

    def read(self, checkpoint: Path) -> dict[str, Any]:
        """The state that `save` was given, and `step`, once it is sure that the checkpoint's adapter is this one.

        Raises:
            ValueError: if the checkpoint is damaged, of a run with another number of processes, or of another adapter.
        """
        processes = len(list(checkpoint.glob("random_states_*.pkl")))
        if processes != self.accelerator.num_processes:
            raise ValueError(
                f"{checkpoint} is of a run with {processes} processes, this one has {self.accelerator.num_processes}: "
                f"random_states_{self.accelerator.process_index}.pkl and the order of the data would not fit. Start as "
                "many as then."
            )
        try:
            state = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
            there = json.loads((checkpoint / CONFIG).read_text(encoding="utf-8"))
            tensors = load_file(checkpoint / WEIGHTS)
        except (OSError, ValueError, SafetensorError) as error:
            raise _damaged(checkpoint, error) from error
        for name, kind in _OF_A_STATE.items():
            if not isinstance(state, dict) or not isinstance(state.get(name), kind):
                raise _damaged(checkpoint, ValueError(f"{STATE} has no {name!r}, or not of its kind"))
        if not all(isinstance(entry, dict) and isinstance(entry.get("step"), int) for entry in state["log"]):
            raise _damaged(checkpoint, ValueError(f"{STATE} has an odd 'log'"))
        self._check_adapter(checkpoint, there, tensors)
        return state

    def load(self, checkpoint: Path) -> None:
        """Put everything back as it was.

        Raises:
            ValueError: if the checkpoint is damaged.
        """
        try:
            load(checkpoint / f"random_states_{self.accelerator.process_index}.pkl")  # accelerate would do without
            self.accelerator.load_state(str(checkpoint), **self._zero(load_module_strict=False))
        except Exception as error:
            raise _damaged(checkpoint, error) from error

    def _check_adapter(self, checkpoint: Path, there: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Compare settings, names and shapes with those of the adapter that is trained; the first mismatch is said."""
        config: Any = self.model.peft_config[self.adapter]
        expected = get_peft_model_state_dict(self.model, adapter_name=self.adapter)
        differ = [name for name in _OF_THE_UPDATE if name in there and there[name] != getattr(config, name)]
        what = None
        for name, tensor in expected.items():
            if name not in tensors:
                what = f"it lacks the tensor {name!r:.100}"
            elif tensors[name].shape != tensor.shape:
                what = f"{name!r:.100} has shape {tuple(tensors[name].shape)}, here it is {tuple(tensor.shape)}"
            if what:
                break
        if what is None and (more := [name for name in tensors if name not in expected]):
            what = f"it has the tensor {more[0]!r:.100}, which this adapter has not"
        if what is None and not differ:
            return
        own = f"{_said(differ, there)}, and this run's adapter has {_said(differ, vars(config))}" if differ else ""
        raise ValueError(
            f"{str(checkpoint)[-150:]} is of another adapter: {'; '.join(part for part in (what, own) if part)}. Make "
            "the adapter with the settings in its adapter_config.json, or start anew: resume_from_checkpoint=None "
            "(loraguard train: no --resume), in another folder."
        )

    def _zero(self, **settings: Any) -> dict[str, Any]:
        """What DeepSpeed is told, as it saves and loads the network itself."""
        return settings if self.accelerator.distributed_type == "DEEPSPEED" else {}

    def _save_adapter(self, models: list[Any], weights: list[Any], folder: str) -> None:
        weights.clear()
        if self.accelerator.is_main_process:
            save_adapter(self.model, self.adapter, Path(folder))

    def _load_adapter(self, models: list[Any], folder: str) -> None:
        models.clear()
        set_peft_model_state_dict(self.model, load_file(Path(folder, WEIGHTS)), adapter_name=self.adapter)


def _said(names: list[str], settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={settings[name]!r:.40}" for name in names)


def _damaged(checkpoint: Path, error: Exception) -> ValueError:
    why = str(error) or type(error).__name__
    return ValueError(f"{checkpoint} cannot be loaded: {why:.250}. Resume from an earlier one.")


def whole_checkpoints(folder: Path) -> list[Path]:
    """Those in a folder that are whole, oldest first."""
    found = {int(match[1]): path for path in folder.iterdir() if (match := _NAME.fullmatch(path.name))}
    return [found[step] for step in sorted(found) if (found[step] / STATE).is_file()]


def _discard(checkpoint: Path) -> None:
    """Delete a checkpoint so that a half-deleted one is not taken for a whole one."""
    rest = checkpoint.rename(checkpoint.with_name(f".{checkpoint.name}.old.partial"))
    shutil.rmtree(rest)
