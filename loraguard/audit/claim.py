"""What an audit's figures allow to be said in one sentence, with the evidence that each word needs.

Words follow intervals, not means: a defense "works", an adversary "undoes" something, only where 95% intervals over
photos say so, corrected (Bonferroni) for how many defenses, adversaries and channels the one was picked from. Flags on
the figures are part of the sentence.
"""

from __future__ import annotations

from collections.abc import Iterable

from loraguard.metrics import exact_share

from .glossary import CONTROLS
from .names import SUCCESS
from .paired import paired_difference
from .result import AuditResult
from .situation import NO_CHANNEL, UNTOUCHED, Situation
from .success import Success

LEAST_PHOTOS = 10
"""On fewer photos nothing is concluded: of 9 photos a share of 100% may be 66%."""

MUCH = 0.4
"""An adversary or a channel that takes more than this part of the spoilt edits undoes much of the protection."""

NO_ADVERSARY = ("clean-output-changed", "does-not-edit", "only-known-photos", "outputs-not-repeatable",
                "depends-on-the-batch", "trained-on-these-photos")  # fmt: skip
"""A network under one of these flags is no working edit, so that what it undoes says nothing."""


def headline(result: AuditResult) -> str:
    """The audit in one sentence: whether the best of its defenses survives whoever adapts best."""
    reads, figures = claim(result)
    return f"{reads}: {figures}"


def claim(result: AuditResult) -> tuple[str, str]:
    """The two halves of the headline: what it comes to, and the figures that say so."""
    best, share = best_of(result, UNTOUCHED, "no-leak")
    row = result[UNTOUCHED, "no-leak", best]
    confidence = 1 - 0.05 / len(result.defenses)
    start = f"{best} spoils {share:.1%} of the untouched generator's edits"
    if (success := result.settings.get("success", SUCCESS)) != SUCCESS:
        start += f" ({Success(success).words})"
    if len(result.defenses) > 1:
        start = f"the best of {len(result.defenses)} defenses, {start}"
    controls = [*rows_of(result, UNTOUCHED, "noise"), *result.find(role="control", defense=best)]
    noise = max(controls, key=dsr_of, default=None)
    control = "" if noise is None else f", random noise {dsr_of(noise):.1%}"
    low, high = _interval(row, confidence)
    unsure = f" On so few photos that may be anything from {low:.1%} to {high:.1%}."
    n = result.settings.get("distinct_photos", result.settings["n"])
    if n < LEAST_PHOTOS:
        which = "photos" if n == result.settings["n"] else "different photos"
        reads = f"Too few {which} to conclude anything ({n}; at least {LEAST_PHOTOS})"
        return reads, f"{start}{control}.{unsure}"
    if "photo-destroyed" in result.flags(row):
        return "No protection that leaves the photos what they are", f"{start}, and destroys the photos themselves."
    beaten = noise is not None and not _more(row, noise, confidence)
    if "threshold-out-of-reach" in result.flags(row):
        reads = "The threshold of success says nothing about this generator"
        return reads, f"{start}{control}, although outputs move far more than with noise. Choose another (--success)."
    if "threshold-too-low" in result.flags(row):
        reads = "The threshold of success counts what nobody sees"
        return reads, f"{start}{control}, and spoilt outputs look as they should. Choose another (--success)."
    if high < 0.5 or beaten or (share < 0.5 and noise is not None and dsr_of(noise) >= share):
        more = unsure if low < 0.5 <= high else ""
        doubts = _caution(one for one in result.flags(row) if one != "no-better-than-noise")  # which is said already
        return "No protection to speak of, even where nobody adapts", f"{start}{control}.{more}{doubts}"
    caution = _caution(result.flags(row))
    if low < 0.5:
        return "Not clear whether it protects, even where nobody adapts", f"{start}{control}.{unsure}{caution}"
    lost = _lost_on_the_way(result, row, confidence)
    start += "" if lost is None else f", and {dsr_of(lost):.1%} behind {lost.channel}"
    but = "" if lost is None else ", but only where photos stay as they are"
    name = hardest(result)
    if name is None:
        return (
            f"It works where nobody adapts{but}",
            f"{start}; no patch that edits as it should was audited, so nothing is said of an adversary who adapts."
            + caution,
        )
    return _adapted(result, row, name, start, confidence, but)


def _caution(flags: Iterable[str]) -> str:
    """What a sentence says of the flags that its figures stand under; nothing where there are none."""
    names = list(dict.fromkeys(flags))
    return f" {flagged_words(names)}: these figures may not be what they seem." if names else ""


def _lost_on_the_way(result: AuditResult, row: Situation, confidence: float) -> Situation | None:
    """What is left of a defense behind the channel that costs it most, if that costs it much, beyond chance."""
    same = {"generator": row.generator, "knowledge": row.treatment.knowledge, "defense": row.treatment.defense}
    behind = [one for one in result.find(role="main", **same) if one.channel != NO_CHANNEL]
    if not behind:
        return None
    left = min(behind, key=dsr_of)
    sure = 1 - (1 - confidence) / len(behind)
    found = paired_difference(row.values["dsr"], left.values["dsr"], share=True, confidence=sure)
    return left if found.low is not None and found.low > MUCH * dsr_of(row) else None


def _adapted(
    result: AuditResult, row: Situation, name: str, start: str, confidence: float, but: str
) -> tuple[str, str]:
    """What is left of the best defense, and of any, against the adversary who adapts best."""
    (other, unknown), (strongest, known) = best_of(result, name, "no-leak"), best_of(result, name, "leak", "no-leak")
    share, several = dsr_of(row), len(result.defenses) > 1
    figures = f"{start}; with {called(result, name)} "
    if several:
        figures += f"the best defense{f', {other},' if unknown else ''} spoils "
    figures += f"{unknown:.1%}"
    if known > unknown:
        whose = f" ({strongest})" if several else ""
        figures += f", and {known:.1%}{whose} if the defender has that generator as well"
    left = result[name, "no-leak", other]
    sure = 1 - (1 - confidence) / len(_adversaries(result))
    found = paired_difference(row.values["dsr"], left.values["dsr"], share=True, confidence=sure)
    least, most = (0.0 if end is None else end / share for end in (found.low, found.high))
    if least > 0.05:
        amount = "nearly all" if least > 0.8 else "much" if least > MUCH else "some"
        reads = f"An adversary who adapts undoes {amount} of it"
        if least > MUCH and known >= 0.5 * share:
            reads += ", unless the defender has the adapted generator"
    elif most < 0.25:
        reads = f"The protection holds against what was tried{but}"
    else:
        reads = f"It works where nobody adapts{but}, and too few photos tell what an adversary who adapts undoes"
    return reads, f"{figures}.{_caution([*result.flags(row), *flags_of(result, name)])}"


def hardest(result: AuditResult) -> str | None:
    """The generator that an adversary adapts best, of those that still edit clean photos as they should."""

    def left(name: str) -> tuple[float, float]:
        return best_of(result, name, "no-leak")[1], best_of(result, name, "leak", "no-leak")[1]

    return min(_adversaries(result), key=left, default=None)


def _adversaries(result: AuditResult) -> list[str]:
    """Generators that somebody has adapted and that edit, clean photos and those of the defense that is best on it."""
    names = [name for name in _standard(result) if not set(NO_ADVERSARY) & set(flags_of(result, name))]
    best = {name: result[name, "no-leak", best_of(result, name, "no-leak")[0]] for name in names}
    return [name for name in names if "edit-not-made" not in result.flags(best[name])]


def _interval(row: Situation, confidence: float) -> tuple[float, float]:
    """Of the share of photos whose edits are spoilt; on a photo on which seeds disagree, most of them count."""
    spoilt = row.values["dsr"].mean(0) > 0.5
    return exact_share(int(spoilt.sum()), len(spoilt), confidence)


def _more(row: Situation, noise: Situation, confidence: float) -> bool:
    """Whether a defense spoils more than noise does, beyond chance."""
    found = paired_difference(row.values["dsr"], noise.values["dsr"], share=True, confidence=confidence)
    return found.low is not None and found.low > 0


def called(result: AuditResult, name: str) -> str:
    """A generator as sentences call it."""
    if name == UNTOUCHED:
        return "the untouched generator"
    if name in CONTROLS:
        return CONTROLS[name][0]
    if name in result.settings.get("others", ()):
        return f"the generator {name!r}"
    return f"the {'patch' if name in result.settings['patches'] else 'network'} {name!r}"


def best_of(result: AuditResult, generator: str, *knowledge: str, channel: str = NO_CHANNEL) -> tuple[str, float]:
    """The defense that spoils most, and how much, of those that leave photos what they are where there are such."""
    rows = [row for one in knowledge for row in rows_of(result, generator, one, channel)]
    best = max([row for row in rows if "photo-destroyed" not in result.flags(row)] or rows, key=dsr_of)
    return best.treatment.defense, dsr_of(best)


def _standard(result: AuditResult) -> list[str]:
    """Generators that an adversary has made from the untouched one, and that should give what it gives."""
    names = dict.fromkeys(one.generator for one in result.situations)
    own = {UNTOUCHED, *result.settings.get("others", ())}
    return [name for name in names if name not in own and result.settings["patches"].get(name) is None]


def rows_of(result: AuditResult, generator: str, knowledge: str, channel: str = NO_CHANNEL) -> list[Situation]:
    """The main rows of a generator and of what the defender knew."""
    return result.find(generator=generator, knowledge=knowledge, role="main", channel=channel)


def flags_of(result: AuditResult, generator: str) -> list[str]:
    """The flags of a generator's main rows, each once."""
    rows = result.find(generator=generator, role="main", channel=NO_CHANNEL)
    return list(dict.fromkeys(flag for row in rows for flag in result.flags(row)))


def flagged_words(names: list[str]) -> str:
    """Flags as a sentence begins with them."""
    shown = names if len(names) <= 3 else [*names[:2], f"{len(names) - 2} more"]
    return f"Under the flag{'s' if len(names) > 1 else ''} {listed(shown)}"


def listed(names: Iterable[str]) -> str:
    """As a sentence lists things: "a, b and c"."""
    *rest, last = names
    return f"{', '.join(rest)} and {last}" if rest else last


def dsr_of(situation: Situation) -> float:
    """The share of photos whose edits are spoilt."""
    return mean_of(situation, "dsr")


def mean_of(situation: Situation, metric: str) -> float:
    """A metric's mean; 0 where no value is finite."""
    return situation.estimates[metric].mean or 0.0
