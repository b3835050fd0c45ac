"""What an audit tried and found as sentences and as a plain table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from loraguard.defenses import Defense
from loraguard.pixels import LEVELS_PER_UNIT

from .claim import best_of, called, dsr_of, flagged_words, flags_of, hardest, headline, listed, mean_of, rows_of
from .glossary import COLUMNS, CONTROLS, KNOWLEDGE_HELP, Column
from .names import SUCCESS
from .power import power_words
from .result import AuditResult
from .situation import KNOWLEDGE_WORDS, NO_CHANNEL, UNTOUCHED, Situation, Treatment
from .success import Success


def columns_of(result: AuditResult) -> list[Column]:
    """The columns that an audit has figures for."""
    return [column for column in COLUMNS if column.key in result.situations[0].values]


def frechet_heading(result: AuditResult) -> str | None:
    """What the column of Fréchet distances is called; None where none was measured."""
    if all(one.frechet is None for one in result.situations):
        return None
    return "FID" if (result.settings.get("features") or {}).get("class") == "Inception" else "Fréchet"


def photo_words(result: AuditResult, treatment: Treatment) -> str:
    """What was done to a photo; of noise its budget as well, where the audit has several."""
    several = len({one.treatment.eps for one in result.find(knowledge="noise", role="main")}) > 1
    words = treatment.words
    return f"{words}, eps {treatment.eps:g}" if treatment.knowledge == "noise" and several else words


def table(result: AuditResult, role: str = "main") -> tuple[list[str], list[list[str]]]:
    """Headings and rows of the audit's table as plain text; a row's flags stand last, where there are any."""
    columns = [column for column in columns_of(result) if column.key != "masked_mse"]
    situations = result.find(role=role)
    channels = any(one.channel != NO_CHANNEL for one in situations)
    flags = any(map(result.flags, situations))
    frechet = frechet_heading(result)
    rows = []
    for one in situations:
        row = [one.generator, photo_words(result, one.treatment), *([one.channel] if channels else [])]
        row += [column.text(one.estimates[column.key]) for column in columns]
        row += [] if frechet is None else ["" if one.frechet is None else f"{one.frechet:.2f}"]
        rows.append(row + ([", ".join(result.flags(one))] if flags else []))
    headings = ["generator", "photo", *(["channel"] if channels else []), *(column.heading for column in columns)]
    return headings + ([frechet] if frechet else []) + (["flags"] if flags else []), rows


def verdict(result: AuditResult) -> list[str]:
    """What the audit says: the whole in one sentence, then one on each generator, and one on the channels."""
    names = dict.fromkeys(one.generator for one in result.situations)
    generators = (_sentence(result, name) for name in names)
    return [headline(result), *generators, *_on_channels(result), *_on_detection(result)]


def story(result: AuditResult) -> list[tuple[tuple[str, str, str], str]]:
    """The audit in pictures: what they are of (generator or "photo", defense, knowledge), and what to say of each."""
    best, share = best_of(result, UNTOUCHED, "no-leak")
    told = [
        (("photo", "none", "clean"), "The photos as they are"),
        ((UNTOUCHED, "none", "clean"), "What the generator makes of them"),
        (("photo", best, "no-leak"), f"The same photos, protected by {best}"),
        ((UNTOUCHED, best, "no-leak"), f"What the generator makes of protected photos: {share:.1%} are spoilt"),
    ]
    stamped = next((name for name, stamp in result.settings["patches"].items() if stamp is not None), None)
    if (name := hardest(result)) is not None:
        (row,) = (one for one in rows_of(result, name, "no-leak") if one.treatment.defense == best)
        told.append(((name, best, "no-leak"), f"With {called(result, name)}: {dsr_of(row):.1%} are spoilt"))
    if stamped is not None:
        (row,) = (one for one in rows_of(result, stamped, "no-leak") if one.treatment.defense == best)
        rate = f": {mean_of(row, 'stamp_rate'):.1%} carry the warning" if "stamp_rate" in row.values else ""
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
    main = [one.treatment for one in result.find(role="main")]
    knowledge = dict.fromkeys(photo.knowledge for photo in main)
    found = {
        "Photos": f"{settings['n']}, on each of them one of {_count(len(edits), 'edit')}{named}."
        + (
            f" {power_words(settings.get('distinct_photos', settings['n']), len(result.defenses))}"
            if "power" in settings
            else ""
        )
        + _unknown(settings.get("unknown_photos", ())),
        "Generators": "; ".join(
            _described(result, one) for one in dict.fromkeys(s.generator for s in result.situations)
        )
        + ".",
        "Spoilt": f"An edit counts as spoilt with {Success(settings.get('success', SUCCESS)).words}; the share of such "
        "edits is the DSR.",
        "Defenses": f"{', '.join(result.defenses)}.{_controls(knowledge)}",
        "Budget": _budget(result),
        "Knowledge": " ".join(
            f"{KNOWLEDGE_WORDS[one].capitalize()}: {KNOWLEDGE_HELP[one][0].lower()}{KNOWLEDGE_HELP[one][1:]}"
            for one in ("no-leak", "leak", "leak+channel")
            if one in knowledge
        ),
    }
    if settings["channels"]:
        found["Channels"] = f"On its way to the generator a photo also went through {listed(settings['channels'])}."
    for role, setting in (("budget", "eps"), ("steps", "steps")):
        if values := sorted({getattr(one.treatment, setting) for one in result.find(role=role)}):
            found[f"More {'budgets' if role == 'budget' else 'steps'}"] = f"{listed(f'{one:g}' for one in values)}."
    seeds = settings["seeds"]
    found["Chance"] = (
        f"Everything random was drawn once (seed {seeds[0]})."
        if len(seeds) == 1
        else f"Everything random was drawn {len(seeds)} times (seeds {listed(map(str, seeds))}); a photo's figures "
        "are averages over them."
    )
    attacks = dict.fromkeys(one.treatment.defense for one in result.find(role="check"))
    tries = result.find(role="check")
    failed = sum(not check.passed for check in result.checks)
    text = "No further attacks tried to prove the figures wrong. "
    if tries:
        text = f"{len(attacks)} further attacks on {tries[0].values['mse'].shape[1]} photos tried to prove the figures "
        text += f"wrong. {_aimed(result)}"
    if result.checks:
        text += f"{failed} of {_count(len(result.checks), 'check')} failed."
    found["Checks"] = text
    return {label: text.strip() for label, text in found.items()}


def _unknown(names: Sequence[str]) -> str:
    """Of whom nobody knows which photos they have seen."""
    if not names:
        return ""
    return f" Not known, so that nobody looked for these photos among them: what {listed(names)} learned on."


def _aimed(result: AuditResult) -> str:
    """What attacks drive up, where it is not what counts as success."""
    metric = result.settings.get("success", SUCCESS).partition(":")[0]
    if metric in ("mse", "noise"):
        return ""
    return f"They drive up the MSE, and not the {metric.upper()} that counts here: an attack on that may spoil more. "


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
    if name in result.settings.get("others", ()):
        return f"{name}, another generator, compared with its own clean outputs"
    return f"{name}, a further network"


def _controls(knowledge: Iterable[str]) -> str:
    return " Beside them, photos as they are and with random noise." if "noise" in knowledge else (
        " Beside them, photos as they are."
    )  # fmt: skip


def _budget(result: AuditResult) -> str:
    """Budgets as changes of a colour value, and what photos look like after it."""
    rows = result.find(role="main", generator=UNTOUCHED, knowledge="no-leak", channel=NO_CHANNEL)
    other = result.settings["own_budgets"]
    own = [one for one in rows if one.treatment.defense in other and one.treatment.eps is not None]
    budgets = sorted(
        {eps for one in rows if (eps := one.treatment.eps) is not None and one.treatment.defense not in other}
    )
    said = [f"by up to {listed(f'{eps * LEVELS_PER_UNIT:.1f}' for eps in budgets)} of 255 levels"] if budgets else []
    given = [one for one in rows if one.treatment.eps is None]
    for one, why in [(one, "which has a budget of another kind") for one in own] + [
        (one, "which somebody else has perturbed") for one in given
    ]:
        reached = one.values["photo_linf"].max().item() * LEVELS_PER_UNIT
        said.append(f"in photos of {one.treatment.defense}, {why}, by up to {reached:.1f}, as measured")
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
    left = {one: best_of(result, UNTOUCHED, "no-leak", channel=one) for one in channels}
    worst = min(channels, key=lambda one: left[one][1])
    best, share = left[worst]
    known = ""
    if result.find(generator=UNTOUCHED, knowledge="leak+channel", channel=worst):
        defense, reached = best_of(result, UNTOUCHED, "leak+channel", channel=worst)
        known = f", and {reached:.1%} ({defense}) if the defender crafts through it"
    costs = "" if len(channels) == 1 else f", of {len(channels)} channels the one that costs defenses most"
    own = [one for one in result.checks if (one.generator, one.channel, one.passed) == (UNTOUCHED, worst, False)]
    caution = f" {flagged_words(list(dict.fromkeys(one.name for one in own)))}." if own else ""
    found = [
        f"Behind {worst}{costs}, the best defense ({best}) spoils {share:.1%} of the untouched generator's edits"
        f"{known}.{caution}"
    ]
    name = hardest(result)
    if name is not None and (rows := result.find(generator=name, knowledge="leak+channel", role="main")):
        most = max(rows, key=dsr_of)
        found.append(
            f"With {called(result, name)}, of all who have it and know the channel, {most.treatment.defense} behind "
            f"{most.channel} spoils most: {dsr_of(most):.1%}."
        )
    return found


def _on_detection(result: AuditResult) -> list[str]:
    """Whether the best defense's photos can be told from plain ones."""
    best, _ = best_of(result, UNTOUCHED, "no-leak")
    shares = next(column for column in COLUMNS if column.key == "dsr")
    return [
        f"A small network that has learned on {one.trained_on} other photos tells {shares.with_interval(one.found)} of "
        f"{best}'s photos from plain ones, with {shares.with_interval(one.false_alarms)} false alarms."
        for one in result.detections
        if one.defense == best
    ]


def _sentence(result: AuditResult, name: str) -> str:
    """One generator's figures in words."""
    flagged = flags_of(result, name)
    caution = f" {flagged_words(flagged)}." if flagged else ""
    if name == UNTOUCHED:
        noise = rows_of(result, name, "noise")
        whose = "of the same budget" if len(noise) == 1 else "of the largest budget"
        control = f" (random noise {whose}: {dsr_of(noise[-1]):.1%})" if noise else ""
        return f"On the untouched generator {_span(result, name, 'no-leak')} of the edits{control}.{caution}"
    stamp = result.settings["patches"].get(name)
    if stamp is not None:
        subject = called(result, name)
        subject = subject[0].upper() + subject[1:]
        clean = result[name, "clean"]
        if "stamp_rate" not in clean.values:
            return f"{subject} stamps its outputs; no detector was there to look for that.{caution}"
        found = f"{mean_of(clean, 'stamp_rate'):.1%} of clean outputs"
        for knowledge, whose in (("no-leak", "of defended ones"), ("leak", "when the defender has it and attacks it")):
            if rates := [mean_of(row, "stamp_rate") for row in rows_of(result, name, knowledge)]:
                found += f", {'at least ' if len(rates) > 1 else ''}{min(rates):.1%} {whose}"
        return f"{subject} stamps {(stamp['text'] or 'its picture')!r} on {found}.{caution}"
    if name in result.settings.get("others", ()):
        own = rows_of(result, name, "leak")
        direct = f", and {_range(own)} when they are crafted on it" if own else ""
        crafted = _span(result, name, "no-leak")
        return f"On {called(result, name)}, {crafted} when photos are crafted on the untouched one{direct}.{caution}"
    quality = result[name, "clean"].estimates["psnr"]
    kept = "are what they were" if quality.mean is None else f"keep {quality.mean:.1f} dB PSNR to what they were"
    known = rows_of(result, name, "leak")
    leak = f", and {_range(known)} when the defender has it and attacks it" if known else ""
    return (
        f"With {called(result, name)} {_span(result, name, 'no-leak')} when the defender does not know of it{leak}; "
        f"clean outputs {kept}.{caution}"
    )


def _span(result: AuditResult, generator: str, knowledge: str) -> str:
    """How much the defense, or the weakest and the best of several, spoils: "pgd spoils 12.0%"."""
    rows = rows_of(result, generator, knowledge)
    if len(rows) == 1:
        return f"{rows[0].treatment.defense} spoils {_range(rows)}"
    if len(set(map(dsr_of, rows))) == 1:
        return f"each of {len(rows)} defenses spoils {dsr_of(rows[0]):.1%}"
    return f"{len(rows)} defenses spoil {_range(rows)}"


def _range(rows: list[Situation]) -> str:
    """The DSR, or the lowest and the highest and whose they are."""
    low, high = min(rows, key=dsr_of), max(rows, key=dsr_of)
    if len(rows) == 1:
        return f"{dsr_of(low):.1%}"
    if dsr_of(low) == dsr_of(high):
        return f"{dsr_of(low):.1%} each"
    return f"{dsr_of(low):.1%} ({low.treatment.defense}) to {dsr_of(high):.1%} ({high.treatment.defense})"


def _count(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"
