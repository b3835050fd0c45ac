"""Which photos an audit perturbs, how, and which generators then edit them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from loraguard.defenses import APGD, Defense, Disrupting, RandomNoise, Square

from .checks import FAR
from .situation import NO_CHANNEL, UNTOUCHED, Treatment

STEPS = (10, 30, 100)
"""Steps of the PGD whose curve shows whether more of them would change the picture."""

DRAWS = 16
"""Draws of a gradient, of which attacks on what draws at random take the mean."""

USUAL = 0.05
"""The budget of noise and of the checks' attacks where no defense has one of their kind: the one of most papers."""


@dataclass(frozen=True)
class Job:
    """Photos to make, and the forward passes that measure them.

    Attributes:
        treatment: what is done to them.
        defense: what makes them; None for photos as they are.
        crafted_on: the generator that it is crafted on, by name.
        through: the channel between photo and that generator, by name.
        seed: of what is drawn.
        passes: the forward passes that measure them: pairs of a generator and a channel, by name.
        first: only so many images; None for all.
        bounded: whether the defense's budget is L-infinity on images, as it has said before it was called.
    """

    treatment: Treatment
    defense: Any
    crafted_on: str
    through: str
    seed: int
    passes: tuple[tuple[str, str], ...]
    first: int | None = None
    bounded: bool = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "bounded", isinstance(self.defense, Defense) and self.defense.budget is None)

    def treatment_on(self, generator: str) -> Treatment:
        """What was done to the photos, as the generator that is judged on them sees it."""
        if self.treatment.knowledge != "leak" or self.treatment.role == "check" or generator == self.crafted_on:
            return self.treatment
        return replace(self.treatment, knowledge="transfer", role="transfer", crafted_on=self.crafted_on)

    @property
    def cost(self) -> int:
        """About how many passes through a generator it takes, for the progress bar."""
        return 1 + len(self.passes) + (self.defense.passes if isinstance(self.defense, Defense) else 0)


def plan(
    defenses: Mapping[str, Any],
    generators: Sequence[str],
    *,
    no_leak_only: Iterable[str] = (),
    channels: Sequence[str] = (),
    adaptive_channels: Sequence[str] = (),
    budgets: Sequence[float] = (),
    more_steps: Sequence[int] = (),
    seeds: Sequence[int] = (0,),
    checks: int = 0,
    random: Collection[str] = (),
    transfer: Sequence[str] = (),
) -> list[Job]:
    """Every job of an audit, the most important ones first.

    Photos as they are, noise, and each defense at its own budget and steps go through every channel and every
    generator, without a leak and with it. Further budgets and steps, and the checks, go without a channel. Where a
    budget is not L-infinity, or unknown, noise is also made of the very size of the defense's own perturbations.

    Args:
        defenses: by name.
        generators: all of them, the untouched one first.
        no_leak_only: those of the defenses that are not crafted anew for another generator or channel.
        channels: by name, beside none.
        adaptive_channels: those of them that defenses are also crafted through.
        budgets: values of `eps`, beside each defense's own.
        more_steps: values of `steps`, beside each defense's own.
        seeds: one run of everything that is drawn for each.
        checks: how many images the checks take; 0 for none.
        random: generators and channels, by name, that draw at random: attacks on them also take the mean of
            :data:`DRAWS` draws of each gradient.
        transfer: generators, by name: what is crafted on one of them is judged on all of them.

    Example:
        >>> for job in plan({"pgd": Disrupting()}, ["untouched", "patch"]):
        ...     treatment = job.treatment
        ...     print(treatment.defense, treatment.knowledge, job.crafted_on, [name for name, _ in job.passes])
        none clean untouched ['untouched', 'patch']
        noise noise untouched ['untouched', 'patch']
        pgd no-leak untouched ['untouched', 'patch']
        pgd leak patch ['patch']
    """
    everywhere = [NO_CHANNEL, *channels]
    fixed = set(no_leak_only)
    jobs: list[Job] = []

    def add(treatment: Treatment, defense: Any, crafted_on: str, passes: Any, through: str = NO_CHANNEL) -> None:
        jobs.extend(Job(treatment, defense, crafted_on, through, seed, tuple(passes)) for seed in seeds)

    def no_leak_and_leak(name: str, defense: Any, role: str, channels: Sequence[str]) -> None:
        eps, steps = _stated(defense)
        passes = [(generator, channel) for generator in generators for channel in channels]
        add(Treatment(name, "no-leak", eps, steps, role), defense, UNTOUCHED, passes)
        if role == "main" and (not isinstance(defense, Defense) or defense.budget is not None):
            control = Treatment(name, "noise", eps, steps, "control")  # once; its size is nobody's but this defense's
            jobs.append(Job(control, defense, UNTOUCHED, NO_CHANNEL, seeds[0], ((UNTOUCHED, NO_CHANNEL),)))
        for patched in () if name in fixed else generators[1:]:
            others = transfer if role == "main" and patched in transfer else ()
            own = [(patched, channel) for channel in channels]
            carried = [(other, NO_CHANNEL) for other in others if other != patched]
            add(Treatment(name, "leak", eps, steps, role), defense, patched, [*own, *carried])

    everyone = [(generator, channel) for generator in generators for channel in everywhere]
    add(Treatment("none", "clean"), None, UNTOUCHED, everyone)
    for eps in _budgets(defenses):
        add(Treatment("noise", "noise", eps), RandomNoise(eps), UNTOUCHED, everyone)
    for name, defense in defenses.items():
        no_leak_and_leak(name, defense, "main", everywhere)
    for name, defense in defenses.items():
        for channel in () if name in fixed else adaptive_channels:
            treatment = Treatment(name, "leak+channel", *_stated(defense))
            for generator in generators:
                add(treatment, defense, generator, [(generator, channel)], through=channel)
    for name, defense in defenses.items():
        if not isinstance(defense, Defense):
            continue
        for eps in budgets:
            other = defense.varied(eps=eps)
            if other is not None and eps != defense.eps:
                no_leak_and_leak(name, other, "budget", [NO_CHANNEL])
        for steps in more_steps:
            other = defense.varied(steps=steps)
            # FGSM has a single step whatever it is given.
            if other is not None and steps != defense.steps and other.steps == steps:
                no_leak_and_leak(name, other, "steps", [NO_CHANNEL])
    if checks:
        jobs += _checks(_budgets(defenses), generators, adaptive_channels, set(random), seeds[0], checks)
    return jobs


def _checks(
    budgets: Sequence[float],
    generators: Sequence[str],
    channels: Sequence[str],
    random: Collection[str],
    seed: int,
    count: int,
) -> list[Job]:
    """Every attack of the checks at every budget, each once, on the first photos; some of them behind each channel."""
    jobs: list[Job] = []
    done: set[tuple[Treatment, str, str]] = set()

    def add(name: str, knowledge: str, attack: Defense, generator: str, channel: str) -> None:
        treatment = Treatment(name, knowledge, attack.eps, attack.steps, "check")
        if (treatment, generator, channel) not in done:
            done.add((treatment, generator, channel))
            jobs.append(Job(treatment, attack, generator, channel, seed, ((generator, channel),), first=count))

    for eps in budgets:
        averaged = Disrupting(eps, steps=STEPS[1], eot=DRAWS)
        for generator in generators:
            for name, attack in check_attacks(eps).items():
                add(name, "leak", attack, generator, NO_CHANNEL)
            if generator in random:
                add("pgd-averaged", "leak", averaged, generator, NO_CHANNEL)
            for channel in channels:
                add("pgd-30", "leak+channel", Disrupting(eps, steps=STEPS[1]), generator, channel)
                add("pgd-100", "leak+channel", Disrupting(eps, steps=STEPS[2]), generator, channel)
                if {generator, channel} & set(random):
                    add("pgd-averaged", "leak+channel", averaged, generator, channel)
    return jobs


def _budgets(defenses: Mapping[str, Any]) -> list[float]:
    """Every L-infinity budget among the defenses, or :data:`USUAL`; others say so by an attribute `budget`."""
    same = {one.eps for one in defenses.values() if isinstance(one, Defense) and one.eps and one.budget is None}
    return sorted(same or {USUAL})


def _stated(defense: Any) -> tuple[float | None, int | None]:
    """Budget and steps; neither is known of photos that somebody else has perturbed."""
    return (defense.eps, defense.steps) if isinstance(defense, Defense) else (None, None)


def check_attacks(eps: float) -> dict[str, Defense]:
    """The attacks that say whether a conclusion at this budget can be trusted, each crafted on the generator at hand.

    :mod:`loraguard.audit.checks` reads what they find.
    """
    pgd = {f"pgd-{steps}": Disrupting(eps, steps=steps) for steps in STEPS}
    return {
        "fgsm": Disrupting(eps, method="fgsm"),
        **pgd,
        "pgd-restarts": Disrupting(eps, steps=STEPS[1], restarts=5),
        "apgd": APGD(eps, steps=STEPS[-1]),
        "square": Square(eps),
        "pgd-half": Disrupting(eps / 2, steps=STEPS[1]),
        "pgd-far": Disrupting(max(FAR, eps), steps=STEPS[1]),
    }
