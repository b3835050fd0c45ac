"""What an audit found about one patch, read from the audit's files alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .names import AUDIT_FILES

Row = tuple[str, str, Mapping[str, Mapping[str, Any]]]
"""Generator, what was done to the photos, and by metric `mean`, `low`, `high`, `n` and `method`."""

UNTOUCHED = "untouched"
FLAGGED = "; flagged: "


@dataclass(frozen=True)
class Findings:
    """What an audit found about one patch.

    Attributes:
        rows: of the untouched generator and of this patch.
        sentences: the verdict in words.
        patch: the patch's name in the rows.
        sha256: the fingerprint of the patch that was audited.
        about: the audit's settings.
        folder: where `audit.json` is.
    """

    rows: list[Row]
    sentences: list[str]
    patch: str
    sha256: str
    about: dict[str, Any]
    folder: Path


def read_audit(folder: str | Path, sha256: str) -> Findings:
    """Read what `write_report` wrote, as far as it is about one patch.

    Args:
        folder: with the files of an audit's report.
        sha256: the patch's fingerprint.

    Raises:
        FileNotFoundError: if a file is not there.
        ValueError: if `audit.json` is none, or is about other patches.
    """
    folder = Path(folder)
    for file in AUDIT_FILES:
        if not (path := folder / Path(file).name).is_file():
            raise FileNotFoundError(f"There is no {path}; audit= takes the folder that an audit's report is in.")
    try:
        found = json.loads((folder / "audit.json").read_text(encoding="utf-8"))
        about, hashes = found["settings"], found["settings"]["weights_sha256"]
        rows = [_row(situation) for situation in found["situations"] if situation["role"] == "main"]
        sentences = list(found.get("verdict", []))
        sentences, hashes = [str(one) for one in sentences], dict(hashes)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        said = f"{error!r:.200}"
        raise ValueError(f"{folder / 'audit.json'} is not what an audit writes ({said}). Audit again.") from error
    name = next((name for name, one in hashes.items() if one == sha256), None)
    if name is None:
        raise ValueError(
            f"The audit in {folder} is not of this patch: it is of {', '.join(sorted(hashes))}, and none of these has "
            f"its fingerprint {sha256[:12]}. Audit the patch as it is now."
        )
    return Findings([row for row in rows if row[0] in (UNTOUCHED, name)], sentences, name, sha256, about, folder)


def _row(situation: Mapping[str, Any]) -> Row:
    """A situation of `audit.json`, with its channel and the checks that failed for it in the text."""
    done = situation["photo"]
    if situation["channel"] != "none":
        done += f", then {situation['channel']}"
    if situation["flags"]:
        done += f"{FLAGGED}{', '.join(situation['flags'])}"
    return situation["generator"], done, situation["metrics"]
