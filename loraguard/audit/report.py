"""What an audit found, as files for people, for spreadsheets and for programs."""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from pathlib import Path

from loraguard.files import whole_files, writable_folder, write_json
from loraguard.training import TrainingResult

from .page import render_page
from .pictures import draw_grid
from .result import AuditResult
from .summary import markdown, summary_csv
from .words import verdict

DOWNLOAD_BYTES = 1_100_000
"""The page holds every photo's figures where they are no larger, compressed: 1.5 MB as text."""

PLAIN_BYTES = 200_000
"""It holds the summary as it is where that is no larger, and otherwise compressed."""

FILES = {
    "audit.json": "settings, figures with intervals, checks with evidence",
    "images.parquet": "every photo's figures in every situation, as loraguard compare reads them",
    "images.csv": "the same for a spreadsheet",
    "summary.csv": "a row for each situation",
    "report.md": "the summary as Markdown",
    "grid.png": "the pictures, not compressed",
}
"""What is written beside the page."""


def write_report(
    result: AuditResult, output_dir: str | Path, *, training: Mapping[str, TrainingResult] | None = None
) -> Path:
    """Write `report.html` and the files of :data:`FILES`, each whole or not at all.

    The page is complete without the others: it holds pictures (made smaller, and the last ones left out, until they
    take 2.5 MB), the summary, and the figures of every photo where they take no more than 1.5 MB.

    Args:
        result: from :func:`~loraguard.audit.run_audit`.
        output_dir: a folder; it is made where there is none.
        training: by patch, how its training went, for the curves.

    Returns:
        The path of `report.html`.
    """
    folder = writable_folder(output_dir)
    kept = "The same audit again writes it, from what is kept of its findings; or write_report, into another folder."
    with whole_files(folder, "report", kept) as draft:
        write_json(draft / "audit.json", {**result.to_dict(), "verdict": verdict(result)})
        result.write_per_image(draft)
        draw_grid(result).save(draft / "grid.png", compress_level=3)  # half of the time, 7% larger
        (draft / "report.md").write_text(markdown(result), encoding="utf-8")
        summary = summary_csv(result).encode()
        (draft / "summary.csv").write_bytes(summary)
        downloads = {"summary.csv": ("text/csv", summary)}
        if len(summary) > PLAIN_BYTES:
            downloads = {"summary.csv.gz": ("application/gzip", gzip.compress(summary, mtime=0))}
        every_photo = gzip.compress((draft / "images.csv").read_bytes(), mtime=0)
        if len(every_photo) <= DOWNLOAD_BYTES:
            downloads["images.csv.gz"] = ("application/gzip", every_photo)
        page = render_page(result, training or {}, downloads, FILES)
        (draft / "report.html").write_text(page, encoding="utf-8")
    return folder / "report.html"
