"""Generators as the command line names them: with settings that no checkpoint tells."""

from pathlib import Path
from typing import Any

import pytest
import torch

from loraguard.generators import AttGAN, CycleGAN, StarGAN, load_generator
from loraguard.generators.registry import check_generator

RAFD = ("angry", "contemptuous", "disgusted", "fearful", "happy", "neutral", "sad", "surprised")


@pytest.fixture
def files(tmp_path: Path) -> Path:
    torch.save(StarGAN(4, 8, 1, attributes=RAFD).state_dict(), tmp_path / "rafd-G.ckpt")
    torch.save(StarGAN(4, 1, 1, attributes=("Smiling",)).state_dict(), tmp_path / "one-G.ckpt")
    torch.save(CycleGAN(4, 1).state_dict(), tmp_path / "latest_net_G.pth")
    torch.save(AttGAN(4, 2).state_dict(), tmp_path / "weights.pth")
    return tmp_path


def test_classes_of_one_s_own(files: Path) -> None:
    with pytest.raises(ValueError, match="--generator NAME:attributes=ONE"):
        load_generator("stargan", files / "rafd-G.ckpt")
    made = load_generator("stargan:attributes=" + "+".join(RAFD), files / "rafd-G.ckpt", size=None)
    assert made.attributes == RAFD
    assert load_generator("stargan:attributes=Smiling", files / "one-G.ckpt").attributes == ("Smiling",)
    assert load_generator("stargan:attributes=Smiling,size=128", files / "one-G.ckpt", size=64).size == 64


@pytest.mark.parametrize(
    ("spec", "file", "name", "value"),
    [
        ("cyclegan:padding_type=replicate", "latest_net_G.pth", "padding_type", "replicate"),
        ("attgan:crop=None", "weights.pth", "crop", None),
        ("attgan:crop=120,size=64", "weights.pth", "crop", 120),
    ],
)
def test_what_official_networks_vary_in(files: Path, spec: str, file: str, name: str, value: Any) -> None:
    check_generator(spec, files / file)
    assert load_generator(spec, files / file).config[name] == value


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("stargan:atributes=a+b", "no setting atributes; write NAME:KEY=VALUE, with the keys conv_dim, c_dim"),
        ("stargan:64", "no setting 64; write NAME:KEY=VALUE"),
        ("stargan:size=large", r"'stargan:size=large': size='large' must be a whole number"),
        ("stargam:size=64", "Did you mean 'stargan'"),
        ("demo:num_labels=3", None),
    ],
)
def test_mistakes_are_told(files: Path, spec: str, words: str | None) -> None:
    if words is None:
        with pytest.raises(ValueError, match="ships with its weights, and they fix num_labels"):
            load_generator(spec)
        return
    with pytest.raises(ValueError, match=words):
        load_generator(spec, files / "rafd-G.ckpt")
