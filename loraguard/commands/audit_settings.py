"""What `loraguard audit` can be told, by flags or in a YAML file."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from loraguard.audit.extent import AuditExtent
from loraguard.audit.names import KINDS, Adversary, check_names
from loraguard.files import whole_files
from loraguard.kinds import Count, Many, Number, checked

SETTINGS = "audit.yaml"
"""In an audit's folder, what `--resume` reads."""

FORMER = {"strengths": "steps"}
"""What keys were called in earlier versions; files with these are still read."""

_NAMED = ("patches", "others", "defenses", "perturbed")


@dataclass(frozen=True, kw_only=True)
class AuditSettings(AuditExtent):
    """What an audit is made of. The YAML file has these keys; flags are called alike, in the singular.

    Flags have the first sentences of what stands here as their help. A field that takes several values is described
    for one of them. Further fields are those of :class:`~loraguard.audit.AuditExtent`.

    Args:
        generator: the network that edits photos, NAME or NAME:SETTINGS; `loraguard info generators` lists names.
        checkpoint: its weights: a file, a folder or a Hub id; `demo` brings its own.
        image_size: height and width of its images in pixels, where its weights do not tell.
        data: photos: a folder, a Hub id, NAME or NAME:PATH; `loraguard info data` lists names. As
            :func:`~loraguard.data.open_data` takes them.
        split: the part of the data set to take, such as train; all of a folder otherwise.
        images: how many photos to audit on.
        fit_images: how many others to fit and train on. Detectors are calibrated on them, too.
        patches: a patch to audit: a folder or a Hub id, or NAME=one. In a file: names, each with a folder or an id.
        others: another generator, NAME or NAME=SPEC@CHECKPOINT, to which photos are carried. It takes the same labels.
            In a file, names, each with a spec.
        ignore_fingerprint: take patches made for other weights.
        train: an adversary to train: standard, ungated, clean-only or fine-tune.
        train_steps: steps of each; by default the fast recipe's epochs.
        defenses: NAME:SETTINGS, or OTHER_NAME=that; `loraguard info defenses` lists names. In a file: names, each with
            a spec as :func:`~loraguard.defenses.parse_defense` takes it.
        perturbed: a folder of photos that another tool has perturbed. In a file: names, each with a folder.
        channels: what happens to photos before the generator, such as jpeg:75+resize:0.5.
        lpips: measure LPIPS, by AlexNet's weights in this file, or 'cache'; auto does where they are cached. With none
            it is not measured.
        brisque: measure BRISQUE, which needs the extra brisque.
        identity: measure identity, by the face encoder in this folder or Hub repository. With @cls or @projected after
            it, by its class token or its embedding beside text in place of its pooled features.
        clip: measure the similarity of outputs to the names of their edits, by the CLIP or SigLIP in this folder or Hub
            repository.
        fid: measure FID, by Inception's weights in this file, or 'cache'.
        device: `cpu`, or auto for the accelerator that is there.

    Raises:
        ValueError: for a value of the wrong kind or out of range, a name that is taken, or nothing to audit.

    Example:
        >>> AuditSettings(defenses={"pgd": "disrupting:steps=30"}).seeds
        (0,)
        >>> AuditSettings(images=-1)
        Traceback (most recent call last):
        ...
        ValueError: images=-1 must be greater than or equal to 1.
    """

    generator: str = "demo"
    checkpoint: str | None = None
    image_size: Number | None = None
    data: str = "demo"
    split: str | None = None
    images: Number = 100
    fit_images: Number = 200
    patches: dict[str, str] = field(default_factory=dict)
    others: dict[str, str] = field(default_factory=dict)
    ignore_fingerprint: bool = False
    train: Many[Adversary] = ()
    train_steps: Number | None = None
    defenses: dict[str, str] = field(default_factory=lambda: {"disrupting": "disrupting"})
    perturbed: dict[str, str] = field(default_factory=dict)
    channels: Many[str] = ()
    checks: Count = 50
    lpips: str | None = "auto"
    brisque: bool = False
    identity: str | None = None
    clip: str | None = None
    fid: str | None = None
    device: Literal["cpu", "auto"] = "auto"

    def __post_init__(self) -> None:
        for name, value in checked(type(self), vars(self)).items():
            object.__setattr__(self, name, value)
        if self.train_steps is not None and not self.train:
            raise ValueError("train_steps is of what `train` names, and it names nothing.")
        if unknown := set(self.no_leak_only) - set(self.defenses):
            raise ValueError(f"no_leak_only={sorted(unknown)}: the defenses are {', '.join(self.defenses)}.")
        if not self.defenses and not self.perturbed:
            raise ValueError("There is nothing to audit: name a defense, or a folder of perturbed photos.")
        if self.success.startswith("identity:") and self.identity is None:
            raise ValueError(f"success={self.success!r} needs a face encoder: --identity FOLDER, or a Hub id.")
        if self.success.startswith("clip:") and self.clip is None:
            raise ValueError(f"success={self.success!r} needs a CLIP or SigLIP: --clip FOLDER, or a Hub id.")
        self._check_names()

    def _check_names(self) -> None:
        """Each of a defense or network once, and none that the audit itself uses."""
        generators = [*self.train, *self.patches, *self.others]
        for taken, names in (([*self.defenses, *self.perturbed], "defenses"), (generators, "patches")):
            check_names(names, taken)
            if twice := sorted({name for name in taken if taken.count(name) > 1}):
                raise ValueError(f"{names}: the name {twice[0]!r} is taken; call yours something else, NAME=...")
        for name in (*self.patches, *self.others):
            if not name or "." in name:
                raise ValueError(f"patches: the name {name!r} must have letters and no dot; write NAME=...")
            if name in KINDS:
                raise ValueError(f"patches: {name!r} is what `train` makes, and the report says how; write NAME=...")

    @classmethod
    def read(cls, file: Path) -> AuditSettings:
        """Settings from a YAML file.

        Raises:
            FileNotFoundError: if there is none.
            ValueError: if it is no YAML, for a key that does not exist, or a value that cannot be.
        """
        if not file.is_file():
            raise FileNotFoundError(f"There is no file {file} with settings of an audit.")
        import yaml  # on use: help needs the fields alone

        try:
            found = yaml.safe_load(file.read_text(encoding="utf-8"))
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ValueError(f"{file} is no YAML: {' '.join(str(error).split())}") from None
        return cls().updated({} if found is None else found, str(file))

    def updated(self, changes: Any, source: str) -> AuditSettings:
        """The same with other values; of patches, defenses and perturbed, a list of specs will do, as in flags.

        Raises:
            ValueError: for a key that does not exist, or a value that cannot be; the message names the source.
        """
        if not isinstance(changes, Mapping):
            raise ValueError(f"{source} must hold keys and values, such as 'generator: demo'; got {changes!r:.80}.")
        there = [one.name for one in fields(self)]
        made: dict[str, Any] = {}
        for key, value in changes.items():
            key = FORMER.get(key, key)
            if key not in there:
                near = difflib.get_close_matches(str(key), there, 1)
                raise ValueError(f"{source}: there is no {key!r}.{f' Did you mean {near[0]!r}?' if near else ''}")
            is_list = key in _NAMED and isinstance(value, (list, tuple)) and all(isinstance(one, str) for one in value)
            made[key] = named(value) if is_list else value
        try:
            return replace(self, **made)
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from None

    def changed_in(self, folder: Path) -> list[str]:
        """The settings that differ from those of an audit in the folder, if there is one."""
        if not (folder / SETTINGS).is_file():
            return []
        try:
            earlier = asdict(self.read(folder / SETTINGS))
        except ValueError:  # of another version
            return ["settings"]
        return [key for key, value in asdict(self).items() if earlier[key] != value]

    def write(self, folder: Path) -> None:
        """Leave the settings in the audit's folder, for `--resume`."""
        import yaml

        extent = {one.name for one in fields(AuditExtent)}
        inputs_first = sorted(asdict(self).items(), key=lambda item: item[0] in extent)
        plain = {key: list(value) if isinstance(value, tuple) else value for key, value in inputs_first}
        with whole_files(folder) as draft:
            (draft / SETTINGS).write_text(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True), encoding="utf-8")


def encoder_parts(source: str) -> tuple[str, str]:
    """Where an encoder is, and which of its features to take.

    Example:
        >>> encoder_parts("me/faces@cls"), encoder_parts("faces")
        (('me/faces', 'cls'), ('faces', 'pooled'))
    """
    where, _, features = source.rpartition("@")
    return (where, features) if where and not Path(source).expanduser().is_dir() else (source, "pooled")


def named(specs: Sequence[str]) -> dict[str, str]:
    """Specs of the command line by name: `NAME=SPEC`, or a spec whose own first word is its name.

    Raises:
        ValueError: if two have the same name.

    Example:
        >>> named(["disrupting:steps=30", "weak=disrupting:steps=3", "runs/lr=0.1/standard"])
        {'disrupting': 'disrupting:steps=30', 'weak': 'disrupting:steps=3', 'standard': 'runs/lr=0.1/standard'}
    """
    found: dict[str, str] = {}
    for spec in specs:
        if match := re.fullmatch(r"([^:@,=/\\]+)=(.+)", spec):
            name, rest = match.groups()
        else:
            name, rest = Path(re.split("[:@]", spec)[0]).name, spec
        if name in found:
            raise ValueError(f"Two are called {name!r}; give one another name: OTHER={rest}")
        found[name] = rest
    return found
