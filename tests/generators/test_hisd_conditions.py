"""Conditions of HiSD: tags and attributes of each image, codes and reference photos."""

from pathlib import Path

import numpy as np
import pytest
import torch
from limits import short_probes
from peft import get_peft_model
from PIL import Image
from tiny_hisd import TINY, drawn
from torch import Tensor

from loraguard import GatedLoraConfig, PatchTrainer, PatchTrainingArguments, run_audit
from loraguard.defenses import Disrupting
from loraguard.generators import HiSD, conditions_of, expand


def test_a_batch_of_several_tags_is_each_image_on_its_own(hisd: HiSD, photos: Tensor) -> None:
    tag, attribute = torch.tensor([2, 0, 1, 2, 0]), torch.tensor([2, 1, 0, 0, 1])
    reference, latent = photos.flip(0), torch.randn(5, 3, dtype=torch.float64)
    for condition in ({"reference": reference}, {"latent": latent, "attribute": attribute}):
        together = hisd(photos, tag=tag, **condition)
        for i in range(5):
            alone = {key: rows[i : i + 1] for key, rows in condition.items()}
            single = hisd(photos[i : i + 1], tag=int(tag[i]), **alone)
            torch.testing.assert_close(together[i : i + 1], single, rtol=1e-10, atol=1e-10)
    assert not torch.allclose(together[1], hisd(photos[1:2], 2, latent=latent[1:2], attribute=1)[0])


def test_each_tag_is_computed_once(hisd: HiSD, photos: Tensor) -> None:
    rows = []
    for translator in hisd.translators:
        translator.register_forward_hook(lambda _, inputs, __: rows.append(len(inputs[0])))
    hisd(photos, tag=torch.tensor([2, 0, 2, 2, 0]), reference=photos)
    assert rows == [2, 3]


def test_gradients_reach_the_photos() -> None:
    small = {"encoder_channels": (2, 3), "decoder_channels": (3, 2), "extractor_channels": (2, 2), "style_dim": 2}
    widths = {
        "translator_channels": (2, 2),
        "mapper_pre_channels": (2,),
        "mapper_post_channels": (2, 2),
        "noise_dim": 2,
    }
    hisd = drawn(HiSD(**small, **widths).double())
    photos = torch.rand(3, 3, 4, 4, dtype=torch.float64, requires_grad=True)
    latent, tag = torch.randn(3, 2, dtype=torch.float64, requires_grad=True), torch.tensor([1, 0, 1])
    references = photos, photos.detach().flip(0) + 0.1
    assert torch.autograd.gradcheck(lambda x, ref: hisd(x, tag, reference=ref), references, fast_mode=True)
    latents = photos, latent
    assert torch.autograd.gradcheck(lambda x, z: hisd(x, tag, latent=z, attribute=tag), latents, fast_mode=True)


def test_a_flat_photo_has_finite_gradients(hisd: HiSD) -> None:
    flat = torch.zeros(1, 3, 16, 16, dtype=torch.float64, requires_grad=True)
    outputs = hisd(flat, 0, reference=flat)
    outputs.square().sum().backward()
    assert torch.isfinite(outputs).all()
    assert torch.isfinite(flat.grad).all()


def test_edits_by_labels(hisd: HiSD) -> None:
    labels = torch.tensor([[1, 0, 0, 0, 1], [0, 1, 1, 0, 0]]).float()
    edits = hisd.conditions(labels)
    assert list(edits) == list(HiSD.attributes) == ["Bangs", "Eyeglasses", "Black_Hair", "Blond_Hair", "Brown_Hair"]
    assert {name: (edit["tag"].tolist(), edit["attribute"].tolist()) for name, edit in edits.items()} == {
        "Bangs": ([0, 0], [1, 0]),
        "Eyeglasses": ([1, 1], [0, 1]),
        "Black_Hair": ([2, 2], [0, 0]),
        "Blond_Hair": ([2, 2], [1, 1]),
        "Brown_Hair": ([2, 2], [2, 2]),
    }
    codes = [edit["latent"][0].tolist() for edit in edits.values()]
    assert len({tuple(code) for code in codes}) == 5
    for name, edit in hisd.conditions(labels[1:]).items():
        assert torch.equal(edit["latent"], edits[name]["latent"][1:])
    assert not torch.equal(hisd.conditions(labels, seed=1)["Bangs"]["latent"], edits["Bangs"]["latent"])
    with pytest.raises(ValueError, match=r"labels \(N, 5\): Bangs, .*; got \(2, 3\)"):
        hisd.conditions(labels[:, :3])


def test_latent_codes_are_standard_normal_and_never_change() -> None:
    with torch.device("meta"):
        long = HiSD(noise_dim=10_000, **{key: value for key, value in TINY.items() if key != "noise_dim"})
    codes = torch.stack([edit["latent"][0] for edit in long.conditions(torch.zeros(1, 5)).values()])
    assert codes.mean().item() == pytest.approx(0, abs=0.03)
    assert codes.std().item() == pytest.approx(1, abs=0.03)
    assert torch.corrcoef(codes).fill_diagonal_(0).abs().max() < 0.05
    with torch.device("meta"):
        official = HiSD()
    first = official.conditions(torch.zeros(1, 5))["Bangs"]["latent"][0, :3].tolist()
    assert first == pytest.approx([2.3749490, 1.1402543, 0.0299495], abs=1e-5)


def test_edits_go_through_the_network_together(hisd: HiSD, photos: Tensor) -> None:
    labels = (torch.rand(5, 5) > 0.5).float()
    edits = conditions_of(hisd, labels)
    images, condition = expand(photos, edits)
    together = hisd(images, **condition)
    for part, edit in zip(together.split(5), edits.values(), strict=True):
        torch.testing.assert_close(part, hisd(photos, **edit), rtol=1e-10, atol=1e-10)


def test_edits_after_references(hisd: HiSD, photos: Tensor) -> None:
    make = hisd.reference_conditions({"HairColor": photos[0], "Bangs": photos.flip(0)})
    edits = make(photos)
    assert list(edits) == ["HairColor", "Bangs"]
    images, condition = expand(photos, edits)
    hair, bangs = hisd(images, **condition).split(5)
    everywhere = photos[:1].expand(5, -1, -1, -1)
    torch.testing.assert_close(hair, hisd(photos, 2, reference=everywhere), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(bangs, hisd(photos, 0, reference=photos.flip(0)), rtol=1e-10, atol=1e-10)
    assert conditions_of(hisd, torch.zeros(5, 0), make).keys() == edits.keys()
    with pytest.raises(ValueError, match="2 images and 5 reference photos for Bangs"):
        make(photos[:2])
    with pytest.raises(ValueError, match=r"some of the tags Bangs, Eyeglasses, HairColor; got \['Glasses'\]"):
        hisd.reference_conditions({"Glasses": photos[0]})
    with pytest.raises(ValueError, match="all of one size"):
        hisd.reference_conditions({"Bangs": photos[0], "Eyeglasses": photos[0, :, :8]})


def test_photos_without_labels(photos: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Edits after references are trained and audited on images alone."""
    network = drawn(HiSD(**TINY))
    for parameter in network.decoder[-1].parameters():
        parameter.data *= 0.2  # outputs in [-1, 1], as those of a trained network are
    model = get_peft_model(network, GatedLoraConfig(r=2, exclude_modules=HiSD.unseeing))
    make = HiSD(**TINY).reference_conditions({"Eyeglasses": photos[0].float()})
    images = list(photos.float())
    settings = PatchTrainingArguments(
        tmp_path, adversary=Disrupting(steps=1), max_train_steps=2, cpu=True, disable_tqdm=True
    )
    assert len(PatchTrainer(model, images, settings, conditions=make).train().log) == 2
    short_probes(monkeypatch)
    audit = run_audit(
        model, images, defenses=Disrupting(steps=1), patches={"default": None}, conditions=make, disable_tqdm=True
    )
    assert audit.edits == ["Eyeglasses"] * 5


def refusal(hisd: HiSD, photos: Tensor, **condition: object) -> str:
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the callers look at the message
        hisd(photos, **condition)
    return str(error.value)


def test_conditions_that_make_no_sense_are_refused(hisd: HiSD, photos: Tensor) -> None:
    z = torch.zeros(5, 3)
    assert "got neither" in refusal(hisd, photos, tag=0)
    assert "got both" in refusal(hisd, photos, tag=0, reference=photos, latent=z, attribute=0)
    assert "give it with `latent`" in refusal(hisd, photos, tag=0, latent=z)
    assert "not with `reference`" in refusal(hisd, photos, tag=0, reference=photos, attribute=0)
    assert "There is no tag 3: expected 0 to 2" in refusal(hisd, photos, tag=3, reference=photos)
    assert "There is no tag -1" in refusal(hisd, photos, tag=torch.tensor([0, 1, -1, 0, 0]), reference=photos)
    tag = torch.tensor([2, 1, 2, 2, 2])
    assert "no attribute 2: expected 0 to 1" in refusal(hisd, photos, tag=tag, latent=z, attribute=2)
    assert "integers (5,), got torch.int64 (1,)" in refusal(hisd, photos, tag=tag[:1], reference=photos)
    assert "integers (5,), got torch.float32 (5,)" in refusal(hisd, photos, tag=tag.float(), reference=photos)
    assert "reference photos (5, 3, h, w), got (2, 3, 16, 16)" in refusal(hisd, photos, tag=0, reference=photos[:2])
    assert "at least 4 pixels" in refusal(hisd, photos, tag=0, reference=photos[:, :, :2])
    assert "latent codes (5, 3), got (5, 4)" in refusal(hisd, photos, tag=0, latent=torch.zeros(5, 4), attribute=0)
    assert "multiples of 4, got 16x15" in refusal(hisd, photos[..., :15], tag=0, reference=photos)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"decoder_channels": (6, 4)}, r"decoder_channels must begin with the encoder's last .* 8, got \(6, 4\)"),
        ({"mapper_post_channels": (5,)}, r"mapper_post_channels must begin .* 6, got \(5,\)"),
        ({"tags": []}, "needs a name"),
        ({"tags": [["a", ["x"]], ["a", ["x"]]]}, "name of its own"),
        ({"tags": [["a", []]]}, "needs a name"),
    ],
    ids=["decoder", "mapper", "no-tag", "twice", "no-attribute"],
)
def test_settings_that_do_not_fit_are_refused(changes: dict, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        HiSD(**{**TINY, **changes})


def test_preprocessing() -> None:
    """A square is only resized, by Pillow's bilinear filter; of other photos the middle is kept."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    transform = HiSD(**TINY).transform()
    resized = np.asarray(Image.fromarray(pixels).resize((16, 16), Image.Resampling.BILINEAR))
    expected = torch.from_numpy(resized.copy()).permute(2, 0, 1) / 127.5 - 1
    torch.testing.assert_close(transform(Image.fromarray(pixels)), expected, rtol=0, atol=1e-6)
    tall = np.zeros((48, 16, 3), np.uint8)
    tall[16:32] = 255
    assert torch.equal(transform(Image.fromarray(tall)), torch.ones(3, 16, 16))
