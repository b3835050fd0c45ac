"""The command line's `audit` and `compare`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from loraguard.channels.registry import CHANNELS
from loraguard.data.registry import DATA as DATA_SETS
from loraguard.defenses.registry import DEFENSES
from loraguard.files import writable_folder
from loraguard.generators.registry import GENERATORS

from .early import check_audit, check_files, names_in
from .hub import said_in_a_line
from .options import CHECKPOINT, DATA, DEVICE, GENERATOR, IMAGE_SIZE, JUDGE, SEED, SPLIT, Device, examples

if TYPE_CHECKING:
    from loraguard.audit import AuditResult

Names = list[str]

MOST_ROWS = 40
"""Of the whole table on the screen; more are in the report."""

MOST_DIFFERENCES = 12
"""Of the settings in which two audits differ, on the screen."""

WHAT, PHOTOS, AGAINST, HOW_MUCH, WHERE = "What", "On which photos", "Against what", "How much", "Where and how"


def audit(
    generator: Annotated[
        str | None,
        typer.Option(help=GENERATOR, show_default="demo", autocompletion=names_in(GENERATORS), rich_help_panel=WHAT),
    ] = None,
    checkpoint: Annotated[str | None, typer.Option(help=CHECKPOINT, rich_help_panel=WHAT)] = None,
    image_size: Annotated[int | None, typer.Option(help=IMAGE_SIZE, rich_help_panel=WHAT)] = None,
    patch: Annotated[
        Names | None,
        typer.Option(
            help="A patch to audit: a folder or a Hub id, or NAME=one. *", metavar="PATCH", rich_help_panel=WHAT
        ),
    ] = None,
    ignore_fingerprint: Annotated[
        bool | None,
        typer.Option("--ignore-fingerprint", help="Take patches made for other weights.", rich_help_panel=WHAT),
    ] = None,
    train: Annotated[
        Names | None,
        typer.Option(
            help="An adversary to train: standard, ungated, clean-only or fine-tune. *",
            metavar="KIND",
            rich_help_panel=WHAT,
        ),
    ] = None,
    train_steps: Annotated[
        int | None, typer.Option(help="Steps of each; by default the fast recipe's epochs.", rich_help_panel=WHAT)
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(help=DATA, show_default="demo", autocompletion=names_in(DATA_SETS), rich_help_panel=PHOTOS),
    ] = None,
    split: Annotated[str | None, typer.Option(help=SPLIT, rich_help_panel=PHOTOS)] = None,
    images: Annotated[
        int | None, typer.Option(help="How many photos to audit on.", show_default="100", rich_help_panel=PHOTOS)
    ] = None,
    fit_images: Annotated[
        int | None,
        typer.Option(help="How many others to fit and train on.", show_default="200", rich_help_panel=PHOTOS),
    ] = None,
    defense: Annotated[
        Names | None,
        typer.Option(
            help="NAME:SETTINGS, or OTHER_NAME=that; `loraguard info defenses` lists names. *",
            metavar="SPEC",
            autocompletion=names_in(DEFENSES),
            show_default="disrupting",
            rich_help_panel=AGAINST,
        ),
    ] = None,
    no_leak_only: Annotated[
        Names | None,
        typer.Option(
            help="A defense that is not made anew against each patch. *", metavar="NAME", rich_help_panel=AGAINST
        ),
    ] = None,
    perturbed: Annotated[
        Names | None,
        typer.Option(
            help="A folder of photos that another tool has perturbed. *", metavar="NAME=FOLDER", rich_help_panel=AGAINST
        ),
    ] = None,
    allow_large_change: Annotated[
        bool | None,
        typer.Option(
            "--allow-large-change",
            help="Take perturbed photos that are not like their originals.",
            rich_help_panel=AGAINST,
        ),
    ] = None,
    channel: Annotated[
        Names | None,
        typer.Option(
            help="What happens to photos before the generator, such as jpeg:75+resize:0.5. *",
            metavar="SPEC",
            autocompletion=names_in(CHANNELS),
            rich_help_panel=AGAINST,
        ),
    ] = None,
    adaptive_channels: Annotated[
        bool | None,
        typer.Option(
            "--adaptive/--no-adaptive",
            help="Make defenses through each channel, too.",
            show_default="adaptive",
            rich_help_panel=AGAINST,
        ),
    ] = None,
    budget: Annotated[
        list[float] | None,
        typer.Option(
            help="A further budget, for a curve: the largest change on [-1, 1]. *",
            metavar="EPS",
            rich_help_panel=HOW_MUCH,
        ),
    ] = None,
    steps: Annotated[
        list[int] | None,
        typer.Option(
            "--steps",
            "--strength",
            help="A further number of a defense's steps, for a curve. *",
            metavar="STEPS",
            rich_help_panel=HOW_MUCH,
        ),
    ] = None,
    seed: Annotated[
        list[int] | None,
        typer.Option(help=f"{SEED} *", metavar="SEED", show_default="0", rich_help_panel=HOW_MUCH),
    ] = None,
    success: Annotated[
        str | None,
        typer.Option(
            help="When a defense counts as having succeeded: mse:T, lpips:T, ssim:T or noise:Q.",
            metavar="METRIC:NUMBER",
            show_default="mse:0.05",
            rich_help_panel=HOW_MUCH,
        ),
    ] = None,
    checks: Annotated[
        int | None,
        typer.Option(
            help="On how many photos to try other attacks, which takes most of the time.",
            show_default="50",
            rich_help_panel=HOW_MUCH,
        ),
    ] = None,
    lpips: Annotated[
        str | None,
        typer.Option(
            help="Measure LPIPS, by AlexNet's weights in this file, or 'cache'.",
            metavar="FILE",
            rich_help_panel=HOW_MUCH,
        ),
    ] = None,
    fid: Annotated[
        str | None,
        typer.Option(
            help="Measure FID, by Inception's weights in this file, or 'cache'.",
            metavar="FILE",
            rich_help_panel=HOW_MUCH,
        ),
    ] = None,
    output_dir: Annotated[
        Path | None, typer.Option(help="A folder for the report and all findings. Needed.", rich_help_panel=WHERE)
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="A YAML file with settings; flags go before it.", rich_help_panel=WHERE)
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Go on with the audit in this folder.", rich_help_panel=WHERE)
    ] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Photos at a time.", show_default="25", rich_help_panel=WHERE)
    ] = None,
    pictures: Annotated[
        int | None, typer.Option(help="Photos to show in the report.", show_default="6", rich_help_panel=WHERE)
    ] = None,
    device: Annotated[Device | None, typer.Option(help=DEVICE, show_default="auto", rich_help_panel=WHERE)] = None,
) -> None:
    """Measure what defenses are worth against a generator, as it is and as adversaries adapt it, and write a report.

    It needs --output-dir alone, and writes report.html there. Options with * may be repeated. Everything that is found
    is kept: the same command goes on where it was stopped, and so does --resume FOLDER. docs/cli.md has the keys of the
    YAML file, and docs/audit.md says how to read a report.
    """
    from loraguard.audit_settings import SETTINGS, AuditSettings

    flags: dict[str, Any] = {
        "generator": generator, "checkpoint": checkpoint, "image_size": image_size, "patches": patch,
        "ignore_fingerprint": ignore_fingerprint, "train": train, "train_steps": train_steps, "data": data,
        "split": split, "images": images, "fit_images": fit_images, "defenses": defense,
        "no_leak_only": no_leak_only,
        "perturbed": perturbed, "allow_large_change": allow_large_change,
        "channels": channel, "adaptive_channels": adaptive_channels, "budgets": budget, "steps": steps,
        "seeds": seed, "success": success, "checks": checks, "lpips": lpips, "fid": fid,
        "batch_size": batch_size, "pictures": pictures,
        "device": device and device.value,
    }  # fmt: skip
    given = {key: value for key, value in flags.items() if value is not None and value != []}
    with said_in_a_line():
        if resume is not None:
            if given or config or output_dir:
                raise ValueError("--resume takes its settings from the folder; give no other flags with it.")
            output_dir, config = resume, resume / SETTINGS
            if not config.is_file():
                raise FileNotFoundError(f"There is no audit in {resume}: it has no {SETTINGS}.")
        if output_dir is None:
            raise ValueError("Say where the report goes: --output-dir FOLDER.")
        settings = AuditSettings() if config is None else AuditSettings.read(config)
        settings = settings.updated(given, "flags")
        check_audit(settings)
        writable_folder(output_dir)
        from loraguard.auditing import audit_by_settings

        try:
            result, report = audit_by_settings(settings, output_dir, say=typer.echo)
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
        Names | None,
        typer.Option(help="Take the second's patch or defense SECOND for the first's FIRST. *", metavar="SECOND=FIRST"),
    ] = None,
) -> None:
    """Compare two audits situation by situation: paired, image by image, where both looked at the same photos.

    The difference is second less first, with its 95% interval. The option with * may be repeated.
    """
    with said_in_a_line():
        check_files((first, second), "audit")
        from loraguard.audit import compare as compared
        from loraguard.audit.words import COLUMNS

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
