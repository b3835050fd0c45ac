"""What an audit found, and how it is written down."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from .situation import KNOWLEDGE, NO_CHANNEL, Situation

if TYPE_CHECKING:
    import pyarrow

    from .checks import Check
    from .detectability import Detection


@dataclass
class AuditResult:
    """Everything an audit found.

    Attributes:
        situations: one for each generator, way to perturb the photos, and channel.
        edits: the edit that was asked for on each image.
        pictures: for the first images, what each situation looked like, (k, 3, H, W) in [-1, 1]: photos under ("photo",
            defense, knowledge, generator that it was crafted on), outputs, at their own size, under (generator,
            defense, knowledge, channel). Of noise those of the smallest budget.
        settings: all that the figures depend on.
        checks: whether they can be trusted.
        detections: how well each defense's photos are told from plain ones, where that was tried.
    """

    situations: list[Situation]
    edits: list[str]
    pictures: dict[tuple[str, str, str, str], Tensor]
    settings: dict[str, Any]
    checks: list[Check] = field(default_factory=list)
    detections: list[Detection] = field(default_factory=list)

    def find(self, **wanted: Any) -> list[Situation]:
        """The situations with these values of `generator`, `channel` or what a photo has (`defense`, `role`, ...)."""

        def value(situation: Situation, name: str) -> Any:
            return getattr(situation, name) if name in ("generator", "channel") else getattr(situation.treatment, name)

        return [one for one in self.situations if all(value(one, name) == want for name, want in wanted.items())]

    def __getitem__(self, key: tuple[str, ...]) -> Situation:
        """The situation of a generator and of what whoever perturbed the photo knew; then, if several, of a defense.

        `result["standard", "leak"]` or `result["standard", "leak", "cmua"]`, at each defense's own budget and steps,
        without a channel.
        """
        generator, knowledge, *defense = key
        wanted: dict[str, Any] = {"generator": generator, "knowledge": knowledge, "channel": NO_CHANNEL, "role": "main"}
        found = self.find(**wanted, **({"defense": defense[0]} if defense else {}))
        if not found:
            there = sorted({(one.generator, one.treatment.knowledge, one.treatment.defense) for one in self.situations})
            raise KeyError(f"{key} was not audited; there is {there}. Knowledge is one of {KNOWLEDGE}.")
        return found[0]

    @property
    def defenses(self) -> list[str]:
        """The names of the defenses, without the controls and the attacks of the checks."""
        return list(self.settings["defenses"])

    def to_dict(self) -> dict[str, Any]:
        """Settings, figures with intervals, and flags, as strict JSON takes them."""
        rows = [
            {
                "generator": situation.generator,
                **situation.treatment.fields(),
                "channel": situation.channel,
                "photo": situation.treatment.words,
                "flags": self.flags(situation),
                "frechet": situation.frechet,
                "metrics": {metric: asdict(value) for metric, value in situation.estimates.items()},
            }
            for situation in self.situations
        ]
        found = {"settings": self.settings, "checks": [asdict(check) for check in self.checks], "situations": rows}
        return found | ({"detections": [asdict(one) for one in self.detections]} if self.detections else {})

    def flags(self, situation: Situation) -> list[str]:
        """The names of the failed checks that a situation's figures stand under, each once."""
        failed = (check.name for check in self.checks if not check.passed and check.concerns(situation))
        return list(dict.fromkeys(failed))

    def per_image(self) -> Iterator[dict[str, Any]]:
        """A row for each situation, seed and image."""
        for one in self.situations:
            start = {"generator": one.generator, **one.treatment.fields(), "channel": one.channel}
            columns = {metric: values.tolist() for metric, values in one.values.items()}
            for at, seed in enumerate(self.settings["seeds"][: len(columns["mse"])]):  # checks take the first one alone
                for image in range(len(columns["mse"][at])):
                    figures = {metric: values[at][image] for metric, values in columns.items()}
                    yield {**start, "seed": seed, "image": image, "edit": self.edits[image], **figures}

    def write_per_image(self, folder: Path) -> None:
        """Write :meth:`per_image` as `images.parquet` and `images.csv`, situation after situation."""
        import pyarrow
        from pyarrow import csv, parquet

        schema = self._schema()
        with (
            parquet.ParquetWriter(folder / "images.parquet", schema) as columns,
            csv.CSVWriter(folder / "images.csv", schema) as lines,
        ):
            rows: list[dict[str, Any]] = []
            for row in self.per_image():
                rows.append(row)
                if len(rows) == 10_000:
                    for writer in (columns, lines):
                        writer.write_table(pyarrow.Table.from_pylist(rows, schema))
                    rows = []
            for writer in (columns, lines):
                writer.write_table(pyarrow.Table.from_pylist(rows, schema))

    def _schema(self) -> pyarrow.Schema:
        import pyarrow

        metrics = dict.fromkeys(metric for one in self.situations for metric in one.values)
        fields = {
            **dict.fromkeys(("generator", "defense", "knowledge"), pyarrow.string()),
            "eps": pyarrow.float64(),
            "steps": pyarrow.int64(),
            **dict.fromkeys(("role", "channel"), pyarrow.string()),
            **({"crafted_on": pyarrow.string()} if self.find(role="transfer") else {}),
            **dict.fromkeys(("seed", "image"), pyarrow.int64()),
            "edit": pyarrow.string(),
            **dict.fromkeys(metrics, pyarrow.float64()),
        }
        return pyarrow.schema(fields.items())
