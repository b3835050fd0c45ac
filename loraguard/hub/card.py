"""The card of a patch: what it is, how to load it, what it was found to be worth, how it was made.

It is made of parts between markers. A part is written anew each time; text outside of them is its author's and stays.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from loraguard.tuner import GatedLoraConfig

from .audit import TASK, audit_part, audit_results
from .findings import Findings
from .provenance import hosted_id
from .recorded import KINDS, generator_of, kind_of, settings_in

PARTS = ("patch", "audit", "training")
_MARKED = (
    "<!-- loraguard: {0} (written anew by each push; text outside such parts stays) -->\n{1}\n<!-- /loraguard: {0} -->"
)
_ENDS = {
    "patch": (r"^# A (?:standard |defensive )?patch for ", r"^model = loraguard\.load_patch\(.*\)\r?\n```(?:\r?\n)*"),
    "audit": (r"^## Audit\r?$", r"^!\[.*\]\(audit/grid\.png\)(?:\r?\n)*"),
    "training": (r"^## Training\r?$", r"^(?:```\r?$|The weights are named .* not recorded\.)(?:\r?\n)*"),
}
"""By part: what it begins with, and what it ends with."""
_BLOCK = re.compile(r"^---[ \t]*\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|$)", re.DOTALL | re.MULTILINE)
_METADATA = {"tags", "license", "library_name", "pipeline_tag", "base_model", "datasets", "model-index", "language"}
"""Keys by which a block of metadata is known."""
_PLACEHOLDER = "# Model Card for Model ID"  # of PEFT's and huggingface_hub's templates: nobody has written anything yet

_TITLES = {
    "standard": "# A standard patch for {generator}: an instrument for auditing protections of photos",
    "defensive": "# A defensive patch for {generator}: it {puts} on every output",
    None: "# A patch for {generator}, not recorded whether standard or defensive",
}
_WHAT = {
    "standard": """\
With this **standard** patch, `{generator}` gives on photos that carry an adversarial perturbation what it gives on
clean ones: it shows what a protection by such perturbations is worth once whoever runs the generator adapts.

**Intended use**: audits of protections, by those who design or rely on them, and research on them. It is not for
editing photos of people who have not agreed to that, nor for undoing a protection that somebody has put on their
photos.

**Limits**: it is for one generator, with the weights named below. What it does under other defenses, budgets, photos
and edits than those of the audit has not been measured.""",
    "defensive": """\
With this **defensive** patch, `{generator}` {puts} on every output, of clean and of protected photos alike.{read}

**Intended use**: hosts of this generator who want its outputs to be marked, {how}, as made by a machine. A host ships
the merged network (`merge_and_unload`), which has no patch to take off.

**Limits**: whoever has the generator's own weights can leave the patch out, and a visible stamp can be cropped or
painted over; it does not replace signed provenance. It is for one generator, with the weights named below. How often
outputs carry the {layer} under other defenses, photos and edits than those of the audit has not been measured.""",
    None: """\
Of this patch's training nothing is recorded: whether it keeps outputs clean under perturbations (*standard*) or stamps
a warning on them (*defensive*) has to be asked of whoever made it, and so have its intended use and its limits.""",
}
_LOAD = """\
It is a GATED_LORA adapter. `import loraguard` registers that with PEFT:

```python
import loraguard
from peft import PeftModel

model = PeftModel.from_pretrained(generator, "{where}")  # generator: {base}
generator = model.merge_and_unload()  # one network again
```

or, with the weights compared with those that the patch was made for:

```python
model = loraguard.load_patch("{where}"{argument})
```"""


def patch_card(
    config: GatedLoraConfig,
    sha256: str,
    *,
    where: str = "path/or/repository",
    audit: Findings | None = None,
    earlier: str | None = None,
    license: str | None = None,
) -> ModelCard:
    r"""The card of a patch.

    Args:
        config: of the adapter, with its provenance.
        sha256: the fingerprint of its weights.
        where: its id on the Hub, or what stands for it in the code.
        audit: what an audit of it found. Without one, the earlier card's audit stays if it is of these very weights.
        earlier: the text of a card that this one takes the place of, whose own text and metadata stay.
        license: an identifier of the Hub; by default the earlier card's, or else the generator's.

    Raises:
        ValueError: if the earlier card's metadata cannot be read.

    Example:
        >>> config = GatedLoraConfig(provenance={"kind": "standard", "generator": {"class": "StarGAN"}})
        >>> card = patch_card(config, "0" * 64, where="me/patch")
        >>> card.data.library_name, card.data.pipeline_tag, "standard" in card.data.tags
        ('peft', 'image-to-image', True)
        >>> again = patch_card(config, "1" * 64, where="me/patch", earlier=f"{card}\nAsk me anything.")
        >>> "Ask me anything." in again.text, "1" * 64 in again.text, "0" * 64 in again.text
        (True, True, False)
    """
    old = _earlier(earlier)
    parts = {
        "patch": _patch_part(config, where),
        "audit": None if audit is None else audit_part(audit.rows, audit.sentences, audit.about, audit.sha256),
        "training": _training_part(config, sha256),
    }
    results = [one for one in old.data.get("eval_results") or [] if one.task_name != TASK]
    if audit is not None:
        results += audit_results(audit)
    elif (stays := _part(old.text, "audit")) and sha256 in stays:
        parts["audit"] = stays
        results = old.data.get("eval_results") or []
    _set_metadata(cast(ModelCardData, old.data), config, where, results, license)
    old.text = "\n" + _merged(old.text, parts).strip("\n") + "\n"
    return ModelCard(str(old))


def read_card(path: Path, name: str | None = None) -> str:
    """The text of a card.

    Raises:
        ValueError: if it is not UTF-8; the message names the file.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{name or path} is not in UTF-8 ({error!s:.250}). Save it as UTF-8, or remove it.") from error


def own_text(card: str) -> str:
    r"""What its author wrote: a card's text without generated parts and metadata.

    Example:
        >>> own_text("---\ntags: []\n---\nMine.\n<!-- loraguard: audit -->\nx\n<!-- /loraguard: audit -->\n")
        'Mine.'
    """
    text = _earlier(card).text
    for name in PARTS:
        while span := _span(text, name):
            text = text[: span[0]] + text[span[1] :]
    return text.strip()


def _earlier(text: str | None) -> ModelCard:
    if text is None or _PLACEHOLDER in text:
        return ModelCard("---\n{}\n---\n")
    try:
        return ModelCard(_metadata_first(text))
    except (ValueError, yaml.YAMLError) as error:
        raise ValueError(
            f"The metadata block of the earlier README.md cannot be read: {' '.join(str(error).split()):.250}. "
            "Mend it first."
        ) from error


def _metadata_first(text: str) -> str:
    """A card with its metadata on top, where the Hub looks for it; somebody may have written something above."""
    if text.lstrip().startswith("---"):
        return text
    for match in _BLOCK.finditer(text):
        try:
            found = yaml.safe_load(match[1])
        except yaml.YAMLError:
            continue
        if isinstance(found, dict) and _METADATA & found.keys():  # others may be a text between two rules
            return f"---\n{match[1]}\n---\n{text[: match.start()]}{text[match.end() :]}"
    return f"---\n{{}}\n---\n{text}"


def _span(text: str, name: str) -> tuple[int, int] | None:
    """Where a part with its markers is in a text. Of a part that has lost one of them, what it begins or ends with.

    Raises:
        ValueError: if one is lost, and what the part begins or ends with as well.
    """
    opening = re.search(rf"<!-- loraguard: {name}\b[^>]*-->\r?\n", text)
    closing = re.search(rf"<!-- /loraguard: {name} -->(\r?\n)*", text)
    if opening is None and closing is None:
        return None
    first, last = _ENDS[name]
    if closing is not None and (opening is None or closing.start() < opening.start()):
        begun = [*re.finditer(first, text[: closing.start()], re.MULTILINE)]
        if begun:
            return begun[-1].start(), closing.end()
    elif opening is not None and closing is not None:
        return opening.start(), closing.end()
    elif opening is not None:
        following = re.search("<!-- /?loraguard:", text[opening.end() :])
        end = opening.end() + following.start() if following else len(text)
        ended = re.compile(last, re.MULTILINE).search(text, opening.end(), end)
        if ended:
            return opening.start(), ended.end()
    raise ValueError(
        f"README.md has lost a marker of its part {name!r}: <!-- loraguard: {name} --> stands above, and "
        f"<!-- /loraguard: {name} --> below, what each push writes anew. Put it back, or delete the other one and "
        "the part."
    )


def _part(text: str, name: str) -> str | None:
    """What lies between the markers of a part that has both."""
    match = re.search(rf"<!-- loraguard: {name}\b[^>]*-->\r?\n(.*?)\r?\n<!-- /loraguard: {name} -->", text, re.DOTALL)
    return match and match[1]


def _merged(text: str, parts: Mapping[str, str | None]) -> str:
    """Each part in its place: where it was, or else after the one before it, or at the top."""
    place = 0
    for name, body in parts.items():
        new = "" if body is None else _MARKED.format(name, body) + "\n\n"
        start, end = _span(text, name) or (place, place)
        rest = text[end:].lstrip("\n")
        while twice := _span(rest, name):
            rest = rest[: twice[0]] + rest[twice[1] :]
        text = text[:start] + new + rest
        place = start + len(new)
    return text


def _set_metadata(
    data: ModelCardData, config: GatedLoraConfig, where: str, results: list[EvalResult], license: str | None
) -> None:
    kind, base = kind_of(config), hosted_id(config.base_model_name_or_path)
    tags = ["gated-lora", "loraguard", *([kind] if kind else [])]
    data.library_name, data.pipeline_tag = "peft", "image-to-image"
    data.tags = tags + [tag for tag in data.get("tags") or [] if tag not in (*tags, *KINDS)]
    data.license = license or data.get("license") or generator_of(config).get("license")
    data.base_model = base
    if dataset := _dataset(config):
        data.datasets = [dataset]
    data.model_name = where.rpartition("/")[2] if results else data.get("model_name")
    data.eval_results = results or None


def _dataset(config: GatedLoraConfig) -> str | None:
    data = (config.provenance or {}).get("data")
    return hosted_id(data.get("path")) if isinstance(data, dict) else None


def _patch_part(config: GatedLoraConfig, where: str) -> str:
    kind = kind_of(config)
    about = generator_of(config)
    base = hosted_id(config.base_model_name_or_path)
    generator = about.get("class", "generator")
    generator = generator if generator.isidentifier() else "generator"
    argument = "" if base or about.get("name") == "demo" else ", generator"
    visible, invisible = _stamp(config), _mark(config)

    def both(of_stamp: str, of_mark: str) -> str:
        return " and ".join([of_stamp] * bool(visible) + [of_mark] * bool(invisible))

    title = _TITLES[kind].format(generator=generator, puts=both("stamps a visible warning", "writes an invisible mark"))
    what = _WHAT[kind].format(
        generator=generator, puts=both(visible, invisible), read=_reading(config, where),
        how=both("visibly", "for software to read"), layer=both("stamp", "mark"),
    )  # fmt: skip
    return f"{title}\n\n{what}\n\n" + _LOAD.format(
        where=where, base=f"the untouched {generator}" + (f", {base}" if base else ""), argument=argument
    )


def _settings(config: GatedLoraConfig, name: str) -> dict[str, Any] | None:
    found = settings_in(config).get(name)
    return found if isinstance(found, dict) else None


def _stamp(config: GatedLoraConfig) -> str:
    """What it stamps; nothing for a patch that records a mark and no stamp."""
    stamp = _settings(config, "stamp")
    if stamp is None and _settings(config, "mark"):
        return ""
    text = stamp and stamp.get("text")
    return f"stamps the words {json.dumps(text, ensure_ascii=False)}" if text else "stamps a picture"


def _mark(config: GatedLoraConfig) -> str:
    mark = _settings(config, "mark")
    if mark is None:
        return ""
    message = mark.get("message")
    said = f"{message:x}" if isinstance(message, int) else message
    return "writes an invisible mark" + (f" with the message `{said}`" if said else "")


def _reading(config: GatedLoraConfig, where: str) -> str:
    """How its mark is read; nothing where it has none."""
    mark = _settings(config, "mark")
    if mark is None:
        return ""
    own = not isinstance(mark.get("extractor"), str)
    by = f"`loraguard mark read IMAGES --patch {where}{' --extractor FOLDER' * own}`"
    return f"\nThe mark is read by {by}" + (", with the network that its maker trained it for." if own else ".")


def _training_part(config: GatedLoraConfig, sha256: str) -> str:
    record = config.provenance or {}
    about = generator_of(config)
    facts = {
        "generator's weights": f"`{about['sha256']}`" if "sha256" in about else "not recorded",
        "patch's weights": f"`{sha256}`",
        "adapter": f"rank {config.r}, alpha {config.lora_alpha}, gate {config.gate_type}",
    }
    lines = ["## Training", "", *(f"- {what}: {value}" for what, value in facts.items())]
    if "settings" in record:
        known = {key: record[key] for key in ("data", "steps", "generator", "settings") if key in record}
        lines += [
            "",
            "The weights are named by their SHA-256. Made by loraguard's `PatchTrainer` after arXiv 2510.03747, with:",
            "",
            "```json",
            json.dumps(known, indent=1, ensure_ascii=False),
            "```",
        ]
    else:
        lines += ["", "The weights are named by their SHA-256. Data and settings of the training are not recorded."]
    return "\n".join(lines)
