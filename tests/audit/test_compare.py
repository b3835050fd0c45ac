"""Two audits beside each other."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from pyarrow import parquet
from scipy import stats
from setups import Audit, Flip
from torch import Tensor

from loraguard.audit import compare, paired_difference, write_report
from loraguard.audit.compare import independent_difference
from loraguard.data import DemoFaces
from loraguard.defenses import Disrupting
from loraguard.files import write_json


def written(audit: Audit, folder: Path, **changes: object) -> Path:
    write_report(audit(**changes), folder)
    return folder


def test_the_same_photos_are_compared_image_by_image(audit: Audit, tmp_path: Path) -> None:
    """Whatever the batch size; means, differences and intervals are those of the per-image figures."""
    results = [audit(seeds=[0, 1]), audit(seeds=[0, 1], defenses={"flip": Flip(0.2)}, batch_size=5)]
    for name, result in zip("ab", results, strict=True):
        write_report(result, tmp_path / name)
    found = compare(tmp_path / "a", tmp_path / "b" / "audit.json", "mse")
    assert found.paired
    assert not found.only_first
    assert not found.only_second
    assert len(found.shared) == len(results[0].situations)
    for one in found.shared:
        place = {name: one.situation[name] for name in ("generator", "defense", "knowledge", "channel", "role")}
        (before,), (after,) = (result.find(**place) for result in results)
        truth = paired_difference(after.values["mse"], before.values["mse"])
        assert one.difference == truth
        assert one.before == pytest.approx(before.values["mse"].mean().item())
        assert one.photo == before.treatment.words


def test_shares_over_several_seeds(audit: Audit, tmp_path: Path) -> None:
    """Where seeds disagree a share is a fraction on an image."""
    first, second = (written(audit, tmp_path / str(eps), seeds=[0, 1], defenses={"d": Flip(eps)}) for eps in (0.2, 0.2))
    assert all(one.difference.mean == 0 for one in compare(first, second, "dsr").shared)


def test_equal_outputs_have_no_psnr(audit: Audit, tmp_path: Path) -> None:
    folder = written(audit, tmp_path)
    (one,) = [s for s in compare(folder, folder, "psnr").shared if s.situation["generator"] == "untouched"
              and s.situation["knowledge"] == "clean"]  # fmt: skip
    assert (one.before, one.after, one.difference.mean) == (None, None, None)


def test_other_photos_are_independent_samples(audit: Audit, tmp_path: Path) -> None:
    a = written(audit, tmp_path / "a")
    b = written(audit, tmp_path / "b", faces=DemoFaces(9, size=16, split="test"))
    found = compare(a, b, "dsr")
    assert not found.paired
    assert {one.difference.n for one in found.shared} == {21}
    assert {one.difference.method for one in found.shared} == {"Newcombe, 9 and 12 images"}


def test_names_that_differ_are_said_and_can_be_matched(audit: Audit, tmp_path: Path) -> None:
    a = written(audit, tmp_path / "a", defenses={"d": Flip()}, patches={"standard": None}, detectors=None)
    b = written(audit, tmp_path / "b", defenses={"e": Flip()}, patches={"defensive": None}, detectors=None)
    found = compare(a, b)
    assert {one.situation["generator"] for one in found.shared} == {"untouched"}
    assert "standard: d, leak, eps 0.2" in found.only_first
    assert "untouched: e, no leak, eps 0.2" in found.only_second
    renamed = compare(a, b, rename={"defensive": "standard", "e": "d"})
    assert not renamed.only_first
    assert not renamed.only_second
    assert {one.situation["generator"] for one in renamed.shared} == {"untouched", "standard"}
    assert {one.photo for one in renamed.shared} == {"as it is", "random noise", "d, no leak", "d, leak"}
    with pytest.raises(ValueError, match=r"no generator or defense \['nobody'\] to rename"):
        compare(a, b, rename={"nobody": "standard"})


def test_each_setting_that_differs_is_listed(audit: Audit, model: PeftModel, tmp_path: Path) -> None:
    """Whatever it is: of weights and settings that count, and code, nothing is the same by its name alone."""

    def kept(name: str, factor: float, *, seed: int, success: str, eot: int) -> Path:
        (tmp_path / name).mkdir()
        result = audit(
            faces=DemoFaces(2, size=16), defenses={"pgd": Disrupting(0.1, 1, eot=eot)}, seeds=[seed], success=success,
            channels={"soft": _soft(factor)}, adaptive_channels=False, detectors=None, patches={"standard": None},
        )  # fmt: skip
        result.write_per_image(tmp_path / name)
        write_json(tmp_path / name / "audit.json", result.to_dict())
        return tmp_path / name

    first = kept("usual", 0.9, seed=0, success="mse:0.05", eot=1)
    model.peft_config["standard"].lora_alpha = 4  # of the same weights another patch
    found = compare(first, kept("other", 0.8, seed=1, success="mse:0.1", eot=2)).differences
    said = ("defenses.pgd.eot: 1 and 2", "success: mse:0.05 and mse:0.1", "code_sha256.soft: ", "seeds: [0] and [1]",
            "adapters.standard.lora_alpha: 8 and 4")  # fmt: skip
    for one in said:
        assert any(line.startswith(one) for line in found), one
    assert compare(first, first).differences == []
    unasked = shutil.copytree(first, tmp_path / "unasked")  # an audit that was asked less is not the better one
    about = json.loads((first / "audit.json").read_text())
    about["checks"] = [one for one in about["checks"] if one["name"] != "photo-destroyed"]
    write_json(unasked / "audit.json", about)
    assert compare(first, unasked).differences == ["checks that the second did not make: photo-destroyed"]


def test_files_that_were_changed_and_what_cannot_be_told_are_said(audit: Audit, tmp_path: Path) -> None:
    """A mean in audit.json, images that are left out, photos for fitting, flags, code that cannot be looked into."""

    class Opaque:
        def __init__(self) -> None:
            self.numbers = (0.9 for _ in range(1000))

        def __call__(self, images: Tensor) -> Tensor:
            return next(self.numbers) * images

        def differentiable(self) -> Opaque:
            return self

    def kept(name: str, photos: int, channel: Any) -> Path:
        result = audit(faces=DemoFaces(2, size=16), channels={"soft": channel}, adaptive_channels=False, patches={},
                       detectors=None, fit_on=[DemoFaces(9, size=16)[at] for at in range(photos, 9)])  # fmt: skip
        (tmp_path / name).mkdir()
        result.write_per_image(tmp_path / name)
        write_json(tmp_path / name / "audit.json", result.to_dict())
        return tmp_path / name

    first = kept("first", 2, _soft(0.9))
    with pytest.warns(UserWarning, match="cannot be told"):
        found = compare(first, kept("second", 1, Opaque()), "mse").differences
    said = ("fit_on.sha256: ", "fit_on.n: 7 and 8", "soft: what it does cannot be told", "flags of untouched: ")
    for one in said:
        assert any(line.startswith(one) for line in found), one
    assert "fitted-on-these-photos" in found[-2]

    table = parquet.read_table(first / "images.parquet")
    parquet.write_table(table.filter([image != 1 for image in table["image"].to_pylist()]), first / "images.parquet")
    with pytest.raises(ValueError, match=r"untouched: as it is audit.json says mse 0.0 on 2 photos, .* 0.0 on 1\."):
        compare(first, first, "mse")
    parquet.write_table(table, first / "images.parquet")
    about = json.loads((first / "audit.json").read_text())
    about["situations"][-1]["metrics"]["mse"]["mean"] *= 1.01
    write_json(first / "audit.json", about)
    with pytest.raises(ValueError, match=r"One of the two was changed"):
        compare(first, first, "mse")


def _soft(factor: float) -> Any:
    class Soft:
        def __call__(self, images: Tensor) -> Tensor:
            return factor * images

        def differentiable(self) -> Soft:
            return self

    return Soft()


def test_what_cannot_be_compared(audit: Audit, tmp_path: Path) -> None:
    a = written(audit, tmp_path / "a")
    with pytest.raises(ValueError, match=r"metric 'lpips'; they have dsr, dsr_without_cast, edit_made, masked_dsr, "):
        compare(a, a, "lpips")
    with pytest.raises(FileNotFoundError, match=r"no .*nowhere.audit\.json; `loraguard audit` writes it"):
        compare(a, tmp_path / "nowhere")
    for broken in ("{", "[]", '{"settings": {}}', '{"settings": {"data_sha256": "0"}, "situations": []}'):
        b = shutil.copytree(a, tmp_path / "b", dirs_exist_ok=True)
        (b / "audit.json").write_text(broken)
        with pytest.raises(ValueError, match=r"b cannot be compared: "):
            compare(a, b)
    (b / "images.parquet").unlink()
    with pytest.raises(FileNotFoundError, match=r"images\.parquet"):
        compare(a, b)
    about = json.loads((a / "audit.json").read_text())
    for row in about["situations"]:
        row["channel"] = "elsewhere"
    c = shutil.copytree(a, tmp_path / "c")
    (c / "audit.json").write_text(json.dumps(about))
    with pytest.raises(ValueError, match=r"of different audits"):
        compare(a, c)


@pytest.mark.parametrize(
    ("gained", "of", "lost", "out_of", "low", "high"),
    [(56, 70, 48, 80, 0.0524, 0.3339), (9, 10, 3, 10, 0.1705, 0.8090), (10, 10, 0, 20, 0.6791, 1.0),
     (10, 10, 0, 10, 0.6075, 1.0), (5, 56, 0, 29, -0.0381, 0.1926)],
)  # fmt: skip
def test_shares_of_different_photos_against_the_paper(
    gained: int, of: int, lost: int, out_of: int, low: float, high: float
) -> None:
    """Newcombe (Statistics in Medicine 17:873, 1998), table II, method 10."""
    a, b = (torch.arange(n) < k for k, n in ((gained, of), (lost, out_of)))
    found = independent_difference(a.double(), b.double(), share=True)
    assert (found.low, found.high) == pytest.approx((low, high), abs=6e-5)
    assert found.mean == pytest.approx(gained / of - lost / out_of)


def test_values_of_different_photos_against_welch() -> None:
    """The bootstrap's interval is about Welch's for samples of a few hundred normal values."""
    a, b = torch.randn(400).double() + 0.5, 2 * torch.randn(300).double()
    found = independent_difference(a.expand(2, -1), b)
    truth = stats.ttest_ind(a.numpy(), b.numpy(), equal_var=False).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((truth.low, truth.high), abs=0.03)
    assert found.mean == pytest.approx((a.mean() - b.mean()).item())


def test_samples_that_tell_nothing() -> None:
    same, inf = torch.ones(5), torch.full((5,), math.inf)
    assert independent_difference(same, torch.rand(9)).low is None
    assert independent_difference(inf, same).mean is None
    assert independent_difference(torch.tensor([1.0, math.inf, 2.0]), torch.rand(4)).n == 6
