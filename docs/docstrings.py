"""How mkdocs reads our docstrings: an extension of griffe, named in mkdocs.yml."""

import re
from typing import Any

from griffe import Docstring, Extension, Object

SEVERAL = re.compile(r"^(    )(\w+(?:, \w+)+): (.*)$", re.MULTILINE)
ROLE = re.compile(r":(?:class|func|meth|data|attr|mod|exc):`~?(?:[\w.]+\.)?(\w+)`")


class HouseStyle(Extension):
    """Sphinx's roles become plain code, `Example:` the section that griffe knows, and `a, b: text` two arguments."""

    def on_instance(self, *, obj: Object, **kwargs: Any) -> None:
        """Called once for each object that was read."""
        if obj.name.startswith("__") and obj.name != "__call__":
            obj.public = False
        docstring: Docstring | None = obj.docstring
        if docstring is not None:
            text = ROLE.sub(r"`\1`", docstring.value)
            text = SEVERAL.sub(lambda m: "\n".join(f"{m[1]}{n}: {m[3]}" for n in m[2].split(", ")), text)
            docstring.value = re.sub(r"^(\s*)Example:\s*$", r"\1Examples:", text, flags=re.MULTILINE)
            if obj.name == "GatedLoraConfig":  # describes fields that it inherits from peft.LoraConfig, too
                quiet = {"warn_unknown_params": False, "warn_missing_types": False}
                docstring.parser_options = {**docstring.parser_options, **quiet}  # type: ignore[typeddict-item]
