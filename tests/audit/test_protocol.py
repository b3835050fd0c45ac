"""The audit's figures against the same made by hand, and what it does with seeds, channels, kills and processes."""

import copy
import json
import signal
from collections import Counter
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from audited import WHOLE, audit_photos, audit_share, killed_before_a_change
from limits import short_attacks
from peft import PeftModel, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from processes import forked, forked_ranks
from setups import STAMP, Audit, Flip
from torch import Tensor, nn
from torch.nn import functional as F

from loraguard import GatedLoraConfig
from loraguard.audit import AuditResult, fingerprint, run_audit
from loraguard.audit.subjects import Subjects
from loraguard.channels import JPEG, Through, published, quantize
from loraguard.data import DemoFaces
from loraguard.defenses import CMUA, AntiForgery, ClassTransferable, Disrupting, RandomNoise
from loraguard.generators import Condition, DemoEditor
from loraguard.metrics import psnr


def only(name: str) -> object:
    """Conditions that offer one edit, so that nothing is drawn."""
    return lambda labels: {name: DemoEditor.conditions(labels)[name]}


def figures(result: AuditResult) -> str:
    return json.dumps(result.to_dict(), allow_nan=False)


def test_every_situation_by_hand(audit: Audit, model: PeftModel, faces: DemoFaces) -> None:
    """Four merged networks and a loop over images, one at a time, through a channel and without."""
    channel = JPEG(50)
    result = audit(conditions=only("Smiling"), batch_size=5, channels={"jpeg": channel})
    networks, off = {}, Counter()
    for patch in ("untouched", "standard", "defensive"):
        clone = copy.deepcopy(model)
        networks[patch] = clone.unload() if patch == "untouched" else clone.merge_and_unload(adapter_names=[patch])
    for index in range(len(faces)):
        image = faces[index]["image"][None]
        condition = DemoEditor.conditions(faces[index]["labels"][None])["Smiling"]

        def flipped(network: nn.Module, image: Tensor = image, condition: Condition = condition) -> Tensor:
            return published(Flip()(network, image, condition), image)

        for patch, network in networks.items():
            reference = quantize(networks["untouched"](image, **condition))
            if patch == "defensive":
                reference = quantize(STAMP.compose(reference))
            photos = {"clean": image, "no-leak": flipped(networks["untouched"])}
            if patch != "untouched":
                photos["leak"] = flipped(network)
            passes = {(name, "none"): photo for name, photo in photos.items()}
            passes |= {(name, "jpeg"): channel(photo) for name, photo in photos.items()}
            passes["leak+channel", "jpeg"] = channel(flipped(Through(network, channel.differentiable())))
            for (knowledge, through), photo in passes.items():
                expected = (quantize(network(photo, **condition)) - reference).square().mean().item()
                (row,) = result.find(generator=patch, knowledge=knowledge, channel=through)
                near = row.values["mse"][0, index].item() == pytest.approx(expected, abs=2e-5)
                near &= row.values["dsr"][0, index].item() == float(expected > 0.05)
                off[patch, knowledge, through] += not near
    # The sign of an output next to zero is as rounding has it, and with it a level of the photo, and all that follows.
    assert max(off.values()) <= 1, off
    there = {(s.generator, s.treatment.knowledge, s.channel) for s in result.situations}
    assert len(there) == len(result.situations) == 7 + 9 + 9


def test_untouched_is_the_reference_of_itself(audit: Audit) -> None:
    estimates = audit()["untouched", "clean"].estimates
    assert estimates["mse"].mean == 0
    assert estimates["psnr"].mean is None
    assert estimates["dsr"].high == pytest.approx(1 - 0.025 ** (1 / 12))


def test_photos_stay_within_the_budget(audit: Audit) -> None:
    result = audit(defenses=Disrupting(0.1, 3), pictures=12, batch_size=5, seeds=[0, 1], budgets=[0.05])
    clean = result.pictures["photo", "none", "clean", "untouched"]
    for defense, knowledge in (("noise", "noise"), ("disrupting", "no-leak")):
        difference = (result.pictures["photo", defense, knowledge, "untouched"] - clean).abs()
        assert len(difference) == 12
        assert 0.05 < difference.max() <= 0.1 + 1e-6
    for row in result.find(defense="disrupting"):
        assert row.values["photo_linf"].shape == (2, 12)
        assert 0 < row.values["photo_linf"].max() <= row.treatment.eps + 1e-6


def test_pictures_of_noise_are_of_one_budget(audit: Audit) -> None:
    """The same budget for all of them where pictures are of several batches, and each of its own photo."""
    defenses = {"weak": Disrupting(0.05, 1), "strong": Disrupting(0.4, 1)}
    pictures = audit(defenses=defenses, pictures=12, batch_size=5).pictures
    clean = pictures["photo", "none", "clean", "untouched"]
    moved = (pictures["photo", "noise", "noise", "untouched"] - clean).abs().flatten(1).amax(1)
    assert moved.tolist() == pytest.approx([0.05] * 12, abs=0.01)


def test_same_seed_same_audit_and_the_model_as_it_was(audit: Audit, model: PeftModel) -> None:
    model.set_adapter("defensive")
    model.train()
    state = torch.get_rng_state()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    runs = []
    for seed in (1, 1, 2):
        torch.rand(3)
        runs.append(figures(audit(defenses=Disrupting(0.1, 2), seeds=[seed])))
    assert runs[0] == runs[1] != runs[2]
    assert model.active_adapter == "defensive"
    assert model.training
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    torch.set_rng_state(state)
    expected = torch.rand(1)
    torch.set_rng_state(state)
    audit(defenses=RandomNoise(0.1))
    assert torch.equal(torch.rand(1), expected)


def test_seeds_are_rows_of_the_values(audit: Audit) -> None:
    both = audit(defenses=Disrupting(0.1, 2), seeds=[3, 4])["standard", "leak"].values["mse"]
    alone = audit(defenses=Disrupting(0.1, 2), seeds=[3])["standard", "leak"].values["mse"]
    assert torch.equal(both[:1], alone)
    assert not torch.equal(both[0], both[1])


def test_curves_follow_budgets_and_steps(audit: Audit) -> None:
    result = audit(defenses=Disrupting(0.1, 4), budgets=[0.02, 0.1, 0.3], steps=[1, 4])
    budgets = {row.treatment.eps: row for row in result.find(role="budget", generator="untouched")}
    assert sorted(budgets) == [0.02, 0.3]
    own = result["untouched", "no-leak"]
    means = [row.values["mse"].mean().item() for row in (budgets[0.02], own, budgets[0.3])]
    assert means[0] < means[1] < means[2]
    assert [row.treatment.steps for row in result.find(role="steps", generator="standard")] == [1, 1]
    single = audit(defenses=Disrupting(0.1, method="fgsm"), steps=[1, 4])
    assert single["standard", "leak"].treatment.steps == 1
    assert not single.find(role="steps")  # one step is all that it has


def test_every_edit_is_drawn(audit: Audit, model: PeftModel) -> None:
    result = audit(model, DemoFaces(60, size=16), defenses=RandomNoise(0.1))
    counts = {name: result.edits.count(name) for name in DemoEditor.conditions(torch.zeros(1, 5))}
    assert len(result.edits) == 60
    assert min(counts.values()) >= 4


def test_figures_do_not_depend_on_what_else_is_audited(audit: Audit) -> None:
    both = audit(defenses={"a": Disrupting(0.1, 2), "b": Flip()}, channels=["grey"])
    one = audit(defenses={"a": Disrupting(0.1, 2)}, patches={"defensive": STAMP})
    assert both.edits == one.edits == audit(defenses=RandomNoise(0.1), batch_size=5).edits
    for name in ("no-leak", "leak"):
        assert torch.equal(both["defensive", name].values["mse"], one["defensive", name].values["mse"])


def test_a_further_network_beside_the_patches(audit: Audit, model: PeftModel) -> None:
    """The standard patch merged into a network of its own has the figures of the patch."""
    merged = copy.deepcopy(model).merge_and_unload(adapter_names=["standard"])
    result = audit(patches={"standard": None}, generators={"merged": merged}, detectors=None)
    for knowledge in ("clean", "no-leak", "leak"):
        one, other = (result[name, knowledge].values["mse"] for name in ("standard", "merged"))
        assert ((one - other).abs() > 1e-5).sum() <= 1  # see above: signs of outputs next to zero
    assert result.settings["networks"] == ["merged"]
    stamped = audit(patches={"merged": STAMP}, generators={"merged": merged}, detectors=None)
    untouched = audit(patches={"merged": None}, generators={"merged": merged}, detectors=None)
    assert torch.equal(untouched["merged", "clean"].values["mse"], result["merged", "clean"].values["mse"])
    assert (stamped["merged", "clean"].values["mse"] > untouched["merged", "clean"].values["mse"]).all()
    assert stamped.settings["patches"]["merged"]["text"] == STAMP.text


def test_photos_that_somebody_else_has_perturbed(audit: Audit, faces: DemoFaces) -> None:
    perturbed = [{"image": (faces[i]["image"] + 0.1).clamp(-1, 1)} for i in range(len(faces))]
    result = audit(defenses={"theirs": perturbed}, channels=["grey"])
    row = result["untouched", "no-leak"]
    assert row.values["photo_linf"].max() == pytest.approx(0.1, abs=0.005)
    assert not result.find(defense="theirs", knowledge="leak")
    assert not result.find(defense="theirs", knowledge="leak+channel")
    with pytest.raises(ValueError, match="12 photos and 3 that 'theirs' has perturbed"):
        audit(defenses={"theirs": perturbed[:3]})


def test_a_budget_of_another_kind_has_its_controls_too(audit: Audit, monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise and the checks' attacks, at the usual budget; which attacks there are, not what they find."""
    short_attacks(monkeypatch)
    result = audit(defenses=AntiForgery(0.1, steps=1), checks=1)
    assert [row.treatment.eps for row in result.find(knowledge="noise", role="main", generator="untouched")] == [0.05]
    assert {row.treatment.defense for row in result.find(role="check", eps=0.05)} >= {"apgd", "square"}
    assert "stronger-attack-found" not in {check.name for check in result.checks}  # it is not the same budget


def test_edits_that_are_given_have_not_to_be_fitted(audit: Audit) -> None:
    edits = {"Smiling": {"labels": torch.tensor([[0.0, 1, 0, 0, 1]])}}
    result = audit(defenses=ClassTransferable(0.1, 2, edits=edits), channels=["grey"])
    knowledge = {row.treatment.knowledge for row in result.find(defense="classtransferable")}
    assert knowledge == {"no-leak", "leak", "leak+channel"}
    with pytest.raises(ValueError, match="'classtransferable' has to be fitted: pass fit_on="):
        audit(defenses=ClassTransferable(0.1, 2))


@dataclass(frozen=True)
class Fitted:
    """Adds a constant that is learnt: one over the number of photos it was fitted on, on the generators it was."""

    eps: float = 0.5
    fitted: float | None = field(default=None, init=False)
    log: ClassVar[list[Any]] = []

    def fit(self, generators: Any, photos: Any, conditions: Any = None, *, disable_tqdm: bool = False) -> Any:
        made = Fitted(self.eps)
        object.__setattr__(made, "fitted", 1 / len(photos))
        self.log.append(getattr(generators, "active_adapter", None))
        return made

    def __call__(self, generator: Any, images: Tensor, condition: Any, clean: Tensor | None = None) -> Tensor:
        assert self.fitted is not None
        return (images + self.fitted).clamp(-1, 1)


def test_a_defense_is_fitted_once_for_each_generator(audit: Audit) -> None:
    defense = Fitted()
    defense.log.clear()
    with pytest.raises(ValueError, match="'fitted' has to be fitted: pass fit_on="):
        audit(defenses=defense)
    result = audit(defenses=defense, fit_on=DemoFaces(5, size=16), batch_size=5)
    assert len(defense.log) == 3
    assert result["untouched", "no-leak"].values["photo_linf"].max() == pytest.approx(0.2, abs=0.008)
    ready = defense.fit(None, [0] * 10)
    defense.log.clear()
    result = audit(defenses=ready, fit_on=DemoFaces(5, size=16))
    assert result["untouched", "no-leak"].values["photo_linf"].max() == pytest.approx(0.1, abs=0.008)


def test_a_defense_is_fitted_on_networks_that_name_no_edits(audit: Audit, editor: DemoEditor) -> None:
    """Such a network takes those of the audit's own generator, and so it has the figures of one that names them."""

    class Unnamed(nn.Module):
        def __init__(self, network: nn.Module) -> None:
            super().__init__()
            self.network = network

        def forward(self, images: Tensor, labels: Tensor) -> Tensor:
            return self.network(images, labels=labels)

    networks, photos = {"named": editor, "unnamed": Unnamed(editor)}, DemoFaces(4, size=16, split="train")
    defense = CMUA(0.1, steps=1, batch_size=4)
    result = audit(generators=networks, defenses=defense, fit_on=photos, patches={}, detectors=None)
    named, unnamed = (result[name, "leak"].values["mse"] for name in networks)
    assert torch.equal(named, unnamed)


def test_frechet_distance_where_there_are_features(audit: Audit) -> None:
    class Means(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.mean((2, 3))

    result = audit(features=Means(), batch_size=5)
    assert result["untouched", "clean"].frechet == pytest.approx(0, abs=1e-4)
    assert result["untouched", "no-leak"].frechet > result["untouched", "noise"].frechet > 0


# What is kept on disk.


@pytest.mark.usefixtures("probed")
def test_a_second_run_reads_what_is_there(audit: Audit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short_attacks(monkeypatch)
    calls = []

    @dataclass(frozen=True)
    class Counting(Flip):
        def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
            calls.append(len(args[1]))
            return super().__call__(*args, **kwargs)

    settings = {
        "defenses": {"flip": Counting()},
        "output_dir": tmp_path,
        "batch_size": 4,
        "faces": DemoFaces(6, size=16),
    }
    first = audit(**settings)
    # The probe's four photos: twice, alone, away from another target, and once more on each patched generator.
    assert sum(calls) == 6 * 3 + 4 * (4 + 2)
    calls.clear()
    again = audit(**settings)
    # One batch of each row of the defense is made again, to be compared with what is stored; and it is probed again.
    assert len(calls) == 3 + (2 + 4 + 1) + 2
    assert figures(first) == figures(again)
    calls.clear()  # what the defense refers to is what it is known by
    assert figures(first) == figures(audit(**{**settings, "output_dir": None}))
    assert all(torch.equal(first.pictures[key], again.pictures[key]) for key in first.pictures)
    calls.clear()
    piece = next(one for one in tmp_path.rglob("cells/*/*.json") if '"passes"' in one.read_text())  # not a probe's
    piece.write_text(piece.read_text()[:50])  # as after a crash of the machine
    assert figures(audit(**settings)) == figures(first)
    assert len(calls) <= 3 + 7 + 2 + 1
    calls.clear()
    more = audit(**settings, channels=["grey"], adaptive_channels=False)
    assert more.find(channel="grey")
    assert sum(calls) == 6 * 3 + 4 * (4 + 2)  # the photos are made again, to be sent through the channel; and probed


def test_another_patch_or_photo_is_not_taken_for_the_old_one(audit: Audit, model: PeftModel, tmp_path: Path) -> None:
    settings = {"defenses": Disrupting(0.1, 1), "output_dir": tmp_path}
    before = audit(**settings)
    with torch.no_grad():
        next(p for name, p in model.named_parameters() if ".standard." in name).add_(1)
    after = audit(**settings)
    assert not torch.equal(before["standard", "clean"].values["mse"], after["standard", "clean"].values["mse"])
    assert torch.equal(before["defensive", "leak"].values["mse"], after["defensive", "leak"].values["mse"])
    other = audit(model, DemoFaces(12, size=16, seed=1), **settings)
    assert not torch.equal(other["untouched", "noise"].values["mse"], after["untouched", "noise"].values["mse"])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """What an audit finds that nobody disturbs."""
    folder = tmp_path_factory.mktemp("whole")
    done = forked(audit_photos, folder / "store", folder / "whole.json")
    assert done.returncode == 0, done.stderr
    return (folder / "whole.json").read_bytes()


def test_killed_and_gone_on(whole: bytes, tmp_path: Path) -> None:
    """SIGKILL before each change to files that a finding makes; what was found stays, and the whole is what it was."""
    store = tmp_path / "killed"
    kept: dict[Path, int] = {}
    for nth in count(1):
        done = forked(killed_before_a_change, store, nth)
        found = {path: path.stat().st_mtime_ns for path in store.glob("cells/*/*.json")}
        assert found.items() >= kept.items()
        kept = found
        if done.returncode == WHOLE:
            break
        assert done.returncode == -signal.SIGKILL, done.stderr
    assert nth > len(kept) > 1  # some died before the finding had its name, some after
    assert not (tmp_path / "none.json").exists()
    done = forked(audit_photos, store, tmp_path / "resumed.json")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "resumed.json").read_bytes() == whole
    assert all(path.stat().st_mtime_ns == then for path, then in kept.items())


def test_two_processes_share_the_batches(whole: bytes, tmp_path: Path) -> None:
    done = forked_ranks(audit_share, tmp_path / "two", tmp_path)
    assert [one.returncode for one in done] == [0, 0], done
    assert [(tmp_path / f"{rank}.json").read_bytes() for rank in (0, 1)] == [whole, whole]


# What is refused, and what is left alone.


def test_fingerprints_name_what_changed(model: PeftModel) -> None:
    before = fingerprint(model)
    assert before.keys() == {"generator", "standard", "defensive"}
    with torch.no_grad():
        next(p for name, p in model.named_parameters() if ".standard." in name).add_(1)
    after = fingerprint(model)
    assert {key for key in before if before[key] != after[key]} == {"standard"}


def test_bfloat16_weights_have_a_fingerprint(model: PeftModel) -> None:
    assert all(len(digest) == 64 for digest in fingerprint(model.to(torch.bfloat16)).values())


def test_flags_and_modes_are_left_alone(audit: Audit, model: PeftModel) -> None:
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    model.train()
    model.get_base_model().main[1].eval()
    modes = [module.training for module in model.modules()]
    audit(defenses=Disrupting(0.1, 1))
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert [module.training for module in model.modules()] == modes


def test_outputs_that_are_not_finite_are_no_success(audit: Audit, model: PeftModel) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".standard." in name:
                parameter.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="'standard' gives outputs that are not finite"):
        audit(defenses=RandomNoise(0.1))


def test_what_cannot_be_audited(audit: Audit, model: PeftModel, editor: DemoEditor) -> None:
    with pytest.raises(TypeError, match="Expected a generator, with patches or without, got str: 'model'"):
        audit("model")
    with pytest.raises(ValueError, match=r"no adapter \['standard', 'defensive'\]; it has none: patches are put on"):
        audit(DemoEditor(conv_dim=4), DemoFaces(1, size=16))
    with pytest.raises(ValueError, match="empty"):
        audit(model, [])
    with pytest.raises(ValueError, match=r"no adapter \['patch'\]; it has \['defensive', 'standard'\]"):
        audit(patches={"patch": None})
    with pytest.raises(ValueError, match=r"the name 'noise' is taken"):
        audit(defenses={"noise": RandomNoise(0.1)})
    with pytest.raises(ValueError, match="names \\['standard'\\] are taken"):
        audit(generators={"standard": editor})
    with pytest.raises(KeyError, match="untouched"):
        _ = audit(defenses=RandomNoise(0.1))["untouched", "leak"]


def test_psnr_of_photos_is_that_of_what_was_published(audit: Audit, model: PeftModel, faces: DemoFaces) -> None:
    result = audit(pictures=12)
    clean, perturbed = (
        result.pictures[key]
        for key in (("photo", "none", "clean", "untouched"), ("photo", "flip", "no-leak", "untouched"))
    )
    expected = psnr(perturbed, clean)
    assert torch.allclose(result["untouched", "no-leak"].values["photo_psnr"][0].float(), expected, atol=1e-3)
    assert F.mse_loss(perturbed, clean) > 0


def test_a_breakable_patch_is_reported_broken() -> None:
    """A patch that does nothing leaves the defense as strong as it was."""
    model = get_peft_model(DemoEditor.pretrained(), GatedLoraConfig(r=2), adapter_name="nothing")
    result = run_audit(
        model, DemoFaces(8, size=32, split="test"), defenses=Disrupting(0.1, 5), patches={"nothing": None},
        disable_tqdm=True,
    )  # fmt: skip
    untouched, patch = (result[name, "no-leak"].values["mse"] for name in ("untouched", "nothing"))
    assert torch.allclose(untouched, patch, rtol=1e-4)
    assert result["nothing", "leak"].estimates["mse"].mean > 0.5 * untouched.mean()


@pytest.mark.parametrize("disabled", [False, True])
def test_switches_and_flags_are_as_before(model: PeftModel, disabled: bool) -> None:
    """Whichever generator was used last, and where adapters were frozen or off: switching them on makes them learn."""
    model.requires_grad_(False)
    with model.disable_adapter() if disabled else nullcontext():
        model.requires_grad_(False)
        for last in ("untouched", "standard"):
            subjects = Subjects(model, {"standard": None})
            with subjects.in_eval_mode(), subjects.one(last):
                pass
            assert not any(parameter.requires_grad for parameter in model.parameters()), last
            layers = [one for one in model.modules() if isinstance(one, BaseTunerLayer)]
            assert {one.disable_adapters for one in layers} == {disabled}, last
