"""Whether code is of an installed package, and which version of it."""

from __future__ import annotations

import functools
import hashlib
import json
import sys
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, distribution, packages_distributions, version
from pathlib import Path
from typing import Any

OWN = __name__.partition(".")[0]


def package_of(module: Any) -> str:
    """The package of a module's name; what Cython makes may have a descriptor in place of one."""
    return module.partition(".")[0] if isinstance(module, str) else ""


@functools.cache
def _distributions(package: str) -> list[str]:
    """What was installed that holds a package; most are called as it is, so that nothing else has to be read."""
    with suppress(PackageNotFoundError, ValueError):  # the latter where code has no package
        return [distribution(package).metadata["Name"]]
    return _all_distributions().get(package, [])


@functools.cache
def _all_distributions() -> Mapping[str, list[str]]:
    return packages_distributions()


@functools.cache
def installed(module: str | None) -> bool:
    """Whether code is of Python itself or of an installed package, so that a version says what it is."""
    package = package_of(module)
    if package in sys.stdlib_module_names - {"__main__"} or package == OWN:
        return True
    names = _distributions(package)
    return bool(names) and not any(map(_is_worked_on, names))


def _is_worked_on(name: str) -> bool:
    """Whether what was installed is a folder in which somebody works: its code changes and its version does not."""
    there = distribution(name)
    editable = json.loads(there.read_text("direct_url.json") or "{}").get("dir_info", {}).get("editable", False)
    in_place = there.read_text("PKG-INFO") is not None and "-packages" not in str(there.locate_file(""))
    return bool(editable) or in_place


@functools.cache
def version_of(module: str | None) -> str:
    """The version of what code belongs to; empty for code that nobody has installed."""
    package = package_of(module)
    if package == OWN:
        return _own_code()
    if package in sys.stdlib_module_names:
        return f"{sys.version_info[0]}.{sys.version_info[1]}"
    return ",".join(sorted(version(one) for one in _distributions(package)))


@functools.cache
def _own_code() -> str:
    """Of this package the code itself: a checkout keeps its version while it changes."""
    sha = hashlib.sha256()
    for folder in ("channels", "defenses", "generators", "metrics", "stamp", "tuner"):
        for file in sorted((Path(__file__).parents[1] / folder).rglob("*.py")):
            sha.update(file.read_bytes())
    return sha.hexdigest()[:16]
