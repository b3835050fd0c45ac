"""What can be asked for by name, for `loraguard info`; read from source code, of which nothing is run."""

from __future__ import annotations

import ast
import inspect
import re
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import find_spec
from pathlib import Path

from loraguard.channels.registry import CHANNELS
from loraguard.data.registry import DATA
from loraguard.defenses.registry import DEFENSES
from loraguard.generators.registry import GENERATORS
from loraguard.registry import Registry

REGISTRIES = {"generators": GENERATORS, "data": DATA, "defenses": DEFENSES, "channels": CHANNELS}


def registered(kind: str) -> list[tuple[str, str, str]]:
    """Every name of a kind, where it comes from, and what it is in a sentence.

    Args:
        kind: "generators", "data", "defenses" or "channels".

    Example:
        >>> registered("generators")[1]
        ('stargan', 'loraguard.generators.stargan.StarGAN', 'The generator of StarGAN (Choi et al., ...')
    """
    registry = REGISTRIES[kind]
    return [(name, target.replace(":", "."), _sentence(registry, name)) for name, target in registry.targets.items()]


def _sentence(registry: Registry, name: str) -> str:
    text = docstring(*registry.targets[name].split(":", 1))
    if text is None:  # its source does not say; its class may inherit one
        try:
            text = inspect.getdoc(registry[name]) or ""
        except ImportError as error:  # somebody else's package is broken; the others are still there
            return f"cannot be imported: {error}"
    return re.sub(r":\w+:`~?(?:[\w.]*\.)?(\w+)`", r"\1", " ".join(text.partition("\n\n")[0].split()))


def docstring(module: str, attribute: str) -> str | None:
    """The docstring of a class or function as its module's source has it, or None where that does not tell.

    A module that imports the name from another leads there.

    Example:
        >>> docstring("loraguard.channels.identity", "Identity").splitlines()[0]
        'Leave images as they are: the control.'
        >>> docstring("json", "JSONDecoder").splitlines()[0]
        'Simple JSON <https://json.org> decoder'
    """
    spec = _spec(module)
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        return None
    try:
        code = ast.parse(Path(spec.origin).read_bytes())
    except (OSError, SyntaxError, ValueError):
        return None
    for node in code.body:
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)) and node.name == attribute:
            return ast.get_docstring(node)
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if (alias.asname or alias.name) == attribute:
                    package = module if spec.submodule_search_locations is not None else module.rpartition(".")[0]
                    parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
                    return docstring(".".join([*parents, *filter(None, [node.module])]), alias.name)
    return None


def _spec(module: str) -> ModuleSpec | None:
    """Where a module is, without importing the packages that it is in, as `find_spec` would."""
    top, *names = module.split(".")
    try:
        spec = find_spec(top)
    except (ImportError, ValueError):
        return None
    for end in range(1, len(names) + 1):
        if spec is None or spec.submodule_search_locations is None:
            return None
        spec = PathFinder.find_spec(".".join([top, *names[:end]]), list(spec.submodule_search_locations))
    return spec
