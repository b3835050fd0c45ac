"""The report states the audit's figures, in every file that it writes."""

import csv
import html
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image
from pyarrow import parquet
from setups import Audit

from loraguard.audit import AuditResult, table, verdict, write_report
from loraguard.defenses import Disrupting, RandomNoise
from loraguard.training import TrainingResult


class Page(HTMLParser):
    """Collects a page's tags, text, and whatever it would fetch."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []
        self.cells: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        if tag not in ("meta", "img", "path", "use", "rect", "br", "link", "circle"):
            self.open.append(tag)
        self.fetched += [value for name, value in attrs if name in ("src", "href", "xlink:href") and value]

    def handle_endtag(self, tag: str) -> None:
        if tag in self.open:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip() and self.open[-1] in ("td", "small"):
            self.cells.append(data.strip())


@pytest.fixture
def written(audit: Audit, tmp_path: Path) -> tuple[AuditResult, Path]:
    result = audit(defenses=Disrupting(0.1, 2), seeds=[0, 1])
    log = [
        {"step": i, "loss_clean": 0.1 / i, "loss_adversarial": 0.2 / i, "learning_rate": 1e-3, "gate_mean": 0.3}
        for i in (1, 2, 3)
    ]
    training = {"standard": TrainingResult(tmp_path, log, {"main.0": [0.27, 0.28, 0.3]})}
    write_report(result, tmp_path, training=training)
    return result, tmp_path


def test_the_page_is_whole_and_fetches_nothing(written: tuple[AuditResult, Path]) -> None:
    text = (written[1] / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert not page.open
    assert page.fetched
    assert all(address.startswith(("data:", "#")) for address in page.fetched)
    assert not re.search(r"@import|url\((?!#)", text)


def test_the_page_states_the_figures(written: tuple[AuditResult, Path]) -> None:
    result, folder = written
    cells = Page((folder / "report.html").read_text(encoding="utf-8")).cells
    _, rows = table(result)
    assert len(rows) == 11
    for row in rows:
        for cell in row:
            assert cell in cells
    page = html.unescape((folder / "report.html").read_text(encoding="utf-8"))
    assert len(verdict(result)) == 4
    for sentence in verdict(result):
        assert sentence in page


def test_the_files_are_strict_and_hold_every_image(written: tuple[AuditResult, Path]) -> None:
    result, folder = written
    found = json.loads((folder / "audit.json").read_text(), parse_constant=pytest.fail)
    rows = parquet.read_table(folder / "images.parquet").to_pylist()
    assert len(found["situations"]) == 11
    assert len(rows) == 11 * 2 * 12
    for situation in found["situations"]:
        key = {name: situation[name] for name in ("generator", "defense", "knowledge", "channel")}
        own = [row for row in rows if key.items() <= row.items()]
        assert {(row["seed"], row["image"]) for row in own} == {(seed, image) for seed in (0, 1) for image in range(12)}
        assert {row["edit"] for row in own if row["image"] == 3} == {result.edits[3]}
        for metric in ("mse", "dsr", "stamp_rate"):
            mean = sum(row[metric] for row in own) / 24
            assert situation["metrics"][metric]["n"] == 12
            assert situation["metrics"][metric]["mean"] == pytest.approx(mean, abs=1e-6)
    with (folder / "images.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [float(line["mse"]) for line in lines] == pytest.approx([row["mse"] for row in rows])
    assert found["settings"]["defenses"]["disrupting"] == {
        "class": "Disrupting",
        "eps": 0.1,
        "steps": 2,
        "step_size": None,
        "method": "pgd",
        "restarts": 1,
        "layer": None,
    }
    assert {"torch", "peft", "torchmetrics", "accelerate", "loraguard"} == found["settings"]["versions"].keys()


def test_the_grid_holds_every_situation(written: tuple[AuditResult, Path]) -> None:
    with Image.open(written[1] / "grid.png") as grid:
        grid.verify()
        assert grid.height > (11 + 3) * 16
    assert not list(written[1].glob(".loraguard-*"))


def test_a_report_that_cannot_be_finished_leaves_the_old_one(written: tuple[AuditResult, Path]) -> None:
    result, folder = written
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    result.settings["bad"] = float("nan")
    with pytest.raises(ValueError, match="JSON"):
        write_report(result, folder)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_a_defensive_patch_without_a_detector(audit: Audit, tmp_path: Path) -> None:
    result = audit(defenses=RandomNoise(0.1), detectors=None)
    assert "stamp_rate" not in result["defensive", "clean"].values
    assert write_report(result, tmp_path / "made" / "here").is_file()
