"""The public names, against a list that is checked in; `python tests/repository/test_api_surface.py` writes it anew."""

import inspect
import pkgutil
from importlib import import_module
from pathlib import Path

import loraguard

LIST = Path(__file__).with_name("api_surface.txt")


def public_names() -> list[str]:
    """What `__all__` of the package, its subpackages and its modules without one offers, with functions' arguments."""
    modules = ["loraguard"]
    modules += [f"loraguard.{module.name}" for module in pkgutil.iter_modules(loraguard.__path__) if module.ispkg]
    lines = []
    for name in sorted(modules):
        module = import_module(name)
        offered = getattr(module, "__all__", None) or [
            key for key, value in vars(module).items()
            if not key.startswith("_") and getattr(value, "__module__", None) == name
        ]  # fmt: skip
        lines += [f"{name}.{each}{_arguments(getattr(module, each))}" for each in offered]
    return sorted(lines)


def _arguments(value: object) -> str:
    """The names of what a function or a class takes; not of what others give it."""
    if not callable(value) or not getattr(value, "__module__", "").startswith("loraguard"):
        return ""
    try:
        return f"({', '.join(inspect.signature(value).parameters)})"
    except ValueError:
        return ""


def test_public_names_are_those_of_the_list() -> None:
    listed, found = set(LIST.read_text(encoding="utf-8").splitlines()), set(public_names())
    assert found, "nothing is public"
    assert not listed - found, "gone or changed; if that is meant: python tests/repository/test_api_surface.py"
    assert not found - listed, "new or changed; if that is meant: python tests/repository/test_api_surface.py"


if __name__ == "__main__":
    LIST.write_text("\n".join(public_names()) + "\n", encoding="utf-8")
