"""Drawn faces: seeded, endless, 8-bit, and what each label draws."""

import pytest
import torch
from torch.utils.data import DataLoader

from loraguard.data import DemoFaces, demo_faces
from loraguard.data.demo_faces import ATTRIBUTES, render
from loraguard.data.drawing import Canvas, arc, box, ellipse, segment

GRID = 400


def area(distance: torch.Tensor, pixel: float) -> float:
    """Painted area of a shape on a canvas of [-1, 1] squared."""
    canvas = Canvas(torch.zeros(1, 3, GRID, GRID), torch.full((1, 1, 1), pixel))
    canvas.paint(distance, torch.ones(1, 3))
    return canvas.pixels[0, 0].double().mean().item() * 4


@pytest.fixture
def plane() -> tuple[torch.Tensor, torch.Tensor]:
    axis = (torch.arange(GRID) + 0.5) * (2 / GRID) - 1
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    return x[None], y[None]


def test_shapes_cover_their_areas(plane: tuple[torch.Tensor, torch.Tensor]) -> None:
    pi, pixel = torch.pi, 2 / GRID
    assert area(ellipse(plane, 0.6, 0.3), pixel) == pytest.approx(pi * 0.6 * 0.3, rel=0.01)
    assert area(box(plane, 0.5, 0.4, 0.1), pixel) == pytest.approx(4 * 0.5 * 0.4 - (4 - pi) * 0.1**2, rel=0.01)
    assert area(segment(plane, (-0.5, 0.0), (0.3, 0.4), 0.1), pixel) == pytest.approx(
        0.2 * (0.8**2 + 0.4**2) ** 0.5 + pi * 0.1**2, rel=0.01
    )
    assert area(arc(plane, 0.5, 0.0, 0.1), pixel) == pytest.approx(0.2 * 1.0 + pi * 0.1**2, rel=0.01)


def test_edges_are_anti_aliased(plane: tuple[torch.Tensor, torch.Tensor]) -> None:
    """Half-covered pixels exist, and a shift of a tenth of a pixel shows."""
    canvases = []
    for shift in (0.0, 0.2 / GRID):
        canvas = Canvas(torch.zeros(1, 3, GRID, GRID), torch.full((1, 1, 1), 2 / GRID))
        canvas.paint(ellipse((plane[0] - shift, plane[1]), 0.5, 0.5), torch.ones(1, 3))
        canvases.append(canvas.pixels)
    values = canvases[0].unique()
    assert ((values > 0.2) & (values < 0.8)).any()
    assert not torch.equal(*canvases)


def test_a_face_depends_on_its_index_alone() -> None:
    forward, backward = DemoFaces(20), DemoFaces(1000)
    for index in (3, 0, 19):
        assert torch.equal(forward[index]["image"], backward[index]["image"])
    together = forward.__getitems__([0, 3, 19])
    assert all(torch.equal(together[i]["image"], forward[j]["image"]) for i, j in enumerate((0, 3, 19)))


def test_seeds_and_splits_give_other_faces() -> None:
    images = [DemoFaces(1, seed=seed, split=split)[0]["image"] for seed in (0, 1) for split in ("train", "test")]
    assert len({image.numpy().tobytes() for image in images}) == 4


def test_there_is_no_end() -> None:
    assert DemoFaces(2**40)[2**40 - 1]["image"].shape == (3, 64, 64)
    with pytest.raises(IndexError, match=r"0\.\.9"):
        DemoFaces(10)[10]


def test_range_labels_and_8_bits() -> None:
    batch = next(iter(DataLoader(DemoFaces(64), 64)))
    images, labels = batch["image"], batch["labels"]
    assert images.shape == (64, 3, 64, 64)
    assert images.min() >= -1
    assert images.max() <= 1
    levels = (images + 1) * 127.5
    assert torch.allclose(levels, levels.round(), atol=1e-3)
    assert (labels[:, :3].sum(1) == 1).all()
    assert set(labels.unique().tolist()) == {0.0, 1.0}
    assert (labels.mean(0) > 0.15).all()
    assert (labels.mean(0) < 0.85).all()


def test_faces_vary() -> None:
    images = torch.stack([sample["image"] for sample in DemoFaces(40).__getitems__(list(range(40)))])
    distances = torch.cdist(images.flatten(1), images.flatten(1)) / images[0].numel() ** 0.5
    assert distances[~torch.eye(40, dtype=torch.bool)].min() > 0.1


@pytest.mark.parametrize("attribute", range(5))
def test_a_label_changes_what_it_names_and_nothing_else(attribute: int) -> None:
    """Hair changes above the chin, glasses around the eyes, a smile around the mouth."""
    faces = DemoFaces(30, split="test")
    traits = faces.traits(list(range(30)))
    base = torch.tensor([1.0, 0, 0, 0, 0]) if attribute else torch.tensor([0, 1.0, 0, 0, 0])
    edited = base.clone()
    if attribute < 3:
        edited[:3] = 0
    edited[attribute] = 1
    before, after = (render(traits, labels.expand(30, -1), 64) for labels in (base, edited))
    changed = ((after - before).abs().amax(1) > 0.08).double()
    share = changed.mean((1, 2))
    assert (share > 0.002).all(), ATTRIBUTES[attribute]
    if attribute >= 3:
        assert (share < 0.25).all()
        height = (changed.sum(2) * torch.arange(64)).sum(1) / changed.sum((1, 2))
        assert ((height < 40) if attribute == 3 else (height > 36)).double().mean() > 0.9


def test_truth_keeps_the_identity() -> None:
    faces = DemoFaces(5, split="test")
    for index in range(5):
        labels = faces[index]["labels"]
        assert torch.equal(faces.truth(index, labels), faces[index]["image"])
        other = labels.clone()
        other[4] = 1 - other[4]
        assert not torch.equal(faces.truth(index, other), faces[index]["image"])


def test_larger_images_are_the_same_picture() -> None:
    small, large = (DemoFaces(1, size=size)[0]["image"] for size in (64, 128))
    assert (torch.nn.functional.avg_pool2d(large, 2) - small).abs().mean() < 0.03


@pytest.mark.parametrize("arguments", [{"length": 0}, {"size": 8}])
def test_bad_settings(arguments: dict) -> None:
    with pytest.raises(ValueError, match="length >= 1 and size >= 16"):
        DemoFaces(**arguments)


def test_faces_are_kept_up_to_a_bound_and_nobody_changes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: dict[object, object] = {}
    monkeypatch.setattr(demo_faces, "_KEPT", kept)
    monkeypatch.setattr(demo_faces, "_MOST_KEPT", 4 * 3 * 16 * 16)
    faces = DemoFaces(6, size=16)
    first = [faces[index] for index in range(6)]
    assert len(kept) == 4
    for face in (faces[5], faces[0]):
        face["image"].zero_()
        face["labels"].zero_()
    for index, face in enumerate(first):
        assert all(torch.equal(face[key], again) for key, again in faces[index].items())
    assert len(kept) == 4
