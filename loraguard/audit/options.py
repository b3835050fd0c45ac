"""What an audit is told from Python."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn
from torch.utils.data import Dataset

from loraguard.channels import parse_channel
from loraguard.data import PhotoHashes
from loraguard.defenses import as_defense
from loraguard.generators import Conditions
from loraguard.metrics import LPIPS, Brisque, ClipSimilarity
from loraguard.stamp import Stamp

from .extent import AuditExtent
from .identity import identity
from .names import PRESETS, check_names
from .share import Share

_HOW = {
    "lpips": "from LPIPS.load; on the command line --lpips",
    "identity": "a face encoder; --identity",
    "clip": "from ClipSimilarity.from_pretrained; --clip",
}


@dataclass(frozen=True, kw_only=True)
class AuditOptions(AuditExtent):
    """Everything that :func:`~loraguard.audit.run_audit` takes beside model and photos.

    Further fields, such as `budgets`, `steps`, `seeds`, `success`, `checks` and `batch_size`, are those of
    :class:`~loraguard.audit.AuditExtent`.

    Args:
        defenses: by name; or a single one. A data set in place of a defense holds the same photos, perturbed by
            somebody else, in the same order.
        patches: the adapters' names, with the stamp of each or None for a standard patch; a name of `generators` says
            what that one stamps. Needed for a model with adapters; `{}` audits the network beneath them alone.
        generators: further networks to audit, by name, called as the generator is: one that was fine-tuned, say.
        others: other generators, by name, that were not made from this one, such as another architecture for the same
            edits: photos that are crafted on one are judged on the other, and each against its own clean outputs. They
            take their edits from the same labels by their own `conditions`.
        channels: by name, or specs such as "jpeg:75+resize:0.5", whose names they are.
        fit_on: photos for defenses that have to be fitted; not those of the audit.
        conditions: from labels to edits, by default the generator's own.
        detectors: by patch, what looks for its stamp in every output, or None; without any no stamp rate is measured.
            Where there is one, each other patch with a stamp gets one for its own, which is not calibrated.
        lpips: from `LPIPS.load`, to measure LPIPS.
        features: an encoder, images (N, 3, H, W) to (N, D), to measure the Fréchet distance between the outputs and
            what they should have been.
        identity: a face encoder, images (N, 3, H, W) to embeddings (N, D), to measure the cosine between the embeddings
            of outputs and of what they should have been, and the CIDR.
        clip: from `ClipSimilarity.from_pretrained`, to measure the cosine between outputs and the names of their edits.
        brisque: from `Brisque()`, to measure BRISQUE.
        trained_on: by patch or network, hashes of the photos that it was trained on; audited photos among them, or
            versions of them, are flagged. The trainer leaves them beside a patch, in `photos.safetensors`.
        output_dir: where what is found is kept; in memory only where there is none.
        share: this process' part of an audit that several processes do together, each with the same options and
            `output_dir`; by default what `accelerate launch` or `torchrun` say.
        disable_tqdm: no progress bar.

    Raises:
        TypeError: for a defense that cannot be called, or has no budget.
        ValueError: for a value that cannot be, an unknown channel, or a name that is taken.

    Example:
        >>> from loraguard.defenses import Disrupting
        >>> options = AuditOptions(defenses=Disrupting(), patches={"mine": None}, channels=["jpeg:75"], seeds=[0, 1])
        >>> list(options.defenses), list(options.channels), options.seeds
        (['disrupting'], ['jpeg:75'], (0, 1))
    """

    defenses: Any  # AnyDefense, or a mapping of these and of Dataset; always a mapping once it is made
    patches: Mapping[str, Stamp | None] | None = None
    generators: Mapping[str, nn.Module] | None = None
    others: Mapping[str, nn.Module] | None = None
    channels: Any = ()  # specs, or a mapping of Channel; always a mapping once it is made
    fit_on: Dataset[Any] | None = None
    conditions: Conditions | None = None
    detectors: Any = None  # a mapping of StampDetector; without those that are None once it is made
    lpips: LPIPS | None = None
    features: nn.Module | None = None
    identity: nn.Module | None = None
    clip: ClipSimilarity | None = None
    brisque: Brisque | None = None
    trained_on: Mapping[str, PhotoHashes] | None = None
    output_dir: str | Path | None = None
    share: Share | None = None
    disable_tqdm: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        single = not isinstance(self.defenses, Mapping)
        given = {type(self.defenses).__name__.lower(): self.defenses} if single else self.defenses
        check_names("defenses", given)
        for name, one in given.items():
            _check_budget(name, one)
        check_names("patches", [*(self.patches or {}), *(self.generators or {}), *(self.others or {})])
        if unknown := sorted(set(self.no_leak_only) - set(given)):
            raise ValueError(f"no_leak_only names {unknown}; the defenses are {sorted(given)}.")
        defenses = {name: one if _holds_photos(one) else as_defense(one) for name, one in given.items()}
        named = isinstance(self.channels, Mapping)
        channels = dict(self.channels) if named else {spec: parse_channel(spec) for spec in self.channels}
        check_names("channels", channels)
        for name, one in channels.items() if named else ():
            _check_spec(name, one)
        if self.preset is not None:
            channels = {spec: parse_channel(spec) for spec in PRESETS[self.preset]} | channels
        detectors = {name: one for name, one in (self.detectors or {}).items() if one is not None}
        for name, value in {"defenses": defenses, "channels": channels, "detectors": detectors}.items():
            object.__setattr__(self, name, value)
        if self.detect and self.fit_on is None:
            raise ValueError(f"detect={self.detect} needs fit_on=, photos beside those of the audit to learn from.")
        metric = self.success.partition(":")[0]
        if (metric, None) in (("lpips", self.lpips), ("identity", self.identity), ("clip", self.clip)):
            raise ValueError(f"success={self.success!r} needs {metric}=, {_HOW[metric]}.")

    @property
    def adaptive(self) -> list[str]:
        """The channels that defenses are also crafted through; those of a preset are measured alone."""
        brought = PRESETS[self.preset] if self.preset is not None else ()
        return [name for name in self.channels if name not in brought] if self.adaptive_channels else []

    @property
    def perturbed(self) -> dict[str, Any]:
        """The data sets among the defenses that can be indexed: photos that somebody else has perturbed."""
        return {name: one for name, one in self.defenses.items() if hasattr(one, "__getitem__")}


def _check_budget(name: str, defense: Any) -> None:
    """Refuse a budget that is none, or that photos cannot reach.

    Raises:
        ValueError: for one that is not finite, negative or, of images in [-1, 1], over 2.
    """
    eps = getattr(defense, "eps", None)
    if isinstance(eps, float | int) and not 0 <= eps <= (2 if getattr(defense, "budget", None) is None else 1e9):
        raise ValueError(f"defenses: {name!r} has eps={eps!r}; expected the largest change on [-1, 1], from 0 to 2.")


def _check_spec(name: str, channel: Any) -> None:
    """Refuse a channel whose name says that it is another one, as that of a preset.

    Raises:
        ValueError: for a name with settings that make something else.
    """
    try:
        said = parse_channel(name) if ":" in name else channel
    except ValueError:  # any other name
        return
    if identity(said) != identity(channel):
        raise ValueError(f"channels: {name!r} is {said!r}, and not {channel!r:.80}; call yours something else.")


def _holds_photos(defense: Any) -> bool:
    return isinstance(defense, Dataset) or hasattr(defense, "__getitem__")
