"""Disrupting against whatever edit may be asked for (Ruiz et al., arXiv 2003.01279, "class transferable")."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.utils.data import Dataset
from tqdm.auto import tqdm

from loraguard.data import collate
from loraguard.generators.base import Condition, Conditions, conditions_of, labels_of
from loraguard.generators.layers import up_to

from .ascent import Objective
from .base import Fittable
from .disrupting import Disrupting
from .terms import Term, away_from, in_turn, together

MODES = ("iterative", "joint")


@dataclass(frozen=True)
class ClassTransferable(Disrupting, Fittable):
    """Perturb each photo so that the generator fails on it with every edit, not only with one that is known.

    White-box, per image, for a defender who does not know which edit will be asked for: the condition of a call, and
    clean outputs for it, are not looked at. *Iterative* takes each step against another edit, one after another;
    *joint* takes each against the sum of all edits' distances, at as many times the cost. Each edit's output
    is driven away from what it is on the clean photo; the released code measures all from one output that it is given.

    Which edits there are follows from labels, and a defense is given none. So they come from :meth:`fit`, or are
    given; each is one row that serves every photo, whoever is on it.

    Args:
        mode: "iterative" or "joint".
        edits: by name, a condition of one row each.
        eps, steps, step_size, method, restarts, layer: as :class:`~loraguard.defenses.Disrupting` has them.

    Raises:
        ValueError: for an unknown mode, edits that are not one row each; on a call, if there are no edits yet.

    Example:
        >>> import torch
        >>> from loraguard.data import DemoFaces
        >>> from loraguard.generators import DemoEditor
        >>> editor = DemoEditor(conv_dim=4)
        >>> defense = ClassTransferable(steps=5).fit(editor, DemoFaces(12, size=16), disable_tqdm=True)
        >>> list(defense.edits)
        ['Black_Hair', 'Blond_Hair', 'Brown_Hair', 'Eyeglasses', 'Smiling']
        >>> defense(editor, torch.zeros(2, 3, 16, 16), {}).shape
        torch.Size([2, 3, 16, 16])
    """

    mode: str = "iterative"
    edits: Mapping[str, Condition] | None = field(default=None, compare=False)

    fits_every_generator: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.mode not in MODES:
            raise ValueError(f"mode={self.mode!r} is unknown; choose one of {', '.join(MODES)}.")
        check_edits(self.edits)

    def fit(
        self,
        generators: nn.Module | Sequence[nn.Module],
        photos: Dataset[Any],
        conditions: Conditions | None = None,
        *,
        disable_tqdm: bool = False,
    ) -> ClassTransferable:
        """The same with the edits that the first generator is asked for on photos (:func:`edits_of`).

        Edits that there are already stay, whichever generator it is: they were given, or found before.
        """
        if self.edits:
            return self
        first = generators if isinstance(generators, nn.Module) else generators[0]
        return replace(self, edits=edits_of(first, photos, conditions, disable_tqdm=disable_tqdm))

    @property
    def fitted(self) -> Mapping[str, Condition] | None:
        """The edits, once there are any."""
        return self.edits

    def terms(self, generator: nn.Module, images: Tensor, condition: Condition, clean: Tensor | None) -> Sequence[Term]:
        """The distance for each edit."""
        if not self.edits:
            raise ValueError(
                "ClassTransferable does not know which edits there are: call fit(generator, photos) first, or give "
                "edits={name: condition}."
            )
        network = generator if self.layer is None else up_to(generator, self.layer)
        return [away_from(network, images, for_each(images, edit)) for edit in self.edits.values()]

    def objective(self, terms: Sequence[Term]) -> Objective:
        """One edit a step, or all in each."""
        return in_turn(terms) if self.mode == "iterative" else together(terms)


def edits_of(
    generator: nn.Module,
    photos: Dataset[Any],
    conditions: Conditions | None = None,
    *,
    most: int = 256,
    disable_tqdm: bool = False,
) -> dict[str, Condition]:
    """The edits that a generator is asked for on photos, by name: of each, the condition that most photos get.

    Labels say what a face is to look like afterwards, so that one edit has as many conditions as there are kinds of
    faces. The most common one stands for it.

    Args:
        generator: its `conditions` make the edits, unless some are given.
        photos: items as :class:`~loraguard.PatchTrainer` takes them.
        conditions: from labels to edits.
        most: photos to look at, the first ones.
        disable_tqdm: no progress bar.

    Returns:
        By name, conditions of one row.

    Raises:
        ValueError: if there are no photos, or no labels where edits need some.

    Example:
        >>> import torch
        >>> photos = [(torch.zeros(3, 8, 8), torch.tensor([label])) for label in (0.0, 1.0, 1.0)]
        >>> edits = edits_of(nn.Identity(), photos, lambda labels: {"flip": {"labels": 1 - labels}}, disable_tqdm=True)
        >>> edits["flip"]["labels"]
        tensor([[0.]])
    """
    n = min(most, len(photos))  # type: ignore[arg-type]
    if not n:
        raise ValueError("There are no photos to learn the edits from.")
    counts: dict[str, Counter[bytes]] = {}
    rows: dict[tuple[str, bytes], Condition] = {}
    for index in tqdm(range(n), desc="edits", disable=disable_tqdm):
        batch = collate([photos[index]])
        for name, edit in conditions_of(generator, labels_of(batch, conditions, generator), conditions).items():
            key = b"".join(row.cpu().numpy().tobytes() for row in edit.values())
            counts.setdefault(name, Counter())[key] += 1
            rows.setdefault((name, key), edit)
    return {name: rows[name, seen.most_common(1)[0][0]] for name, seen in counts.items()}


def for_each(images: Tensor, edit: Condition) -> Condition:
    """An edit of one row as a condition of a row for each image, where the images are.

    Example:
        >>> import torch
        >>> for_each(torch.zeros(4, 3, 8, 8), {"labels": torch.eye(5)[:1]})["labels"].shape
        torch.Size([4, 5])
    """
    return {key: row.to(images.device).expand(len(images), *row.shape[1:]) for key, row in edit.items()}


def check_edits(edits: Mapping[str, Condition] | None) -> None:
    """Refuse edits that are not one row each, so that they cannot serve every photo."""
    for name, edit in (edits or {}).items():
        shapes = {key: tuple(row.shape) for key, row in edit.items()}
        if any(shape[:1] != (1,) for shape in shapes.values()):
            raise ValueError(f"Expected edits of one row each, which serves every photo; {name!r} has {shapes}.")
