"""The report states the audit's figures, in every file that it writes."""

import base64
import csv
import gzip
import html
import json
import re
from html.parser import HTMLParser
from io import StringIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from pyarrow import parquet
from setups import Audit, made, rows, situation

from loraguard.audit import AuditResult, curves, matrix, pictures, report, table, verdict, worst_cases, write_report
from loraguard.audit import page as page_module
from loraguard.audit.checks import examine
from loraguard.audit.figures import training_curves
from loraguard.audit.glossary import FLAG_HELP
from loraguard.defenses import Disrupting, RandomNoise
from loraguard.training import TrainingResult

VOID = {"meta", "img", "br", "link", "input"}
STAMPED = {"text": "AI", "image": None}


class Page(HTMLParser):
    """A page's tags, ids, links, text in table cells, and whatever it would fetch."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text = text
        self.open: list[str] = []
        self.fetched: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.cells: list[str] = []
        self.images: list[dict[str, str]] = []
        self.downloads: dict[str, str] = {}
        self.feed(text)

    def handle_startendtag(self, tag: str, attrs: list) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_starttag(self, tag: str, attrs: list) -> None:
        if tag not in VOID:
            self.open.append(tag)
        found = dict(attrs)
        self.fetched += [value for name, value in attrs if name in ("src", "href", "xlink:href", "srcset", "action")]
        self.ids += [found["id"]] if "id" in found else []
        self.links += [found["href"][1:]] if tag == "a" and found["href"].startswith("#") else []
        self.images += [found] if tag == "img" else []
        if "download" in found:
            self.downloads[found["download"]] = found["href"]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip() and self.open[-1] in ("td", "small", "th"):
            self.cells.append(data.strip())


def page_of(result: AuditResult, folder: Path, **more: Any) -> Page:
    """The page, which is well-formed and fetches nothing."""
    page = Page(write_report(result, folder, **more).read_text(encoding="utf-8"))
    assert not page.open
    assert len(page.ids) == len(set(page.ids))
    assert set(page.links) <= set(page.ids)
    assert all(address.startswith(("data:", "#")) for address in page.fetched)
    assert not re.search(r"@import|url\((?!#|[\"`]?\$)|https?://(?!www\.w3\.org/)|fetch\(|XMLHttp", page.text)
    assert "default-src 'none'" in page.text
    return page


def states_the_table(page: Page, result: AuditResult) -> None:
    """Every figure of the table, and the intervals of the DSR."""
    headings, body = table(result)
    words = {at for at, heading in enumerate(headings) if heading in ("channel", "flags")}
    for row in body:
        assert {cell for at, cell in enumerate(row) if cell and at not in words} <= set(page.cells)
    for one in result.find(role="main"):
        found = one.estimates["dsr"]
        assert f"{100 * found.low:.1f}% – {100 * found.high:.1f}%" in page.cells


def dataful() -> AuditResult:
    """Two defenses, three generators, a channel, curves, and checks of which some fail."""
    shares = {"pgd": (0.95, 0.9), "cw": (0.9, 0.8)}
    situations = []
    for generator, factor in (("untouched", 1.0), ("standard", 0.1), ("warns", 0.3)):
        known = 1 if generator == "untouched" else 2
        given = {name: tuple(factor * share for share in two)[:known] for name, two in shares.items()}
        stamped = 0.95 * (generator == "warns")
        situations += rows(generator, given, stamp_rate=stamped, masked_mse=0.5, frechet=12.3456, steps=10)
        situations += rows(generator, given, channel="jpeg:50", stamp_rate=stamped, masked_mse=0.5, steps=10)
        for eps in (0.05, 0.2):
            situations.append(
                situation(generator, "pgd", "no-leak", factor * 4 * eps, eps=eps, steps=10, role="budget",
                          stamp_rate=stamped, masked_mse=0.5)
            )  # fmt: skip
        situations.append(
            situation(generator, "pgd", "no-leak", factor * 0.5, steps=3, role="steps", stamp_rate=stamped,
                      masked_mse=0.5)
        )  # fmt: skip
    result = made(situations, patches={"standard": None, "warns": STAMPED}, root="<b>&\"'")
    result.checks = examine(result)
    return result


def test_the_page_of_everything(tmp_path: Path) -> None:
    result = dataful()
    log = [
        {"step": i, "loss_clean": 0.1 / i, "loss_adversarial": 0.2 / i, "learning_rate": 1e-3, "gate_mean": 0.3}
        for i in (1, 2, 3)
    ]
    training = {name: TrainingResult(tmp_path, log, {"main.0": [0.27, 0.28, 0.3]}) for name in ("standard", "warns")}
    page = page_of(result, tmp_path, training=training)
    states_the_table(page, result)
    plain = html.unescape(page.text)
    reads, figures = verdict(result)[0].split(": ", 1)
    assert f"<h1>{reads}</h1>" in plain
    assert figures in plain
    assert all(sentence in plain for sentence in verdict(result)[1:])
    assert page.text.count("<svg") == 2 + 1 + 1  # trainings, the defense with a curve over budgets, that over steps
    sections = "pictures dsr stamps tried figures channels budget steps checks training words data settings"
    assert set(sections.split()) <= set(page.ids)
    assert {"0.05", "0.2", "12.35"} <= set(page.cells)
    assert "root</dt><dd>&lt;b&gt;&amp;" in page.text
    for situation_ in result.find(role="budget"):
        assert f"{100 * situation_.estimates['dsr'].low:.1f}% – " in page.text


def test_the_axes_of_a_training_tell_its_values_apart(tmp_path: Path) -> None:
    """Of gates that moved in the fourth digit; its steps are whole."""
    log = [{"step": step, "loss_clean": 0.1 / step, "loss_adversarial": 0.2} for step in (1, 2, 3, 4)]
    svg = training_curves(TrainingResult(tmp_path, log, {"main.0": [0.2690, 0.2692, 0.2694, 0.26965]}), "standard")
    labels = re.findall(r"<text[^>]*>([^<]*)</text>", svg)
    values = [float(one) for one in labels if one.startswith("0.")]
    assert len(values) >= 3
    assert len({round(b - a, 6) for a, b in pairwise(values)}) == 1
    assert [one for one in labels if re.fullmatch(r"[1-4](\.\d+)?", one)] == ["1", "2", "3", "4"] * 2


def test_flags_lead_to_what_they_mean_and_failed_checks_come_first(tmp_path: Path) -> None:
    result = dataful()
    page = page_of(result, tmp_path)
    failed = {check.name for check in result.checks if not check.passed}
    assert failed == {"transfer-beats-white-box"}
    assert failed <= set(page.links)
    made_checks = [name for name in page.ids if name in FLAG_HELP]
    assert set(made_checks) == {check.name for check in result.checks}
    assert made_checks[0] == "transfer-beats-white-box"
    plain = html.unescape(page.text)
    for check in result.checks:
        assert check.evidence in plain
        assert FLAG_HELP[check.name] in plain


def test_one_defense_and_nothing_else(tmp_path: Path) -> None:
    result = made(rows("untouched", {"pgd": (0.95,)}), pictures=0)
    page = page_of(result, tmp_path)
    states_the_table(page, result)
    assert not page.images
    assert not {"channels", "budget", "steps", "stamps", "training", "pictures"} & set(page.ids)
    assert "Nothing was checked" in page.text


def test_many_defenses_and_generators_stay_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = {f"defense-{i}": (0.9 - 0.05 * i, 0.5) for i in range(12)}
    situations = []
    for generator in ("untouched", "a", "b", "c", "d"):
        given = {name: two[: 1 if generator == "untouched" else 2] for name, two in names.items()}
        situations += rows(generator, given, n=8)
    result = made(situations, patches=dict.fromkeys("abcd"), size=64)
    monkeypatch.setattr(page_module, "PAGE_BYTES", 300_000)
    page = page_of(result, tmp_path)
    states_the_table(page, result)
    shown = sum(len(image["src"]) for image in page.images)
    assert 150_000 < shown <= 300_000
    left_out = int(re.search(r"(\d+) situations are left out", page.text)[1])
    assert left_out + len(page.images) == 14 + 14 + 4 * 26
    assert page.images[0]["alt"].startswith("Photos, as it is")  # the story comes first
    with Image.open(tmp_path / "grid.png") as grid:
        assert grid.height < (pictures.MOST_ROWS + 2) * 140
        assert grid.width < 800


def test_pictures_are_made_smaller_before_they_are_left_out() -> None:
    noise = made(rows("untouched", {"pgd": (0.95,)}), size=128)
    strips = pictures.strips(noise)
    whole = pictures.embedded(strips, pictures.PAGE_BYTES)
    assert whole.keys() == {one.key for one in strips}
    room = sum(map(len, whole.values())) // 2
    smaller = pictures.embedded(strips, room)
    assert smaller.keys() == whole.keys()
    assert sum(map(len, smaller.values())) <= room
    assert 0 < len(pictures.embedded(strips, room // 4)) < len(whole)


def test_a_strip_shows_the_images() -> None:
    strip = pictures.Strip("photo", dataful().situations[0].treatment, "none", torch.rand(3, 3, 16, 24) * 2 - 1)
    shown = strip.picture(16, gap=2)
    assert shown.size == (3 * 24 + 2 * 2, 16)
    for at in range(3):
        part = torch.tensor(list(shown.crop((26 * at, 0, 26 * at + 24, 16)).tobytes())).view(16, 24, 3)
        assert torch.allclose(part / 127.5 - 1, strip.images[at].permute(1, 2, 0), atol=0.005)


def test_data_in_the_page_are_the_files_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = page_of(dataful(), tmp_path)
    content = {name: base64.b64decode(address.partition("base64,")[2]) for name, address in page.downloads.items()}
    assert content["summary.csv"] == (tmp_path / "summary.csv").read_bytes()
    assert gzip.decompress(content["images.csv.gz"]) == (tmp_path / "images.csv").read_bytes()
    assert {file.name for file in tmp_path.iterdir()} == {"report.html", *report.FILES}
    assert all(name in page.text for name in report.FILES)
    monkeypatch.setattr(report, "DOWNLOAD_BYTES", 100)
    monkeypatch.setattr(report, "PLAIN_BYTES", 100)
    downloads = page_of(dataful(), tmp_path).downloads
    assert list(downloads) == ["summary.csv.gz"]
    packed = base64.b64decode(downloads["summary.csv.gz"].partition("base64,")[2])
    assert gzip.decompress(packed) == (tmp_path / "summary.csv").read_bytes()


def test_the_summary_has_a_row_for_each_situation(tmp_path: Path) -> None:
    result = dataful()
    write_report(result, tmp_path)
    lines = list(csv.DictReader(StringIO((tmp_path / "summary.csv").read_text())))
    assert len(lines) == len(result.situations)
    for line, one in zip(lines, result.situations, strict=True):
        assert (line["generator"], line["channel"]) == (one.generator, one.channel)
        assert line["defense"] == one.treatment.defense
        assert line["eps"] == ("" if one.treatment.eps is None else str(one.treatment.eps))
        for metric, found in one.estimates.items():
            assert [float(line[f"{metric}_{part}"]) for part in ("mean", "low", "high", "n")] == pytest.approx(
                [found.mean, found.low, found.high, found.n]
            )
            assert line[f"{metric}_method"] == found.method
        assert line["flags"].split() == result.flags(one)
    assert any(line["flags"] for line in lines)
    assert {line["frechet"] for line in lines} == {"", "12.3456"}


def test_markdown_says_the_same(tmp_path: Path) -> None:
    result = dataful()
    write_report(result, tmp_path)
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    for sentence in verdict(result):
        assert sentence in text
    headings, body = table(result)
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    assert lines[0] == headings
    worst_headings, worst = worst_cases(result)
    assert len(lines) == 1 + len(body) + 1 + len(worst)
    assert lines[1 + len(body)] == worst_headings
    assert "![The same photos in every situation, one a row](grid.png)" in text
    assert "- **transfer-beats-white-box**" in text


def test_defenses_at_a_glance_and_along_curves() -> None:
    """Each figure where it belongs, and nothing where nothing was measured."""
    situations = [*rows("untouched", {"a": (0.9,), "b": (0.5,)}), *rows("patch", {"a": (0.1, 0.2), "b": (0.0, 0.1)})]
    for generator, share in (("untouched", 1.0), ("patch", 0.3)):
        situations.append(situation(generator, "a", "no-leak", share, eps=0.2, role="budget"))
    situations.append(situation("patch", "a", "leak", 0.4, eps=0.2, role="budget"))
    for generator in ("untouched", "patch"):
        situations.append(situation(generator, "b", "no-leak", 0.7, channel="grey"))
        situations.append(situation(generator, "b", "leak+channel", 0.8, channel="grey"))
    situations.append(situation("patch", "b", "leak", 0.6, channel="grey"))
    result = made(situations)
    assert matrix(result)[1] == [
        ["(photo as it is)", "0.0%", "0.0%"],
        ["(random noise)", "0.0%", "0.0%"],
        ["a", "90.0%", "10.0% / 20.0%"],
        ["b", "50.0%", "0.0% / 10.0%"],
    ]
    assert matrix(result, channel="grey")[1] == [["b", "70.0% / - / 80.0%", "70.0% / 60.0% / 80.0%"]]
    assert curves(result, "budget") == (
        ["defense", "generator", "0.1", "0.2"],
        [["a", "untouched", "90.0%", "100.0%"], ["a", "patch", "10.0% / 20.0%", "30.0% / 40.0%"]],
    )
    assert curves(result, "steps")[1] == []


@pytest.fixture
def written(audit: Audit, tmp_path: Path) -> tuple[AuditResult, Path]:
    result = audit(defenses=Disrupting(0.1, 2), seeds=[0, 1])
    write_report(result, tmp_path)
    return result, tmp_path


def test_the_report_of_a_real_audit(written: tuple[AuditResult, Path]) -> None:
    """Files are strict and hold every image."""
    result, folder = written
    states_the_table(Page((folder / "report.html").read_text(encoding="utf-8")), result)
    found = json.loads((folder / "audit.json").read_text(), parse_constant=pytest.fail)
    images = parquet.read_table(folder / "images.parquet").to_pylist()
    assert len(found["situations"]) == 11
    assert len(images) == 11 * 2 * 12
    for situation_ in found["situations"]:
        key = {name: situation_[name] for name in ("generator", "defense", "knowledge", "channel")}
        own = [row for row in images if key.items() <= row.items()]
        assert {(row["seed"], row["image"]) for row in own} == {(seed, image) for seed in (0, 1) for image in range(12)}
        assert {row["edit"] for row in own if row["image"] == 3} == {result.edits[3]}
        for metric in ("mse", "dsr", "stamp_rate"):
            mean = sum(row[metric] for row in own) / 24
            assert situation_["metrics"][metric]["n"] == 12
            assert situation_["metrics"][metric]["mean"] == pytest.approx(mean, abs=1e-6)
    with (folder / "images.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [float(line["mse"]) for line in lines] == pytest.approx([row["mse"] for row in images])
    assert len(found["settings"]["defenses"]["disrupting"].pop("identity")) == 64
    assert found["settings"]["defenses"]["disrupting"] == {
        "class": "Disrupting",
        "eps": 0.1,
        "steps": 2,
        "step_size": None,
        "method": "pgd",
        "restarts": 1,
        "layer": None,
        "eot": 1,
    }
    assert {"torch", "peft", "torchmetrics", "accelerate", "lpips", "loraguard"} == found["settings"]["versions"].keys()
    with Image.open(folder / "grid.png") as grid:
        grid.verify()
        assert grid.height > (11 + 3) * 16
    assert not list(folder.glob(".loraguard-*"))


def test_a_report_that_cannot_be_finished_leaves_the_old_one(tmp_path: Path) -> None:
    result = dataful()
    write_report(result, tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    result.settings["bad"] = float("nan")
    with pytest.raises(ValueError, match="JSON"):
        write_report(result, tmp_path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_the_same_audit_gives_the_same_page(tmp_path: Path) -> None:
    pages = [write_report(dataful(), tmp_path / str(i)).read_bytes() for i in range(2)]
    assert pages[0] == pages[1]


def test_a_defensive_patch_without_a_detector(audit: Audit, tmp_path: Path) -> None:
    result = audit(defenses=RandomNoise(0.1), detectors=None)
    assert "stamp_rate" not in result["defensive", "clean"].values
    assert write_report(result, tmp_path / "made" / "here").is_file()


def test_checks_of_one_seed_beside_rows_of_several(tmp_path: Path) -> None:
    """Attacks of checks run with the first seed alone, on fewer images."""
    check = situation("untouched", "pgd-30", "leak", 0.5, n=4, role="check")
    result = made([*rows("untouched", {"pgd": (0.9,)}, seeds=3), check])
    write_report(result, tmp_path)
    images = parquet.read_table(tmp_path / "images.parquet").to_pylist()
    assert [(row["seed"], row["image"]) for row in images if row["role"] == "check"] == [(0, i) for i in range(4)]
    assert sum(row["role"] == "main" for row in images) == 3 * 3 * 20
