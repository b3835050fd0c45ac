"""The loss as a whole: its values, prepared and cached targets, and a patch trained with it."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers as tf
from peft import PeftModel
from torch import Tensor, nn
from torch.nn import functional as F

from loraguard import PatchTrainer, PatchTrainingArguments
from loraguard.data import DemoFaces
from loraguard.defenses import Disrupting
from loraguard.losses import FeatureCache, FeatureEncoder, MMFALoss
from loraguard.training import patch_step

Folder = Callable[[str], Path]


@pytest.fixture
def paper(folder: Folder) -> MMFALoss:
    """The paper's loss with tiny encoders."""
    return MMFALoss.paper(folder("resnet"), folder("blip"))


@pytest.fixture
def outputs(photos: Tensor) -> Tensor:
    return (photos + 0.2 * torch.randn_like(photos)).clamp(-1, 1)


class Counting(nn.Module):
    """Features of an image's corner; counts the images that it has seen."""

    seen = 0

    def forward(self, images: Tensor) -> Tensor:
        self.seen += len(images)
        return images[:, :, :2, :2].flatten(1)


def counting_loss(**settings: object) -> tuple[MMFALoss, Counting]:
    network = Counting()
    return MMFALoss([FeatureEncoder(network, lambda images: images)], **settings), network


def test_values_are_the_papers(paper: MMFALoss, folder: Folder, fitting: Tensor) -> None:
    """Processor and model of transformers, distances in numpy."""
    targets = fitting.flip(0)

    def features(kind: str, model: object, images: Tensor) -> np.ndarray:
        processor = tf.AutoImageProcessor.from_pretrained(folder(kind))
        pixels = ((images + 1) * 127.5).round().byte()
        return model(processor(images=list(pixels), return_tensors="pt")["pixel_values"]).detach().double().numpy()

    resnet, blip = tf.AutoModel.from_pretrained(folder("resnet")), tf.AutoModelForImageTextToText.from_pretrained(
        folder("blip")
    )  # fmt: skip
    e, f = (features("resnet", lambda x: resnet(x).pooler_output[..., 0, 0], x) for x in (fitting, targets))
    p, q = (features("blip", lambda x: blip.vision_model(x).last_hidden_state[:, 0], x) for x in (fitting, targets))
    cosine = (p * q).sum(1) / np.linalg.norm(p, axis=1) / np.linalg.norm(q, axis=1)
    pixel = ((fitting - targets).double().numpy() ** 2).mean()
    found = paper.terms(fitting, targets)
    assert list(found) == ["pixel", "resnet-50", "blip"]
    assert found["pixel"].item() == pytest.approx(pixel, rel=1e-5)
    assert found["resnet-50"].item() == pytest.approx(0.1 * ((e - f) ** 2).mean(), rel=0.03)  # resized from bytes
    assert found["blip"].item() == pytest.approx(0.1 * (1 - cosine).mean(), rel=1e-4)
    assert paper(fitting, targets).item() == pytest.approx(sum(v.item() for v in found.values()), rel=1e-5)


def test_gradients_reach_the_outputs_through_every_term(folder: Folder) -> None:
    settings = {"dtype": torch.float64}
    encoders = [
        FeatureEncoder.from_pretrained(folder("resnet"), **settings),
        FeatureEncoder.from_pretrained(folder("blip"), features="cls", distance="cosine", **settings),
        FeatureEncoder.from_pretrained(folder("dinov2"), features="patch", distance="cosine", **settings),
    ]
    loss = MMFALoss(encoders)
    y, t = (torch.rand(2, 2, 3, 24, 20, dtype=torch.float64) - 0.5).unbind()
    y.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: tuple(loss.terms(x, t).values()), y, fast_mode=True)
    for value in loss.terms(y, t).values():
        (gradient,) = torch.autograd.grad(value, y, retain_graph=True)
        assert gradient.abs().amax(dim=(1, 2, 3)).min() > 0


def test_the_loss_of_a_batch_is_the_mean_of_its_images(paper: MMFALoss, photos: Tensor, outputs: Tensor) -> None:
    together = paper.terms(outputs, photos)
    alone = [paper.terms(y[None], t[None]) for y, t in zip(outputs, photos, strict=True)]
    for name, value in together.items():
        assert value.item() == pytest.approx(sum(terms[name].item() for terms in alone) / len(alone), rel=1e-3)


def test_it_is_zero_at_the_target(paper: MMFALoss, photos: Tensor) -> None:
    assert paper(photos, photos).item() == pytest.approx(0, abs=1e-6)


def test_prepared_targets_are_targets(paper: MMFALoss, photos: Tensor, outputs: Tensor) -> None:
    prepared = paper.prepare(photos.requires_grad_())
    y = outputs.requires_grad_()
    first, second = paper(y, prepared), paper(y, photos)
    assert torch.equal(first, second)
    assert torch.equal(*(torch.autograd.grad(value, y)[0] for value in (first, second)))
    assert not any(tensor.requires_grad for tensor in (prepared.images, *prepared.features.values()))


def test_targets_are_seen_once_when_prepared() -> None:
    loss, network = counting_loss()
    prepared = loss.prepare(torch.zeros(4, 3, 8, 8))
    loss(torch.ones(4, 3, 8, 8), prepared)
    loss(torch.ones(4, 3, 8, 8), prepared)
    assert network.seen == 12


def test_cached_targets_are_seen_once(photos: Tensor) -> None:
    cache = FeatureCache()
    loss, network = counting_loss(cache=cache)
    first = loss.prepare(photos, keys=[(i, "Smiling") for i in range(4)])
    assert (network.seen, cache.hits, cache.misses, len(cache)) == (4, 0, 4, 4)
    again = loss.prepare(photos[[2, 0, 1]], keys=[(2, "Smiling"), (0, "Smiling"), (1, "Eyeglasses")])
    assert (network.seen, cache.hits, cache.misses, len(cache)) == (5, 2, 5, 5)
    plain = counting_loss()[0].prepare(photos)
    assert torch.equal(first.features["encoder"], plain.features["encoder"])
    assert torch.equal(again.features["encoder"], plain.features["encoder"][[2, 0, 1]])
    loss.prepare(photos)
    assert (network.seen, len(cache)) == (9, 5)


def test_cached_features_do_not_depend_on_the_batch(folder: Folder, photos: Tensor) -> None:
    together, shuffled = (MMFALoss.paper(folder("resnet"), folder("blip"), cache=FeatureCache()) for _ in range(2))
    first = together.prepare(photos, keys=range(4))
    for rows in ([3, 1], [0], [2]):
        shuffled.prepare(photos[rows], keys=rows)
    second = shuffled.prepare(photos, keys=range(4))
    for name in first.features:
        assert torch.equal(first.features[name], second.features[name])


def test_a_full_cache_keeps_what_it_has(photos: Tensor) -> None:
    each = 4 * (3 * 4 * 4 + 12)
    cache = FeatureCache(max_bytes=2 * each + 1)
    loss, network = counting_loss(cache=cache)
    for _ in range(2):
        loss.prepare(photos, keys=range(4))
    assert (len(cache), cache.nbytes, cache.hits, network.seen) == (2, 2 * each, 2, 6)
    cache.clear()
    assert (len(cache), cache.nbytes, cache.hits, cache.misses) == (0, 0, 0, 0)


def test_a_key_that_returns_with_another_picture_is_an_error(photos: Tensor) -> None:
    loss, _ = counting_loss(cache=FeatureCache())
    loss.prepare(photos, keys=range(4))
    loss.prepare(photos + 1e-5, keys=range(4))
    with pytest.raises(ValueError, match="target of key 0 is another picture"):
        loss.prepare(photos.flip(-1), keys=range(4))
    with pytest.raises(ValueError, match="one key for each target, got 3 for 4"):
        loss.prepare(photos, keys=range(3))
    with pytest.raises(ValueError, match="max_bytes=0 must be greater than 0"):
        FeatureCache(0)


def test_it_is_frozen_in_evaluation_mode_and_moves(paper: MMFALoss) -> None:
    paper.train()
    assert not any(module.training for module in paper.modules())
    assert list(paper.parameters())
    assert not any(parameter.requires_grad for parameter in paper.parameters())
    assert {p.dtype for p in paper.to(torch.float64).parameters()} == {torch.float64}


def test_autocast(paper: MMFALoss, photos: Tensor, outputs: Tensor) -> None:
    """Everything in float32, whatever precision outputs come in."""
    y = outputs.bfloat16().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        value = paper(y, photos)
    value.backward()
    assert value.dtype == torch.float32
    assert value.item() == paper(y.detach().float(), photos).item()
    assert torch.isfinite(y.grad).all()


def test_settings_are_json(paper: MMFALoss) -> None:
    found = json.loads(json.dumps(paper.settings(), allow_nan=False))
    assert (found["class"], found["pixel"], found["pixel_weight"]) == ("MMFALoss", "mse", 1.0)
    assert [(e["name"], e["features"], e["distance"], e["weight"]) for e in found["encoders"]] == [
        ("resnet-50", "pooled", "mse", 0.1),
        ("blip", "cls", "cosine", 0.1),
    ]


def test_bad_arguments(photos: Tensor) -> None:
    loss, _ = counting_loss()
    encoder = loss.encoders[0]
    for wrong, message in [
        ({"encoders": [encoder, encoder]}, "names of their own, got encoder, encoder"),
        ({"pixel": "l2"}, "no pixel distance 'l2'"),
        ({"pixel_weight": -1}, "pixel_weight=-1 must be finite"),
        ({"pixel_weight": 0}, "pixel_weight=0 must be finite and, without encoders, greater than 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            MMFALoss(**wrong)
    with pytest.raises(TypeError, match="must be FeatureEncoders, got Counting"):
        MMFALoss([Counting()])
    with pytest.raises(ValueError, match=r"prepared for the encoders \[\], but the loss has \['encoder'\]"):
        loss(photos, MMFALoss().prepare(photos))


@pytest.mark.parametrize(
    ("y", "t", "message"),
    [
        (torch.zeros(1, 3, 8, 8), torch.zeros(2, 3, 8, 8), "must have one shape"),
        (torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 8, 8), r"Outputs must be floating images \(N, 3, H, W\)"),
        (torch.zeros(1, 3, 8, 8), torch.zeros(3, 8, 8), r"Targets must be floating images \(N, 3, H, W\)"),
        (torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8).byte(), "Targets must be floating images"),
        (torch.zeros(1, 3, 8, 8), torch.full((1, 3, 8, 8), 255.0), r"in \[-1, 1\], got values from 255 to 255"),
        (torch.zeros(1, 3, 8, 8), torch.full((1, 3, 8, 8), torch.nan), "finite images"),
    ],
    ids=["batch", "grey", "unbatched", "bytes", "range", "nan"],
)
def test_what_are_no_images(y: Tensor, t: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MMFALoss()(y, t)


def test_a_patch_trains_with_it(paper: MMFALoss, patched: PeftModel, faces: DemoFaces, tmp_path: Path) -> None:
    before = {name: tensor.clone() for name, tensor in paper.state_dict().items()}
    settings = {"adversary": Disrupting(steps=1), "max_train_steps": 6, "learning_rate": 1e-2, "train_batch_size": 6}
    args = PatchTrainingArguments(tmp_path, cpu=True, disable_tqdm=True, **settings)
    result = PatchTrainer(patched, faces, args, loss=paper).train()
    values = [entry["loss_clean"] for entry in result.log]
    assert values[-1] < 0.8 * values[0]
    assert all(torch.equal(before[name], tensor) for name, tensor in paper.state_dict().items())
    assert not any(parameter.grad is not None for parameter in paper.parameters())


def test_features_change_what_a_step_learns(paper: MMFALoss, patched: PeftModel, faces: DemoFaces) -> None:
    """The adapter's gradient is that of pixels plus that of features, not that of pixels alone."""
    images, condition = faces[0]["image"][None], {"labels": faces[0]["labels"][None]}

    def gradient(loss: object) -> Tensor:
        patched.zero_grad()
        torch.manual_seed(1)
        patch_step(patched, images, condition, adversary=Disrupting(steps=1), stamp=None, loss=loss)
        return torch.cat([p.grad.flatten() for p in patched.parameters() if p.grad is not None])

    whole, pixels = gradient(paper), gradient(F.mse_loss)
    features = gradient(MMFALoss(list(paper.encoders), pixel_weight=0))
    assert features.norm() > 1e-3 * pixels.norm()
    assert torch.allclose(whole, pixels + features, atol=1e-4 * whole.norm().item())
