"""Protecting a folder of photos."""

from __future__ import annotations

import json
import resource
import signal
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from processes import forked
from protecting import Editor, protecting
from torch import Tensor, nn

from loraguard.commands import Protected, protect_photos
from loraguard.data import DemoFaces, ImageFolder, PerturbedPhotos
from loraguard.defenses import DEFENSES, Disrupting
from loraguard.generators import DemoEditor
from loraguard.generators.preprocessing import preprocessing

SPEC = "disrupting:0.05,steps=2"


@pytest.fixture
def generator() -> Editor:
    return Editor(conv_dim=4, num_blocks=1).eval()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    draws = np.random.default_rng(0)
    for name in ("ann.jpg", "bob/ann.png", "bob/cy.photo.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draws.integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(folder / name)
    return folder


def run(generator: nn.Module, photos: Path | list[Path], out: Path, spec: str = SPEC, **changes) -> list[Protected]:
    return protect_photos(
        generator, photos, spec, out, say=changes.pop("say", lambda _: None), disable_tqdm=True, **changes
    )


def levels(file: Path) -> Tensor:
    return torch.from_numpy(np.asarray(Image.open(file)).astype(int))


def seen(file: Path) -> Tensor:
    """The 8-bit original as the generator sees it, by the formula for bytes."""
    pixels = preprocessing(16, crop=24)(Image.open(file).convert("RGB"))
    return ((pixels + 1) * 127.5).round().long().permute(1, 2, 0)


def test_photos_are_within_the_budget_under_their_names(generator: Editor, photos: Path, tmp_path: Path) -> None:
    """6.375 levels of 255, so 6."""
    out = tmp_path / "out"
    found = run(generator, photos, out)
    assert [one.file.relative_to(out).as_posix() for one in found] == ["ann.png", "bob/ann.png", "bob/cy.photo.png"]
    for one, name in zip(found, ("ann.jpg", "bob/ann.png", "bob/cy.photo.png"), strict=True):
        difference = levels(one.file) - seen(photos / name)
        assert 1 <= difference.abs().max() <= 6
        mse = (difference.double() / 255).square().mean()
        assert one.psnr == pytest.approx(-10 * mse.log10().item(), abs=1e-3)
    assert {file.name for file in out.iterdir()} == {"ann.png", "bob", "protect.json"}


def test_the_record_is_true(generator: Editor, photos: Path, tmp_path: Path) -> None:
    """Settings, edits in turn, and whether the file as it lies there spoils the edit."""
    found = run(generator, photos, tmp_path / "out", "disrupting:0.6,steps=3", seed=3)
    record = json.loads((tmp_path / "out" / "protect.json").read_text())
    assert record["defense"]["class"] == "Disrupting"
    assert (record["defense"]["eps"], record["seed"], record["earlier"]) == (0.6, 3, [])
    assert record["generator"]["class"] == "Editor"
    assert [row["edit"] for row in record["photos"]] == list(generator.attributes[:3])
    for row, one in zip(record["photos"], found, strict=True):
        original = next(file for file in photos.rglob("*") if file.with_suffix(".png").name == Path(row["file"]).name
                        and (file.parent == photos) == ("/" not in row["file"]))  # fmt: skip
        clean, protected = (
            generator(
                image[None].permute(0, 3, 1, 2) / 127.5 - 1, **generator.conditions(torch.zeros(1, 5))[row["edit"]]
            )
            for image in (seen(original), levels(tmp_path / "out" / row["file"]))
        )
        assert row["spoilt"] == ((protected - clean).square().mean().item() > 0.05)
        assert row["psnr_db"] == pytest.approx(one.psnr, abs=0.005)


def test_single_photos(generator: Editor, photos: Path, tmp_path: Path) -> None:
    """One under its name, several under their names in the folder that holds all."""
    (one,) = run(generator, photos / "bob" / "ann.png", tmp_path / "one")
    assert one.file == tmp_path / "one" / "ann.png"
    found = run(generator, [photos / "bob" / "cy.photo.png", photos / "ann.jpg"], tmp_path / "two")
    assert [each.file.relative_to(tmp_path / "two").as_posix() for each in found] == ["ann.png", "bob/cy.photo.png"]
    for file, name in ((one.file, "bob/ann.png"), (found[0].file, "ann.jpg"), (found[1].file, "bob/cy.photo.png")):
        assert 1 <= (levels(file) - seen(photos / name)).abs().max() <= 6
    assert one.size == (16, 16)


def test_a_single_photo_may_be_protected_beside_itself_but_not_over_itself(
    generator: Editor, photos: Path, tmp_path: Path
) -> None:
    (done,) = run(generator, photos / "ann.jpg", photos)
    assert done.file == photos / "ann.png"
    png = photos / "bob" / "ann.png"
    before = png.read_bytes()
    with pytest.raises(FileExistsError, match=r"holds ann\.png, which is not from here"):
        run(generator, png, png.parent)
    assert png.read_bytes() == before


def test_what_is_no_photo_and_no_folder(generator: Editor, photos: Path, tmp_path: Path) -> None:
    for name in ("broken.jpg", "notes.txt"):
        (photos / name).write_bytes(b"not a photo")
        with pytest.raises(FileNotFoundError, match=rf"can be used. Left out: {name} \(not a whole image"):
            run(generator, photos / name, tmp_path / "out")
    with pytest.raises(FileNotFoundError, match=r"There is no photo .*nobody\.jpg"):
        run(generator, [photos / "ann.jpg", photos / "nobody.jpg"], tmp_path / "out")
    with pytest.raises(ValueError, match="bob is a folder; give a folder alone, or files"):
        run(generator, [photos / "ann.jpg", photos / "bob"], tmp_path / "out")
    with pytest.warns(UserWarning, match=r"1 of 2 photos is not used: broken\.jpg"):
        assert len(run(generator, [photos / "ann.jpg", photos / "broken.jpg"], tmp_path / "out")) == 1


def test_protected_photos_are_not_taken_for_originals(generator: Editor, photos: Path, tmp_path: Path) -> None:
    """Also where a single photo's were put into the folder, and the whole folder comes next."""
    run(generator, photos / "ann.jpg", photos / "protected")
    with pytest.raises(FileExistsError, match=r"protected holds protected photos, among the originals; move it"):
        run(generator, photos, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_again_is_the_same_and_a_photo_does_not_depend_on_others(
    generator: Editor, photos: Path, tmp_path: Path
) -> None:
    run(generator, photos, tmp_path / "out")
    before = {file: file.read_bytes() for file in (tmp_path / "out").rglob("*") if file.is_file()}
    run(generator, photos, tmp_path / "out")
    assert before == {file: file.read_bytes() for file in (tmp_path / "out").rglob("*") if file.is_file()}
    (photos / "zoe.png").write_bytes((photos / "bob" / "ann.png").read_bytes())
    run(generator, photos, tmp_path / "more")
    assert all((tmp_path / "more" / file.relative_to(tmp_path / "out")).read_bytes() == data
               for file, data in before.items() if file.suffix == ".png")  # fmt: skip


def test_an_audit_takes_them(generator: Editor, photos: Path, tmp_path: Path) -> None:
    """As `--perturbed`: the very pixels, though the generator's preprocessing would crop them."""
    found = run(generator, photos, tmp_path / "out")
    back = PerturbedPhotos(tmp_path / "out", ImageFolder(photos, transform=generator.transform()))
    for index, one in enumerate(found):
        assert torch.allclose((back[index]["image"].permute(1, 2, 0) + 1) * 127.5, levels(one.file).float(), atol=1e-3)


def test_labels_are_used_where_there_are_some(generator: Editor, photos: Path, tmp_path: Path, monkeypatch) -> None:
    asked: list[Tensor] = []
    monkeypatch.setattr(Editor, "conditions", staticmethod(lambda labels: asked.append(labels) or
                        DemoEditor.conditions(labels)))  # fmt: skip
    said: list[str] = []
    run(generator, photos, tmp_path / "out", say=said.append)
    assert not torch.cat(asked).any()
    assert len(said) == 1
    assert said[0].startswith("Without labels every photo is taken to have none of them. There is no table")
    asked.clear()
    said.clear()
    rows = [f"{name},1,0,0,0,{index % 2}" for index, name in enumerate(("ann.jpg", "bob/ann.png", "bob/cy.photo.png"))]
    (photos / "metadata.csv").write_text("\n".join([f"file_name,{','.join(generator.attributes)}", *rows]) + "\n")
    run(generator, photos, tmp_path / "out", say=said.append)
    assert not said
    assert torch.cat(asked)[-3:, [0, 4]].tolist() == [[1, 0], [1, 1], [1, 0]]


def test_two_processes_do_not_write_one_record(generator: Editor, photos: Path, tmp_path: Path, monkeypatch) -> None:
    """Each would leave the other's photos out, which the next run then refuses as somebody else's."""
    whole, second = Disrupting.__call__, photos / "bob" / "ann.png"

    def meanwhile(self: Disrupting, *args, **kwargs) -> Tensor:
        monkeypatch.setattr(Disrupting, "__call__", whole)
        with pytest.raises(OSError, match=r"Another process is writing to .*out; wait until it ends"):
            run(generator, second, tmp_path / "out")
        return whole(self, *args, **kwargs)

    monkeypatch.setattr(Disrupting, "__call__", meanwhile)
    run(generator, photos / "ann.jpg", tmp_path / "out")
    run(generator, photos / "bob" / "cy.photo.png", tmp_path / "out")
    assert json.loads((tmp_path / "out" / "protect.json").read_text())["earlier"] == ["ann.png"]


def test_one_edit_alone(generator: Editor, photos: Path, tmp_path: Path) -> None:
    assert {one.edit for one in run(generator, photos, tmp_path / "out", edit="Smiling")} == {"Smiling"}
    with pytest.raises(ValueError, match="no edit 'Smile'; the generator has Black_Hair, "):
        run(generator, photos, tmp_path / "none", edit="Smile")
    assert not (tmp_path / "none").exists()


def test_nothing_is_lost(generator: Editor, photos: Path, tmp_path: Path) -> None:
    """Neither of two photos that would get one name, nor an original, nor a file that was there."""
    (photos / "ann.png").write_bytes((photos / "bob" / "ann.png").read_bytes())
    with pytest.raises(ValueError, match=r"ann\.jpg and ann\.png would both become ann\.png; rename one"):
        run(generator, photos, tmp_path / "out")
    (photos / "ann.png").unlink()
    for inside, why in ((photos, "is the folder of the originals"), (photos / "out", "lies in .*among the originals")):
        with pytest.raises(FileExistsError, match=why):
            run(generator, photos, inside)
    (tmp_path / "out" / "bob").mkdir(parents=True)
    (tmp_path / "out" / "bob" / "ann.png").write_text("mine")
    with pytest.raises(FileExistsError, match=r"holds bob/ann\.png, which is not from here"):
        run(generator, photos, tmp_path / "out")
    assert (tmp_path / "out" / "bob" / "ann.png").read_text() == "mine"
    assert not (photos / "out").exists()


@pytest.mark.parametrize("text", ["{broken", '{"photos": []}', "[]"])
def test_a_broken_record_is_named(text: str, generator: Editor, photos: Path, tmp_path: Path) -> None:
    """Which files are from here cannot be told then."""
    run(generator, photos, tmp_path / "out")
    (tmp_path / "out" / "protect.json").write_text(text)
    with pytest.raises(ValueError, match=r"out/protect\.json is not what was written here; choose another folder"):
        run(generator, photos, tmp_path / "out")


def test_an_interrupt_keeps_what_is_done_and_is_no_obstacle(
    generator: Editor, photos: Path, tmp_path: Path, monkeypatch
) -> None:
    """Also where an earlier run had done them all."""
    out = tmp_path / "out"
    run(generator, photos, out)
    calls = iter((False, True))
    whole = Disrupting.__call__

    def call(self: Disrupting, *args, **kwargs) -> Tensor:
        if next(calls):
            raise KeyboardInterrupt
        return whole(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Disrupting, "__call__", call)
        with pytest.raises(KeyboardInterrupt, match=r"after 1 of 3 photos, which are kept in .*out"):
            run(generator, photos, out, "disrupting:0.1,steps=2")
    record = json.loads((out / "protect.json").read_text())
    assert [row["file"] for row in record["photos"]] == ["ann.png"]
    assert record["earlier"] == ["bob/ann.png", "bob/cy.photo.png"]
    run(generator, photos, out)
    assert json.loads((out / "protect.json").read_text())["earlier"] == []


def test_a_defense_that_is_fitted_first(generator: Editor, photos: Path, tmp_path: Path) -> None:
    spec = "cmua:0.05,steps=1,photos=3,batch_size=3"
    with pytest.raises(ValueError, match=r"has to be fitted: pass photos to fit it on \(--fit-on\), or"):
        run(generator, photos, tmp_path / "out", spec)
    found = run(generator, photos, tmp_path / "out", spec, fit_on=str(photos))
    patterns = [levels(one.file) - seen(photos / name) for one, name in
                zip(found, ("ann.jpg", "bob/ann.png", "bob/cy.photo.png"), strict=True)]  # fmt: skip
    assert all(0 < pattern.abs().max() <= 6 for pattern in patterns)
    fitted = DEFENSES["cmua"](0.05, steps=1, photos=3, batch_size=3)
    file = fitted.fit(generator, ImageFolder(photos, transform=generator.transform()),
                      lambda labels: generator.conditions(torch.zeros(len(labels), 5)),
                      disable_tqdm=True).save(tmp_path / "cmua.safetensors")  # fmt: skip
    assert len(run(generator, photos, tmp_path / "loaded", f"cmua@{file}")) == 3


def test_a_photo_that_breaks_is_not_replaced_by_another_one(
    generator: Editor, photos: Path, tmp_path: Path, monkeypatch
) -> None:
    names = ("ann.jpg", "bob/ann.png", "bob/cy.photo.png")
    load = ImageFolder.load

    def breaking(self: ImageFolder, index: int):
        if index == 1:
            (photos / names[1]).write_bytes(b"broken")
        return load(self, index)

    monkeypatch.setattr(ImageFolder, "load", breaking)
    with pytest.raises(ValueError, match=r"ann\.png cannot be read"):
        run(generator, photos, tmp_path / "out")
    assert not (tmp_path / "out" / "bob").exists()


def test_drawn_faces_get_numbers(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(DemoFaces, "open", classmethod(lambda cls, root, **options: cls(2, size=16)))
    found = run(DemoEditor(conv_dim=4, num_blocks=1).eval(), Path("demo"), tmp_path / "out", "noise:0.1")
    assert [one.file.name for one in found] == ["00000.png", "00001.png"]


def test_killed_at_any_change_to_files_it_goes_on_with_what_is_its_own(photos: Path, tmp_path: Path) -> None:
    """Then all is as if nothing had happened: no file of its own is refused, no draft stays, the record is true."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert forked(protecting, photos, whole).returncode == 0
    for nth in count(1):
        done = forked(protecting, photos, killed, nth)
        record = killed / "protect.json"
        if record.is_file():
            listed = json.loads(record.read_text())
            rows = {row["file"] for row in listed["photos"]}
            there = {file.relative_to(killed).as_posix() for file in killed.rglob("*.png")}
            assert {file for file in there if not file.startswith(".")} <= rows | set(listed["earlier"])
            assert rows <= there
        if done.returncode == 0:
            break
        assert done.returncode == -signal.SIGKILL, done.stderr
    assert nth > 10
    assert contents(killed) == contents(whole) | {"protect.json": contents(killed)["protect.json"]}
    listed, wanted = (json.loads((folder / "protect.json").read_text()) for folder in (killed, whole))
    assert listed == wanted


def contents(folder: Path) -> dict[str, bytes]:
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_a_name_that_was_announced_and_never_written_is_not_taken_for_its_own(
    generator: Editor, photos: Path, tmp_path: Path
) -> None:
    """What somebody else puts there after an interrupt stays."""
    out = tmp_path / "out"
    run(generator, photos / "ann.jpg", out)
    record = json.loads((out / "protect.json").read_text())
    (out / "protect.json").write_text(json.dumps({**record, "earlier": ["bob/ann.png"]}))
    run(generator, photos / "ann.jpg", out)  # nothing of that name is there
    (out / "bob").mkdir()
    (out / "bob" / "ann.png").write_bytes(b"somebody else's")
    with pytest.raises(FileExistsError, match=r"holds bob/ann\.png, which is not from here"):
        run(generator, photos, out)
    assert (out / "bob" / "ann.png").read_bytes() == b"somebody else's"


def test_a_full_disk_is_said_and_leaves_what_is_done(generator: Editor, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    run(generator, photos / "ann.jpg", out)
    kept = contents(out)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        with pytest.raises(OSError, match=r"could not be written to .*: File too large \(.* MB free") as error:
            run(generator, photos, out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert len(str(error.value)) < 600
    assert contents(out) == kept


def test_a_budget_that_moves_no_pixel_is_said(generator: Editor, photos: Path, tmp_path: Path) -> None:
    """0.003 is 0.38 of a level: the files are the photos."""
    said: list[str] = []
    run(generator, photos, tmp_path / "out", "noise:0.003", say=said.append)
    assert any(one.startswith("3 of 3 photos are as they were: what 'noise:0.003' adds is less than") for one in said)
    said.clear()
    run(generator, photos, tmp_path / "more", "noise:0.1", say=said.append)
    assert not [one for one in said if "as they were" in one]
