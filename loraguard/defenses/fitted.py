"""What the defenses share that see photos and generators first, and perturb any photo at once afterwards."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, RandomSampler
from tqdm.auto import tqdm

from loraguard.data import collate
from loraguard.files import whole_files, writable_folder
from loraguard.generators.base import Condition, Conditions, conditions_of, labels_of

from .base import Fittable, check_budget, check_image_batch, undisturbed

D = TypeVar("D", bound="FittedDefense")


class Perturber(nn.Module):
    """From images (N, 3, H, W) to perturbations of the same shape, or of (1, 3, H, W) for all; what fitting makes.

    `pattern` (3, H, W) is a perturbation that all images share; it is resized to the size of the images.
    """

    pattern: Tensor
    _photos: Any

    def shared(self, images: Tensor) -> Tensor:
        """The pattern at the images' size, (1, 3, H, W)."""
        if images.shape[-2:] == self.pattern.shape[-2:]:
            return self.pattern[None]
        return F.interpolate(self.pattern[None], images.shape[-2:], mode="bilinear", align_corners=False)


@dataclass(frozen=True)
class Target:
    """A generator to defend against, the edits that it is asked for, and the layer that holds its features."""

    generator: nn.Module
    conditions: Conditions | None = None
    layer: nn.Module | None = None

    def edits(self, batch: dict[str, Tensor]) -> list[Condition]:
        """Every edit of a batch."""
        labels = labels_of(batch, self.conditions, self.generator)
        return list(conditions_of(self.generator, labels, self.conditions).values())

    @property
    def device(self) -> torch.device:
        """Where its parameters are."""
        return next((p.device for p in self.generator.parameters()), torch.device("cpu"))


def targets_of(generators: nn.Module | Sequence[nn.Module], conditions: Conditions | None = None) -> list[Target]:
    """Generators with their edits: those of `conditions` for the first and for any that makes none of its own."""
    networks = [generators] if isinstance(generators, nn.Module) else list(generators)
    if not networks:
        raise ValueError("A defense is fitted to at least one generator.")
    return [
        Target(network, conditions if i == 0 or not hasattr(network, "conditions") else None)
        for i, network in enumerate(networks)
    ]


@dataclass(frozen=True)
class FittedDefense(Fittable):
    """A defense that is fitted once, and then perturbs photos in one pass without looking at any generator.

    `fit` gives a new, fitted defense; so does `load`. A fitted defense whose settings are changed by
    `dataclasses.replace` has to be fitted again. Subclasses say in `blank` what is fitted and in `learn` how.
    """

    eps: float = 0.05
    fitted: Perturber | None = field(default=None, init=False, repr=False, compare=False)

    unsaved: ClassVar[tuple[str, ...]] = ()
    """Settings that matter in fitting alone and of which a file holds only a description."""

    def __post_init__(self) -> None:
        check_budget(self.eps)

    def blank(self, size: tuple[int, int]) -> Perturber:
        """What is to be fitted, for photos of this height and width."""
        raise NotImplementedError

    def learn(self, targets: Sequence[Target], photos: Dataset[Any], *, disable_tqdm: bool) -> Perturber:
        """Fit; no parameter of a generator asks for a gradient meanwhile."""
        raise NotImplementedError

    def fit(
        self: D,
        generators: nn.Module | Sequence[nn.Module],
        photos: Dataset[Any],
        conditions: Conditions | None = None,
        *,
        disable_tqdm: bool = False,
    ) -> D:
        """The same defense, fitted; see :class:`~loraguard.defenses.base.Fittable`.

        What is drawn comes from torch's global generator. Generators stay as they were.

        Args:
            generators: one network from images to images, or several.
            photos: items as :class:`~loraguard.PatchTrainer` takes them, all of one size; not the photos to protect.
            conditions: from labels to edits, for the first generator and for those that have no `conditions` of their
                own; by default each generator's own.
            disable_tqdm: no progress bar.

        Raises:
            ValueError: for no generator, no photo, images that are not (3, H, W) in [-1, 1], or settings that do not
                fit the generators.
        """
        targets = targets_of(generators, conditions)
        for name in self.unsaved:
            if isinstance(described := getattr(self, name), str):
                raise ValueError(f"{name}={described!r} is what a file says of it; to fit again give {name} itself.")
        with ExitStack() as stack:
            for target in targets:
                stack.enter_context(undisturbed(target.generator))
            learnt = self.learn(targets, photos, disable_tqdm=disable_tqdm)
        learnt._photos = photos  # by a private name, so that it is no part of what the defense is known by
        return self.having(learnt)

    @property
    def seen(self) -> Dataset[Any] | None:
        """The photos that it was fitted on in this process; None where nobody knows, as of a file."""
        return getattr(self.fitted, "_photos", None)

    def having(self: D, learnt: Perturber) -> D:
        """The same settings with what was fitted to them."""
        defense = replace(self)
        object.__setattr__(defense, "fitted", learnt.eval().requires_grad_(False))
        return defense

    @torch.no_grad()
    def perturb(self, generator: nn.Module, images: Tensor, condition: Condition, clean: Tensor | None) -> Tensor:
        """Photos with what was fitted added; the generator is not looked at.

        Raises:
            ValueError: if this defense is not fitted.
        """
        learnt = self._learnt().to(images.device)
        perturbation = learnt(images.to(learnt.pattern.dtype)).clamp(-self.eps, self.eps)
        return (images + perturbation.to(images)).clamp(-1, 1)

    @property
    def passes(self) -> int:
        """None: its steps are those of fitting, once for all photos."""
        return 0

    def save(self, path: str | Path, dtype: torch.dtype | None = None) -> Path:
        """Write what was fitted, with the settings, to one safetensors file, whole or not at all.

        Args:
            path: of the file.
            dtype: of floating numbers in it, such as `torch.float16` for half the size; as they are by default.

        Raises:
            ValueError: if this defense is not fitted.
            OSError: if the file cannot be written.
        """
        state = {
            name: value.detach().cpu().to(dtype if value.is_floating_point() else None).contiguous()
            for name, value in self._learnt().state_dict().items()
        }
        settings = {f.name: getattr(self, f.name) for f in fields(self) if f.init}
        for name in self.unsaved:
            settings[name] = None if settings[name] is None else described(settings[name])
        path = Path(path).expanduser()
        with whole_files(writable_folder(path.parent)) as draft:
            metadata = {"class": type(self).__name__, "settings": json.dumps(settings, sort_keys=True)}
            save_file(state, draft / path.name, metadata=metadata)
        return path

    @classmethod
    def load(cls: type[D], path: str | Path) -> D:
        """A fitted defense from a file of :meth:`save`.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it is no safetensors file, holds another defense, or is not complete.
        """
        path = Path(path).expanduser()
        if not path.is_file():
            raise FileNotFoundError(f"There is no file {path}; {cls.__name__}.save(path) writes one.")
        try:
            with safe_open(path, "pt") as file:
                metadata, state = file.metadata() or {}, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(f"{path} is no complete safetensors file: {error!s:.250}.") from error
        if metadata.get("class") != cls.__name__ or "pattern" not in state:
            raise ValueError(f"{path} holds {metadata.get('class', 'no defense')}, not {cls.__name__}.")
        try:
            found = json.loads(metadata["settings"])
            settings: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in found.items()}
            defense = cls(**settings)
            with torch.random.fork_rng(devices=[]):  # initial weights are drawn, then overwritten
                learnt = defense.blank(tuple(state["pattern"].shape[-2:]))
            learnt.load_state_dict(state)
        except (KeyError, TypeError, RuntimeError, ValueError) as error:
            raise ValueError(f"{path} does not fit this version's {cls.__name__}: {error!s:.250}") from error
        return defense.having(learnt)

    def _learnt(self) -> Perturber:
        if self.fitted is None:
            name = type(self).__name__
            raise ValueError(
                f"{name} is not fitted: call {name.lower()} = {name}(...).fit(generators, photos) first, with photos "
                "that are not the ones to protect."
            )
        return self.fitted


def described(thing: object) -> str:
    """A setting in words: a network by its class, anything else as it shows itself."""
    if isinstance(thing, str):
        return thing
    return type(thing).__name__ if isinstance(thing, nn.Module) else repr(thing)


def batches(
    photos: Dataset[Any], batch_size: int, *, count: int, device: torch.device, title: str | None = None
) -> Iterator[dict[str, Tensor]]:
    """So many photos in random order, pass after pass if need be, in checked batches; a bar for those with a title."""
    if not len(photos):  # type: ignore[arg-type]
        raise ValueError("There are no photos to fit a defense to.")
    sampler = RandomSampler(photos, num_samples=count)  # type: ignore[arg-type]
    loader = DataLoader(photos, batch_size, sampler=sampler, collate_fn=collate)
    for batch in tqdm(loader, title, disable=title is None):
        check_image_batch(batch["image"])
        yield {key: value.to(device) for key, value in batch.items()}


def outputs_of(target: Target, images: Tensor, condition: Condition) -> Tensor:
    """What a generator makes of clean images, no gradient."""
    with torch.no_grad():
        return target.generator(images, **condition)
