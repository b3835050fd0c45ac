"""The command line's `audit`, `compare` and `protect`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .cli_hub import said_in_a_line

if TYPE_CHECKING:
    from loraguard.audit import AuditResult

Names = list[str]


def audit(
    output_dir: Annotated[
        Path | None, typer.Option(help="Where the report and everything that was found go.", rich_help_panel="Where")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Go on with the audit in this folder; no other flags.", rich_help_panel="Where")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="A YAML file with these flags as keys; flags go first.", rich_help_panel="Where")
    ] = None,
    generator: Annotated[str | None, typer.Option(help="By name; demo by default.")] = None,
    checkpoint: Annotated[str | None, typer.Option(help="Its weights: a file, a folder or a Hub id.")] = None,
    image_size: Annotated[int | None, typer.Option(help="Of the generator, where its weights do not tell.")] = None,
    data: Annotated[str | None, typer.Option(help="NAME, NAME:PATH, PATH or HUB_ID; demo by default.")] = None,
    split: Annotated[str | None, typer.Option(help="Of the data set's own.")] = None,
    images: Annotated[int | None, typer.Option(min=1, help="Photos to audit on; 100 by default.")] = None,
    fit_images: Annotated[
        int | None, typer.Option(min=1, help="Others, to fit defenses on, train on; 200 by default.")
    ] = None,
    patch: Annotated[Names | None, typer.Option(help="NAME=FOLDER or NAME=HUB_ID; may be repeated.")] = None,
    train: Annotated[
        Names | None, typer.Option(help="Train: standard, ungated, clean-only or fine-tune; may be repeated.")
    ] = None,
    train_steps: Annotated[int | None, typer.Option(min=1, help="Of each that is trained.")] = None,
    defense: Annotated[
        Names | None, typer.Option(help="SPEC or NAME=SPEC, such as disrupting:0.05,steps=30; may be repeated.")
    ] = None,
    no_leak_only: Annotated[
        Names | None, typer.Option(help="NAME of a defense not to craft anew with a leak; may be repeated.")
    ] = None,
    perturbed: Annotated[
        Names | None, typer.Option(help="NAME=FOLDER with photos that a defense perturbed elsewhere; may be repeated.")
    ] = None,
    channel: Annotated[Names | None, typer.Option(help="SPEC, such as jpeg:75+resize:0.5; may be repeated.")] = None,
    adaptive_channels: Annotated[
        bool | None, typer.Option("--adaptive-channels/--no-adaptive-channels", help="Craft through channels as well.")
    ] = None,
    budget: Annotated[list[float] | None, typer.Option(help="A further eps; may be repeated.")] = None,
    strength: Annotated[list[int] | None, typer.Option(help="A further number of steps; may be repeated.")] = None,
    seed: Annotated[list[int] | None, typer.Option(help="0 by default; may be repeated.")] = None,
    checks: Annotated[
        int | None, typer.Option(min=0, help="Photos to try other attacks on; 50 by default, 0 for none.")
    ] = None,
    lpips: Annotated[str | None, typer.Option(help="Measure LPIPS: cache, or a file with AlexNet's weights.")] = None,
    fid: Annotated[str | None, typer.Option(help="Measure FID: cache, or a file with Inception's weights.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Photos at a time; 25 by default.")] = None,
    pictures: Annotated[int | None, typer.Option(min=1, help="Photos to show; 6 by default.")] = None,
    device: Annotated[str | None, typer.Option(help="auto for the accelerator that is there, or cpu.")] = None,
) -> None:
    """Measure what defenses are worth against a generator, as it is and as adversaries adapt it, and write a report.

    Everything that is found is kept: the same command goes on where it was stopped, and so does --resume FOLDER.
    """
    from loraguard.auditing import SETTINGS, AuditSettings, audit_by_settings, named

    given: dict[str, Any] = {
        "generator": generator, "checkpoint": checkpoint, "image_size": image_size, "data": data, "split": split,
        "images": images, "fit_images": fit_images, "train": train, "train_steps": train_steps,
        "no_leak_only": no_leak_only, "channels": channel,
        "adaptive_channels": adaptive_channels, "budgets": budget, "strengths": strength, "seeds": seed,
        "checks": checks, "lpips": lpips, "fid": fid, "batch_size": batch_size, "pictures": pictures, "device": device,
    }  # fmt: skip
    with said_in_a_line():
        given |= {key: named(specs) for key, specs in
                  {"patches": patch, "defenses": defense, "perturbed": perturbed}.items() if specs}  # fmt: skip
        given = {key: value for key, value in given.items() if value not in (None, [])}
        if resume is not None:
            if given or config or output_dir:
                raise ValueError(
                    "--resume takes its settings from the folder; give no other flags, or repeat the command."
                )
            output_dir, config = resume, resume / SETTINGS
            if not config.is_file():
                raise FileNotFoundError(f"There is no audit in {resume}: it has no {SETTINGS}.")
        if output_dir is None:
            raise ValueError("Say where the report goes: --output-dir FOLDER.")
        settings = AuditSettings() if config is None else AuditSettings.read(config)
        settings = settings.updated(given, "flags")
        try:
            result, report = audit_by_settings(settings, output_dir, say=typer.echo)
        except KeyboardInterrupt:
            typer.secho(f"Interrupted; to go on: loraguard audit --resume {output_dir}", err=True)
            raise typer.Exit(130) from None
    print_audit(result)
    typer.echo(f"Report: {report.resolve()}")


def print_audit(result: AuditResult) -> None:
    """The audit's table, its findings in words, and the budget."""
    from loraguard.audit import table, verdict

    headings, rows = table(result)
    widths = [max(len(row[i]) for row in [headings, *rows]) for i in range(len(headings))]
    typer.echo()
    for row in [headings, *rows]:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    typer.echo()
    for sentence in verdict(result):
        typer.echo(sentence)
    if failed := [check for check in result.checks if not check.passed]:
        typer.echo("\nFlags (docs/audit-checks.md says what each means):")
        for check in failed:
            typer.echo(f"  {check.name}, {check.generator}: {check.evidence}")
    typer.echo(f"\nBudget: {result.settings['budget']}.")


def compare(
    first: Annotated[Path, typer.Argument(help="An audit's folder, or its audit.json.")],
    second: Annotated[Path, typer.Argument(help="Another one.")],
    metric: Annotated[str, typer.Option(help="dsr, mse, psnr, ssim, stamp_rate, ...")] = "dsr",
) -> None:
    """Compare two audits situation by situation: paired, image by image, where both looked at the same photos."""
    from loraguard.audit import compare as compared

    with said_in_a_line():
        found = compared(first, second, metric)
    scale, unit = (100, " points") if metric in ("dsr", "stamp_rate") else (1, "")
    digits = 1 if scale == 100 else 4
    rows = [["generator", "photo", "channel", "first", "second", "difference", "95% interval"]]
    for one in found:
        if one.situation["role"] != "main":
            continue
        difference = one.difference
        interval = "" if difference.low is None or difference.high is None else (
            f"{scale * difference.low:+.{digits}f} to {scale * difference.high:+.{digits}f}"
        )  # fmt: skip
        rows.append([
            one.situation["generator"], one.photo, one.situation["channel"], f"{scale * one.before:.{digits}f}",
            f"{scale * one.after:.{digits}f}", f"{scale * (difference.mean or 0):+.{digits}f}{unit}", interval,
        ])  # fmt: skip
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    typer.echo(f"\n{metric}; {found[0].difference.method}.")


def protect(
    images: Annotated[str, typer.Argument(help="A folder of photos.")],
    output_dir: Annotated[Path, typer.Option(help="Where the protected photos go, as PNG.")],
    defense: Annotated[str, typer.Option(help="SPEC; `loraguard info defenses` lists names.")] = "disrupting",
    generator: Annotated[str, typer.Option(help="What they are protected from, by name.")] = "demo",
    checkpoint: Annotated[str | None, typer.Option(help="Its weights: a file, a folder or a Hub id.")] = None,
    image_size: Annotated[int | None, typer.Option(help="Of the generator, where its weights do not tell.")] = None,
    edit: Annotated[str | None, typer.Option(help="Craft against this edit alone; by default all in turn.")] = None,
    fit_on: Annotated[str | None, typer.Option(help="Photos to fit a defense on that has to be fitted.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of what is drawn.")] = 0,
) -> None:
    """Perturb photos by a defense. Whether that protects anybody is what `loraguard audit` tells."""
    from loraguard.generators import load_generator
    from loraguard.protecting import protect as protect_photos

    with said_in_a_line():
        network = load_generator(generator, checkpoint, **({} if image_size is None else {"size": image_size}))
        found = protect_photos(network, images, defense, output_dir, edit=edit, fit_on=fit_on, seed=seed)
    spoilt = sum(one.spoilt for one in found)
    typer.echo(f"{len(found)} photos, {min(one.psnr for one in found):.1f} dB PSNR or more to the originals.")
    typer.echo(f"The generator as it is fails on {spoilt} of them; a generator that adapts may not: loraguard audit.")
    typer.echo(f"Photos: {output_dir.resolve()}")


def register(app: typer.Typer) -> None:
    """Add these commands."""
    for command in (audit, compare, protect):
        app.command()(command)
