"""The command line's `audit` and `compare`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from loraguard.channels.registry import CHANNELS
from loraguard.commands.audit_settings import SETTINGS, AuditSettings
from loraguard.data.registry import DATA as DATA_SETS
from loraguard.defenses.registry import DEFENSES
from loraguard.files import writable_folder
from loraguard.generators.registry import GENERATORS

from .early import check_audit, check_files, names_in
from .errors import said_in_a_line
from .flags import with_flags
from .options import JUDGE, examples

if TYPE_CHECKING:
    from loraguard.audit import AuditResult

MOST_ROWS = 40
"""Of the whole table on the screen; more are in the report."""

MOST_DIFFERENCES = 12
"""Of the settings in which two audits differ, on the screen."""

WHERE = "Where and how"

FLAGS: dict[str, dict[str, dict[str, Any]]] = {
    "What": {
        "generator": {"autocompletion": names_in(GENERATORS)},
        "checkpoint": {},
        "image_size": {},
        "patches": {"flag": "--patch", "metavar": "PATCH"},
        "others": {"flag": "--other", "metavar": "GENERATOR"},
        "ignore_fingerprint": {"flag": "--ignore-fingerprint"},
        "train": {"metavar": "KIND", "choices": False},
        "train_steps": {},
    },
    "On which photos": {
        "data": {"autocompletion": names_in(DATA_SETS)},
        "split": {},
        "images": {},
        "fit_images": {},
    },
    "Against what": {
        "defenses": {"flag": "--defense", "metavar": "SPEC", "autocompletion": names_in(DEFENSES)},
        "no_leak_only": {"metavar": "NAME"},
        "perturbed": {"metavar": "NAME=FOLDER"},
        "allow_large_change": {"flag": "--allow-large-change"},
        "channels": {"flag": "--channel", "metavar": "SPEC", "autocompletion": names_in(CHANNELS)},
        "adaptive_channels": {"flag": "--adaptive/--no-adaptive", "show_default": "adaptive"},
    },
    "How much": {
        "budgets": {"flag": "--budget", "metavar": "EPS"},
        "steps": {"flag": ("--steps", "--strength"), "metavar": "STEPS"},
        "seeds": {"flag": "--seed", "metavar": "SEED"},
        "transfer": {"metavar": "NAME"},
        "success": {"metavar": "METRIC:NUMBER"},
        "checks": {},
        "detect": {},
        "preset": {},
        "lpips": {"metavar": "FILE"},
        "identity": {"metavar": "ENCODER"},
        "clip": {"metavar": "FOLDER"},
        "brisque": {"flag": "--brisque"},
        "fid": {"metavar": "FILE"},
    },
    WHERE: {"output_dir": {}, "config": {}, "resume": {}, "batch_size": {}, "pictures": {}, "device": {}},
}
"""By panel of the help: a field of `AuditSettings`, and what its flag has beside it; or a parameter of the command."""

OPTIONS = {name: {"rich_help_panel": panel, **more} for panel, flags in FLAGS.items() for name, more in flags.items()}


@with_flags(AuditSettings, list(OPTIONS), optional=True, repeated=" *", **OPTIONS)
def audit(
    *,
    settings: dict[str, Any],
    output_dir: Annotated[
        Path | None, typer.Option(help="A folder for the report and all findings. Needed.", rich_help_panel=WHERE)
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="A YAML file with settings; flags override it.", rich_help_panel=WHERE)
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Go on with the audit in this folder.", rich_help_panel=WHERE)
    ] = None,
) -> None:
    """Measure what defenses are worth against a generator, as it is and as adversaries adapt it, and write a report.

    It needs --output-dir alone, and writes report.html there. Options with * may be repeated. Everything that is found
    is kept: the same command goes on where it was stopped, and so does --resume FOLDER. docs/cli.md has the keys of the
    YAML file, and docs/audit.md says how to read a report.
    """
    with said_in_a_line():
        if resume is not None:
            if settings or config or output_dir:
                raise ValueError("--resume takes its settings from the folder; give no other flags with it.")
            output_dir, config = resume, resume / SETTINGS
            if not config.is_file():
                raise FileNotFoundError(f"There is no audit in {resume}: it has no {SETTINGS}.")
        if output_dir is None:
            raise ValueError("Say where the report goes: --output-dir FOLDER.")
        whole = (AuditSettings() if config is None else AuditSettings.read(config)).updated(settings, "flags")
        check_audit(whole)
        writable_folder(output_dir)
        from loraguard.commands.audit import audit_by_settings

        try:
            result, report = audit_by_settings(whole, output_dir, say=typer.echo)
        except KeyboardInterrupt:
            begun = (output_dir / SETTINGS).is_file()
            raise KeyboardInterrupt(
                f"Interrupted. To go on: loraguard audit --resume {output_dir}" if begun else "Interrupted."
            ) from None
    from loraguard.audit import place

    if place()[0] == 0:
        print_audit(result)
        typer.echo(f"Report: {report.resolve()}")


def print_audit(result: AuditResult) -> None:
    """The audit's table, defenses at a glance, behind channels and along curves, findings in words, and the budget."""
    from loraguard.audit import curves, matrix, table, verdict
    from loraguard.audit.tables import tables

    headings, rows = table(result)
    if len(rows) <= MOST_ROWS:
        typer.echo()
        _print_table([headings, *rows])
        typer.echo("\nDSR: the share of edits that are spoilt. The report says what the other words mean.")
    if len(result.defenses) > 1:
        typer.echo("\nDSR, without a leak / with it:")
        headings, rows = matrix(result)
        _print_table([headings, *rows])
    for channel in result.settings["channels"]:
        typer.echo(f"\nDSR behind {channel}, without a leak / with it / with the channel known:")
        headings, rows = matrix(result, channel=channel)
        _print_table([headings, *rows])
    for one in tables(result):
        typer.echo(f"\n{one.title}{'' if one.title.endswith('?') else '.'} {one.text}")
        _print_table([one.headings, *one.rows])
    for role, what in (("budget", "budgets"), ("steps", "numbers of steps")):
        headings, rows = curves(result, role)
        if rows:
            typer.echo(f"\nDSR by {what}, without a leak / with it:")
            _print_table([headings, *rows])
    typer.echo()
    for sentence in verdict(result):
        typer.echo(sentence)
    if failed := [check for check in result.checks if not check.passed]:
        typer.echo("\nFlags (docs/audit-checks.md says what each means):")
        for name in dict.fromkeys((check.name, check.generator) for check in failed):
            first, *more = [check.evidence for check in failed if (check.name, check.generator) == name]
            typer.echo(f"  {', '.join(name)}: {first}{f' And {len(more)} more.' if more else ''}")
    if result.settings["budget"]:
        typer.echo(f"\nBudget: {result.settings['budget']}.")


def compare(
    first: Annotated[Path, typer.Argument(help="An audit's folder, or its audit.json.")],
    second: Annotated[Path, typer.Argument(help="Another one.")],
    metric: Annotated[str, typer.Option(help="What to compare: dsr, mse, psnr, ssim, stamp_rate, ...")] = "dsr",
    rename: Annotated[
        list[str] | None,
        typer.Option(help="Take the second's patch or defense SECOND for the first's FIRST. *", metavar="SECOND=FIRST"),
    ] = None,
) -> None:
    """Compare two audits situation by situation: paired, image by image, where both looked at the same photos.

    The difference is second less first, with its 95% interval. The option with * may be repeated.
    """
    with said_in_a_line():
        check_files((first, second), "audit")
        from loraguard.audit import compare as compared
        from loraguard.audit.glossary import COLUMNS

        found = compared(first, second, metric, rename=dict(_pair(one) for one in rename or ()))
    shown = next((column for column in COLUMNS if column.key == metric), None)
    form, scale = (shown.form, shown.scale) if shown else ("{:.4f}", 1.0)

    def number(value: float | None) -> str:
        return "equal" if value is None else form.format(scale * value)

    def moved(value: float) -> str:
        return f"{'+' if value > 0 else ''}{number(value)}".replace("%", " points")

    rows = [["generator", "photo", "channel", "first", "second", "difference", "95% interval"]]
    shared = [one for one in found.shared if one.situation["role"] == "main"]
    for one in shared:
        low, high, mean = one.difference.low, one.difference.high, one.difference.mean
        interval = "" if low is None or high is None else f"{moved(low)} to {moved(high)}"
        rows.append([
            one.situation["generator"], one.photo, one.situation["channel"], number(one.before), number(one.after),
            "" if mean is None else moved(mean), interval,
        ])  # fmt: skip
    _print_table(rows)
    typer.echo(f"\n{metric}, {'the same photos' if found.paired else 'different photos'}.")
    if found.differences:
        typer.echo("The audits differ in more than chance:")
        for line in found.differences[:MOST_DIFFERENCES]:
            typer.echo(f"  {line}")
        if len(found.differences) > MOST_DIFFERENCES:
            typer.echo(f"  and {len(found.differences) - MOST_DIFFERENCES} more.")
    for method in dict.fromkeys(one.difference.method for one in shared):
        typer.echo(f"Interval: {method}.")
    for where, others in (("first", found.only_first), ("second", found.only_second)):
        if others:
            more = f"; and {len(others) - 3} more" if len(others) > 3 else ""
            typer.echo(f"Only in the {where}: {'; '.join(others[:3])}{more}.")
    if found.only_first and found.only_second:
        typer.echo("What is called otherwise is matched by --rename SECOND=FIRST.")


def _pair(text: str) -> tuple[str, str]:
    second, sign, first = text.partition("=")
    if not (second and sign and first):
        raise ValueError(f"--rename {text}: write SECOND=FIRST, the name in the second audit and that in the first.")
    return second, first


def _print_table(rows: list[list[str]]) -> None:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def register(app: typer.Typer) -> None:
    """Add these commands."""
    shown = examples(
        "loraguard audit --output-dir first --images 20 --checks 0",
        "loraguard audit --output-dir second --data photos --patch patch",
    )
    app.command(rich_help_panel=JUDGE, epilog=shown)(audit)
    app.command(rich_help_panel=JUDGE, epilog=examples("loraguard compare first second --metric psnr"))(compare)
