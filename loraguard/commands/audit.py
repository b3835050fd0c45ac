"""What `loraguard audit` does: from settings to an audit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from peft import PeftModel, get_peft_model
from torch import nn
from torch.utils.data import Dataset

from loraguard.audit import (
    AuditExtent,
    AuditResult,
    Controls,
    calibrate_detector,
    place,
    run_audit,
    train_controls,
    write_report,
)
from loraguard.audit.power import power_words
from loraguard.channels import parse_channel
from loraguard.data import PerturbedPhotos, PhotoHashes, open_data, split_photos
from loraguard.defenses import Disrupting, parse_defense
from loraguard.files import writable_folder
from loraguard.generators import load_generator, transform_of
from loraguard.hub import load_patch
from loraguard.hub.names import PHOTOS
from loraguard.hub.recorded import settings_in
from loraguard.kinds import checked
from loraguard.losses import FeatureEncoder
from loraguard.metrics import LPIPS, Brisque, ClipSimilarity, Inception
from loraguard.stamp import Stamp
from loraguard.training import PatchTrainingArguments
from loraguard.tuner import GatedLoraConfig
from loraguard.tuner.messages import in_a_line, shown

from .audit_settings import AuditSettings, encoder_parts

EPS = 0.05
"""Budget of the adversaries' training where no defense has one on the same scale."""


def audit_by_settings(
    settings: AuditSettings, output_dir: str | Path, *, say: Callable[[str], None] = print, disable_tqdm: bool = False
) -> tuple[AuditResult, Path]:
    """Load everything, train what is to be trained, audit, and write the report.

    Several processes share the audit and the main one writes and speaks; training (`settings.train`) takes one alone.

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

    Example:
        >>> import tempfile
        >>> settings = AuditSettings(defenses={"pgd": "disrupting:0.1,steps=2"}, images=2, fit_images=1, checks=0)
        >>> result, report = audit_by_settings(settings, tempfile.mkdtemp(), disable_tqdm=True)
        Auditing 1 defense on 2 photos
        2 photos are too few to show that a defense protects, and a share of 0% means at most 84.2%. For one ...
        >>> result["untouched", "no-leak"].treatment.eps, report.name
        (0.1, 'report.html')
    """
    defenses: dict[str, Any] = {name: parse_defense(spec) for name, spec in settings.defenses.items()}
    channels = {spec: parse_channel(spec) for spec in settings.channels}
    folder = writable_folder(output_dir)
    state = PartialState(cpu=settings.device == "cpu")
    device = torch.device("cpu") if settings.device == "cpu" else state.device
    main = place()[0] == 0
    torch.manual_seed(settings.seeds[0])
    generator = load_generator(settings.generator, settings.checkpoint, size=settings.image_size)
    transform = transform_of(generator)
    attributes = getattr(generator, "attributes", ())
    dataset = open_data(settings.data, split=settings.split, attributes=attributes, transform=transform)
    others, photos = split_photos(
        dataset, train_size=settings.fit_images, test_size=settings.images, seed=settings.seeds[0]
    )
    given = {name: PerturbedPhotos(one, photos, transform) for name, one in settings.perturbed.items()}
    further = load_others(settings, attributes)
    measures = load_measures(settings, photos[0]["image"].shape[-2:], device)
    model, stamps = load_patches(generator, settings.patches, settings.ignore_fingerprint)
    model.to(device)
    stamped = {name: calibrate_detector(model, others, stamp) for name, stamp in stamps.items() if stamp is not None}
    if main:
        if changed := settings.changed_in(folder):
            say(
                f"{folder} holds an audit with other {', '.join(changed)}. Its report will be replaced; of what it "
                "found, what fits is used again."
            )
        settings.write(folder)

    networks: dict[str, nn.Module] = {}
    if settings.train:
        say(f"Training {', '.join(settings.train)} on {len(others)} photos")
        controls = train_adversaries(model, others, settings, defenses, folder / "trained", disable_tqdm=disable_tqdm)
        stamps |= controls.add_to(model) | dict.fromkeys(controls.generators, controls.stamp)
        networks = {name: one.to(device) for name, one in controls.generators.items()}
    defenses |= given
    if main:
        say(f"Auditing {len(defenses)} defense{'s' if len(defenses) > 1 else ''} on {len(photos)} photos")
        say(power_words(len(photos), len(defenses)))
    result = run_audit(
        model,
        photos,
        defenses=defenses,
        patches=stamps,
        generators=networks,
        others={name: one.to(device) for name, one in further.items()},
        channels=channels,
        fit_on=others,
        detectors=stamped,
        **measures,
        output_dir=folder,
        trained_on=hashes_beside(settings.patches, folder / "trained", settings.train),
        disable_tqdm=disable_tqdm,
        **{one.name: getattr(settings, one.name) for one in fields(AuditExtent)},
    )
    return result, write_report(result, folder) if main else folder / "report.html"


def load_patches(
    generator: nn.Module, patches: Mapping[str, str], ignore_fingerprint: bool = False
) -> tuple[PeftModel, dict[str, Stamp | None]]:
    """The generator with patches on it, checked as :func:`~loraguard.hub.load_patch` does, and the stamp of each.

    Without patches the model has an adapter all the same, which does nothing.

    Raises:
        ValueError: for a patch that is broken, does not fit, or is for other weights.
        FileNotFoundError: for one that is not there.
    """
    model: nn.Module = generator
    for name, where in patches.items():
        model = load_patch(where, model, adapter_name=name, ignore_fingerprint=ignore_fingerprint)
    if not isinstance(model, PeftModel):
        return get_peft_model(generator, GatedLoraConfig(r=1), adapter_name="nothing").eval(), {}
    return model, {name: stamp_of(model.peft_config[name], where) for name, where in patches.items()}


def hashes_beside(patches: Mapping[str, str], trained: Path, kinds: Sequence[str]) -> dict[str, PhotoHashes]:
    """Hashes of the photos that patches were trained on, as far as the folders that they lie in have them."""
    folders = {name: Path(where).expanduser() for name, where in patches.items()} | {
        one: trained / one for one in kinds
    }
    return {name: PhotoHashes.load(one / PHOTOS) for name, one in folders.items() if (one / PHOTOS).is_file()}


def stamp_of(config: Any, name: str) -> Stamp | None:
    """What a patch stamps, as its config's provenance has it; None for a standard patch or where nothing is known.

    Args:
        config: of the patch.
        name: of the patch, for messages.

    Raises:
        ValueError: for a stamp that cannot be drawn here: it has a picture or a font of its own, of which no file is
            opened because a patch names it, or it is none.
    """
    stamp = settings_in(config).get("stamp")
    if stamp is None:
        return None
    try:
        given = {key: value for key, value in stamp.items() if key != "class"}
        if named := [key for key in ("image", "font") if given.get(key) is not None]:
            raise ValueError(
                f"it has {named[0]}={shown(given[named[0]])}, and no file is opened because a patch names it. Give the "
                "stamp yourself: run_audit(patches={name: Stamp(...)}), or `loraguard stamp check` with --logo or "
                "--text and --font."
            )
        return Stamp(**checked(Stamp, given))
    except (AttributeError, TypeError, ValueError) as error:
        raise ValueError(
            in_a_line(f"{name}: its stamp, as adapter_config.json has it, cannot be drawn here: {error}")
        ) from None


def train_adversaries(
    model: PeftModel,
    photos: Dataset[Any],
    settings: AuditSettings,
    defenses: Mapping[str, Any],
    folder: Path,
    *,
    disable_tqdm: bool = False,
) -> Controls:
    """Train what `settings.train` asks for, by the fast recipe at the largest budget among the defenses.

    One that was interrupted goes on from its checkpoint.
    """
    eps = max((one.eps for one in defenses.values() if one.budget is None), default=EPS)
    arguments = PatchTrainingArguments(
        folder,
        adversary=Disrupting(eps, steps=4, step_size=eps / 2),
        max_train_steps=settings.train_steps,
        resume_from_checkpoint="latest",
        seed=settings.seeds[0],
        cpu=settings.device == "cpu",
        disable_tqdm=disable_tqdm,
    )
    return train_controls(model, photos, arguments, folder, kinds=settings.train)


def load_others(settings: AuditSettings, attributes: Sequence[str]) -> dict[str, nn.Module]:
    """Other generators that `settings.others` names, NAME[:SETTINGS][@CHECKPOINT].

    Raises:
        ValueError: for one that takes other labels than the audited generator.
    """
    found = {}
    for name, spec in settings.others.items():
        kind, _, checkpoint = spec.partition("@")
        found[name] = load_generator(kind, checkpoint or None, size=settings.image_size if checkpoint else None).eval()
        theirs = tuple(getattr(found[name], "attributes", ()))
        if theirs and theirs != tuple(attributes):
            raise ValueError(
                f"The generator {name!r} takes the labels {', '.join(theirs)}, and {settings.generator} takes "
                f"{', '.join(attributes) or 'none'}; photos have one set of labels. Pass it in Python (others=), with "
                "conditions that make its edits from these."
            )
    return found


def load_measures(settings: AuditSettings, size: Sequence[int], device: torch.device) -> dict[str, Any]:
    """What measures outputs beside their pixels, as `run_audit` takes it.

    Raises:
        OSError: for weights that cannot be had.
        ValueError: for weights that are those of something else.
        ImportError: where BRISQUE is asked for and its package is not there.
    """
    networks = {
        "lpips": load_lpips(settings.lpips, size),
        "identity": None if settings.identity is None else load_face_encoder(settings.identity),
        "clip": None if settings.clip is None else ClipSimilarity.from_pretrained(settings.clip),
        "features": None if settings.fid is None else Inception.load(_weights(settings.fid)),
    }
    made = {name: one if one is None else one.to(device) for name, one in networks.items()}
    return {**made, "brisque": Brisque() if settings.brisque or settings.preset else None}


def load_lpips(source: str | None, size: Sequence[int]) -> LPIPS | None:
    """LPIPS by weights in a file or in torchvision's "cache"; "auto" where they are cached and images large enough.

    Raises:
        OSError: if the file cannot be had.
        ValueError: if it holds no weights of AlexNet.
    """
    if source in (None, "none"):
        return None
    return LPIPS.at_hand(min(size)) if source == "auto" else LPIPS.load(_weights(str(source)))


def load_face_encoder(source: str) -> FeatureEncoder:
    """A face encoder from a folder or the Hub, ENCODER or ENCODER@FEATURES.

    Raises:
        OSError: if it cannot be had.
        ValueError: if it has no such features, or gives more than one vector for an image.
    """
    where, features = encoder_parts(source)
    if features == "patch":
        raise ValueError(f"identity={source!r} gives many vectors; a face encoder gives one vector for each image.")
    folder = Path(where).expanduser()
    return FeatureEncoder.from_pretrained(folder if folder.is_dir() else where, features=features, name="identity")


def _weights(source: str) -> Path | None:
    return None if source == "cache" else Path(source)
