"""Disrupting any edit: closed forms where an edit is a channel, and which edits are found."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from loraguard.data import DemoFaces
from loraguard.defenses import ClassTransferable, Disrupting, Fittable, edits_of
from loraguard.generators import DemoEditor

EPS = 0.05


class OneChannel(nn.Module):
    """Each edit shows one channel of the photo: `labels` are one-hot."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[int] = []

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            self.asked.append(int(labels[0].argmax()))
        return images * labels[:, :, None, None]


CHANNELS = {name: {"labels": torch.eye(3)[i : i + 1]} for i, name in enumerate(("red", "green", "blue"))}


@pytest.mark.parametrize("mode", ["iterative", "joint"])
def test_every_edit_is_disrupted_and_not_the_one_of_the_call_alone(mode: str) -> None:
    photos, red = torch.zeros(2, 3, 8, 8), {"labels": torch.eye(3)[[0, 0]]}
    everywhere = torch.full_like(photos, EPS)
    defense = ClassTransferable(EPS, steps=30, mode=mode, edits=CHANNELS)
    assert torch.allclose(defense(OneChannel(), photos, red).abs(), everywhere)
    known = Disrupting(EPS, steps=30)(OneChannel(), photos, red)
    assert torch.allclose(known[:, 0].abs(), everywhere[:, 0])
    assert known[:, 1:].abs().min() < 0.01


@pytest.mark.parametrize(
    ("mode", "asked"), [("iterative", [0, 1, 2, 0, 1]), ("joint", [0, 1, 2] * 5)], ids=["iterative", "joint"]
)
def test_the_order_of_edits(mode: str, asked: list[int]) -> None:
    generator = OneChannel()
    ClassTransferable(EPS, steps=5, mode=mode, edits=CHANNELS)(generator, torch.zeros(2, 3, 8, 8), {})
    assert generator.asked == asked


def test_the_joint_gradient_is_the_sum() -> None:
    """One step from the photo's side: along 2 * (a^2 + b^2) d for edits that scale by a and by b."""

    class Scaled(nn.Module):
        def forward(self, images: Tensor, factor: Tensor) -> Tensor:
            return images * factor[:, :, None, None] + torch.tensor([1.0, 2.0, 3.0])[:, None, None] * factor.sum()

    edits = {"a": {"factor": torch.tensor([[2.0]])}, "b": {"factor": torch.tensor([[-3.0]])}}
    defense = ClassTransferable(mode="joint", edits=edits)
    photos = torch.rand(2, 3, 4, 4).double() - 0.5
    terms = defense.terms(Scaled(), photos, {}, None)
    moved = (photos + 0.1 * torch.rand_like(photos)).requires_grad_()
    (gradient,) = torch.autograd.grad(defense.objective(terms)(moved), moved)
    assert torch.allclose(gradient, 2 * (4 + 9) * (moved - photos), rtol=1e-5)


def test_edits_stand_for_the_most_common_faces() -> None:
    """Of seven faces most are blond and without glasses; the edits are counted by hand."""
    labels = [[0, 1, 0, 0, 0]] * 3 + [[0, 1, 0, 0, 1]] + [[1, 0, 0, 1, 0]] * 2 + [[0, 0, 1, 0, 0]]
    photos = [{"image": torch.zeros(3, 8, 8), "labels": torch.tensor(row).float()} for row in labels]
    edits = edits_of(DemoEditor(conv_dim=4), photos, disable_tqdm=True)
    assert {name: edit["labels"].tolist() for name, edit in edits.items()} == {
        "Black_Hair": [[1, 0, 0, 0, 0]],  # of 3 blond and a brown one
        "Blond_Hair": [[0, 1, 0, 0, 0]],
        "Brown_Hair": [[0, 0, 1, 0, 0]],
        "Eyeglasses": [[0, 1, 0, 1, 0]],
        "Smiling": [[0, 1, 0, 0, 1]],
    }
    first = edits_of(DemoEditor(conv_dim=4), photos[4:], most=1, disable_tqdm=True)
    assert first["Smiling"]["labels"].tolist() == [[1, 0, 0, 1, 1]]


def test_fitting(faces: DemoFaces) -> None:
    editor, defense = DemoEditor(conv_dim=4), ClassTransferable(0.1, steps=2, mode="joint")
    assert isinstance(defense, Fittable)
    with pytest.raises(ValueError, match=r"call fit\(generator, photos\) first"):
        defense(editor, torch.zeros(1, 3, 16, 16), {"labels": torch.zeros(1, 5)})
    fitted = defense.fit([editor, nn.Identity()], faces, disable_tqdm=True)
    assert (fitted.eps, fitted.steps, fitted.mode) == (0.1, 2, "joint")
    assert defense.edits is defense.fitted is None
    assert fitted.fitted is fitted.edits
    assert fitted.fit(nn.Identity(), [], disable_tqdm=True) is fitted  # edits that are given are kept
    assert sorted(fitted.edits) == sorted(editor.conditions(torch.zeros(1, 5)))
    own = defense.fit(nn.Identity(), faces, lambda labels: {"none": {}}, disable_tqdm=True)
    assert own.edits == {"none": {}}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"mode": "all"}, "iterative, joint"),
        ({"edits": {"smile": {"labels": torch.zeros(2, 5)}}}, r"'smile' has \{'labels': \(2, 5\)\}"),
        ({"eps": 0}, "eps=0"),
    ],
)
def test_bad_settings(arguments: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ClassTransferable(**arguments)


def test_no_photos() -> None:
    with pytest.raises(ValueError, match="no photos"):
        edits_of(DemoEditor(conv_dim=4), [], disable_tqdm=True)
