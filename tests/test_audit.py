"""The audit's figures against the same made by hand, and the report that states them."""

import copy
import html
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model
from PIL import Image
from torch import Tensor, nn

from loraguard import GatedLoraConfig, Stamp, StampDetector
from loraguard.audit import AuditResult, fingerprint, run_audit, table, verdict, write_report
from loraguard.channels import published
from loraguard.data import DemoFaces
from loraguard.defenses import Disrupting, RandomNoise
from loraguard.generators import Condition, DemoEditor
from loraguard.training import TrainingResult

STAMP = Stamp("AI", size=0.8)


class Flip:
    """A defense without randomness that knows which generator it was crafted on."""

    eps = 0.2

    def __call__(
        self, generator: nn.Module, images: Tensor, condition: Condition, clean: Tensor | None = None
    ) -> Tensor:
        with torch.no_grad():
            return (images + self.eps * torch.sign(generator(images, **condition))).clamp(-1, 1)


@pytest.fixture
def model(editor: DemoEditor) -> PeftModel:
    model = get_peft_model(
        editor, GatedLoraConfig(r=2, init_lora_weights="paper", lora_alpha=8), adapter_name="standard"
    )
    model.add_adapter("defensive", GatedLoraConfig(r=2, init_lora_weights="paper", lora_alpha=8))
    return model.eval()


def audit(model: PeftModel, faces: DemoFaces, **changes: object) -> AuditResult:
    defaults = {"defense": Flip(), "patches": {"standard": None, "defensive": STAMP}, "detector": StampDetector(STAMP),
                "disable_tqdm": True}  # fmt: skip
    return run_audit(model, faces, **{**defaults, **changes})


def only(name: str) -> object:
    """Conditions that offer one edit, so that nothing is drawn."""
    return lambda labels: {name: DemoEditor.conditions(labels)[name]}


def test_every_situation_by_hand(model: PeftModel, faces: DemoFaces) -> None:
    """Four merged networks and a loop over images, one at a time."""
    result = audit(model, faces, conditions=only("Smiling"), batch_size=5)
    networks = {}
    for patch in ("untouched", "standard", "defensive"):
        clone = copy.deepcopy(model)
        networks[patch] = clone.unload() if patch == "untouched" else clone.merge_and_unload(adapter_names=[patch])
    for index in range(len(faces)):
        image = faces[index]["image"][None]
        condition = DemoEditor.conditions(faces[index]["labels"][None])["Smiling"]
        for patch, network in networks.items():
            reference = networks["untouched"](image, **condition)
            if patch == "defensive":
                reference = STAMP.compose(reference)
            photos = {"clean": image, "no-leak": published(Flip()(networks["untouched"], image, condition), image)}
            if patch != "untouched":
                photos["leak"] = published(Flip()(network, image, condition), image)
            for name, photo in photos.items():
                expected = (network(photo, **condition) - reference).square().mean().item()
                values = result[patch, name].values
                assert values["mse"][index].item() == pytest.approx(expected, abs=2e-5)
                assert values["dsr"][index].item() == float(expected > 0.05)
    assert {(s.generator, s.perturbation) for s in result.situations} == {
        ("untouched", "clean"), ("untouched", "noise"), ("untouched", "no-leak"),
        *((patch, name) for patch in ("standard", "defensive") for name in ("clean", "noise", "no-leak", "leak")),
    }  # fmt: skip


def test_untouched_is_the_reference_of_itself(model: PeftModel, faces: DemoFaces) -> None:
    estimates = audit(model, faces)["untouched", "clean"].estimates
    assert estimates["mse"].mean == 0
    assert estimates["psnr"].mean is None
    assert estimates["dsr"].high == pytest.approx(1 - 0.025 ** (1 / 12))


def test_a_breakable_patch_is_reported_broken() -> None:
    """A patch that does nothing leaves the defense as strong as it was."""
    model = get_peft_model(DemoEditor.pretrained(), GatedLoraConfig(r=2), adapter_name="nothing")
    result = run_audit(
        model, DemoFaces(8, split="test"), defense=Disrupting(0.1, 5), patches={"nothing": None}, disable_tqdm=True
    )
    untouched, patch = (result[name, "no-leak"].values["mse"] for name in ("untouched", "nothing"))
    assert torch.allclose(untouched, patch, rtol=1e-4)
    assert result["nothing", "leak"].estimates["mse"].mean > 0.5 * untouched.mean()
    spoilt = [float(share) for share in re.findall(r"spoils ([0-9.]+)%", " ".join(verdict(result)))]
    assert spoilt[0] > 0
    assert spoilt[1] == spoilt[0]


def test_photos_stay_within_the_budget(model: PeftModel, faces: DemoFaces) -> None:
    pictures = audit(model, faces, defense=Disrupting(0.1, 3), pictures=12, batch_size=5).pictures
    for name in ("noise", "no-leak"):
        difference = (pictures["photo", name] - pictures["photo", "clean"]).abs()
        assert len(difference) == 12
        assert 0.05 < difference.max() <= 0.1


def test_same_seed_same_audit_and_the_model_as_it_was(model: PeftModel, faces: DemoFaces) -> None:
    model.set_adapter("defensive")
    model.train()
    state = torch.get_rng_state()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    runs = []
    for seed in (1, 1, 2):
        torch.rand(3)
        runs.append(json.dumps(audit(model, faces, defense=Disrupting(0.1, 2), seed=seed).to_dict(), allow_nan=False))
    assert runs[0] == runs[1] != runs[2]
    assert model.active_adapter == "defensive"
    assert model.training
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    torch.set_rng_state(state)
    expected = torch.rand(1)
    torch.set_rng_state(state)
    audit(model, faces, defense=RandomNoise(0.1))
    assert torch.equal(torch.rand(1), expected)


def test_every_edit_is_drawn(model: PeftModel) -> None:
    result = audit(model, DemoFaces(60, size=16), defense=RandomNoise(0.1))
    counts = {name: result.edits.count(name) for name in DemoEditor.conditions(torch.zeros(1, 5))}
    assert len(result.edits) == 60
    assert min(counts.values()) >= 4


def test_fingerprints_name_what_changed(model: PeftModel) -> None:
    before = fingerprint(model)
    assert before.keys() == {"generator", "standard", "defensive"}
    with torch.no_grad():
        next(p for name, p in model.named_parameters() if ".standard." in name).add_(1)
    after = fingerprint(model)
    assert {key for key in before if before[key] != after[key]} == {"standard"}


def test_an_unknown_patch_and_an_unknown_situation(model: PeftModel, faces: DemoFaces) -> None:
    with pytest.raises(ValueError, match=r"no adapter \['patch'\]; it has \['defensive', 'standard'\]"):
        audit(model, faces, patches={"patch": None})
    with pytest.raises(KeyError, match="untouched"):
        audit(model, faces, defense=RandomNoise(0.1))["untouched", "leak"]


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
def written(model: PeftModel, faces: DemoFaces, tmp_path: Path) -> tuple[AuditResult, Path]:
    result = audit(model, faces, defense=Disrupting(0.1, 2))
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
    assert len(verdict(result)) == 3
    for sentence in verdict(result):
        assert sentence in page


def test_the_json_is_strict_and_holds_every_image(written: tuple[AuditResult, Path]) -> None:
    found = json.loads((written[1] / "audit.json").read_text(), parse_constant=pytest.fail)
    assert len(found["situations"]) == 11
    for situation in found["situations"]:
        for metric, values in situation["per_image"].items():
            assert len(values) == 12 == situation["metrics"][metric]["n"]
    by_hand = found["situations"][2]["per_image"]["mse"]
    assert found["situations"][2]["metrics"]["mse"]["mean"] == pytest.approx(sum(by_hand) / 12, abs=1e-6)
    assert found["settings"]["defense"] == {
        "class": "Disrupting",
        "eps": 0.1,
        "steps": 2,
        "step_size": None,
        "method": "pgd",
        "restarts": 1,
        "layer": None,
    }
    assert {"torch", "peft", "torchmetrics", "loraguard"} == found["settings"]["versions"].keys()


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


def test_a_defensive_patch_without_a_detector(model: PeftModel, faces: DemoFaces, tmp_path: Path) -> None:
    result = audit(model, faces, defense=RandomNoise(0.1), detector=None)
    assert "stamp_rate" not in result["defensive", "clean"].values
    assert write_report(result, tmp_path / "made" / "here").is_file()


def test_figures_do_not_depend_on_what_else_is_audited(model: PeftModel, faces: DemoFaces) -> None:
    both = audit(model, faces, defense=Disrupting(0.1, 2))
    one = audit(model, faces, defense=Disrupting(0.1, 2), patches={"defensive": STAMP})
    assert both.edits == one.edits == audit(model, faces, defense=RandomNoise(0.1), batch_size=5).edits
    for name in ("no-leak", "leak"):
        assert torch.equal(both["defensive", name].values["mse"], one["defensive", name].values["mse"])


def test_flags_and_modes_are_left_alone(model: PeftModel, faces: DemoFaces) -> None:
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    model.train()
    model.get_base_model().main[1].eval()
    modes = [module.training for module in model.modules()]
    audit(model, faces, defense=Disrupting(0.1, 1))
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert [module.training for module in model.modules()] == modes


def test_outputs_that_are_not_finite_are_no_success(model: PeftModel, faces: DemoFaces) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".standard." in name:
                parameter.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="'standard' gives outputs that are not finite"):
        audit(model, faces, defense=RandomNoise(0.1))


def test_bfloat16_weights_have_a_fingerprint(model: PeftModel) -> None:
    assert all(len(digest) == 64 for digest in fingerprint(model.to(torch.bfloat16)).values())


def test_what_cannot_be_audited(model: PeftModel, editor: DemoEditor) -> None:
    with pytest.raises(TypeError, match="no adapters"):
        audit(DemoEditor(conv_dim=4), DemoFaces(1, size=16))
    with pytest.raises(ValueError, match="empty"):
        audit(model, [])
