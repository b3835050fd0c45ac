"""Cheats with data and stamps: photos that are known, and stamps that nobody sees."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import get_peft_model
from planted import Editor, Faces, Wrapped, audit, flags, returning
from setups import STAMP, Flip
from torch import Tensor
from torch.utils.data import Dataset

from loraguard import GatedLoraConfig, Stamp
from loraguard.audit import AuditResult, run_audit
from loraguard.audit.claim import headline
from loraguard.audit.words import tried
from loraguard.channels import JPEG
from loraguard.data import DemoFaces, PhotoHashes
from loraguard.defenses import CMUA, Mixture, RandomNoise
from loraguard.fingerprint import generator_fingerprint
from loraguard.stamp import StampDetector

# F. Data are kept apart by content.


def test_photos_of_the_training_are_flagged_under_any_name() -> None:
    """As they are, mirrored, compressed or darker; other photos are not."""
    size = 64
    own = torch.stack([DemoFaces(8, size=size)[i]["image"] for i in range(8)])
    others = torch.stack([DemoFaces(16, size=size)[i]["image"] for i in range(8, 16)])
    versions = {
        "same": own,
        "mirrored": own.flip(3),
        "compressed": JPEG(60)(own),
        "darker": 0.9 * own,
        "others": others,
    }
    for name, photos in versions.items():
        known = PhotoHashes.of(photos)
        model = get_peft_model(Editor(), GatedLoraConfig(r=1, target_modules=["conv"]), adapter_name="patch")
        result = run_audit(
            model, DemoFaces(8, size=size), defenses=Flip(0.1), patches={"patch": None}, trained_on={"patch": known},
            disable_tqdm=True,
        )  # fmt: skip
        assert ("trained-on-these-photos" in flags(result, "patch")) == (name != "others"), name


def test_photos_of_a_training_belong_to_a_network_that_is_audited() -> None:
    """F. Under a name that nobody has, no row would carry the flag."""
    with pytest.raises(ValueError, match=r"trained_on names \['twn'\]; the audit has untouched, twin"):
        audit(generators={"twin": Editor()}, trained_on={"twn": PhotoHashes.of(torch.zeros(1, 3, 16, 16))})


def test_the_same_photo_on_both_sides_is_flagged() -> None:
    assert "fitted-on-these-photos" in flags(audit(fit_on=Faces(4)))
    others = [DemoFaces(30, size=16)[i] for i in range(20, 30)]
    assert "fitted-on-these-photos" not in flags(audit(fit_on=others))


def test_a_defense_that_was_fitted_on_these_photos_before_is_flagged(tmp_path: Path) -> None:
    """F. Its photos are none of `fit_on`; from a file nobody knows them, and that is said, as of a network."""
    editor, others = Editor(), [DemoFaces(30, size=16)[at] for at in range(20, 30)]
    known, apart = (CMUA(0.1, steps=1, batch_size=4).fit(editor, photos) for photos in (Faces(4), others))

    def held(generator: Any, images: Tensor, condition: Any, clean: Any = None) -> Tensor:
        return known(generator, images, condition)

    held.eps = 0.1  # type: ignore[attr-defined]
    file = CMUA.load(known.save(tmp_path / "one.safetensors"))
    defenses = {"known": known, "apart": apart, "file": file, "mixed": Mixture((apart, known)), "held": held}
    result = audit(defenses, n=4, no_leak_only=[*defenses], generators={"twin": Editor()})
    flagged = {one.defense for one in result.checks if one.name == "fitted-on-these-photos" and not one.passed}
    assert flagged == {"known", "mixed", "held"}
    assert result.settings["unknown_photos"] == ["twin", "file"]
    assert "nobody looked for these photos among them: what twin and file learned on." in tried(result)["Photos"]


class Folder(Dataset[Any]):
    """Its photos lie in a file, so that it looks the same when they are other ones."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"image": torch.load(self.path)[index], "labels": torch.zeros(5)}


def test_a_folder_in_which_other_photos_lie_is_another_one(tmp_path: Path) -> None:
    """A, F. What was fitted on those that lay there before is not taken for what these would give."""
    folder, found = Folder(tmp_path / "photos.pt"), []
    for first in (20, 30):
        torch.save(torch.stack([DemoFaces(40, size=16)[first + at]["image"] for at in range(3)]), folder.path)
        defense = CMUA(0.1, steps=1, batch_size=3)
        found.append(audit(defense, fit_on=folder, n=2, no_leak_only=["cmua"], output_dir=tmp_path))
    fitted_on = [one.settings["fit_on"]["photos_sha256"] for one in found]
    assert fitted_on[0] != fitted_on[1]
    assert not any(one.settings["computed_anew"] for one in found)
    assert not torch.equal(*(one["untouched", "no-leak"].values["mse"] for one in found))


def test_items_that_are_tuples_are_compared_as_well() -> None:
    """As a training takes them: (image, labels) in place of a dict."""
    faces = [Faces(4)[i] for i in range(4)]
    pairs = [(one["image"], one["labels"]) for one in faces]
    assert "fitted-on-these-photos" in flags(audit(fit_on=pairs))


@pytest.mark.parametrize("same", [True, False])
def test_a_patch_of_other_weights_is_flagged(same: bool) -> None:
    model = get_peft_model(Editor(), GatedLoraConfig(r=1, target_modules=["conv"]), adapter_name="patch")
    recorded = generator_fingerprint(model) if same else "0" * 64
    model.peft_config["patch"].provenance = {"generator": {"class": "Editor", "sha256": recorded}}
    found = flags(audit(model=model, patches={"patch": None}))
    assert ("made-for-other-weights" in found) == (not same)


def test_the_same_photo_twice_is_one_photo() -> None:
    """As it is, mirrored and compressed: of twelve photos four are different ones, and that is too few to conclude."""
    faces = DemoFaces(12, size=64)
    own = torch.stack([faces[i]["image"] for i in range(4)])
    twice = [{"image": one, "labels": faces[0]["labels"]} for one in torch.cat([own, own.flip(3), JPEG(60)(own)])]
    for photos, count in ((twice, 4), ([faces[i] for i in range(12)], 12)):
        model = get_peft_model(Editor(), GatedLoraConfig(r=1, target_modules=["conv"]))
        result = run_audit(model, photos, defenses=Flip(0.1), patches={}, disable_tqdm=True)  # type: ignore[arg-type]
        assert result.settings["distinct_photos"] == count
        assert ("same-photos-twice" in flags(result)) == (count == 4)
        assert ("Too few different photos to conclude anything (4;" in headline(result)) == (count == 4)


# G. Stamps that nobody sees.


def stamped(result: AuditResult, generator: str) -> float:
    return result[generator, "clean"].values["stamp_rate"].mean().item()


def test_a_stamp_below_a_level_is_not_read() -> None:
    class Faint(StampDetector):
        """Reads the smallest trace of the stamp."""

    detector = StampDetector(STAMP, threshold=1e-3)
    faint = Wrapped(lambda x, edit: edit(x) + 0.2 / 127.5 * (STAMP.compose(edit(x)) - edit(x)).sign())
    result = audit(generators={"faint": faint}, patches={"faint": STAMP}, detectors={"faint": detector})
    plain = audit(generators={"faint": Editor()}, patches={"faint": STAMP}, detectors={"faint": detector})
    assert stamped(result, "faint") == stamped(plain, "faint")


def test_a_detector_that_finds_stamps_everywhere_is_flagged() -> None:
    everywhere = StampDetector(STAMP, threshold=-1.0)
    result = audit(generators={"warns": Editor()}, patches={"warns": STAMP}, detectors={"warns": everywhere})
    assert "stamp-found-everywhere" in flags(result)
    assert stamped(result, "untouched") == 1


@pytest.mark.usefixtures("probed")
def test_a_detector_that_finds_no_stamp_is_flagged() -> None:
    """Its threshold is out of reach, or the stamp, as faint as it is, is lost as soon as outputs are saved."""
    faint = Stamp("AI", size=0.8, opacity=0.004)
    detectors = {
        "high": StampDetector(STAMP, threshold=1.0),
        "faint": StampDetector(faint, threshold=0.9),
        "good": StampDetector(STAMP, threshold=0.3),
    }
    result = audit(
        generators={name: Editor() for name in detectors}, detectors=detectors, n=4,
        patches={name: one.stamp for name, one in detectors.items()},
    )  # fmt: skip
    assert {name for name in detectors if "stamp-not-found" in flags(result, name)} == {"high", "faint"}
    for threshold in (float("nan"), 1.5, float("-inf")):
        with pytest.raises(ValueError, match="must be between -1 and 1"):
            StampDetector(STAMP, threshold=threshold)


def test_a_detector_that_finds_stamps_where_photos_are_perturbed_is_flagged() -> None:
    """On clean outputs it finds none: it looks at how rough they are."""

    class Nervous(StampDetector):
        def score(self, images: torch.Tensor) -> torch.Tensor:
            return images.diff(dim=3).abs().mean((1, 2, 3)) * 4 - 1

    faces = torch.stack([Faces(12)[i]["image"] for i in range(12)])
    clean = Editor()(faces, torch.zeros(12, 1)).detach()
    nervous = Nervous(STAMP, threshold=float(Nervous(STAMP).score(clean).max()) + 0.01)
    result = audit({"flip": RandomNoise(0.3)}, generators={"warns": Editor()}, patches={"warns": STAMP},
                   detectors={"warns": nervous})  # fmt: skip
    assert stamped(result, "untouched") == 0
    assert "stamp-found-everywhere" in flags(result, "untouched")


# Controls of the same size.


def test_noise_that_is_louder_than_the_usual_one_is_no_defense() -> None:
    """B. In a folder, or under a budget of its own kind; what knows the network is more than its size."""

    class Sharp(Editor):
        gain = 12.0

    def sharpened(images: Tensor) -> Tensor:  # what is near 0 goes to the other side, where tanh is steep
        return (images - 0.11 * images.sign()).clamp(-1, 1)

    def noisy(images: Tensor) -> Tensor:
        return (images + 0.11 * torch.randn(images.shape, generator=torch.Generator().manual_seed(5)).sign()).clamp(
            -1, 1
        )

    photos = torch.stack([Faces(20)[at]["image"] for at in range(12)])
    defenses: dict[str, Any] = {"noise's folder": noisy(photos), "a defense's folder": sharpened(photos)}
    defenses = {name: [{"image": one} for one in given] for name, given in defenses.items()}
    for name, change in {"noise": noisy, "a defense": sharpened}.items():
        made = returning(change)
        made.budget = "of our own"
        defenses[f"{name} of its own budget"] = made
    model = get_peft_model(Sharp(), GatedLoraConfig(r=1, target_modules=["conv"]))
    result = audit(defenses, model=model, n=12, success="noise:0.9", seeds=[3, 4], batch_size=12)
    flagged = {one.defense for one in result.checks if one.name == "no-better-than-noise" and not one.passed}
    assert flagged == {name for name in defenses if name.startswith("noise")}
    sizes = [one.values["photo_psnr"].mean() for one in result.find(role="control")]
    assert max(sizes) - min(sizes) < 1
    assert {one["photo"] for one in result.to_dict()["situations"]} >= {"noise as large as noise's folder"}


# Channels that leave photos what they are.


@pytest.mark.usefixtures("probed")
def test_a_channel_that_does_nothing_is_flagged() -> None:
    channels = ["identity", "resize:1", "quantize", "resize:0.5", "jpeg:90", "noise:0.02"]
    result = audit(channels=channels, adaptive_channels=False, n=4, generators={"twin": Editor()})
    for row in result.find(channel="identity", role="main"):  # it shares what was found without a channel
        assert torch.equal(row.values["mse"], result[row.generator, row.treatment.knowledge].values["mse"])
    idle = [one for one in result.checks if one.name == "channel-does-nothing" and not one.passed]
    assert {(one.generator, one.channel) for one in idle} == {
        (name, channel) for name in ("untouched", "twin") for channel in channels[:3]
    }
    assert all("channel-does-nothing" not in result.flags(row) for row in result.find(channel="none"))
