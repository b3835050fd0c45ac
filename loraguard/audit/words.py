"""What an audit tried and found as sentences and as a plain table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from loraguard.defenses import Defense
from loraguard.pixels import LEVELS_PER_UNIT

from .glossary import COLUMNS, CONTROLS, KNOWLEDGE_HELP, Column
from .result import AuditResult
from .situation import KNOWLEDGE_WORDS, NO_CHANNEL, UNTOUCHED, Photo, Situation


def columns_of(result: AuditResult) -> list[Column]:
    """The columns that an audit has figures for."""
    return [column for column in COLUMNS if column.key in result.situations[0].values]


def frechet_heading(result: AuditResult) -> str | None:
    """What the column of Fréchet distances is called; None where none was measured."""
    if all(one.frechet is None for one in result.situations):
        return None
    return "FID" if (result.settings.get("features") or {}).get("class") == "Inception" else "Fréchet"


def photo_words(result: AuditResult, photo: Photo) -> str:
    """What was done to a photo; of noise its budget as well, where the audit has several."""
    several = len({one.photo.eps for one in result.find(knowledge="noise")}) > 1
    return f"{photo.words}, eps {photo.eps:g}" if photo.knowledge == "noise" and several else photo.words


def table(result: AuditResult, role: str = "main") -> tuple[list[str], list[list[str]]]:
    """Headings and rows of the audit's table as plain text; a row's flags stand last, where there are any."""
    columns = [column for column in columns_of(result) if column.key != "masked_mse"]
    situations = result.find(role=role)
    channels = any(one.channel != NO_CHANNEL for one in situations)
    flags = any(map(result.flags, situations))
    frechet = frechet_heading(result)
    rows = []
    for one in situations:
        row = [one.generator, photo_words(result, one.photo), *([one.channel] if channels else [])]
        row += [column.text(one.estimates[column.key]) for column in columns]
        row += [] if frechet is None else ["" if one.frechet is None else f"{one.frechet:.2f}"]
        rows.append(row + ([", ".join(result.flags(one))] if flags else []))
    headings = ["generator", "photo", *(["channel"] if channels else []), *(column.heading for column in columns)]
    return headings + ([frechet] if frechet else []) + (["flags"] if flags else []), rows


def verdict(result: AuditResult) -> list[str]:
    """What the audit says: the whole in one sentence, then one on each generator, and one on the channels."""
    names = dict.fromkeys(one.generator for one in result.situations)
    return [headline(result), *(_sentence(result, name) for name in names), *_on_channels(result)]


def headline(result: AuditResult) -> str:
    """The audit in one sentence: whether the best of its defenses survives whoever adapts best."""
    reads, figures = claim(result)
    return f"{reads}: {figures}"


def claim(result: AuditResult) -> tuple[str, str]:
    """The two halves of the headline: what it comes to, and the figures that say so."""
    best, share = _best(result, UNTOUCHED, "no-leak")
    noise = max(map(_dsr, _rows(result, UNTOUCHED, "noise")), default=None)
    start = f"{best} spoils {share:.1%} of the untouched generator's edits"
    if share < 0.5 or (noise is not None and share <= noise):
        start = start if len(result.defenses) == 1 else f"the best of {len(result.defenses)} defenses, {start}"
        control = "" if noise is None else f", random noise {noise:.1%}"
        return "No protection to speak of, even where nobody adapts", f"{start}{control}.{_few(result, best)}"
    name = hardest(result)
    if name is None:
        return (
            "It works where nobody adapts",
            f"{start}; no patch that keeps clean outputs was audited, so nothing is said of an adversary who adapts."
            f"{_few(result, best)}",
        )
    (other, unknown), (strongest, known) = _best(result, name, "no-leak"), _best(result, name, "leak", "no-leak")
    several = len(result.defenses) > 1
    figures = f"{start}; with {called(result, name)} "
    if several:
        figures += f"the best defense{f', {other},' if unknown else ''} spoils "
    figures += f"{unknown:.1%}"
    if known > unknown:
        whose = f" ({strongest})" if several else ""
        figures += f", and {known:.1%}{whose} if the defender has that generator as well"
    lost = 1 - unknown / share
    reads = "The protection holds against what was tried"
    if lost >= 0.1:
        amount = "nearly all" if lost > 0.9 else "much" if lost > 0.5 else "some"
        reads = f"An adversary who adapts undoes {amount} of it"
        if lost > 0.5 and known >= 0.5 * share:
            reads += ", unless the defender has the adapted generator"
    flagged = _flags(result, name)
    caution = f" {_flagged(flagged)}: what defenders could reach may be more." if flagged else ""
    return reads, f"{figures}.{caution}"


def hardest(result: AuditResult) -> str | None:
    """The generator that an adversary adapts best, of those whose clean outputs stay what they were."""
    adapted = [name for name in _standard(result) if "clean-output-changed" not in _flags(result, name)]

    def left(name: str) -> tuple[float, float]:
        return _best(result, name, "no-leak")[1], _best(result, name, "leak", "no-leak")[1]

    return min(adapted, key=left, default=None)


def called(result: AuditResult, name: str) -> str:
    """A generator as sentences call it."""
    if name == UNTOUCHED:
        return "the untouched generator"
    if name in CONTROLS:
        return CONTROLS[name][0]
    return f"the {'patch' if name in result.settings['patches'] else 'network'} {name!r}"


def story(result: AuditResult) -> list[tuple[tuple[str, str, str], str]]:
    """The audit in pictures: what they are of (generator or "photo", defense, knowledge), and what to say of each."""
    best, share = _best(result, UNTOUCHED, "no-leak")
    told = [
        (("photo", "none", "clean"), "The photos as they are"),
        ((UNTOUCHED, "none", "clean"), "What the generator makes of them"),
        (("photo", best, "no-leak"), f"The same photos, protected by {best}"),
        ((UNTOUCHED, best, "no-leak"), f"What the generator makes of protected photos: {share:.1%} are spoilt"),
    ]
    stamped = next((name for name, stamp in result.settings["patches"].items() if stamp is not None), None)
    if (name := hardest(result)) is not None:
        (row,) = (one for one in _rows(result, name, "no-leak") if one.photo.defense == best)
        told.append(((name, best, "no-leak"), f"With {called(result, name)}: {_dsr(row):.1%} are spoilt"))
    if stamped is not None:
        (row,) = (one for one in _rows(result, stamped, "no-leak") if one.photo.defense == best)
        rate = f": {_mean(row, 'stamp_rate'):.1%} carry the warning" if "stamp_rate" in row.values else ""
        told.append(((stamped, best, "no-leak"), f"With {called(result, stamped)}{rate}"))
    return told


def budget_words(defenses: Mapping[str, Any]) -> str:
    """The budgets of defenses, each with its unit."""
    made = {name: one for name, one in defenses.items() if isinstance(one, Defense)}
    plain = sorted({one.eps for one in made.values() if one.eps and one.budget is None})
    shared = [f"L-infinity {eps:g} on [-1, 1], that is {eps * LEVELS_PER_UNIT:.2f}/255" for eps in plain]
    own = [f"{name}: {one.eps:g}, {one.budget}" for name, one in made.items() if one.budget is not None]
    return "; ".join(shared + own)


def tried(result: AuditResult) -> dict[str, str]:
    """What was tried, in plain words, by what it is about."""
    settings = result.settings
    edits = sorted(set(result.edits))
    named = f": {', '.join(edits)}" if len(edits) <= 8 else ""
    main = [one.photo for one in result.find(role="main")]
    knowledge = dict.fromkeys(photo.knowledge for photo in main)
    found = {
        "Photos": f"{settings['n']}, on each of them one of {_count(len(edits), 'edit')}{named}.",
        "Generators": "; ".join(
            _described(result, one) for one in dict.fromkeys(s.generator for s in result.situations)
        )
        + ".",
        "Defenses": f"{', '.join(result.defenses)}.{_controls(knowledge)}",
        "Budget": _budget(result),
        "Knowledge": " ".join(
            f"{KNOWLEDGE_WORDS[one].capitalize()}: {KNOWLEDGE_HELP[one][0].lower()}{KNOWLEDGE_HELP[one][1:]}"
            for one in ("no-leak", "leak", "leak+channel")
            if one in knowledge
        ),
    }
    if settings["channels"]:
        found["Channels"] = f"On its way to the generator a photo also went through {_listed(settings['channels'])}."
    for role, setting in (("budget", "eps"), ("strength", "steps")):
        if values := sorted({getattr(one.photo, setting) for one in result.find(role=role)}):
            found[f"More {'budgets' if role == 'budget' else 'steps'}"] = f"{_listed(f'{one:g}' for one in values)}."
    seeds = settings["seeds"]
    found["Chance"] = (
        f"Everything random was drawn once (seed {seeds[0]})."
        if len(seeds) == 1
        else f"Everything random was drawn {len(seeds)} times (seeds {_listed(map(str, seeds))}); a photo's figures "
        "are averages over them."
    )
    attacks = dict.fromkeys(one.photo.defense for one in result.find(role="check"))
    tries = result.find(role="check")
    failed = sum(not check.passed for check in result.checks)
    found["Checks"] = (
        f"{len(attacks)} further attacks on {tries[0].values['mse'].shape[1]} photos tried to prove the figures wrong. "
        if tries
        else "No further attacks tried to prove the figures wrong. "
    ) + (f"{failed} of {_count(len(result.checks), 'check')} failed." if result.checks else "")
    return {label: text.strip() for label, text in found.items()}


def _described(result: AuditResult, name: str) -> str:
    if name == UNTOUCHED:
        return "untouched, as everybody has it"
    if name in CONTROLS:
        return f"{name}, {CONTROLS[name][1]}"
    stamp = result.settings["patches"].get(name)
    if stamp is not None:
        return f"{name}, with a patch that stamps {(stamp['text'] or 'a picture')!r} on every output"
    if name in result.settings["patches"]:
        return f"{name}, with a patch that is to keep clean outputs and undo defenses"
    return f"{name}, a further network"


def _controls(knowledge: Iterable[str]) -> str:
    return " Beside them, photos as they are and with random noise." if "noise" in knowledge else (
        " Beside them, photos as they are."
    )  # fmt: skip


def _budget(result: AuditResult) -> str:
    """Budgets as changes of a colour value, and what photos look like after it."""
    rows = result.find(role="main", generator=UNTOUCHED, knowledge="no-leak", channel=NO_CHANNEL)
    other = result.settings["own_budgets"]
    own = [one for one in rows if one.photo.defense in other]
    budgets = sorted({eps for one in rows if (eps := one.photo.eps) is not None and one.photo.defense not in other})
    said = [f"by up to {_listed(f'{eps * LEVELS_PER_UNIT:.1f}' for eps in budgets)} of 255 levels"] if budgets else []
    for one in own:
        reached = one.values["photo_linf"].max().item() * LEVELS_PER_UNIT
        said.append(f"in photos of {one.photo.defense}, which has a budget of another kind, by up to {reached:.1f}")
    levels = f"Colour values change {'; '.join(said)}" if said else "Nobody has said how much colour values may change"
    quality = [mean for one in rows if "photo_psnr" in one.values and (mean := one.estimates["photo_psnr"].mean)]
    if not quality:
        return f"{levels}."
    low, high = f"{min(quality):.1f}", f"{max(quality):.1f}"
    return f"{levels}; photos keep {low if low == high else f'{low} to {high}'} dB PSNR to the originals."


def _on_channels(result: AuditResult) -> list[str]:
    """What is left of the best defense behind the channel that costs it most, and what knowing one brings."""
    channels = list(result.settings["channels"])
    if not channels:
        return []
    left = {one: _best(result, UNTOUCHED, "no-leak", channel=one) for one in channels}
    worst = min(channels, key=lambda one: left[one][1])
    best, share = left[worst]
    known = ""
    if result.find(generator=UNTOUCHED, knowledge="leak+channel", channel=worst):
        defense, reached = _best(result, UNTOUCHED, "leak+channel", channel=worst)
        known = f", and {reached:.1%} ({defense}) if the defender crafts through it"
    costs = "" if len(channels) == 1 else f", of {len(channels)} channels the one that costs defenses most"
    found = [
        f"Behind {worst}{costs}, the best defense ({best}) spoils {share:.1%} of the untouched generator's edits"
        f"{known}."
    ]
    name = hardest(result)
    if name is not None and (rows := result.find(generator=name, knowledge="leak+channel", role="main")):
        most = max(rows, key=_dsr)
        found.append(
            f"With {called(result, name)}, of all who have it and know the channel, {most.photo.defense} behind "
            f"{most.channel} spoils most: {_dsr(most):.1%}."
        )
    return found


def _sentence(result: AuditResult, name: str) -> str:
    """One generator's figures in words."""
    flagged = _flags(result, name)
    caution = f" {_flagged(flagged)}." if flagged else ""
    if name == UNTOUCHED:
        noise = _rows(result, name, "noise")
        whose = "of the same budget" if len(noise) == 1 else "of the largest budget"
        control = f" (random noise {whose}: {_dsr(noise[-1]):.1%})" if noise else ""
        return f"On the untouched generator {_span(result, name, 'no-leak')} of the edits{control}.{caution}"
    stamp = result.settings["patches"].get(name)
    if stamp is not None:
        subject = called(result, name)
        subject = subject[0].upper() + subject[1:]
        clean = result[name, "clean"]
        if "stamp_rate" not in clean.values:
            return f"{subject} stamps its outputs; no detector was there to look for that.{caution}"
        found = f"{_mean(clean, 'stamp_rate'):.1%} of clean outputs"
        for knowledge, whose in (("no-leak", "of defended ones"), ("leak", "when the defender has it and attacks it")):
            if rates := [_mean(row, "stamp_rate") for row in _rows(result, name, knowledge)]:
                found += f", {'at least ' if len(rates) > 1 else ''}{min(rates):.1%} {whose}"
        return f"{subject} stamps {(stamp['text'] or 'its picture')!r} on {found}.{caution}"
    quality = result[name, "clean"].estimates["psnr"]
    kept = "are what they were" if quality.mean is None else f"keep {quality.mean:.1f} dB PSNR to what they were"
    known = _rows(result, name, "leak")
    leak = f", and {_range(known)} when the defender has it and attacks it" if known else ""
    return (
        f"With {called(result, name)} {_span(result, name, 'no-leak')} when the defender does not know of it{leak}; "
        f"clean outputs {kept}.{caution}"
    )


def _span(result: AuditResult, generator: str, knowledge: str) -> str:
    """How much the defense, or the weakest and the best of several, spoils: "pgd spoils 12.0%"."""
    rows = _rows(result, generator, knowledge)
    if len(rows) == 1:
        return f"{rows[0].photo.defense} spoils {_range(rows)}"
    if len(set(map(_dsr, rows))) == 1:
        return f"each of {len(rows)} defenses spoils {_dsr(rows[0]):.1%}"
    return f"{len(rows)} defenses spoil {_range(rows)}"


def _range(rows: list[Situation]) -> str:
    """The DSR, or the lowest and the highest and whose they are."""
    low, high = min(rows, key=_dsr), max(rows, key=_dsr)
    if len(rows) == 1:
        return f"{_dsr(low):.1%}"
    if _dsr(low) == _dsr(high):
        return f"{_dsr(low):.1%} each"
    return f"{_dsr(low):.1%} ({low.photo.defense}) to {_dsr(high):.1%} ({high.photo.defense})"


def _best(result: AuditResult, generator: str, *knowledge: str, channel: str = NO_CHANNEL) -> tuple[str, float]:
    rows = [row for one in knowledge for row in _rows(result, generator, one, channel)]
    best = max(rows, key=_dsr)
    return best.photo.defense, _dsr(best)


def _few(result: AuditResult, defense: str) -> str:
    """A caution where the interval of what a defense spoils does not tell whether it is most edits."""
    (row,) = (one for one in _rows(result, UNTOUCHED, "no-leak") if one.photo.defense == defense)
    low, high = row.estimates["dsr"].low, row.estimates["dsr"].high
    if low is None or high is None or not low < 0.5 <= high:
        return ""
    return f" On so few photos that may be anything from {low:.1%} to {high:.1%}."


def _standard(result: AuditResult) -> list[str]:
    """Generators that should give what the untouched one gives."""
    names = dict.fromkeys(one.generator for one in result.situations)
    return [name for name in names if name != UNTOUCHED and result.settings["patches"].get(name) is None]


def _rows(result: AuditResult, generator: str, knowledge: str, channel: str = NO_CHANNEL) -> list[Situation]:
    return result.find(generator=generator, knowledge=knowledge, role="main", channel=channel)


def _flags(result: AuditResult, generator: str) -> list[str]:
    rows = result.find(generator=generator, role="main", channel=NO_CHANNEL)
    return list(dict.fromkeys(flag for row in rows for flag in result.flags(row)))


def _flagged(names: list[str]) -> str:
    shown = names if len(names) <= 3 else [*names[:2], f"{len(names) - 2} more"]
    return f"Under the flag{'s' if len(names) > 1 else ''} {_listed(shown)}"


def _listed(names: Iterable[str]) -> str:
    """As a sentence lists things: "a, b and c"."""
    *rest, last = names
    return f"{', '.join(rest)} and {last}" if rest else last


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


def _dsr(situation: Situation) -> float:
    return _mean(situation, "dsr")


def _mean(situation: Situation, metric: str) -> float:
    return situation.estimates[metric].mean or 0.0
