"""How defenses are fitted: factors, edits, layers, settings, and the ones that ship."""

import json
import runpy
import sys
from importlib.resources import files
from pathlib import Path

import pytest
import torch
from linear import EPS, Inner, Scale, Tensors
from peft import get_peft_model
from torch import Tensor, nn

from loraguard import GatedLoraConfig
from loraguard.data import DemoFaces
from loraguard.defenses import DEFENSES
from loraguard.defenses.cmua import CMUA, success
from loraguard.defenses.features import watched, with_layers
from loraguard.defenses.fitted import targets_of
from loraguard.defenses.idguard import IDGuard
from loraguard.defenses.protector import UNet
from loraguard.defenses.tafim import TAFIM
from loraguard.defenses.tsdf import TSDF
from loraguard.describing import describe
from loraguard.generators import DemoEditor


def test_search_for_factors(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same under a seed; torch's own draws stay as they were."""
    generators = [DemoEditor(4, 1), nn.Conv2d(3, 3, 3, padding=1)]
    faces, defense = DemoFaces(8, size=16), CMUA(0.4, steps=1, photos=4)
    state = torch.get_rng_state()
    found = [defense.search(generators, faces, trials=3, seed=seed, disable_tqdm=True).factors for seed in (0, 0)]
    assert torch.equal(torch.get_rng_state(), state)
    assert found[0] == found[1]
    assert found[0] is not None
    assert len(found[0]) == 2
    assert all(0 <= factor <= 10 for factor in found[0])
    with pytest.raises(ValueError, match="two photos or more, got 3 and 1"):
        defense.search(generators, DemoFaces(1, size=16), trials=3)
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ImportError, match=r"loraguard\[search\]"):
        defense.search(generators, faces)


def test_search_finds_what_a_factor_decides() -> None:
    """One generator never fails, but pulls P its own way; the other fails only if P is almost wholly its own."""
    pulling, failing = Inner(1e-4 * torch.randn(3, 8, 8)), Inner(torch.full((3, 8, 8), 0.026))
    photos, generators = Tensors(8), [pulling, failing]

    def share(defense: CMUA) -> float:
        torch.manual_seed(0)
        return success(defense.fit(generators, photos, disable_tqdm=True), targets_of(generators), photos)

    defense = CMUA(EPS, steps=8, photos=4)
    found = defense.search(generators, photos, trials=20, highest=3, disable_tqdm=True)
    assert share(defense) == 0
    assert share(found) == 0.5
    assert found.factors is not None
    assert found.factors[0] < found.factors[1]


def test_success_counts_photos_edits_and_generators() -> None:
    """P = eps everywhere moves outputs scaled by 10 by 0.5, over the threshold, and outputs like photos by 0.05."""
    learnt = CMUA().blank((8, 8))
    learnt.pattern.fill_(EPS)
    targets = targets_of([Scale(10.0, 10.0, 10.0), Scale(1.0, 1.0, 1.0)])
    assert success(CMUA(EPS).having(learnt), targets, Tensors()) == 0.5


def test_edits_come_from_labels() -> None:
    """A generator's own edits, or those that are given; without labels neither."""

    class Shift(nn.Module):
        def forward(self, images: Tensor, by: Tensor) -> Tensor:
            return images * by[:, :, None, None]

    photos = [(photo, torch.ones(1)) for photo in Tensors().photos]
    asked = []

    def conditions(labels: Tensor) -> dict[str, dict[str, Tensor]]:
        asked.append(labels.shape)
        return {"twice": {"by": 2 * labels}, "thrice": {"by": 3 * labels}}

    defense = CMUA(EPS, steps=1, batch_size=4)
    assert defense.fit(Shift(), photos, conditions, disable_tqdm=True).fitted
    assert asked == [(4, 1), (4, 1)]
    with pytest.raises(ValueError, match="Edits are made from labels"):
        defense.fit(DemoEditor(4, 1), Tensors(), disable_tqdm=True)


def test_layers_by_name_in_whatever_wrapping(editor: DemoEditor) -> None:
    layer = editor.main[9]
    wrapped = get_peft_model(nn.Sequential(editor), GatedLoraConfig(r=1, target_modules=["0.main.0"]))
    found = with_layers(targets_of([wrapped, editor]), ["main.9", "main.6"])
    assert [target.layer for target in found] == [layer, editor.main[6]]
    with pytest.raises(ValueError, match=r"no layer 'main\.99'"):
        with_layers(targets_of(editor), ["main.99"])
    with pytest.raises(ValueError, match="layers="):
        with_layers(targets_of(nn.Sequential(nn.ReLU())), None)
    assert with_layers(targets_of(editor), None)[0].layer is dict(editor.named_modules())[editor.latent_layer]
    with (
        pytest.raises(ValueError, match=r"Linear gives \(2, 4\)"),
        watched(linear := nn.Linear(3, 4)),
    ):
        linear(torch.zeros(2, 3))
    assert not linear._forward_hooks


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: CMUA(eps=0), "eps=0"),
        (lambda: CMUA(steps=0), "steps=0"),
        (lambda: CMUA(momentum=1), "momentum=1"),
        (lambda: CMUA(factors=(0.0, 0.0)), "not all 0"),
        (lambda: TSDF(temperature=0), "temperature > 0"),
        (lambda: TSDF(step_size=0), "step_size=0"),
        (lambda: TSDF(batch_size=0), "batch_size=0"),
        (lambda: TAFIM(width=6), "multiple of 4"),
        (lambda: TAFIM(depth=0), "depth >= 1"),
        (lambda: IDGuard(blocks=0), "blocks=0"),
        (lambda: CMUA(factors=(1.0,)).fit([nn.Identity()] * 2, Tensors()), "factor for each of 2"),
        (lambda: TSDF(layers=("0", "1")).fit(nn.Identity(), Tensors()), "layer for each of 1"),
        (lambda: CMUA().fit([], Tensors()), "at least one generator"),
        (lambda: CMUA().fit(nn.Identity(), []), "no photos"),
        (lambda: TAFIM().fit(nn.Identity(), []), "no photos"),
        (lambda: CMUA().fit(nn.Identity(), [torch.full((3, 8, 8), 255.0)], disable_tqdm=True), "127.5"),
        (lambda: IDGuard(layers=("0",), identity=nn.Flatten()).fit(nn.Sequential(nn.Identity()), Tensors()), "Conv2d"),
    ],
)  # fmt: skip
def test_bad_settings(make, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()


def test_unets_of_any_depth_and_size() -> None:
    for depth in (1, 2, 5):
        assert UNet(6, 4, depth)(torch.zeros(2, 6, 33, 40)).shape == (2, 3, 33, 40)


@pytest.mark.parametrize("name", ["tafim", "id-guard"])
def test_the_ones_that_ship(name: str) -> None:
    """Of the demo's size and budget, far over noise, and as good on unseen faces as their recipes say."""
    defense = DEFENSES[name].pretrained()
    folder = Path(str(files("loraguard.defenses"))) / "demo_weights" / defense.recipe
    assert (folder / "model.safetensors").stat().st_size < 400_000
    recipe = json.loads((folder / "recipe.json").read_text())
    assert recipe["defense"] == describe(defense)
    assert defense.eps == recipe["settings"]["eps"] == 0.1
    assert defense.fitted.pattern.shape == (3, 64, 64)
    script = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "train_protection.py"))
    figures, said = script["measure"](defense, 24), recipe["figures"]
    assert said["mse_defense"]["low"] / 2 < figures["mse_defense"]["mean"] < 2 * said["mse_defense"]["high"]
    assert figures["mse_defense"]["mean"] > 5 * figures["mse_noise"]["mean"]
    assert abs(figures["dsr_defense"]["mean"] - said["dsr_defense"]["mean"]) < 0.25


@pytest.mark.parametrize("name", ["tafim", "id-guard"])
def test_train_protection(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The script writes what it measured, and measures what it wrote."""
    words = f"--defense {name} --output-dir {tmp_path} --steps 2 --faces 4 --test-faces 4 --width 4 --batch-size 2"
    monkeypatch.setattr(sys, "argv", ["train_protection.py", *words.split(), "--log-every", "1"])
    script = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "train_protection.py"))
    script["main"]()
    recipe = json.loads((tmp_path / "recipe.json").read_text())
    assert [entry["step"] for entry in recipe["log"]] == [1, 2]
    defense = DEFENSES[name].load(tmp_path / "model.safetensors")
    assert describe(defense) == recipe["defense"]
    assert script["measure"](defense, 4) == recipe["figures"]
