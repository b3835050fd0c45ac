"""From names, paths and numbers to an audit: what `loraguard audit` does."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from peft import PeftModel, get_peft_model
from torch import nn
from torch.utils.data import Dataset

from .audit import AuditResult, calibrate_detector, run_audit, write_report
from .audit.controls import train_controls
from .data import PerturbedPhotos, open_data, split_photos
from .defenses import DEFENSES, Disrupting
from .files import whole_files, writable_folder
from .generators import load_generator, transform_of
from .hub import load_patch
from .metrics import LPIPS, Inception
from .registry import build
from .stamp import Stamp
from .training import PatchTrainingArguments
from .tuner import GatedLoraConfig

SETTINGS = "audit.yaml"
"""In an audit's folder, what `--resume` reads."""


@dataclass(frozen=True)
class AuditSettings:
    """What an audit is made of, by the names of the command line's flags and of keys in its YAML file.

    Args:
        generator: by name, one of `loraguard.generators.GENERATORS`.
        checkpoint: its weights: a file, a folder or an id of the Hub; none for one that ships with them.
        image_size: of the generator, where its weights do not tell.
        data: as :func:`~loraguard.data.open_data` takes it.
        split: of the data set's own.
        images: how many photos are audited.
        fit_images: how many others defenses are fitted on, detectors calibrated on and patches trained on.
        patches: by name, a folder or an id of the Hub.
        train: adversaries to train here: "standard", "ungated", "clean-only", "fine-tune".
        train_steps: of each of these; by default the fast recipe's epochs.
        defenses: by name, a spec, such as "disrupting:0.05,steps=30"; "NAME@FILE" loads a fitted one, "NAME@pretrained"
            one that ships with the package.
        no_leak_only: defenses, by name, that are not crafted anew with a leak.
        perturbed: by name, a folder with photos that a defense has perturbed elsewhere.
        channels: specs, such as "jpeg:75+resize:0.5".
        adaptive_channels: defenses are crafted through each channel as well.
        budgets: further values of `eps`, as a curve.
        strengths: further values of `steps`, as a curve.
        seeds: of everything that is drawn; the first one also draws photos and edits.
        checks: on how many photos to try other attacks.
        lpips: "cache", or a file with AlexNet's weights, to measure LPIPS.
        fid: "cache", or a file with Inception's weights, to measure FID.
        batch_size: photos at a time.
        pictures: photos to show.
        device: "auto" or "cpu".

    Example:
        >>> AuditSettings(defenses={"pgd": "disrupting:steps=30"}).seeds
        (0,)
    """

    generator: str = "demo"
    checkpoint: str | None = None
    image_size: int | None = None
    data: str = "demo"
    split: str | None = None
    images: int = 100
    fit_images: int = 200
    patches: dict[str, str] = field(default_factory=dict)
    train: tuple[str, ...] = ()
    train_steps: int | None = None
    defenses: dict[str, str] = field(default_factory=lambda: {"disrupting": "disrupting"})
    no_leak_only: tuple[str, ...] = ()
    perturbed: dict[str, str] = field(default_factory=dict)
    channels: tuple[str, ...] = ()
    adaptive_channels: bool = True
    budgets: tuple[float, ...] = ()
    strengths: tuple[int, ...] = ()
    seeds: tuple[int, ...] = (0,)
    checks: int = 50
    lpips: str | None = None
    fid: str | None = None
    batch_size: int = 25
    pictures: int = 6
    device: str = "auto"

    @classmethod
    def read(cls, file: Path) -> AuditSettings:
        """Settings from a YAML file.

        Raises:
            FileNotFoundError: if there is none.
            ValueError: for a key that does not exist, or a value of the wrong kind.
        """
        found = yaml.safe_load(file.read_text(encoding="utf-8"))
        return cls().updated(found or {}, str(file))

    def updated(self, changes: dict[str, Any], source: str) -> AuditSettings:
        """The same with other values.

        Raises:
            ValueError: for a key that does not exist, or a value of the wrong kind; the message names the source.
        """
        if not isinstance(changes, dict):
            raise ValueError(f"{source} must hold keys and values, such as 'generator: demo'.")
        kinds = {one.name: type(getattr(AuditSettings(), one.name)) for one in fields(self)}
        for key, value in changes.items():
            if key not in kinds:
                near = difflib.get_close_matches(str(key), kinds, 1)
                raise ValueError(f"{source}: there is no {key!r}.{f' Did you mean {near[0]!r}?' if near else ''}")
            if kinds[key] is dict and not isinstance(value, dict):
                raise ValueError(f"{source}: {key} must be names with values, got {value!r}.")
            if kinds[key] is tuple and not isinstance(value, (list, tuple)):
                raise ValueError(f"{source}: {key} must be a list, got {value!r}.")
            if kinds[key] in (int, bool) and not isinstance(value, kinds[key]):
                raise ValueError(f"{source}: {key} must be {kinds[key].__name__}, got {value!r}.")
        made: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in changes.items()
        }
        return replace(self, **made)

    def write(self, folder: Path) -> None:
        """Leave the settings in the audit's folder, for `--resume`."""
        plain = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}
        with whole_files(folder) as draft:
            (draft / SETTINGS).write_text(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True), encoding="utf-8")


def audit_by_settings(
    settings: AuditSettings, output_dir: str | Path, *, say: Callable[[str], None] = print, disable_tqdm: bool = False
) -> tuple[AuditResult, Path]:
    """Load everything, train what is to be trained, audit, and write the report.

    Args:
        settings: what to audit.
        output_dir: gets `report.html`, `audit.json` and the other files of :func:`~loraguard.audit.write_report`, and
            what `--resume` needs.
        say: called with a line of text as each part begins.
        disable_tqdm: no progress bars.

    Returns:
        What was found, and the report's path.

    Raises:
        OSError: if something is not there, or the folder cannot be written to.
        ValueError: if something does not fit together. Both before long work starts, but for photos that are broken.
    """
    made = {name: build_defense(spec) for name, spec in settings.defenses.items()}
    folder = writable_folder(output_dir)
    torch.manual_seed(settings.seeds[0])
    size = {} if settings.image_size is None else {"size": settings.image_size}
    generator = load_generator(settings.generator, settings.checkpoint, **size)
    transform = transform_of(generator)
    attributes = getattr(generator, "attributes", ())
    dataset = open_data(settings.data, split=settings.split, attributes=attributes, transform=transform)
    others, photos = split_photos(
        dataset, train_size=settings.fit_images, test_size=settings.images, seed=settings.seeds[0]
    )
    defenses: dict[str, Any] = {**made}
    defenses |= {name: PerturbedPhotos(one, photos, transform) for name, one in settings.perturbed.items()}
    lpips = None if settings.lpips is None else LPIPS.load(_weights(settings.lpips))
    inception = None if settings.fid is None else Inception.load(_weights(settings.fid))
    settings.write(folder)

    model, stamps = load_patches(generator, settings.patches)
    trained: dict[str, nn.Module] = {}
    if settings.train:
        say(f"Training {', '.join(settings.train)} on {len(others)} photos")
        model, extra, trained = train_adversaries(model, others, settings, made, folder, disable_tqdm=disable_tqdm)
        stamps |= extra
    device = torch.device("cuda" if settings.device == "auto" and torch.cuda.is_available() else "cpu")
    for network in (model, *trained.values(), *(one for one in (lpips, inception) if one is not None)):
        network.to(device)
    detectors = {name: calibrate_detector(model, others, stamp) for name, stamp in stamps.items() if stamp is not None}
    say(f"Auditing {len(defenses)} defenses on {len(photos)} photos")
    result = run_audit(
        model,
        photos,
        defenses=defenses,
        patches=stamps,
        generators=trained,
        channels=settings.channels,
        adaptive_channels=settings.adaptive_channels,
        budgets=settings.budgets,
        strengths=settings.strengths,
        no_leak_only=settings.no_leak_only,
        seeds=settings.seeds,
        fit_on=others,
        detectors={name: one for name, one in detectors.items() if one is not None},
        lpips=lpips,
        features=inception,
        checks=settings.checks,
        output_dir=folder,
        batch_size=settings.batch_size,
        pictures=settings.pictures,
        disable_tqdm=disable_tqdm,
    )
    return result, write_report(result, folder)


def build_defense(spec: str) -> Any:
    """A defense from a spec, or a fitted one: "cmua:steps=5", "cmua@FILE", "tafim@pretrained".

    Raises:
        ValueError: for a name, settings or a file that cannot be used.

    Example:
        >>> build_defense("disrupting:0.1,steps=15").steps
        15
    """
    name, at, file = spec.partition("@")
    try:
        if not at:
            return build(DEFENSES, spec)
        loader = getattr(DEFENSES[name], "pretrained" if file == "pretrained" else "load", None)
    except KeyError as error:
        raise ValueError(error.args[0]) from None
    if loader is None:
        raise ValueError(f"{spec!r}: {name} is not fitted, so there is nothing to load; write {name!r}.")
    return loader() if file == "pretrained" else loader(file)


def load_patches(generator: nn.Module, patches: dict[str, str]) -> tuple[PeftModel, dict[str, Stamp | None]]:
    """The generator with patches on it, checked as :func:`~loraguard.hub.load_patch` does, and the stamp of each.

    Without patches the model has an adapter all the same, which does nothing.
    """
    model: nn.Module = generator
    for name, where in patches.items():
        model = load_patch(where, model, adapter_name=name)
    if not isinstance(model, PeftModel):
        return get_peft_model(generator, GatedLoraConfig(r=1), adapter_name="nothing"), {}
    return model, {name: stamp_of(model.peft_config[name]) for name in patches}


def stamp_of(config: Any) -> Stamp | None:
    """What a patch stamps, as its config's provenance has it; None for a standard patch or where nothing is known."""
    stamp = ((getattr(config, "provenance", None) or {}).get("settings") or {}).get("stamp")
    return None if not isinstance(stamp, dict) else Stamp(**{k: v for k, v in stamp.items() if k != "class"})


def train_adversaries(
    model: PeftModel,
    photos: Dataset[Any],
    settings: AuditSettings,
    defenses: dict[str, Any],
    folder: Path,
    *,
    disable_tqdm: bool,
) -> tuple[PeftModel, dict[str, Stamp | None], dict[str, nn.Module]]:
    """Train what `settings.train` asks for, by the fast recipe at the largest budget among the defenses."""
    eps = max((one.eps for one in defenses.values() if not hasattr(one, "budget")), default=0.05)
    arguments = PatchTrainingArguments(
        folder,
        adversary=Disrupting(eps, steps=4, step_size=eps / 2),
        max_train_steps=settings.train_steps,
        seed=settings.seeds[0],
        cpu=settings.device == "cpu",
        disable_tqdm=disable_tqdm,
    )
    controls = train_controls(model, photos, arguments, folder / "trained", kinds=settings.train)
    stamps = controls.add_to(model)
    return model, stamps | dict.fromkeys(controls.generators, controls.stamp), controls.generators


def _weights(source: str) -> Path | None:
    return None if source == "cache" else Path(source)


def named(specs: list[str]) -> dict[str, str]:
    """Specs of the command line by name: `NAME=SPEC`, or a spec whose own first word is its name.

    Raises:
        ValueError: if two have the same name.

    Example:
        >>> named(["disrupting:steps=30", "weak=disrupting:steps=3"])
        {'disrupting': 'disrupting:steps=30', 'weak': 'disrupting:steps=3'}
    """
    found: dict[str, str] = {}
    for spec in specs:
        name, sign, rest = spec.partition("=")
        if not sign or ":" in name or "@" in name or "," in name:
            name, rest = Path(spec.partition(":")[0].partition("@")[0]).name, spec
        if name in found:
            raise ValueError(f"Two are called {name!r}; give one another name: OTHER={rest}")
        found[name] = rest
    return found
