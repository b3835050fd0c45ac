"""What an audit found as words and as a plain table."""

from __future__ import annotations

from dataclasses import dataclass

from loraguard.metrics import DSR_THRESHOLD, Estimate

from .result import AuditResult
from .situation import NO_CHANNEL, UNTOUCHED, Situation

KNOWLEDGE_HELP = {
    "clean": "The photo as it is.",
    "noise": "Every value moved by the whole budget, up or down at random: the control.",
    "no-leak": "The defender attacked the untouched generator and knows of no patch.",
    "leak": "The defender has the very generator that is used, its patch included, and attacked that.",
    "leak+channel": "The defender also knows what happens to the photo on its way, and attacked through that.",
}


@dataclass(frozen=True)
class Column:
    """One metric of the table: its key, its heading, what it means in plain words, and how a figure is written."""

    key: str
    heading: str
    help: str
    form: str = "{:.4f}"
    scale: float = 1.0

    def number(self, value: float) -> str:
        """A value in this metric's unit."""
        return self.form.format(self.scale * value)

    def text(self, value: Estimate) -> str:
        """The figure as it stands in the table."""
        return "equal" if value.mean is None else self.number(value.mean)

    def interval(self, value: Estimate) -> str:
        """Its 95% interval, in the same unit."""
        if value.low is None or value.high is None:
            return ""
        return f"{self.number(value.low)} – {self.number(value.high)}"


COLUMNS = (
    Column("dsr", "DSR", "Defense success rate: the share of photos on which the output is spoilt (MSE over "
           f"{DSR_THRESHOLD}). High is good for whoever relies on the defense.", "{:.1f}%", 100),
    Column("mse", "MSE", "Mean squared error between the output and what it should have been, values in [-1, 1]."),
    Column("masked_mse", "Masked MSE", "The same where the edit changes the photo, as CMUA measures it; 0 where it "
           "changes nothing."),
    Column("psnr", "PSNR", "The distance in decibel; over 30 dB the difference is hard to see.", "{:.1f} dB"),
    Column("ssim", "SSIM", "Structural similarity to what the output should have been; 1 is equal.", "{:.3f}"),
    Column("lpips", "LPIPS", "How different they are to a network trained on people's judgements; 0 is equal.",
           "{:.3f}"),
    Column("stamp_rate", "Stamp", "The share of outputs on which the detector finds the visible warning.", "{:.1f}%",
           100),
)  # fmt: skip


def columns_of(result: AuditResult) -> list[Column]:
    """The columns that an audit has figures for."""
    return [column for column in COLUMNS if column.key in result.situations[0].values]


def table(result: AuditResult, role: str = "main") -> tuple[list[str], list[list[str]]]:
    """Headings and rows of the audit's table as plain text; a row's flags stand last, where there are any."""
    columns = [column for column in columns_of(result) if column.key != "masked_mse"]
    situations = result.find(role=role)
    channels = any(one.channel != NO_CHANNEL for one in situations)
    flags = any(map(result.flags, situations))
    rows = []
    for one in situations:
        row = [one.generator, one.photo.words, *([one.channel] if channels else [])]
        row += [column.text(one.estimates[column.key]) for column in columns]
        rows.append(row + ([", ".join(result.flags(one))] if flags else []))
    headings = ["generator", "photo", *(["channel"] if channels else []), *(column.heading for column in columns)]
    return headings + (["flags"] if flags else []), rows


def verdict(result: AuditResult) -> list[str]:
    """What the audit says: the whole in one sentence, then one on each generator."""
    names = dict.fromkeys(one.generator for one in result.situations)
    return [headline(result), *(_sentence(result, name) for name in names)]


def headline(result: AuditResult) -> str:
    """The audit in one sentence: whether the best of its defenses survives whoever adapts best."""
    best, share = _best(result, UNTOUCHED, "no-leak")
    noise = max(map(_dsr, _rows(result, UNTOUCHED, "noise")), default=0.0)
    if share < 0.5 or share <= noise:
        return (
            f"No protection to speak of, even where nobody adapts: the best defense, {best}, spoils {share:.1%} of the "
            f"untouched generator's edits, random noise {noise:.1%}."
        )
    adapted = [name for name in _standard(result) if "clean-output-changed" not in _flags(result, name)]
    if not adapted:
        return (
            f"{best} spoils {share:.1%} of the untouched generator's edits; no patch that keeps clean outputs was "
            "audited, so nothing is said of an adversary who adapts."
        )
    name = min(adapted, key=lambda one: (_best(result, one, "leak", "no-leak")[1], _best(result, one, "no-leak")[1]))
    (_, unknown), (strongest, known) = _best(result, name, "no-leak"), _best(result, name, "leak", "no-leak")
    figures = f"{best} spoils {share:.1%} of the untouched generator's edits; with {name!r} the best defense spoils "
    figures += f"{unknown:.1%}"
    if known > unknown:
        figures += f", and {known:.1%} ({strongest}) if the defender has the patched generator as well"
    lost = 1 - unknown / share
    if lost < 0.1:
        reads = "The protection holds against what was tried"
    else:
        reads = (
            f"An adversary who adapts undoes {'nearly all' if lost > 0.9 else 'much' if lost > 0.5 else 'some'} of it"
        )
    flagged = _flags(result, name)
    caution = f" Under {_flagged(flagged)}: what defenders could reach may be more." if flagged else ""
    return f"{reads}: {figures}.{caution}"


def _sentence(result: AuditResult, name: str) -> str:
    """One generator's figures in words."""
    flagged = _flags(result, name)
    caution = f" Under {_flagged(flagged)}." if flagged else ""
    if name == UNTOUCHED:
        noise = _rows(result, name, "noise")
        control = f" (random noise of the same budget: {_dsr(noise[0]):.1%})" if noise else ""
        return f"On the untouched generator {_span(result, name, 'no-leak')} of the edits{control}.{caution}"
    stamp = result.settings["patches"].get(name)
    if stamp is not None:
        clean = result[name, "clean"]
        if "stamp_rate" not in clean.values:
            return f"The patch {name!r} stamps its outputs; no detector was there to look for that.{caution}"
        found = f"{_mean(clean, 'stamp_rate'):.1%} of clean outputs"
        for knowledge, whose in (
            ("no-leak", "of defended ones"),
            ("leak", "when the defender attacks the patch itself"),
        ):
            if rates := [_mean(row, "stamp_rate") for row in _rows(result, name, knowledge)]:
                found += f", {'at least ' if len(rates) > 1 else ''}{min(rates):.1%} {whose}"
        return f"The patch {name!r} stamps {(stamp['text'] or 'its picture')!r} on {found}.{caution}"
    quality = result[name, "clean"].estimates["psnr"]
    kept = "are what they were" if quality.mean is None else f"keep {quality.mean:.1f} dB PSNR to what they were"
    kind = "patch" if name in result.settings["patches"] else "network"
    leak = ""
    if _rows(result, name, "leak"):
        leak = f", and {_span(result, name, 'leak')} when the defender attacks the {kind} itself"
    return (
        f"With the {kind} {name!r} {_span(result, name, 'no-leak')} when the defender does not know of it{leak}; clean "
        f"outputs {kept}.{caution}"
    )


def _span(result: AuditResult, generator: str, knowledge: str) -> str:
    """How much the defense, or the weakest and the best of several, spoils: "pgd spoils 12.0%"."""
    shares = {one.photo.defense: _dsr(one) for one in _rows(result, generator, knowledge)}
    low, high = min(shares, key=lambda name: shares[name]), max(shares, key=lambda name: shares[name])
    if len(shares) == 1:
        return f"{low} spoils {shares[low]:.1%}"
    return f"the defenses spoil {shares[low]:.1%} ({low}) to {shares[high]:.1%} ({high})"


def _best(result: AuditResult, generator: str, *knowledge: str) -> tuple[str, float]:
    rows = [row for one in knowledge for row in _rows(result, generator, one)]
    best = max(rows, key=_dsr)
    return best.photo.defense, _dsr(best)


def _standard(result: AuditResult) -> list[str]:
    """Generators that should give what the untouched one gives."""
    names = dict.fromkeys(one.generator for one in result.situations)
    return [name for name in names if name != UNTOUCHED and result.settings["patches"].get(name) is None]


def _rows(result: AuditResult, generator: str, knowledge: str) -> list[Situation]:
    return result.find(generator=generator, knowledge=knowledge, role="main", channel=NO_CHANNEL)


def _flags(result: AuditResult, generator: str) -> list[str]:
    rows = result.find(generator=generator, role="main", channel=NO_CHANNEL)
    return list(dict.fromkeys(flag for row in rows for flag in result.flags(row)))


def _flagged(names: list[str]) -> str:
    return f"the flag{'s' if len(names) > 1 else ''} {', '.join(names)}"


def _dsr(situation: Situation) -> float:
    return _mean(situation, "dsr")


def _mean(situation: Situation, metric: str) -> float:
    return situation.estimates[metric].mean or 0.0
