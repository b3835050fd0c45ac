"""The command line's `push` and `pull`, and what `info` says of a patch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from loraguard.files import new_folder
from loraguard.hub.names import check_patch

from .early import check_files
from .errors import said_in_a_line
from .options import SHARE, examples

Revision = Annotated[str | None, typer.Option(help="A branch, tag or commit.")]


def push(
    patch: Annotated[Path, typer.Argument(help="A patch's folder.")],
    repo_id: Annotated[str, typer.Argument(help="OWNER/NAME on the Hub, or a name of your own; made if need be.")],
    audit: Annotated[
        Path | None, typer.Option(help="An audit's folder; by default `audit` beside the patch, if it is of it.")
    ] = None,
    private: Annotated[
        bool | None, typer.Option("--private/--public", help="Who may see a repository that is made.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="A branch; made if need be.")] = None,
    tag: Annotated[str | None, typer.Option(help="A name for what is pushed.")] = None,
    license: Annotated[str | None, typer.Option(help="An identifier of the Hub, such as apache-2.0.")] = None,
    card: Annotated[
        Path | None, typer.Option(help="A README.md whose own text takes the place of the one on the Hub.")
    ] = None,
) -> None:
    """Push a patch to the Hugging Face Hub, with a card that says what it is and what an audit found.

    Log in first with `hf auth login`, or set HF_TOKEN. What has not changed makes no commit.
    """
    with said_in_a_line():
        if not patch.is_dir():
            raise FileNotFoundError(f"There is no patch {patch}: no such folder.")
        check_patch(patch)
        check_files([audit], "folder")
        check_files([card], "file")
        from loraguard.hub import push_patch

        commit = push_patch(
            patch, repo_id, audit=audit, private=private, revision=revision, tag=tag, license=license, card=card
        )
    typer.echo(f"Pushed: {commit.commit_url}")


def pull(
    repo_id: Annotated[str, typer.Argument(help="OWNER/NAME on the Hub.")],
    output_dir: Annotated[Path, typer.Argument(help="A new folder.")],
    revision: Revision = None,
) -> None:
    """Copy a patch of the Hugging Face Hub into a new folder, checked, with its card and audit."""
    with said_in_a_line():
        new_folder(output_dir)
        from loraguard.hub import pull_patch

        folder = pull_patch(repo_id, output_dir, revision=revision)
        print_patch(str(folder))
    typer.echo(f"Patch: {folder.resolve()}")


def print_patch(patch: str, revision: str | None = None) -> None:
    """What a patch holds, a line each."""
    from loraguard.hub import describe_patch

    with said_in_a_line():
        check_patch(patch)
        rows = describe_patch(patch, revision=revision)
    width = max(len(label) for label, _ in rows)
    for label, text in rows:
        typer.secho(f"{label:<{width}}", bold=True, nl=False)
        typer.echo(f"  {text}")


def register(app: typer.Typer) -> None:
    """Add the commands."""
    shown = examples("loraguard push patch me/stargan-warning", "loraguard push patch me/stargan-warning --private")
    app.command(rich_help_panel=SHARE, epilog=shown)(push)
    app.command(rich_help_panel=SHARE, epilog=examples("loraguard pull me/stargan-warning a-new-folder"))(pull)
