"""The transfer matrix: crafted on one generator, judged on each, from the audit's own cells."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from command_line import refused, run
from peft import PeftModel
from setups import STAMP, Audit, Flip
from torch import nn

from loraguard.audit import run_audit, transfer_matrix, verdict, write_report
from loraguard.audit.claim import hardest
from loraguard.audit.compare import compare
from loraguard.audit.transfer import transferred
from loraguard.channels import published, quantize
from loraguard.data import DemoFaces
from loraguard.generators import CelebaVAE, DemoEditor

NAMES = ["untouched", "standard", "defensive", "other"]


def audited(audit: Audit, **more: object) -> object:
    torch.manual_seed(3)
    other = DemoEditor(conv_dim=4, num_blocks=1).eval()
    return audit(generators={"other": other}, transfer=["all"], **more), other


def test_every_cell_is_what_attacking_one_and_asking_the_other_gives(
    audit: Audit, model: PeftModel, faces: DemoFaces
) -> None:
    """By hand: Flip follows the signs of the outputs of what it is crafted on."""
    result, other = audited(audit)
    assert result.settings["transfer"] == NAMES
    images = torch.stack([face["image"] for face in faces])
    labels = torch.stack([face["labels"] for face in faces])
    edits = DemoEditor.conditions(labels)
    condition = torch.stack([edits[name]["labels"][at] for at, name in enumerate(result.edits)])

    def network(name: str, inputs: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            if name == "other":
                return other(inputs, condition)
            if name == "untouched":
                with model.disable_adapter():
                    return model(inputs, labels=condition)
            model.set_adapter(name)
            return model(inputs, labels=condition)

    wanted = quantize(network("untouched", images))
    for source in NAMES:
        photos = published((images + 0.2 * torch.sign(network(source, images))).clamp(-1, 1), images)
        for name in NAMES:
            target = quantize(STAMP.compose(wanted)) if name == "defensive" else wanted  # whatever it was crafted on
            mse = (quantize(network(name, photos)) - target).square().mean((1, 2, 3))
            found = transferred(result, "flip", source, name)
            assert found is not None
            assert torch.allclose(found.values["mse"][0], mse, atol=1e-4), (source, name)


def test_nothing_is_crafted_for_it(audit: Audit, tmp_path: Path) -> None:
    """It adds forward passes to jobs that are there, and leaves all else as it is."""
    plain = audit(generators={"other": DemoEditor(conv_dim=4, num_blocks=1).eval()})
    calls = []

    class Counting(Flip):
        def __call__(self, *inputs: object, **more: object) -> torch.Tensor:
            calls.append(1)
            return super().__call__(*inputs, **more)

    torch.manual_seed(3)
    audited(audit, defenses={"flip": Counting()}, seeds=[0])
    with_transfer = len(calls)
    calls.clear()
    torch.manual_seed(3)
    audit(generators={"other": DemoEditor(conv_dim=4, num_blocks=1).eval()}, defenses={"flip": Counting()})
    assert len(calls) == with_transfer
    assert transfer_matrix(plain, "flip")[1] == []


def test_a_matrix_is_on_the_page_and_is_compared(audit: Audit, tmp_path: Path) -> None:
    result, _ = audited(audit)
    headings, rows = transfer_matrix(result, "flip")
    assert headings == ["crafted on", *NAMES]
    assert [row[0] for row in rows] == NAMES
    assert all("(" in cell for row in rows for cell in row[1:])
    page = write_report(result, tmp_path / "a").read_text(encoding="utf-8")
    assert '<h2 id="transfer-flip">' in page
    assert "judged on" in page
    assert "<image" not in page  # a map is drawn, not embedded
    write_report(result, tmp_path / "b")
    shared = [one for one in compare(tmp_path / "a", tmp_path / "b").shared if one.situation["role"] == "transfer"]
    assert len(shared) == 9  # three sources beside the untouched one, each on the three others
    assert {one.difference.mean for one in shared} == {0.0}
    assert any(one.photo == "flip, crafted on other" for one in shared)


@pytest.mark.parametrize(
    ("transfer", "said"),
    [(["nobody"], r"transfer names \['nobody'\]; the audit has untouched, standard"), (["standard"], "one generator")],
)
def test_names_that_are_none(model: PeftModel, faces: DemoFaces, transfer: list[str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        run_audit(model, faces, defenses=Flip(), patches={"standard": None}, transfer=transfer, disable_tqdm=True)


class Another(nn.Module):
    """A generator of its own: it blends photos with one of two colours, by the labels' first."""

    def __init__(self) -> None:
        super().__init__()
        self.colours = nn.Parameter(torch.tensor([[0.6, -0.2, 0.1], [-0.5, 0.3, 0.4]]))

    @staticmethod
    def conditions(labels: torch.Tensor) -> dict[str, dict[str, torch.Tensor]]:
        return {"Black_Hair": {"which": labels[:, 0].long()}, "Nothing": {"which": 1 - labels[:, 0].long()}}

    def forward(self, images: torch.Tensor, which: torch.Tensor) -> torch.Tensor:
        return torch.tanh(images + 0.5 * images.flip(3) + self.colours[which][:, :, None, None])


def test_another_generator_is_compared_with_its_own_clean_outputs(audit: Audit, faces: DemoFaces) -> None:
    another = Another().eval()
    result = audit(others={"another": another}, transfer=["untouched", "another"])
    images = torch.stack([face["image"] for face in faces])
    edits = another.conditions(torch.stack([face["labels"] for face in faces]))
    draws = torch.rand(len(faces), generator=torch.Generator().manual_seed(0))  # of the edits it has none of
    names = [
        name if name in edits else list(edits)[int(2 * draw)] for name, draw in zip(result.edits, draws, strict=True)
    ]
    which = torch.stack([edits[name]["which"][at] for at, name in enumerate(names)])
    with torch.no_grad():
        clean = another(images, which)
        photos = published((images + 0.2 * torch.sign(clean)).clamp(-1, 1), images)
        mse = (quantize(another(photos, which)) - quantize(clean)).square().mean((1, 2, 3))
    assert torch.allclose(result["another", "leak"].values["mse"][0], mse, atol=1e-4)
    assert result["another", "clean"].values["mse"].max() == 0
    assert transferred(result, "flip", "another", "untouched") is not None
    assert transferred(result, "flip", "untouched", "another") is not None
    said = verdict(result)
    assert hardest(result) != "another"  # nobody has adapted it
    assert any(one.startswith("On the generator 'another', flip spoils") for one in said)


def test_another_generator_whose_edits_need_no_labels_takes_photos_without_any() -> None:
    first, second = CelebaVAE(**CelebaVAE.small, size=32).eval(), CelebaVAE(**CelebaVAE.small, size=32).eval()
    photos = [{"image": one} for one in torch.rand(2, 3, 32, 32)]
    result = run_audit(first, photos, defenses=Flip(), others={"second": second}, disable_tqdm=True)
    assert result.edits[0].startswith("latent_")
    assert result["second", "leak"].values["mse"].shape == (1, 2)


def test_what_another_generator_is_called(model: PeftModel, faces: DemoFaces) -> None:
    with pytest.raises(ValueError, match=r"names \['standard'\] are taken"):
        run_audit(model, faces, defenses=Flip(), patches={"standard": None}, others={"standard": Another()})


def test_others_from_the_command_line(tiny: list[str], tmp_path: Path) -> None:
    words = ["--defense", "disrupting:0.1,steps=2", "--device", "cpu", "--output-dir", tmp_path]
    done = run("audit", *tiny, *words, "--other", "third=tiny", "--transfer", "all", "--images", 2)
    assert done.exit_code == 0, done.output
    assert "disrupting, carried from one generator to another" in done.stdout
    assert "no 'tinny'" in refused("audit", *tiny, *words, "--other", "tinny")
