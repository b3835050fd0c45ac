"""CMUA: one watermark for all photos and several generators (Huang et al., AAAI 2022, arXiv 2105.10872)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset

from loraguard.generators.base import Condition, Conditions
from loraguard.metrics import defense_succeeds

from .base import jitter
from .fitted import Perturber, Target, batches, outputs_of, targets_of
from .terms import away_from
from .universal import Pattern, UniversalDefense


@dataclass(frozen=True)
class CMUA(UniversalDefense):
    """The cross-model universal adversarial watermark: one perturbation P for every photo, generator and edit.

    For each batch, each generator m and each of its edits c in turn, `steps` times, with x' = clip(x + P):
    `d = mean over the batch of clip(f_m * (x' + step_size * sign(grad MSE(G_m(x', c), G_m(x, c))) - x), +-eps)` and
    `P <- momentum * P + (1 - momentum) * d`. Settings and updates are those of the official code, but for the start:
    there every turn's first step is taken at x + uniform noise, which halves P; here only the very first is, as P is
    nothing then.

    Args:
        eps: the budget, L-infinity, in units of images in [-1, 1].
        steps: sign steps for each batch, generator and edit.
        step_size: of one step; 0.2 * `eps` by default, 0.01 at the paper's budget.
        factors: f_m, a number >= 0 for each generator that scales its steps; 1 by default. :meth:`search` looks for
            good ones, as the paper does.
        momentum: of the running mean.
        photos: how many photos P is fitted to, each seen once.
        batch_size: photos at a time.

    Raises:
        ValueError: for settings out of range.

    Example:
        >>> from loraguard.data import DemoFaces
        >>> generator = nn.Conv2d(3, 3, 3, padding=1)
        >>> defense = CMUA(steps=2, photos=8, batch_size=4).fit(generator, DemoFaces(8, size=16), disable_tqdm=True)
        >>> photos = torch.zeros(2, 3, 16, 16)
        >>> bool(((defense(generator, photos, {}) - photos).abs() <= 0.05).all())
        True
    """

    steps: int = 10
    step_size: float | None = None
    factors: tuple[float, ...] | None = None
    momentum: float = 0.5
    photos: int = 128
    batch_size: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        if min(self.steps, self.photos, self.batch_size) < 1 or (self.step_size is not None and self.step_size <= 0):
            raise ValueError(
                f"Expected steps, photos and batch_size >= 1 and step_size > 0, got steps={self.steps}, "
                f"photos={self.photos}, batch_size={self.batch_size}, step_size={self.step_size}."
            )
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum={self.momentum!r} must be in [0, 1).")
        if self.factors is not None and not (all(f >= 0 for f in self.factors) and any(self.factors)):
            raise ValueError(f"factors={self.factors!r} must be numbers >= 0, not all 0.")

    def learn(self, targets: Sequence[Target], photos: Dataset[Any], *, disable_tqdm: bool) -> Perturber:
        """P; see the class."""
        factors = self.factors or (1.0,) * len(targets)
        if len(factors) != len(targets):
            raise ValueError(f"Expected a factor for each of {len(targets)} generators, got factors={factors}.")
        count = min(self.photos, len(photos))  # type: ignore[arg-type]
        pattern = None
        title = None if disable_tqdm else "cmua"
        for batch in batches(photos, self.batch_size, count=count, device=targets[0].device, title=title):
            for target, factor in zip(targets, factors, strict=True):
                for edit in target.edits(batch):
                    pattern = self._turn(target, batch["image"], edit, factor, pattern)
        assert pattern is not None
        return Pattern(pattern)

    def _turn(
        self, target: Target, images: Tensor, condition: Condition, factor: float, pattern: Tensor | None
    ) -> Tensor:
        distance = away_from(target.generator, images, condition)
        perturbed = jitter(images, self.eps) if pattern is None else (images + pattern).clamp(-1, 1)
        for _ in range(self.steps):
            perturbed = perturbed.requires_grad_()
            with torch.enable_grad():
                (gradient,) = torch.autograd.grad(distance(perturbed).sum(), perturbed)
            moved = perturbed.detach() + (self.step_size or 0.2 * self.eps) * gradient.sign() - images
            mean = (factor * moved).clamp(-self.eps, self.eps).mean(0)
            pattern = mean if pattern is None else self.momentum * pattern + (1 - self.momentum) * mean
            perturbed = (images + pattern).clamp(-1, 1)
        assert pattern is not None
        return pattern

    def search(
        self,
        generators: nn.Module | Sequence[nn.Module],
        photos: Dataset[Any],
        conditions: Conditions | None = None,
        *,
        trials: int = 100,
        highest: float = 10.0,
        seed: int = 0,
        disable_tqdm: bool = False,
    ) -> CMUA:
        """The same defense, not fitted yet, with the `factors` that were best in a search by optuna's TPE sampler.

        Each trial fits to half of the photos and is scored on others: the share of photos and edits on which the
        defense succeeds, averaged over generators. The first trial has all factors 1. The paper searches [0, 10] (with
        NNI's TPE); how many trials it took is not stated.

        Args:
            generators: as in :meth:`fit`; with one generator its factor still scales the step.
            photos: neither those to protect nor those that the defense is judged on in the end.
            conditions: as in :meth:`fit`.
            trials: how many sets of factors to try, each between 0 and `highest`.
            highest: of the factors.
            seed: of the sampler, and of every trial's fit; torch's global generator stays as it was.
            disable_tqdm: no progress bar.

        Raises:
            ImportError: without optuna; `pip install loraguard[search]`.
            ValueError: for fewer than two photos, or fewer than one trial.
        """
        try:
            import optuna
        except ImportError as error:
            raise ImportError("CMUA.search needs optuna: pip install 'loraguard[search]'.") from error
        targets = targets_of(generators, conditions)
        there = len(photos)  # type: ignore[arg-type]
        if trials < 1 or there < 2:
            raise ValueError(f"A search needs trials >= 1 and two photos or more, got {trials} and {there}.")
        order = torch.randperm(there, generator=torch.Generator().manual_seed(seed)).tolist()
        half = min(self.photos, there // 2)
        seen, unseen = Subset(photos, order[:half]), Subset(photos, order[half : 2 * half])

        def score(trial: optuna.Trial) -> float:
            factors = tuple(trial.suggest_float(f"factor_{i}", 0.0, highest) for i in range(len(targets)))
            if not any(factors):
                return 0.0
            with torch.random.fork_rng():
                torch.manual_seed(seed)
                networks = [target.generator for target in targets]
                defense = replace(self, factors=factors).fit(networks, seen, conditions, disable_tqdm=True)
                return success(defense, targets, unseen)

        verbosity = optuna.logging.get_verbosity()
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        try:
            study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed))
            study.enqueue_trial({f"factor_{i}": min(1.0, highest) for i in range(len(targets))})
            study.optimize(score, n_trials=trials, show_progress_bar=not disable_tqdm)
        finally:
            optuna.logging.set_verbosity(verbosity)
        return replace(self, factors=tuple(study.best_params[f"factor_{i}"] for i in range(len(targets))))


@torch.no_grad()
def success(defense: CMUA, targets: Sequence[Target], photos: Subset[Any]) -> float:
    """The share of photos and edits on which a fitted defense succeeds, averaged over generators."""
    rates = []
    for target in targets:
        found = []
        for batch in batches(photos, defense.batch_size, count=len(photos), device=target.device):
            images = batch["image"]
            for edit in target.edits(batch):
                disrupted = target.generator(defense(target.generator, images, edit), **edit)
                found.append(defense_succeeds(disrupted, outputs_of(target, images, edit)))
        rates.append(torch.cat(found).mean())
    return float(torch.stack(rates).mean())
