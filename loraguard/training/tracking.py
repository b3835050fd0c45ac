"""Where figures and pictures of a run go while it trains, and the patch afterwards."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from huggingface_hub import HfApi
from PIL import Image

from loraguard.files import not_written
from loraguard.hub import push_patch

from .arguments import PatchTrainingArguments


class Tracking:
    """The trackers that `report_to` names, through Accelerate; without any, nothing happens.

    Args:
        args: the run's settings.
        folder: its output folder.

    Raises:
        ImportError: if a tracker's package is not installed.
        ValueError: if the patch is to be pushed and there is nobody to push it for.
    """

    def __init__(self, args: PatchTrainingArguments, folder: Path) -> None:
        self.args, self.trackers, self._failed = args, args.trackers, False
        self.folder = folder
        for name in self.trackers:
            if importlib.util.find_spec(name) is None:
                raise ImportError(f"report_to={name!r} needs the package {name}: pip install 'loraguard[trackers]'.")
        if args.push_to_hub:
            try:
                user = HfApi(token=args.hub_token).whoami()["name"]
            except Exception as error:
                raise ValueError(
                    f"push_to_hub: the Hub does not know who you are ({error!s:.250}). Run `hf auth login`, set "
                    "HF_TOKEN or pass hub_token."
                ) from error
            name = args.hub_model_id or folder.resolve().name
            self.repo_id = name if "/" in name else f"{user}/{name}"

    def start(self, accelerator: Accelerator, settings: Mapping[str, Any]) -> None:
        """Open the trackers, and tell them the settings that they can take."""
        if self.trackers:
            simple = {key: value for key, value in settings.items() if isinstance(value, (str, int, float))}
            accelerator.init_trackers("loraguard", config=simple)

    def log(self, accelerator: Accelerator, entry: Mapping[str, Any], gates: Mapping[str, float]) -> None:
        """A step's figures, and each gate as a curve."""
        if self.trackers and not self._failed:
            figures = {f"train/{key}": value for key, value in entry.items() if key not in ("step", "skipped")}
            openings = {f"gate/{name}": value for name, value in gates.items()}
            with self._or_without():
                accelerator.log({**figures, **openings}, step=entry["step"])

    def show(self, accelerator: Accelerator, step: int, metrics: Mapping[str, float], picture: Image.Image) -> None:
        """A validation's figures and its picture."""
        if not self.trackers or self._failed:
            return
        with self._or_without():
            accelerator.log({f"validation/{key}": value for key, value in metrics.items()}, step=step)
            for tracker in accelerator.trackers:
                if tracker.name == "tensorboard":
                    tracker.writer.add_images("validation", np.asarray(picture)[None], step, dataformats="NHWC")
                elif tracker.name == "wandb":
                    tracker.log_images({"validation": [picture]}, step=step)
                else:
                    import trackio

                    tracker.log({"validation": trackio.Image(picture)}, step=step)

    def end(self, accelerator: Accelerator) -> None:
        """Close the trackers, and nothing else: `Accelerator.end_training` ends the group of processes as well."""
        for tracker in accelerator.trackers:
            with self._or_without():
                tracker.finish()
        accelerator.trackers = []

    @contextmanager
    def _or_without(self) -> Iterator[None]:
        """Lose no training to a tracker that cannot write; it gets nothing more."""
        try:
            yield
        except OSError as error:
            if not self._failed:
                failed = not_written("trackers' figures", self.folder, error, "Training goes on without them.")
                warnings.warn(str(failed), stacklevel=5)
            self._failed = True

    def push(self, folder: Path) -> None:
        """Upload the patch with its card.

        Raises:
            OSError: if that fails. The patch is in its folder all the same, and the error says how it gets to the Hub.
        """
        try:
            push_patch(folder, self.repo_id, private=self.args.hub_private_repo or None, token=self.args.hub_token)
        except (OSError, ValueError) as error:
            raise OSError(
                f"The patch is whole in {folder}, and was not pushed: {error!s:.350} To push it: "
                f"loraguard push {folder} {self.repo_id}"
            ) from error
