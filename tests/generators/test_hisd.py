"""HiSD against a forward written by hand from its description, its published sizes, and PEFT on every layer."""

import json
import math
import re
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from peft import PeftModel, get_peft_model
from tiny_hisd import TAGS, TINY, drawn
from torch import Tensor, nn
from torch.nn import functional as F

from loraguard import GatedLoraConfig, PatchTrainer, PatchTrainingArguments
from loraguard.data import DemoFaces
from loraguard.defenses import Disrupting
from loraguard.generators import GENERATORS, HiSD, expand
from loraguard.tuner import GatedLoraLayer

SIZE_128 = {"size": 128, "extractor_channels": (64, 128, 256, 512, 1024, 2048)}
# A second implementation, from the description alone.


def norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    c = x.shape[1]
    mean = x.sum((2, 3), keepdim=True) / x[0, 0].numel()
    std = (((x - mean) ** 2).sum((2, 3), keepdim=True) / (x[0, 0].numel() - 1)).sqrt()
    return (x - mean) / (std + 1e-5) * weight.view(-1, c, 1, 1) + bias.view(-1, c, 1, 1)


def by_hand(state: dict[str, Tensor], x: Tensor, tag: int, style: Tensor) -> Tensor:
    def conv(x: Tensor, name: str, padding: int = 1) -> Tensor:
        return F.conv2d(x, state[f"{name}.weight"], state.get(f"{name}.bias"), padding=padding)

    def own(x: Tensor, name: str) -> Tensor:
        return F.leaky_relu(norm(x, state[f"{name}.weight"], state[f"{name}.bias"]), 0.2)

    x = conv(x, "encoder.0", 0)
    for name in ("encoder.1", "encoder.2"):
        main = F.avg_pool2d(conv(own(x, f"{name}.in1"), f"{name}.conv1"), 2)
        main = conv(own(main, f"{name}.in2"), f"{name}.conv2")
        x = (F.avg_pool2d(conv(x, f"{name}.sc", 0), 2) + main) / 2**0.5
    content, root = x, f"translators.{tag}"
    x = conv(x, f"{root}.model.0", 0)
    params = F.linear(style, state[f"{root}.style_to_params.weight"], state[f"{root}.style_to_params.bias"])
    for i in range(1, len(TINY["translator_channels"])):
        main = x
        for j in (1, 2):
            c = main.shape[1]
            bias, weight, params = params[:, :c], params[:, c : 2 * c] + 1, params[:, 2 * c :]
            main = conv(F.leaky_relu(norm(main, weight, bias), 0.2), f"{root}.model.{i}.conv{j}")
        x = (conv(x, f"{root}.model.{i}.sc", 0) + main) / 2**0.5
    mask = 1 / (1 + torch.exp(-conv(x, f"{root}.masks.0", 0)))
    x = conv(x, f"{root}.features.0", 0) * mask + content * (1 - mask)
    for name in ("decoder.0", "decoder.1"):
        main = own(x, f"{name}.in1").repeat_interleave(2, 2).repeat_interleave(2, 3)
        main = conv(own(conv(main, f"{name}.conv1"), f"{name}.in2"), f"{name}.conv2")
        x = (conv(x, f"{name}.sc", 0).repeat_interleave(2, 2).repeat_interleave(2, 3) + main) / 2**0.5
    return conv(x, "decoder.2", 0)


def extracted_by_hand(state: dict[str, Tensor], x: Tensor, tag: int) -> Tensor:
    def conv(x: Tensor, name: str, padding: int = 1) -> Tensor:
        name = f"extractors.model.{name}"
        return F.conv2d(x, state[f"{name}.weight"], state.get(f"{name}.bias"), padding=padding)

    x = conv(x, "0", 0)
    for name in ("1", "2"):
        main = F.avg_pool2d(conv(F.leaky_relu(x, 0.2), f"{name}.conv1"), 2)
        main = conv(F.leaky_relu(main, 0.2), f"{name}.conv2")
        x = (F.avg_pool2d(conv(x, f"{name}.sc", 0), 2) + main) / 2**0.5
    styles = conv(x.mean((2, 3), keepdim=True), "4", 0)[:, :, 0, 0]
    return styles[:, TINY["style_dim"] * tag : TINY["style_dim"] * (tag + 1)]


def mapped_by_hand(state: dict[str, Tensor], z: Tensor, tag: int, attribute: int) -> Tensor:
    def linear(x: Tensor, name: str) -> Tensor:
        name = f"mappers.{tag}.{name}"
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    z = linear(z, "pre_model.0")
    z = linear(z.clamp_min(0), "pre_model.1.linear")
    z = linear(z.clamp_min(0), f"post_models.{attribute}.0.linear")
    return linear(z, f"post_models.{attribute}.1")


def test_outputs_are_those_of_a_forward_by_hand(hisd: HiSD, photos: Tensor) -> None:
    state, z = hisd.state_dict(), torch.randn(5, 3, dtype=torch.float64)
    reference = photos.flip(0).flip(3)
    for tag, attributes in enumerate(TAGS.values()):
        expected = by_hand(state, photos, tag, extracted_by_hand(state, reference, tag))
        torch.testing.assert_close(hisd(photos, tag, reference=reference), expected, rtol=1e-10, atol=1e-10)
        for attribute in range(attributes):
            expected = by_hand(state, photos, tag, mapped_by_hand(state, z, tag, attribute))
            outputs = hisd(photos, tag, latent=z, attribute=attribute)
            torch.testing.assert_close(outputs, expected, rtol=1e-10, atol=1e-10)


# Sizes.


def block(name: str, first: int, middle: int, last: int, norms: tuple[int, ...] = ()) -> dict[str, tuple[int, ...]]:
    return {
        f"{name}.conv1.weight": (middle, first, 3, 3),
        f"{name}.conv1.bias": (middle,),
        f"{name}.conv2.weight": (last, middle, 3, 3),
        f"{name}.conv2.bias": (last,),
        **{f"{name}.in{i}.{what}": (1, c, 1) for i, c in enumerate(norms, 1) for what in ("weight", "bias")},
        f"{name}.sc.weight": (last, first, 1, 1),
    }


def official_shapes(extractor: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Every tensor of an official checkpoint, written down from the description."""

    def layer(name: str, *shape: int) -> dict[str, tuple[int, ...]]:
        return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}

    shapes = layer("encoder.0", 64, 3, 1, 1)
    shapes |= block("encoder.1", 64, 64, 128, (64, 64)) | block("encoder.2", 128, 128, 256, (128, 128))
    shapes |= block("decoder.0", 256, 128, 128, (256, 128)) | block("decoder.1", 128, 64, 64, (128, 64))
    shapes |= layer("decoder.2", 3, 64, 1, 1) | layer("extractors.model.0", extractor[0], 3, 1, 1)
    for i, (first, last) in enumerate(pairwise(extractor), 1):
        shapes |= block(f"extractors.model.{i}", first, first, last)
    shapes |= layer(f"extractors.model.{len(extractor) + 1}", 768, extractor[-1], 1, 1)
    for tag, attributes in enumerate(TAGS.values()):
        shapes |= layer(f"translators.{tag}.model.0", 64, 256, 1, 1)
        for i in range(1, 8):
            shapes |= block(f"translators.{tag}.model.{i}", 64, 64, 64)
        shapes |= layer(f"translators.{tag}.style_to_params", 1792, 256)
        shapes |= layer(f"translators.{tag}.features.0", 256, 64, 1, 1)
        shapes |= layer(f"translators.{tag}.masks.0", 256, 64, 1, 1)
        shapes |= layer(f"mappers.{tag}.pre_model.0", 256, 32)
        shapes |= layer(f"mappers.{tag}.pre_model.1.linear", 256, 256)
        shapes |= layer(f"mappers.{tag}.pre_model.2.linear", 256, 256)
        for i in range(attributes):
            shapes |= layer(f"mappers.{tag}.post_models.{i}.0.linear", 256, 256)
            shapes |= layer(f"mappers.{tag}.post_models.{i}.1.linear", 256, 256)
            shapes |= layer(f"mappers.{tag}.post_models.{i}.2", 256, 256)
    return shapes


def test_the_256_pixel_network_has_the_official_names_and_shapes() -> None:
    state = HiSD().state_dict()
    assert {name: tuple(value.shape) for name, value in state.items()} == official_shapes(
        (32, 64, 128, 256, 512, 512, 512)
    )
    assert len(state) == 263
    assert sum(value.numel() for value in state.values()) == 19_043_939


def test_the_128_pixel_network_has_the_official_names_and_shapes() -> None:
    with torch.device("meta"):
        state = HiSD(**SIZE_128).state_dict()
    assert {name: tuple(value.shape) for name, value in state.items()} == official_shapes(
        SIZE_128["extractor_channels"]
    )
    assert len(state) == 258


# Checkpoints.


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "torch-1.0"])
def test_a_nested_checkpoint_loads_and_its_settings_are_inferred(zipped: bool, tmp_path: Path, photos: Tensor) -> None:
    hisd, raw = drawn(HiSD(**TINY)), drawn(HiSD(**TINY), seed=4)
    path = tmp_path / "gen_00600000.pt"
    states = {"gen": raw.state_dict(), "gen_test": hisd.state_dict()}
    torch.save(states, path, _use_new_zipfile_serialization=zipped)
    loaded = HiSD.from_checkpoint(path)
    assert loaded.config == json.loads(json.dumps(hisd.config)) | {"tags": loaded.config["tags"]}
    assert loaded.tags == hisd.tags
    assert not loaded.training
    photos = photos.float()
    assert torch.equal(loaded(photos, 1, reference=photos), hisd(photos, 1, reference=photos))


@pytest.mark.parametrize(
    "settings",
    [{}, SIZE_128, {**TINY, "mapper_post_channels": (6,), "mapper_pre_channels": (6,)}],
    ids=["256", "128", "tiny"],
)
def test_settings_are_inferred_from_shapes(settings: dict) -> None:
    with torch.device("meta"):
        hisd = HiSD(**settings)
    found = HiSD.settings_from(hisd.state_dict())
    assert {"model_type": "hisd", **json.loads(json.dumps(found))} == json.loads(json.dumps(hisd.config))


def test_other_tags_are_numbered(tmp_path: Path) -> None:
    tags = [["Species", ["cat", "dog", "wild"]]]
    path = tmp_path / "gen.pt"
    torch.save({"gen_test": HiSD(tags=tags, **TINY).state_dict()}, path)
    assert HiSD.from_checkpoint(path).tags == (("tag0", ("attribute0", "attribute1", "attribute2")),)
    named = HiSD.from_checkpoint(path, tags=tags)
    assert named.tags == (("Species", ("cat", "dog", "wild")),)
    with pytest.raises(ValueError, match=r"this network has .*Species.*reference_conditions"):
        named.conditions(torch.zeros(1, 5))


def test_wrong_checkpoints_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "gen.pt"
    state = HiSD(**TINY).state_dict()
    torch.save({"gen": 3}, path)
    with pytest.raises(ValueError, match=r"holds no state dict but a dict of 'gen'.*gen_test"):
        HiSD.from_checkpoint(path)
    torch.save({"gen_test": {"main.0.weight": torch.zeros(1)}}, path)
    with pytest.raises(ValueError, match=r"does not fit HiSD\. Missing: .* and 260 more\. Left over: main\.0\.weight"):
        HiSD.from_checkpoint(path)
    torch.save({"gen_test": {name: value for name, value in state.items() if name != "encoder.1.sc.weight"}}, path)
    with pytest.raises(ValueError, match=r"Missing: encoder\.1\.sc\.weight\."):
        HiSD.from_checkpoint(path)


def test_of_the_weights_and_their_average_the_official_code_takes_the_average(tmp_path: Path) -> None:
    first, average = drawn(HiSD(**TINY)).state_dict(), HiSD(**TINY).state_dict()
    torch.save({"gen": first, "gen_test": average}, tmp_path / "gen.pt")
    assert all(torch.equal(v, average[n]) for n, v in HiSD.from_checkpoint(tmp_path / "gen.pt").state_dict().items())
    torch.save({"gen": first}, tmp_path / "gen.pt")
    assert all(torch.equal(v, first[n]) for n, v in HiSD.from_checkpoint(tmp_path / "gen.pt").state_dict().items())


def test_saved_and_loaded_again(tmp_path: Path, photos: Tensor) -> None:
    hisd, photos = drawn(HiSD(**TINY)), photos.float()
    hisd.save_pretrained(tmp_path)
    again = HiSD.from_pretrained(tmp_path)
    assert again.tags == hisd.tags
    assert again.size == 16
    assert torch.equal(again(photos, 2, reference=photos), hisd(photos, 2, reference=photos))
    card = (tmp_path / "README.md").read_text()
    assert "license: cc-by-nc-sa-4.0" in card
    assert "2103.01456" in card
    assert GENERATORS["hisd"] is HiSD


# Patches.


@pytest.mark.parametrize(
    ("exclude", "layers", "trainable"),
    [(None, 139, 796_371), (r"(extractors|mappers)\..*", 89, 395_913)],
    ids=["all", "that-see-the-photo"],
)
def test_layers_and_parameters_of_a_full_size_patch(exclude: str | None, layers: int, trainable: int) -> None:
    """Of r = 8: r (in k^2 + out) + 1 for each layer, counted from the official shapes."""
    r = 8
    shapes = [
        shape
        for name, shape in official_shapes((32, 64, 128, 256, 512, 512, 512)).items()
        if name.endswith("weight") and ".in" not in name and not (exclude and re.fullmatch(exclude, name))
    ]
    with torch.device("meta"):
        model = get_peft_model(HiSD(), GatedLoraConfig(r=r, exclude_modules=exclude))
    assert sum(isinstance(module, GatedLoraLayer) for module in model.modules()) == len(shapes) == layers
    expected = sum(r * (math.prod(shape[1:]) + shape[0]) + 1 for shape in shapes)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == expected == trainable


def lively(model: PeftModel) -> PeftModel:
    """Each layer's update made large enough that leaving it out shows."""
    for name, parameter in model.named_parameters():
        if "lora_" in name and "gate" not in name:
            nn.init.normal_(parameter, std=0.5)
    return model.eval()


def test_every_adapted_layer_changes_some_edit(hisd: HiSD, photos: Tensor) -> None:
    """None is bypassed, and selecting by tag reaches the adapters: outputs have a slope along each one's scale.

    All scales are 0, so that each layer's slope is that of its adapter alone.
    """
    model = lively(get_peft_model(hisd, GatedLoraConfig(r=2)))
    labels = torch.cat([torch.eye(5)[:2], torch.zeros(3, 5)])
    by_labels = expand(photos, hisd.conditions(labels))
    by_photos = expand(photos, hisd.reference_conditions(dict.fromkeys(TAGS, photos[0]))(photos))
    layers = {name: module for name, module in model.named_modules() if isinstance(module, GatedLoraLayer)}
    linear_or_conv = [m for m in HiSD(**TINY).modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert len(layers) == len(linear_or_conv)
    scales = [torch.zeros((), dtype=torch.float64, requires_grad=True) for _ in layers]
    for layer, scale in zip(layers.values(), scales, strict=True):
        layer.scaling["default"] = scale
    found = []
    for images, condition in (by_labels, by_photos):
        y = model(images, **condition)
        found.append(torch.autograd.grad((y * torch.randn_like(y)).sum(), scales, allow_unused=True))
    for name, *slopes in zip(layers, *found, strict=True):
        moved = ["" if slope is None or slope == 0 else "moved" for slope in slopes]
        used = ("", "moved") if ".extractors." in name else ("moved", "") if ".mappers." in name else ("moved", "moved")
        assert tuple(moved) == used, name


def test_merged_is_what_was_there_before(hisd: HiSD, photos: Tensor, tmp_path: Path) -> None:
    bare = drawn(HiSD(**TINY).double())
    model = lively(get_peft_model(hisd, GatedLoraConfig(r=2)))
    images, condition = expand(photos, bare.conditions(torch.zeros(5, 5)))
    with torch.no_grad():
        patched = model(images, **condition)
        assert not torch.allclose(patched, bare(images, **condition), atol=1e-2)
        model.save_pretrained(tmp_path)
        again = PeftModel.from_pretrained(bare, tmp_path).eval()
        torch.testing.assert_close(again(images, **condition), patched, rtol=1e-5, atol=1e-5)
        merged = model.merge_and_unload()
        torch.testing.assert_close(merged(images, **condition), patched, rtol=1e-9, atol=1e-9)


class Faces(DemoFaces):
    """Drawn faces with labels in HiSD's order; none has bangs."""

    def __getitems__(self, indices: list[int]) -> list[dict[str, Tensor]]:
        return [
            {"image": item["image"], "labels": torch.cat([torch.zeros(1), item["labels"][[3, 0, 1, 2]]])}
            for item in super().__getitems__(indices)
        ]


@pytest.mark.parametrize("by", ["labels", "references"])
def test_a_patch_is_trained_and_loaded(by: str, tmp_path: Path) -> None:
    hisd, faces = drawn(HiSD(**{**TINY, "size": 32})), Faces(8, size=32)
    references = hisd.reference_conditions({name: faces[i]["image"] for i, name in enumerate(TAGS)})
    model = get_peft_model(hisd, GatedLoraConfig(r=2))
    args = PatchTrainingArguments(
        tmp_path, adversary=Disrupting(steps=2), max_train_steps=3, train_batch_size=2, cpu=True, disable_tqdm=True
    )
    make = references if by == "references" else None
    result = PatchTrainer(model, faces, args, conditions=make).train()
    assert all(math.isfinite(entry["loss_adversarial"]) for entry in result.log)
    moved = {
        name.split(".")[2]
        for name, parameter in model.named_parameters()
        if "lora_B" in name and parameter.abs().max() > 0
    }
    learnt = "extractors" if by == "references" else "mappers"
    assert moved == {"encoder", "decoder", "translators", learnt}
    again = PeftModel.from_pretrained(drawn(HiSD(**TINY)), tmp_path).eval()
    image, labels = faces[0]["image"][None], faces[0]["labels"][None]
    for edit in (make or hisd.conditions)(labels).values():
        with torch.no_grad():
            assert torch.equal(again(image, **edit), model(image, **edit))
