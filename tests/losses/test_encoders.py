"""Encoders against the processor and the model of transformers, used as its documentation says."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import transformers as tf
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import ResNet50_Weights, resnet50

from loraguard.losses import FeatureEncoder

Folder = Callable[[str], Path]

REFERENCES: dict[tuple[str, str], Callable[[Path, dict], Tensor]] = {
    ("resnet", "pooled"): lambda f, x: tf.AutoModel.from_pretrained(f)(**x).pooler_output[:, :, 0, 0],
    ("resnet", "patch"): lambda f, x: tf.AutoModel.from_pretrained(f)(**x).last_hidden_state.flatten(2).mT,
    ("blip", "pooled"): lambda f, x: tf.BlipForConditionalGeneration.from_pretrained(f).vision_model(**x)[1],
    ("blip", "cls"): lambda f, x: tf.BlipForConditionalGeneration.from_pretrained(f).vision_model(**x)[0][:, 0],
    ("blip", "patch"): lambda f, x: tf.BlipForConditionalGeneration.from_pretrained(f).vision_model(**x)[0],
    ("blip-itm", "cls"): lambda f, x: tf.BlipForImageTextRetrieval.from_pretrained(f).vision_model(**x)[0][:, 0],
    ("clip", "pooled"): lambda f, x: tf.CLIPVisionModel.from_pretrained(f)(**x).pooler_output,
    ("clip", "projected"): lambda f, x: tf.CLIPModel.from_pretrained(f).get_image_features(**x).pooler_output,
    ("clip-vision", "projected"): lambda f, x: tf.CLIPVisionModelWithProjection.from_pretrained(f)(**x).image_embeds,
    ("siglip", "pooled"): lambda f, x: tf.SiglipVisionModel.from_pretrained(f)(**x).pooler_output,
    ("siglip", "projected"): lambda f, x: tf.SiglipModel.from_pretrained(f).get_image_features(**x).pooler_output,
    ("siglip2", "projected"): lambda f, x: tf.Siglip2Model.from_pretrained(f).get_image_features(**x).pooler_output,
    ("siglip2", "patch"): lambda f, x: tf.Siglip2VisionModel.from_pretrained(f)(**x).last_hidden_state[
        :, : x["spatial_shapes"][0].prod()
    ],
    ("dinov2", "pooled"): lambda f, x: tf.Dinov2Model.from_pretrained(f)(**x).pooler_output,
    ("dinov2", "patch"): lambda f, x: tf.Dinov2Model.from_pretrained(f)(**x).last_hidden_state,
    ("dinov3", "pooled"): lambda f, x: tf.DINOv3ViTModel.from_pretrained(f)(**x).pooler_output,
    ("vit", "cls"): lambda f, x: tf.ViTModel.from_pretrained(f)(**x).last_hidden_state[:, 0],
}
KINDS = [pytest.param(*key, id="-".join(key)) for key in REFERENCES]


def as_photos(images: Tensor) -> list[Image.Image]:
    return [Image.fromarray(((image + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()) for image in images]


@pytest.mark.parametrize(("kind", "features"), KINDS)
def test_features_are_the_models_own(kind: str, features: str, folder: Folder, photos: Tensor, fitting: Tensor) -> None:
    """To rounding where nothing is resized; where it is, as closely as bytes are to floats. An image has its own."""
    encoder = FeatureEncoder.from_pretrained(folder(kind), features=features)
    processor = tf.AutoImageProcessor.from_pretrained(folder(kind))
    resizes = kind in ("resnet", "dinov2")
    for images, tolerance in ((photos, 0.05), (fitting, 0.05 if resizes else 1e-5)):
        with torch.no_grad():
            expected = REFERENCES[kind, features](
                folder(kind), processor(images=as_photos(images), return_tensors="pt")
            )
            found = encoder(images)
        assert found.shape == expected.shape
        assert (found - expected).norm() < tolerance * expected.norm()
    with torch.no_grad():
        together, alone = encoder(photos), torch.cat([encoder(photo[None]) for photo in photos])
    assert torch.allclose(together, alone, atol=1e-4 * together.abs().max().item())
    assert (together[0] - together[1]).norm() > 1e-3 * together[0].norm()


def test_blips_projection_is_what_its_retrieval_compares(folder: Folder, fitting: Tensor) -> None:
    model = tf.BlipForImageTextRetrieval.from_pretrained(folder("blip-itm"))
    pixels = tf.AutoImageProcessor.from_pretrained(folder("blip-itm"))(images=as_photos(fitting), return_tensors="pt")
    tokens = torch.tensor([[1, 5, 7, 2]]).expand(4, 4)
    encoder = FeatureEncoder.from_pretrained(folder("blip-itm"), features="projected", distance="cosine")
    with torch.no_grad():
        scores = model(input_ids=tokens, **pixels, use_itm_head=False).itm_score
        text = model.text_proj(model.text_encoder(input_ids=tokens).last_hidden_state[:, 0])
        found = F.normalize(encoder(fitting), dim=-1) @ F.normalize(text, dim=-1).T
    assert torch.allclose(found, scores, atol=1e-5)


@pytest.mark.parametrize(("kind", "features"), KINDS)
def test_gradients_reach_the_images(kind: str, features: str, folder: Folder) -> None:
    encoder = FeatureEncoder.from_pretrained(folder(kind), features=features, dtype=torch.float64)
    images = (torch.rand(2, 3, 24, 20, dtype=torch.float64) - 0.5).requires_grad_()
    assert encoder(images).dtype == torch.float64
    assert torch.autograd.gradcheck(encoder, images, fast_mode=True, atol=1e-6)
    encoder(images).square().sum().backward()
    assert (images.grad.flatten(1).norm(dim=1) > 0).all()


def test_it_is_frozen_and_in_evaluation_mode(folder: Folder, photos: Tensor) -> None:
    encoder = FeatureEncoder.from_pretrained(folder("resnet"))
    before = {name: tensor.clone() for name, tensor in encoder.state_dict().items()}
    nn.ModuleList([encoder]).train()
    images = photos.requires_grad_()
    encoder(images).sum().backward()
    assert not any(module.training for module in encoder.modules())
    assert not any(p.requires_grad or p.grad is not None for p in encoder.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in encoder.state_dict().items())


def test_text_towers_are_let_go(folder: Folder) -> None:
    for kind in ("clip", "blip-itm", "siglip2"):
        encoder = FeatureEncoder.from_pretrained(folder(kind), features="projected")
        assert not any("text_model" in name or "text_encoder" in name for name, _ in encoder.named_parameters())


def test_autocast_has_no_effect_inside(folder: Folder, photos: Tensor) -> None:
    encoder = FeatureEncoder.from_pretrained(folder("clip"))
    with torch.autocast("cpu", torch.bfloat16):
        inside = encoder(photos.bfloat16())
    assert inside.dtype == torch.float32
    assert torch.equal(inside, encoder(photos.bfloat16().float()))


def test_half_precision_on_request(folder: Folder, photos: Tensor) -> None:
    encoder = FeatureEncoder.from_pretrained(folder("clip"), dtype=torch.bfloat16)
    exact = FeatureEncoder.from_pretrained(folder("clip"))(photos)
    found = encoder(photos)
    assert found.dtype == torch.float32
    assert 1e-4 * exact.norm() < (found - exact).norm() < 0.1 * exact.norm()
    assert encoder.settings()["dtype"] == "bfloat16"


def test_settings_are_json_and_name_the_weights(folder: Folder) -> None:
    encoder = FeatureEncoder.from_pretrained(folder("clip"), features="projected", distance="cosine", weight=0.2)
    found = json.loads(json.dumps(encoder.settings(), allow_nan=False))
    assert found["model"] == found["name"] == "clip"
    assert str(folder("clip")) not in json.dumps(found)
    assert (found["architecture"], found["features"]) == ("CLIPModel", "projected")
    assert (found["distance"], found["weight"], found["dtype"]) == ("cosine", 0.2, "float32")
    assert len(found["sha256"][0]) == 64
    assert found["preprocessing"]["crop_size"] == {"height": 32, "width": 32}


@pytest.fixture(scope="module")
def torchvision_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("torchvision") / "checkpoints" / "resnet50-0676ba61.pth"
    path.parent.mkdir()
    with torch.random.fork_rng():
        torch.manual_seed(7)
        torch.save(resnet50().state_dict(), path)
    return path


def test_torchvisions_resnet(torchvision_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From torchvision's cache as from a file, with the transform of its weights."""
    network = resnet50().eval()
    network.load_state_dict(torch.load(torchvision_file, weights_only=True))
    network.fc = nn.Identity()
    photo = as_photos(torch.rand(1, 3, 300, 280) * 0.5)[0]
    images = torch.tensor(list(photo.tobytes())).view(1, 300, 280, 3).permute(0, 3, 1, 2) / 127.5 - 1
    monkeypatch.setenv("TORCH_HOME", str(torchvision_file.parents[1]))
    monkeypatch.setattr(torch.hub, "_hub_dir", str(torchvision_file.parents[1]))
    encoder = FeatureEncoder.from_torchvision(weights="IMAGENET1K_V1", local_files_only=True)
    with torch.no_grad():
        expected = network(ResNet50_Weights.IMAGENET1K_V1.transforms()(photo)[None])
        found = encoder(images)
        patches = FeatureEncoder.from_torchvision(torchvision_file, weights="IMAGENET1K_V1", features="patch")(images)
    assert found.shape == (1, 2048)
    assert (found - expected).norm() < 0.05 * expected.norm()
    assert torch.allclose(patches.mean(1), found, atol=1e-4 * found.abs().max().item())
    source = encoder.settings()
    assert (source["file"], source["weights"]) == ("resnet50-0676ba61.pth", "IMAGENET1K_V1")
    assert source["preprocessing"]["size"] == {"shortest_edge": 256}


def test_torchvisions_refusals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"resnet50-11ad3fa6\.pth .*nothing may be downloaded.* path="):
        FeatureEncoder.from_torchvision(local_files_only=True)
    with pytest.raises(ValueError, match="no weights 'V3' of ResNet-50; choose from 'IMAGENET1K_V1'"):
        FeatureEncoder.from_torchvision(weights="V3")
    with pytest.raises(ValueError, match="no features 'cls' of torchvision's ResNets"):
        FeatureEncoder.from_torchvision(features="cls")
    torch.save({"fc.weight": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match="no whole state dict of torchvision's ResNet-50"):
        FeatureEncoder.from_torchvision(tmp_path / "other.pth")
    torch.save(nn.Linear(1, 1), tmp_path / "object.pth")
    with pytest.raises(ValueError, match="or objects beside tensors"):
        FeatureEncoder.from_torchvision(tmp_path / "object.pth")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"distance": "l2"}, "no feature distance 'l2'; choose from 'mse', 'cosine'"),
        ({"weight": 0}, "weight=0 must be greater than 0"),
        ({"weight": float("nan")}, "weight=nan must be greater than 0"),
        ({"name": "a.b"}, "must not be empty, contain a dot"),
        ({"name": "pixel"}, "must not be empty, contain a dot"),
    ],
)
def test_settings_that_cannot_be_used(settings: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FeatureEncoder(nn.Flatten(), lambda images: images, **settings)


@pytest.mark.parametrize("setting", [{"distance": "l2"}, {"weight": -1}])
def test_bad_settings_are_said_before_anything_is_loaded(setting: dict) -> None:
    with pytest.raises(ValueError, match=r"l2|-1"):
        FeatureEncoder.from_pretrained("nowhere/at-all", **setting)
    with pytest.raises(ValueError, match=r"l2|-1"):
        FeatureEncoder.from_torchvision("nowhere", **setting)
