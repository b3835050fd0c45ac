"""Extractors from files, folders and the Hub: what is read is what the file's network says, and no pickle is opened."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch
from peft import get_peft_model
from safetensors.torch import save_file
from torch import Tensor, nn

from loraguard import GatedLoraConfig, Mark, MarkReader, PatchTrainingArguments
from loraguard.commands.mark import patch_mark
from loraguard.mark import MarkNetwork, extractors, load_extractor
from loraguard.mark.shipped import corner_network


class Projection(nn.Module):
    """Each of 20 bits is a random projection of the image."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(3 * 64, 20)

    def forward(self, images: Tensor) -> Tensor:
        return self.project(images.flatten(1))


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A folder as examples/train_mark_network.py leaves one, of 20 bits."""
    torch.manual_seed(0)
    folder = tmp_path / "own"
    folder.mkdir()
    state = MarkNetwork(20, width=8, blocks=1).state_dict()
    save_file({name: value.half() for name, value in state.items()}, folder / "model.safetensors")
    return folder


def test_a_folder_and_the_hub_hold_the_same_network(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose weights are those of the file, in half precision as it has them."""
    torch.manual_seed(0)
    expected, image = MarkNetwork(20, width=8, blocks=1).half().float(), torch.rand(1, 3, 64, 64)
    assert torch.equal(load_extractor(str(own))(image), expected(image))

    def pulled(repo_id: str, filename: str) -> str:
        assert (repo_id, filename) == ("ann/reader", "model.safetensors")
        return str(own / filename)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", pulled)
    assert Mark("a", "ann/reader").network is load_extractor(str(own))


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_a_torchscript_file_gets_images_as_it_wants_them(tmp_path: Path) -> None:
    """At its size, in [0, 1] less the mean over the deviation, and gradients pass; a file alone gets [0, 1]."""
    torch.manual_seed(0)
    network, image = Projection(), 2 * torch.rand(2, 3, 8, 8) - 1
    torch.jit.trace(network, image).save(str(tmp_path / "reader.pt"))
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    settings = {"file": "reader.pt", "size": 8, "mean": mean, "std": std}
    (tmp_path / "extractor.json").write_text(json.dumps(settings))
    moved = ((image + 1) / 2 - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]
    mark = Mark(word="01" * 10, extractor=str(tmp_path))
    assert torch.allclose(mark.logits(image), network(moved), atol=1e-5)
    assert torch.allclose(load_extractor(str(tmp_path / "reader.pt"))(image), network((image + 1) / 2), atol=1e-5)
    (slope,) = torch.autograd.grad(mark.logits(image.requires_grad_())[0, 3], image)
    expected = network.project.weight[3].view(3, 8, 8) / torch.tensor(std)[:, None, None] / 2
    assert torch.allclose(slope[0], expected, atol=1e-5)
    assert MarkReader(str(tmp_path), messages=[mark])(torch.zeros(1, 3, 16, 16))[0].bits == 20


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"file": "reader.pt", "trust_remote_code": True}, "must be a dict of file, size"),
        ({"size": 0}, "pixels a side"),
        ({"std": [1, 1, 0]}, "not 0"),
        ({"file": "gone.pt"}, "no file gone.pt"),
        ({"file": "pickle.pt"}, "no TorchScript"),
        ([], "must be a dict"),
    ],
    ids=str,
)
def test_settings_that_cannot_be(tmp_path: Path, settings: object, said: str) -> None:
    torch.save({"weight": torch.zeros(2)}, tmp_path / "pickle.pt")
    (tmp_path / "extractor.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match=said):
        load_extractor(str(tmp_path))


def test_what_is_no_extractor(tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    for name, said in {
        str(tmp_path / "other.safetensors"): "not the tensors of a MarkNetwork",
        str(tmp_path): "no model.safetensors",
        "rivagam": "Did you mean 'rivagan'.* Nor is it a file",
    }.items():
        with pytest.raises(ValueError, match=said):
            Mark("a", name)


def test_a_patch_records_its_extractors_hash_and_not_where_it_is(own: Path, tmp_path: Path) -> None:
    arguments = PatchTrainingArguments(tmp_path / "patch", mark=Mark("a", str(own)))
    config = GatedLoraConfig(r=2, provenance={"settings": arguments.to_dict()})
    get_peft_model(nn.Sequential(nn.Conv2d(3, 3, 1)), config).save_pretrained(tmp_path / "patch")
    assert str(own) not in (tmp_path / "patch/adapter_config.json").read_text()
    with pytest.raises(ValueError, match="give it as --extractor"):
        patch_mark(tmp_path / "patch")
    moved = str(shutil.copytree(own, tmp_path / "moved"))
    assert patch_mark(tmp_path / "patch", moved) == Mark("a", moved)
    with pytest.raises(ValueError, match="other weights"):
        patch_mark(tmp_path / "patch", "loraguard")


def test_a_mark_is_read_by_the_network_it_is_for_wherever_that_lies(own: Path, tmp_path: Path) -> None:
    """A copy in another folder reads it; one of other weights is refused."""
    moved = shutil.copytree(own, tmp_path / "moved")
    assert MarkReader(str(moved), [Mark("a", str(own))]).names == ["a"]
    save_file(MarkNetwork(20, width=8, blocks=1, seed=1).state_dict(), moved / "model.safetensors")
    with pytest.raises(ValueError, match="own', and this is"):
        MarkReader(str(moved), [Mark("a", str(own))])


@pytest.mark.parametrize(
    ("extractor", "given", "said"),
    [
        ("corners", "loraguard", "read by the extractor 'corners', and not by 'loraguard'"),
        (corner_network(), "loraguard", "is a MarkNetwork, which reads otherwise than the CornerNetwork"),
    ],
    ids=["by name", "of the same weights"],
)
def test_a_patch_s_mark_is_read_by_no_other_extractor(extractor: object, given: str, said: str, tmp_path: Path) -> None:
    """Whole pictures and corners are read with the same weights."""
    arguments = PatchTrainingArguments(tmp_path, mark=Mark("a", extractor))
    config = GatedLoraConfig(r=2, provenance={"settings": arguments.to_dict()})
    get_peft_model(nn.Sequential(nn.Conv2d(3, 3, 1)), config).save_pretrained(tmp_path)
    assert patch_mark(tmp_path, "corners") == Mark("a", "corners")
    with pytest.raises(ValueError, match=said):
        patch_mark(tmp_path, given)


@pytest.mark.parametrize("kind", ["corners", "file"])
def test_a_network_that_all_share_takes_no_mode_of_whom_asked_first(kind: str, own: Path) -> None:
    """Neither inference mode, after which nothing could train, nor a default device, here one without memory."""
    for cached in (extractors._registered, extractors._from_file):
        cached.cache_clear()
    name, message, image = kind if kind == "corners" else str(own), "a", torch.zeros(1, 3, 70, 70)
    with torch.inference_mode(), torch.device("meta"):
        mark = Mark(message, name)
        readings = MarkReader(name, [mark])(mark.compose(image))
    assert [(one.found, one.message) for one in readings] == [(kind == "corners", "a")]
    mark.logits(image.requires_grad_()).sum().backward()
    assert image.grad.abs().sum() > 0
