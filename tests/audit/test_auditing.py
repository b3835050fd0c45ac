"""From settings to an audit."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from safetensors.torch import load_file, save_file
from tiny import Tiny, TinyFaces

from loraguard import GatedLoraConfig, PatchTrainer, PatchTrainingArguments, Stamp
from loraguard.audit import AuditResult
from loraguard.commands.audit import audit_by_settings, stamp_of
from loraguard.commands.audit_settings import SETTINGS, AuditSettings, named
from loraguard.defenses import Disrupting
from loraguard.defenses.cmua import CMUA
from loraguard.defenses.tafim import TAFIM
from loraguard.training.batches import Batches

STAMP = Stamp("AI", size=0.8)
TINY = AuditSettings(
    generator="tiny", data="tiny", images=4, fit_images=8, checks=0, defenses={"pgd": "disrupting:0.1,steps=2"}
)


def run(settings: AuditSettings, folder: Path) -> AuditResult:
    return audit_by_settings(settings, folder, say=lambda _: None, disable_tqdm=True)[0]


def train(folder: Path, stamp: Stamp | None = None) -> Path:
    """A patch after one step."""
    arguments = PatchTrainingArguments(
        folder, stamp=stamp, adversary=Disrupting(steps=1), max_train_steps=1, cpu=True, disable_tqdm=True
    )
    PatchTrainer(get_peft_model(Tiny.pretrained(), GatedLoraConfig(r=2)), TinyFaces(8, size=32), arguments).train()
    return folder


# Settings.


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"images": -1}, r"images=-1 must be greater than or equal to 1"),
        ({"images": "100"}, r"images='100' must be a whole number"),
        ({"images": True}, r"images=True must be a whole number"),
        ({"images": 2.5}, r"images=2\.5 must be a whole number"),
        ({"checks": -1}, r"checks=-1 must be greater than or equal to 0"),
        ({"train_steps": 0, "train": ["standard"]}, r"train_steps=0 must be greater than or equal to 1"),
        ({"train_steps": 5}, r"train_steps is of what `train` names"),
        ({"train": ["finetune"]}, r"train\[0\]='finetune' must be 'standard', 'ungated', 'clean-only' or 'fine-tune'"),
        ({"train": "standard"}, r"train='standard' must be a list"),
        ({"defenses": {}}, r"nothing to audit"),
        ({"defenses": {"pgd": 3}}, r"defenses\['pgd'\]=3 must be a text"),
        ({"defenses": "disrupting"}, r"defenses='disrupting' must be names, each with a value"),
        ({"defenses": {"noise": "noise"}}, r"the name 'noise' is taken"),
        ({"defenses": {"a": "noise"}, "perturbed": {"a": "."}}, r"the name 'a' is taken"),
        ({"no_leak_only": ["tafim"]}, r"no_leak_only=\['tafim'\]: the defenses are disrupting"),
        ({"patches": {"untouched": "."}}, r"the name 'untouched' is taken"),
        ({"patches": {"clean-only": "."}}, r"'clean-only' is what `train` makes, and the report says how"),
        ({"patches": {"standard": "."}, "train": ["standard"]}, r"the name 'standard' is taken"),
        ({"patches": {"v1.5": "."}}, r"the name 'v1\.5' must have letters and no dot"),
        ({"budgets": ["0.1"]}, r"budgets\[0\]='0\.1' must be a number"),
        ({"budgets": [0.1, -0.1]}, r"budgets\[1\]=-0\.1 must be greater than 0"),
        ({"budgets": [2.5]}, r"budgets\[0\]=2\.5 must be less than or equal to 2"),
        ({"budgets": [float("nan")]}, r"budgets\[0\]=nan must be"),
        ({"budgets": 0.1}, r"budgets=0\.1 must be a list"),
        ({"steps": [0]}, r"steps\[0\]=0 must be greater than or equal to 1"),
        ({"steps": [1.5]}, r"steps\[0\]=1\.5 must be a whole number"),
        ({"seeds": []}, r"seeds=\(\) must have at least 1 item"),
        ({"seeds": [-1]}, r"seeds\[0\]=-1 must be greater than or equal to 0"),
        ({"seeds": [0, 2**32]}, r"seeds\[1\]=4294967296 must be less than 4294967296"),
        ({"device": "gpu"}, r"device='gpu' must be 'cpu' or 'auto'"),
        ({"checkpoint": 5}, r"checkpoint=5 must be a text"),
        ({"adaptive_channels": 1}, r"must be true or false"),
    ],
)
def test_values_that_cannot_be(change: dict, said: str) -> None:
    with pytest.raises(ValueError, match=f"^here: .*{said}"):
        AuditSettings().updated(change, "here")


def test_what_yaml_may_say(tmp_path: Path) -> None:
    """Whole numbers for numbers, each value once, specs as flags have them, nothing at all."""
    file = tmp_path / "audit.yaml"
    file.write_text("budgets: [1, 0.5, 1]\nseeds: [3, 3]\ndefenses: ['disrupting:steps=3', weak=noise]\n")
    settings = AuditSettings.read(file)
    assert settings.budgets == (1, 0.5)
    assert settings.seeds == (3,)
    assert settings.defenses == {"disrupting": "disrupting:steps=3", "weak": "noise"}
    file.write_text("")
    assert AuditSettings.read(file) == AuditSettings()


@pytest.mark.parametrize(
    ("text", "said"),
    [("images: [", "is no YAML"), ("- images", "must hold keys and values"), ("image: 5", "Did you mean 'images'"),
     ("fit-images: 5", "Did you mean 'fit_images'"), ("1: 2", "there is no 1"),
     ("budgets: [1e-2]", r"budgets\[0\]='1e-2' must be a number")],
)  # fmt: skip
def test_what_yaml_may_not(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ValueError, match=rf"a\.yaml.*{said}") as caught:
        AuditSettings.read(tmp_path / "a.yaml")
    assert "\n" not in str(caught.value)


def test_settings_come_back(tmp_path: Path) -> None:
    settings = AuditSettings(
        images=3, budgets=(0.1, 1), seeds=(1, 2), channels=("jpeg:75+resize:0.5",), adaptive_channels=False,
        patches={"ä": "a folder"}, perturbed={"b": "c"}, train=("fine-tune",), train_steps=4, lpips="cache",
        split="test", ignore_fingerprint=True,
    )  # fmt: skip
    settings.write(tmp_path)
    assert AuditSettings.read(tmp_path / SETTINGS) == settings
    differing = {key for key, value in asdict(settings).items() if value != asdict(AuditSettings())[key]}
    assert len(differing) == 12


def test_names_of_specs() -> None:
    assert named(["a/b/patch", "me/other", "x=me/third"]) == {
        "patch": "a/b/patch", "other": "me/other", "x": "me/third"
    }  # fmt: skip
    assert named(["cmua@runs/a=b.safetensors"]) == {"cmua": "cmua@runs/a=b.safetensors"}
    with pytest.raises(ValueError, match="Two are called 'patch'; give one another name: OTHER=c/patch"):
        named(["a/patch", "c/patch"])


# Audits.


def test_patches_with_and_without_a_stamp(tiny: list[str], tmp_path: Path) -> None:
    """The stamp is that of the patch's provenance; its detector is calibrated on the untouched generator."""
    patches = {"plain": str(train(tmp_path / "plain")), "warning": str(train(tmp_path / "warning", STAMP))}
    result = run(replace(TINY, patches=patches), tmp_path / "out")
    assert result.settings["patches"]["plain"] is None
    assert result.settings["patches"]["warning"]["text"] == "AI"
    detector = result.settings["detectors"]["warning"]
    assert detector["stamp"]["size"] == 0.8
    assert detector["calibrated_on"] == 8 * 5
    assert detector["threshold"] != 0.5
    assert (result["untouched", "clean"].values["stamp_rate"] == 0).all()
    assert set(result.settings["weights_sha256"]) == {"generator", "plain", "warning"}


def test_a_stamp_that_cannot_be_drawn_is_said(tmp_path: Path) -> None:
    for stamp, said in (
        ({"image": __file__}, "it has image=.*no file is opened because a patch names it"),
        ({"text": "AI", "font": "DejaVu Serif"}, "it has font='DejaVu Serif'.*no file is opened"),
        ({"text": "A" * 100_000}, "text has 100,000 characters, at most 500 are drawn"),
        ({"text": "AI", "of_width": 10**9}, "of_width=1000000000 must be"),
        ({"text": "AI", "size": "0.5"}, "size='0.5' must be a number"),
        ({"text": "AI", "opacity": float("nan")}, "opacity=nan must be in"),
        ({"text": "AI", "blink": True}, "unexpected keyword argument 'blink'"),
        ("AI", "'str' object"),
    ):
        config = GatedLoraConfig(provenance={"settings": {"stamp": stamp}})
        with pytest.raises(ValueError, match=f"^mine: its stamp.*{said}") as caught:
            stamp_of(config, "mine")
        assert len(str(caught.value)) <= 600
    assert stamp_of(GatedLoraConfig(), "mine") is None
    assert stamp_of(GatedLoraConfig(provenance={"settings": {"stamp": None}}), "mine") is None


def test_a_patch_for_other_weights(tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    patches = {"plain": str(train(tmp_path / "plain"))}
    other = Tiny(conv_dim=4, num_blocks=1).eval()
    monkeypatch.setattr(Tiny, "pretrained", classmethod(lambda cls: other))
    with pytest.raises(ValueError, match=r"made for a Tiny with weights .*\(--ignore-fingerprint\)"):
        run(replace(TINY, patches=patches), tmp_path / "out")
    assert not (tmp_path / "out" / SETTINGS).exists()
    assert run(replace(TINY, patches=patches, ignore_fingerprint=True), tmp_path / "out").find(generator="plain")


def test_adversaries_are_trained_once(tiny: list[str], tmp_path: Path) -> None:
    settings = replace(TINY, train=("standard", "fine-tune"), train_steps=2)
    result = run(settings, tmp_path)
    assert {one.generator for one in result.situations} == {"untouched", "standard", "fine-tune"}
    about = json.loads((tmp_path / "trained" / "standard" / "control.json").read_text())
    assert about["settings"]["max_train_steps"] == 2
    assert about["settings"]["adversary"]["eps"] == 0.1
    weights = tmp_path / "trained" / "standard" / "adapter_model.safetensors"
    before = weights.stat().st_mtime_ns
    assert run(settings, tmp_path).to_dict() == result.to_dict()
    assert weights.stat().st_mtime_ns == before


def test_an_interrupted_adversary_goes_on_unless_it_is_another(
    tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if nothing had happened; a checkpoint of another training is not taken for its beginning."""
    monkeypatch.setattr("loraguard.commands.audit.write_report", lambda result, folder: folder / "report.html")
    settings = replace(TINY, train=("standard",), train_steps=4)
    run(settings, tmp_path / "whole")
    started: list[int] = []
    after = Batches.after
    monkeypatch.setattr(Batches, "after", lambda self, step: started.append(step) or after(self, step))

    def interrupted(folder: Path) -> None:
        calls = iter(range(9))
        call = Disrupting.__call__

        def signalled(self: Disrupting, *args: object, **kwargs: object) -> torch.Tensor:
            if next(calls) == 1:
                os.kill(os.getpid(), signal.SIGINT)
            return call(self, *args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(Disrupting, "__call__", signalled)
            with pytest.raises(KeyboardInterrupt):
                run(settings, folder)

    def weights(folder: Path) -> dict[str, torch.Tensor]:
        return load_file(folder / "trained" / "standard" / "adapter_model.safetensors")

    interrupted(tmp_path / "out")
    run(settings, tmp_path / "out")
    assert started == [0, 2]
    for name, value in weights(tmp_path / "whole").items():
        assert torch.equal(weights(tmp_path / "out")[name], value)
    interrupted(tmp_path / "other")
    run(replace(settings, train_steps=3), tmp_path / "other")
    assert started == [0, 2, 0, 0]


def test_fitted_defenses_come_from_files(tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generator, faces = Tiny.pretrained(), TinyFaces(8, size=32)
    cmua = CMUA(0.1, steps=1, photos=4, batch_size=4).fit(generator, faces, disable_tqdm=True)
    tafim = TAFIM(0.1, steps=1, width=4, depth=2).fit(generator, faces, disable_tqdm=True)
    files = cmua.save(tmp_path / "c.safetensors"), tafim.save(tmp_path / "t.safetensors")
    monkeypatch.setattr(TAFIM, "pretrained", classmethod(lambda cls: cls.load(files[1])))
    specs = {"cmua": f"cmua@{files[0]}", "tafim": "tafim@pretrained"}
    result = run(replace(TINY, defenses=specs), tmp_path / "out")
    shift = result["untouched", "no-leak", "cmua"].values["photo_linf"]
    assert shift.max() <= 0.1 + 1e-6
    assert shift.min() > 0
    assert result["untouched", "no-leak", "tafim"].treatment.eps == 0.1


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("disruptin", r"Did you mean 'disrupting'"),
        ("disruptin@file", r"Did you mean 'disrupting'"),
        ("disrupting:steps=2.5", r"steps=2\.5 must be a whole number.*disrupting takes"),
        ("disrupting:steps='3'", r"steps='3' must be a whole number"),
        ("disrupting:-1", r"eps=-1 must be in"),
        ("disrupting:stride=3", r"unexpected keyword argument 'stride'"),
        ("disrupting@file", r"disrupting is not fitted, so there is nothing to load; write 'disrupting'"),
        ("cmua@pretrained", r"none ships with the package"),
        ("cmua@nowhere", r"There is no file nowhere"),
        ("cmua@{tafim}", r"holds TAFIM, not CMUA"),
    ],
)
def test_bad_defenses_are_refused_before_anything(spec: str, said: str, tiny: list[str], tmp_path: Path) -> None:
    save_file({"pattern": torch.zeros(3, 4, 4)}, tmp_path / "t", metadata={"class": "TAFIM", "settings": "{}"})
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        run(replace(TINY, defenses={"it": spec.format(tafim=tmp_path / "t")}), tmp_path / "out")
    assert not (tmp_path / "out").exists()
