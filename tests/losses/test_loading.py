"""Where encoders are looked for, what a failure says, and what is never loaded."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers as tf
from torch import Tensor

from loraguard.losses import FeatureEncoder, MMFALoss

Folder = Callable[[str], Path]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def copy(folder: Folder, tmp_path: Path) -> Folder:
    """A copy of an encoder's folder that may be changed."""
    return lambda kind: Path(shutil.copytree(folder(kind), tmp_path / kind))


def edit(file: Path, **changes: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_from_the_hubs_cache(folder: Folder, tmp_path: Path, fitting: Tensor) -> None:
    """Nothing is downloaded, and the commit goes into the settings."""
    repository = tmp_path / "models--me--tiny"
    shutil.copytree(folder("clip"), repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    encoder = FeatureEncoder.from_pretrained("me/tiny", cache_dir=tmp_path, local_files_only=True)
    with torch.no_grad():
        assert torch.equal(encoder(fitting), FeatureEncoder.from_pretrained(folder("clip"))(fitting))
    source = encoder.settings()
    assert (source["model"], source["name"], source["commit"]) == ("me/tiny", "tiny", COMMIT)


@pytest.mark.parametrize(
    ("kind", "written", "size", "crop"),
    [
        (
            "resnet",
            {"crop_pct": 0.875, "feature_extractor_type": "ConvNextFeatureExtractor", "resample": 3, "size": 224},
            {"shortest_edge": 224},
            None,
        ),
        (
            "clip",
            {"crop_size": 32, "do_center_crop": True, "feature_extractor_type": "CLIPFeatureExtractor", "size": 36},
            {"shortest_edge": 36},
            {"height": 32, "width": 32},
        ),
        (
            "blip",
            {"image_processor_type": "BlipImageProcessor", "size": {"height": 32, "width": 32}, "size_divisor": 32},
            {"height": 32, "width": 32},
            None,
        ),
    ],
    ids=["resnet", "clip", "blip"],
)
def test_preprocessing_as_old_repositories_write_it(
    kind: str, written: dict, size: dict, crop: dict | None, copy: Folder
) -> None:
    """The form of `preprocessor_config.json` in the repositories that papers name."""
    path = copy(kind)
    normalise = {"do_normalize": True, "do_resize": True, "image_mean": [0.4, 0.5, 0.6], "image_std": [0.2, 0.3, 0.4]}
    (path / "preprocessor_config.json").write_text(json.dumps({**normalise, **written}))
    encoder = FeatureEncoder.from_pretrained(path)
    found = encoder.settings()["preprocessing"]
    assert (found["size"], found.get("crop_size")) == (size, crop)
    assert list(found["image_mean"]) == normalise["image_mean"]
    pixels = encoder.preprocess(torch.ones(1, 3, 300, 260))["pixel_values"]
    assert torch.allclose(pixels.mean((0, 2, 3)), torch.tensor([3.0, 5 / 3, 1.0]), atol=1e-4)


def test_what_is_not_in_the_cache_is_said(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="The encoder 'me/tiny' cannot be loaded: there is no such folder") as caught:
        FeatureEncoder.from_pretrained("me/tiny", cache_dir=tmp_path, local_files_only=True)
    for part in (str(tmp_path), "nothing may be downloaded", "preprocessor_config.json", "hf download me/tiny"):
        assert part in str(caught.value)


def test_the_papers_encoders_are_not_replaced(tmp_path: Path, folder: Folder) -> None:
    with pytest.raises(OSError, match="'microsoft/resnet-50' cannot be loaded"):
        MMFALoss.paper(cache_dir=tmp_path, local_files_only=True)
    with pytest.raises(OSError, match="'Salesforce/blip-image-captioning-base' cannot be loaded"):
        MMFALoss.paper(folder("resnet"), cache_dir=tmp_path, local_files_only=True)


@pytest.mark.parametrize("file", ["config.json", "preprocessor_config.json", "model.safetensors"])
def test_a_folder_that_lacks_a_file(file: str, copy: Folder) -> None:
    path = copy("clip")
    (path / file).unlink()
    with pytest.raises(OSError, match=f"encoder in the folder {path} cannot be loaded: it lacks {file} "):
        FeatureEncoder.from_pretrained(path)


def test_pickles_are_not_loaded(copy: Folder) -> None:
    path = copy("clip")
    torch.save(tf.CLIPModel.from_pretrained(path).state_dict(), path / "pytorch_model.bin")
    (path / "model.safetensors").unlink()
    with pytest.raises(OSError, match=r"it lacks model\.safetensors .*loads no pickle"):
        FeatureEncoder.from_pretrained(path)


def test_code_of_a_repository_is_not_run(copy: Folder) -> None:
    path = copy("clip")
    (path / "mine.py").write_text("raise SystemExit('executed')")
    edit(path / "config.json", model_type="mine", architectures=["Mine"], auto_map={"AutoConfig": "mine.Mine"})
    with pytest.raises(ValueError, match="runs no code of a repository"):
        FeatureEncoder.from_pretrained(path)


def test_weights_that_are_missing_are_not_drawn_at_random(copy: Folder) -> None:
    """BLIP's captioner has no projection; transformers alone would make one up and warn."""
    path = copy("blip")
    edit(path / "config.json", architectures=["BlipModel"])
    with pytest.raises(ValueError, match=r"lack visual_projection\.weight"):
        FeatureEncoder.from_pretrained(path, features="projected")
    assert FeatureEncoder.from_pretrained(path, features="cls").name == "blip"


def test_an_architecture_that_does_not_exist(copy: Folder) -> None:
    path = copy("clip")
    edit(path / "config.json", architectures=["CLIPTelescope"])
    with pytest.raises(ValueError, match="'CLIPTelescope', which is no model of transformers"):
        FeatureEncoder.from_pretrained(path)


@pytest.mark.parametrize(
    ("kind", "features", "message"),
    [
        ("resnet", "cls", "has no class token"),
        ("siglip", "cls", "has no class token"),
        ("resnet", "projected", "has no projection into a space shared with text"),
        ("blip", "projected", "has no projection into a space shared with text"),
        ("vit", "pooled", "has no 'pooled' features; take 'patch'"),
        ("clip", "pathc", "no features 'pathc'; choose from 'pooled', 'cls', 'patch', 'projected'"),
    ],
)
def test_features_that_a_model_does_not_have(kind: str, features: str, message: str, folder: Folder) -> None:
    with pytest.raises(ValueError, match=message):
        FeatureEncoder.from_pretrained(folder(kind), features=features)


def test_models_that_do_not_look_at_images(tmp_path: Path) -> None:
    config = tf.BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    tf.BertModel(config).save_pretrained(tmp_path)
    tf.ViTImageProcessor().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="BertModel, has no image side"):
        FeatureEncoder.from_pretrained(tmp_path)
