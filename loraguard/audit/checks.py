"""Whether an audit's figures can be trusted, after AutoAttack (arXiv 2003.01690) and RobustBench (arXiv 2010.09670).

A conclusion that a patch withstands a defense is worth as much as the attacks that were tried. Each check compares two
ways to perturb the same photos; where it fails, the rows that it concerns carry its name as a flag.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import log10
from typing import TYPE_CHECKING

from torch import Tensor

from loraguard.pixels import LEVELS_PER_UNIT

from .names import SUCCESS
from .paired import Difference, paired_difference
from .situation import KNOWLEDGE, NO_CHANNEL, UNTOUCHED, Situation

if TYPE_CHECKING:
    from .result import AuditResult

MARGIN = 0.1
"""An attack beats another whose mean MSE it exceeds by this part, beyond chance."""

SATURATED = 0.95
"""The DSR that a far too large budget has to reach."""

FAR = 0.5
"""A budget at which everything should break: a quarter of the range."""

LEAST_PSNR = 25.0
"""In dB: a photo that is further from its original is no longer that photo."""

UNMOVED = 0.05
"""The share of photos that a defense may leave as they are."""

SAME = 0.51 / LEVELS_PER_UNIT
"""A photo whose values all move by less is the original, as a file of 8 bits holds it."""

DISAGREE = 0.3
"""By so much the share of spoilt outputs may differ between the whole output and the part that is edited."""

FALSE_STAMPS = 0.05
"""A detector that finds a stamp on more of the outputs without one says nothing."""

MOVES = 5.0
"""A defense that raises the MSE to so many times what noise does moves outputs, whatever the threshold of success."""

HARD_TO_SEE = 35.0
"""In dB: outputs that are as near as this to what they should be look like it."""

CLEAN_DSR = 0.05
"""Where more of the clean outputs than this are spoilt, a patch is none."""

WHITE_BOX = ("leak", "leak+channel")


def white_box_of(generator: str) -> tuple[str, ...]:
    """What a defender knows who attacks this very generator; of the untouched one everybody does."""
    return ("no-leak", *WHITE_BOX) if generator == UNTOUCHED else WHITE_BOX


@dataclass(frozen=True)
class Check:
    """One question about the figures, and the answer.

    Attributes:
        name: the flag where it fails; docs/audit-checks.md has a section of this name.
        passed: whether the figures can stand.
        generator: whose figures it is about.
        defense: with which defense; None for all of them.
        knowledge: the rows that it concerns.
        evidence: what was compared, with figures, in a sentence.
        channel: the rows behind this channel alone; None for all.
    """

    name: str
    passed: bool
    generator: str
    defense: str | None
    knowledge: tuple[str, ...]
    evidence: str
    channel: str | None = None

    def concerns(self, situation: Situation) -> bool:
        """Whether a situation's figures stand or fall with it."""
        photo = situation.treatment
        return (
            photo.role != "check"
            and self.generator == situation.generator
            and self.defense in (None, photo.defense)
            and photo.knowledge in self.knowledge
            and self.channel in (None, situation.channel)
        )


def examine(result: AuditResult) -> list[Check]:
    """Every check that the situations of an audit allow; those that need attacks of their own only where they ran."""
    names = dict.fromkeys(one.generator for one in result.situations)
    parts = (_of_defenses, _of_generator, _of_channels)
    return [check for name in names for part in parts for check in part(result, name)]


def _of_defenses(result: AuditResult, generator: str) -> Iterator[Check]:
    """Checks among the audit's own rows."""
    rows = {(row.treatment.knowledge, row.treatment.defense): row for row in _main(result, generator)}
    noise = {row.treatment.eps or 0.0: row for row in _main(result, generator) if row.treatment.knowledge == "noise"}
    clean = _share(rows["clean", "none"])
    yield Check(
        "clean-output-changed", clean <= CLEAN_DSR, generator, None, KNOWLEDGE,
        f"Without any perturbation {clean:.1%} of the outputs are over the threshold (allowed: {CLEAN_DSR:.0%}).",
    )  # fmt: skip
    yield from _of_outputs(result, generator)
    for defense in result.defenses:
        no_leak, leak = rows["no-leak", defense], rows.get(("leak", defense))
        if generator == UNTOUCHED and noise:
            own = defense in result.settings["own_budgets"]
            same = None if own else noise.get(no_leak.treatment.eps or 0.0)
            control = next(iter(result.find(role="control", defense=defense)), same or noise[max(noise)])
            yield _reachable(result, no_leak, control)
            yield from _visible(result, no_leak)
            beaten, words = beats(no_leak, control)
            yield Check("no-better-than-noise", beaten, generator, defense, ("no-leak", *WHITE_BOX), words)
        elif leak is not None:
            beaten, words = beats(no_leak, leak)
            yield Check("transfer-beats-white-box", not beaten, generator, defense, WHITE_BOX, words)
        white_box = no_leak if generator == UNTOUCHED else leak
        if white_box is not None and (longest := _longest(result, white_box)) is not None:
            beaten, words = beats(longest, white_box)
            knowledge = (white_box.treatment.knowledge, "leak+channel")
            yield Check("steps-not-enough", not beaten, generator, defense, knowledge, words)


def _reachable(result: AuditResult, row: Situation, noise: Situation) -> Check:
    """Whether the threshold of success can be reached where a defense clearly moves the outputs."""
    mse, most = row.values["mse"].mean().item(), max(noise.values["mse"].mean().item(), 1e-12)
    moved = _above_zero(paired_difference(row.values["mse"], noise.values["mse"])) and mse >= MOVES * most
    return Check(
        "threshold-out-of-reach", not (moved and _share(row) < CLEAN_DSR), UNTOUCHED, row.treatment.defense,
        ("no-leak", *WHITE_BOX),
        f"It raises the MSE to {mse:.3g}, {mse / most:.0f} times what noise does ({most:.3g}), and {_share(row):.1%} "
        f"of the outputs are over the threshold of success ({result.settings.get('success', SUCCESS)}).",
    )  # fmt: skip


def _visible(result: AuditResult, row: Situation) -> Iterator[Check]:
    """Whether what counts as spoilt, by pixels, can be seen at all."""
    success = result.settings.get("success", SUCCESS)
    psnr = row.values["psnr"][row.values["dsr"] > 0].double()
    if success.partition(":")[0] in ("mse", "ssim", "lpips", "noise") and len(psnr):
        finite = psnr[psnr.isfinite()]
        kept = finite.mean().item() if len(finite) else float("inf")
        yield Check(
            "threshold-too-low", kept <= HARD_TO_SEE, UNTOUCHED, row.treatment.defense, ("no-leak", *WHITE_BOX),
            f"Outputs that count as spoilt ({success}) keep {kept:.1f} dB (PSNR) to what they should be (at most "
            f"{HARD_TO_SEE:g} dB).",
        )  # fmt: skip


def _of_outputs(result: AuditResult, generator: str) -> Iterator[Check]:
    """Checks of what each row's photos and outputs are."""
    through = result.find(generator=generator, role="main", knowledge="leak+channel")
    for row in (*_main(result, generator), *through):
        treatment, values = row.treatment, row.values
        if treatment.knowledge not in ("no-leak", *WHITE_BOX):
            continue
        concerned = (generator, treatment.defense, (treatment.knowledge,))
        behind = None if row.channel == NO_CHANNEL else row.channel
        own = treatment.defense in result.settings["own_budgets"]
        if "photo_moved" in values and treatment.eps is not None and not own:
            moved = values["photo_moved"].max().item()
            yield Check(
                "over-budget", moved <= treatment.eps + 1e-4, *concerned,
                f"It moves photos by up to {moved:.4g} and claims {treatment.eps:g}; its photos were brought back into "
                "that budget.", behind,
            )  # fmt: skip
        kept = _mean_decibels(values["photo_psnr"])
        yield Check(
            "photo-destroyed", kept >= LEAST_PSNR, *concerned,
            f"The photos that it gives are {kept:.1f} dB (PSNR of their mean MSE) from the originals (at least "
            f"{LEAST_PSNR:g} dB).", behind,
        )  # fmt: skip
        if "photo_linf" in values:
            same = (values["photo_linf"] < SAME).double().mean().item()
            yield Check(
                "photos-not-perturbed", same <= UNMOVED, *concerned,
                f"{same:.1%} of the photos that it gives are the originals, as files hold them ({UNMOVED:.0%} may be).",
                behind,
            )  # fmt: skip
        share = _share(row)
        if "dsr_without_cast" in values:
            left = values["dsr_without_cast"].double().mean().item()
            yield Check(
                "only-a-colour-cast", share < 0.1 or left >= 0.5 * share, *concerned,
                f"{share:.1%} of the outputs are spoilt; once colours are put right by mean and contrast, {left:.1%}.",
                behind,
            )  # fmt: skip
        if "masked_dsr" in values:
            masked = values["masked_dsr"].double().mean().item()
            yield Check(
                "only-where-the-edit-is", masked - share < DISAGREE, *concerned,
                f"Where the edit changes the photo {masked:.1%} of the outputs are spoilt, and as a whole {share:.1%}.",
                behind,
            )  # fmt: skip
    rates = {row.treatment.words: row.values["stamp_rate"].double().mean().item() for row in _main(result, generator)
             if "stamp_rate" in row.values}  # fmt: skip
    if generator == UNTOUCHED and rates:
        words, rate = max(rates.items(), key=lambda pair: pair[1])
        stamping = [name for name, stamp in result.settings["patches"].items() if stamp is not None]
        for name in (UNTOUCHED, *stamping):
            yield Check(
                "stamp-found-everywhere", rate <= FALSE_STAMPS, name, None, KNOWLEDGE,
                f"The detector finds the stamp on {rate:.1%} of the untouched generator's outputs (photos: {words}; "
                f"allowed: {FALSE_STAMPS:.0%}).",
            )  # fmt: skip


def _of_generator(result: AuditResult, generator: str) -> Iterator[Check]:
    """Checks by attacks that were crafted on this generator for nothing else, at each budget that a row has."""
    attacks_of = result.find(generator=generator, role="check", channel=NO_CHANNEL)
    tried = {(row.treatment.defense, row.treatment.eps): row for row in attacks_of}
    own = result.settings["own_budgets"]
    budgets = sorted({eps for name, eps in tried if name == "pgd-30" and eps is not None})
    for eps in budgets:
        attacks = {name: row for (name, at), row in tried.items() if at == eps}
        attacks["pgd-half"], attacks["pgd-far"] = tried["pgd-half", eps / 2], tried["pgd-far", max(FAR, eps)]
        concerned = {
            row.treatment.defense
            for row in _main(result, generator)
            if row.treatment.knowledge in ("no-leak", *WHITE_BOX)
            and (row.treatment.eps == eps if row.treatment.defense not in own else eps == budgets[-1])
        }
        for defense in sorted(concerned):
            yield from _of_attacks(result, generator, defense, attacks)


def _of_attacks(result: AuditResult, generator: str, defense: str, tried: Mapping[str, Situation]) -> Iterator[Check]:
    """What the attacks of one budget say of the rows of a defense that has this budget."""
    white_box = white_box_of(generator)

    def compared(name: str, stronger: str, weaker: str) -> Check:
        beaten, words = beats(tried[stronger], tried[weaker])
        return Check(name, not beaten, generator, defense, white_box, words)

    yield compared("steps-not-enough", "pgd-100", "pgd-30")
    yield compared("restarts-help", "pgd-restarts", "pgd-30")
    yield compared("single-step-beats-iterative", "fgsm", "pgd-100")
    yield compared("gradient-free-beats-gradients", "square", "pgd-100")
    grows, words = beats(tried["pgd-30"], tried["pgd-half"], margin=0)
    yield Check("budget-does-not-count", grows, generator, defense, white_box, words)
    if "pgd-averaged" in tried:
        yield compared("one-draw-is-not-enough", "pgd-averaged", "pgd-30")
    far = tried["pgd-far"]
    share = _share(far)
    yield Check(
        "does-not-saturate", share >= SATURATED, generator, defense, white_box,
        f"With a budget of {far.treatment.eps:g}, {share:.1%} of the outputs are spoilt (expected: {SATURATED:.0%}).",
    )  # fmt: skip
    strong = [tried[name] for name in ("pgd-100", "pgd-restarts", "apgd", "pgd-averaged") if name in tried]
    knowledge = "no-leak" if generator == UNTOUCHED else "leak"
    for row in _main(result, generator):
        treatment = row.treatment
        same = (treatment.eps, treatment.defense, treatment.knowledge) == (strong[0].treatment.eps, defense, knowledge)
        if same and defense not in result.settings["own_budgets"]:
            beaten, words = _beaten(strong, row)
            yield Check("stronger-attack-found", not beaten, generator, defense, white_box, words)


def _of_channels(result: AuditResult, generator: str) -> Iterator[Check]:
    """What a channel does by itself, and what knowing it, and attacks through it, say of rows behind it."""
    without = {row.treatment: _share(row) for row in _main(result, generator)}
    for row in result.find(generator=generator, role="main"):
        if row.channel != NO_CHANNEL and row.treatment.knowledge in ("clean", "noise"):
            yield Check(
                "channel-spoils-outputs", _share(row) <= without[row.treatment] + CLEAN_DSR, generator, None, KNOWLEDGE,
                f"Behind {row.channel} {_share(row):.1%} of the outputs are over the threshold on photos that no "
                f"defense has perturbed ({row.treatment.words}), and {without[row.treatment]:.1%} without it (allowed: "
                f"{CLEAN_DSR:.0%} more).", row.channel,
            )  # fmt: skip
    plain = "no-leak" if generator == UNTOUCHED else "leak"
    for row in result.find(generator=generator, role="main", knowledge="leak+channel"):
        treatment = row.treatment
        concerned = (generator, treatment.defense, ("leak+channel",))
        unaware = {"role": "main", "knowledge": plain, "defense": treatment.defense, "channel": row.channel}
        for other in result.find(generator=generator, **unaware):
            beaten, words = beats(other, row)
            yield Check("transfer-beats-white-box", not beaten, *concerned, words, row.channel)
        same = {"role": "check", "knowledge": "leak+channel", "channel": row.channel, "eps": treatment.eps}
        tried = {one.treatment.defense: one for one in result.find(generator=generator, **same)}
        if not tried or treatment.defense in result.settings["own_budgets"]:
            continue
        beaten, words = _beaten(list(tried.values()), row)
        yield Check("stronger-attack-found", not beaten, *concerned, words, row.channel)
        if "pgd-averaged" in tried:
            beaten, words = beats(tried["pgd-averaged"], tried["pgd-30"])
            yield Check("one-draw-is-not-enough", not beaten, *concerned, words, row.channel)


def beats(stronger: Situation, weaker: Situation, *, margin: float = MARGIN) -> tuple[bool, str]:
    """Whether one way to perturb spoils more than another, beyond chance, and the comparison in words.

    It does where it spoils more of the images, or where its mean MSE is higher by the margin; both with a paired 95%
    interval above 0, on the images that both have seen.
    """
    n = min(one.values["mse"].shape[1] for one in (stronger, weaker))
    a, b = ({name: one.values[name][:, :n] for name in ("mse", "dsr")} for one in (stronger, weaker))
    mse = paired_difference(a["mse"], b["mse"])
    dsr = paired_difference(a["dsr"], b["dsr"], share=True)
    more = _above_zero(dsr) or (_above_zero(mse) and (mse.mean or 0.0) > margin * b["mse"].mean().item())

    def figures(of: dict[str, Tensor]) -> str:
        return f"DSR {of['dsr'].mean().item():.1%}, MSE {of['mse'].mean().item():.4f}"

    return more, (
        f"{_named(stronger)}: {figures(a)}; {_named(weaker)}: {figures(b)}. Differences: DSR "
        f"{_with_interval(dsr, '{:+.1f}', 100)} points, MSE {_with_interval(mse, '{:+.4f}')}, n = {n}."
    )


def _beaten(attacks: Sequence[Situation], row: Situation) -> tuple[bool, str]:
    """Whether one of several attacks beats a row: that of the largest MSE need not be the one that spoils most."""
    found = [beats(one, row) for one in sorted(attacks, key=_mean_mse, reverse=True)]
    return next((one for one in found if one[0]), found[0])


def _with_interval(difference: Difference, form: str, scale: float = 1.0) -> str:
    """A difference with its interval, as "+20.0 (+11.2 to +33.0)"; where all are equal there is none."""
    mean, low, high = (form.format(scale * (x or 0.0)) for x in (difference.mean, difference.low, difference.high))
    return mean if difference.low is None else f"{mean} ({low} to {high})"


def _above_zero(difference: Difference) -> bool:
    return difference.low is not None and difference.low > 0


def _longest(result: AuditResult, row: Situation) -> Situation | None:
    """The most steps of a row's curve over steps, if they are more than its own."""
    curve = result.find(
        generator=row.generator, defense=row.treatment.defense, knowledge=row.treatment.knowledge, role="steps"
    )
    longer = [one for one in curve if (one.treatment.steps or 0) > (row.treatment.steps or 0)]
    return max(longer, key=lambda one: one.treatment.steps or 0, default=None)


def _main(result: AuditResult, generator: str) -> list[Situation]:
    return result.find(generator=generator, role="main", channel=NO_CHANNEL)


def _named(situation: Situation) -> str:
    photo = situation.treatment
    steps = f", {photo.steps} steps" if photo.role == "steps" else ""
    if photo.role == "control":
        return photo.words
    return photo.defense if photo.role == "check" else f"{photo.defense} ({photo.knowledge}{steps})"


def _share(situation: Situation) -> float:
    """The DSR; in float32 5 of 100 images are more than 5%."""
    return situation.values["dsr"].double().mean().item()


def _mean_decibels(psnr: Tensor) -> float:
    """The PSNR of the mean MSE: photos that are left as they are do not make up for others that are destroyed."""
    mse = (10 ** (-psnr.double() / 10)).mean().item()
    return -10 * log10(mse) if mse else float("inf")


def _mean_mse(situation: Situation) -> float:
    return situation.values["mse"].mean().item()
