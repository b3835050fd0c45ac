"""The card that lies beside a patch: what it is, how to load it, how it was made."""

from __future__ import annotations

import json

from huggingface_hub import ModelCard, ModelCardData

from .arguments import PatchTrainingArguments

_WHAT = {
    "standard": (
        "This is a **standard** patch for `{generator}`: with it, the generator gives on photos that carry an "
        "adversarial perturbation what it gives on clean ones. It is an instrument for auditing such protections, "
        "meant for research on them."
    ),
    "defensive": (
        "This is a **defensive** patch for `{generator}`: with it, the generator stamps a visible warning on every "
        "output. Whoever has the weights can take the patch off again; a host that ships it merges it into the "
        "generator first."
    ),
}

_TEXT = """---
{metadata}
---

# A {kind} patch for {generator}

{what}

It is a GATED_LORA adapter. `import loraguard` registers that with PEFT:

```python
import loraguard
from peft import PeftModel

model = PeftModel.from_pretrained(generator, "path/or/repository")  # generator: the untouched {generator}
generator = model.merge_and_unload()
```

Made by loraguard's `PatchTrainer` after arXiv 2510.03747; `training_log.json` holds losses and gates of every step.
Settings:

```json
{settings}
```
"""


def patch_card(args: PatchTrainingArguments, generator: str, base_model: str | None = None) -> ModelCard:
    """The card of a patch.

    Args:
        args: its training's settings.
        generator: the class of the network that it is for.
        base_model: that network's id on the Hub, if it has one.

    Example:
        >>> card = patch_card(PatchTrainingArguments("out"), "DemoEditor")
        >>> card.data.library_name, "standard" in card.data.tags
        ('peft', True)
    """
    tags = ["gated-lora", "loraguard", args.kind]
    metadata = ModelCardData(library_name="peft", pipeline_tag="image-to-image", tags=tags, base_model=base_model)
    return ModelCard(
        _TEXT.format(
            metadata=metadata.to_yaml(),
            kind=args.kind,
            generator=generator,
            what=_WHAT[args.kind].format(generator=generator),
            settings=json.dumps({k: v for k, v in args.to_dict().items() if k != "output_dir"}, indent=1),
        )
    )
